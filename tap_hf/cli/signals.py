"""SIGINT (Ctrl-C) and SIGTERM: the first one lets the current step finish, the second stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tap_hf.records.events import Event, Observer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(KeyboardInterrupt):
    """A signal stopped the run; not an `Exception`, so that libraries do not catch it."""

    def __init__(self, signal_: int) -> None:
        self.signal = signal_
        super().__init__(signal.Signals(signal_).name)


@contextmanager
def stopping_between_steps(observer: "Observer", on_request: Callable[[], None]) -> Iterator["Observer"]:
    """Handle the signals, and yield an observer that stops the run at the first event after one of them.

    A run emits an event once its step is on disk, so no finished step is lost. A signal before the first event, or a
    second signal, stops at once.

    Args:
        observer: receives each event first.
        on_request: called by the first signal, if the run finishes its step.

    Raises:
        StoppedError: from the event, or at once.
    """
    begun, asked = False, 0

    def notified(event: "Event") -> None:
        nonlocal begun
        begun = True
        observer(event)
        if asked:
            raise StoppedError(asked)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not begun:
            raise StoppedError(number)
        asked = number
        on_request()

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield notified
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
