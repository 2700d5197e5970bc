"""The progress of a run on the terminal."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from tap_hf.records.events import (
    ClientEvaluated,
    ClientFinalized,
    ClientUpdated,
    Event,
    Resumed,
    RoundStarted,
    UpdateRefused,
)


class RunProgress:
    """Shows a run's events: bars over rounds and clients, and one line for each refused update."""

    def __init__(self, rounds: int, cohort: int, finalized: int, evaluated: int, console: Console) -> None:
        self._rounds = rounds
        self._cohort = cohort
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        add = self._progress.add_task
        self._stage1 = add("loading backbone and data", total=rounds * cohort)
        self._stage2 = add("stage 2", total=finalized, start=False)
        self._evaluation = add("evaluation", total=evaluated, start=False)

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say_stopping(self) -> None:
        """Show that the run will stop after the current client."""
        self._progress.console.print("stopping after this client; press again to stop at once", style="yellow")

    def __call__(self, event: Event) -> None:
        """Show one event of the run."""
        match event:
            case RoundStarted():  # a cohort may be smaller than the recipe says
                done, total = event.round * len(event.cohort), self._rounds * len(event.cohort)
                self._progress.update(self._stage1, completed=done, total=total)
            case Resumed():
                self._progress.update(self._stage1, completed=(event.round + 1) * self._cohort)
            case ClientUpdated() | UpdateRefused():
                where = f"round {event.round + 1}"
                if isinstance(event, UpdateRefused):
                    self._warn(f"{where}: update of {event.client} refused:", event.reason)
                self._advance(self._stage1, f"stage 1 · {where}/{self._rounds} · {event.client}")
            case ClientFinalized():
                if event.diverged:
                    self._warn(f"{event.client}: after the last round, {', '.join(event.diverged)} diverged")
                self._advance(self._stage2, f"stage 2 · {event.client}")
            case ClientEvaluated():
                self._advance(self._evaluation, f"evaluation · {event.client}")

    def _warn(self, what: str, reason: str = "") -> None:
        self._progress.console.print(Text.assemble((what, "yellow"), f" {reason}" if reason else ""))

    def _advance(self, bar: TaskID, description: str) -> None:
        self._progress.start_task(bar)
        self._progress.update(bar, advance=1, description=description)
