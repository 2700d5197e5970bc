"""Run an attempt in a forked process, and judge how it ended."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from benchmarks.hostile.attempt import Attempt, Command, Finding, Limits, Outcome
from benchmarks.hostile.guards import MARKER, watch
from benchmarks.hostile.home import OTHER_HOST_FILE, TOKEN, at_home
from benchmarks.hostile.values import SCRIPT

_MIB = 2**20
SAID = "inside/said"
"""A folder with the exit code, the output and the messages of each command."""
_KEPT = "what the user has worked on\n"
_DOCUMENTED = (0, 2)
_ECHO = ("recipes",)  # prints its input
_LONGEST_MESSAGE = 20_000  # characters
_OBEYED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NOT_FINITE = re.compile(r"(?<![\w./\"-])[-+]?(nan|inf|infinity)%?(?![\w./\"-])", re.IGNORECASE)


def run_attempt(kind: str, number: int, attempt: Attempt, kept: Path | None = None) -> Finding:
    """Run an attempt in a new folder.

    Args:
        kind: of the attempt.
        number: of the attempt in its kind.
        attempt: what to do.
        kept: where its folder stays; by default it is deleted.
    """
    with tempfile.TemporaryDirectory(prefix="hostile-") as temporary:
        root = Path(temporary)
        for name in ("outside", "inside", "inside/work", "inside/home", SAID):
            (root / name).mkdir()
        (root / "outside/thesis.txt").write_text(_KEPT)
        started = time.monotonic()
        with _served(attempt, root) as endpoint:
            status, peak = _run_commands(attempt, root, endpoint)
        outcome, reason = max(_findings(attempt, root, status, peak), key=lambda one: list(Outcome).index(one[0]))
        if kept is not None:
            shutil.copytree(root, kept, symlinks=True, ignore=_pipes)
        _make_removable(root)
    return Finding(kind, number, attempt.what, outcome, reason, time.monotonic() - started, peak)


def _make_removable(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o700)


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


@contextlib.contextmanager
def _served(attempt: Attempt, root: Path) -> Iterator[str | None]:
    """Start the attempt's server in a process of its own; yield its address."""
    if attempt.serve is None:
        yield None
        return
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(reader)
            sys.stderr = (root / "server.log").open("w")
            server = attempt.serve(root / "inside")
            os.write(writer, f"http://127.0.0.1:{server.server_address[1]}".encode())
            os.close(writer)
            server.serve_forever()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        endpoint = pipe.read()
    if not endpoint:
        raise RuntimeError(f"the server of {attempt.what} did not start: {(root / 'server.log').read_text()}")
    try:
        yield endpoint
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _run_commands(attempt: Attempt, root: Path, endpoint: str | None) -> tuple[int, float]:
    """Return the exit status of the attempt's process, and the MiB that it had beyond its parent's memory."""
    process = os.fork()
    if not process:
        _child(attempt, root, endpoint)
    deadline = time.monotonic() + attempt.limits.wall
    while not (ended := os.wait4(process, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGKILL)
            ended = os.wait4(process, 0)
            break
        time.sleep(0.003)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it left behind
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return ended[1], max(0, ended[2].ru_maxrss - own) / 1024


def _child(attempt: Attempt, root: Path, endpoint: str | None) -> None:
    """Run the commands and end this process; each leaves its exit code, output and messages in files."""
    code = 70
    try:
        os.setsid()
        work = root / "inside/work"
        os.chdir(work)
        attempt.prepare(work)
        at_home(root / "inside/home", endpoint)
        _limit(attempt.limits)
        watch(root / "inside", os.open(root / "violations", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for place, command in enumerate(attempt.commands):
            if _run_command(command, root, place) != 0 and attempt.stops:
                break
        code = 0
    except BaseException:
        (root / "broken").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _limit(limits: Limits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2 * limits.memory * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_command(command: Command, root: Path, place: int) -> int:
    from tap_hf.cli import app

    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(root / SAID / f"{place}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    code = 1
    try:
        sys.argv = ["tap-hf", *command.arguments]
        app.main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    (root / SAID / f"{place}.code").write_text(str(code))
    return code


def _findings(attempt: Attempt, root: Path, status: int, peak: float) -> Iterator[tuple[Outcome, str]]:
    """Yield all that is known about how the attempt ended."""
    yield Outcome.CLEAN, ""
    if (broken := root / "broken").exists():
        raise RuntimeError(f"{attempt.what} is broken itself: {broken.read_text()}")
    for line in (root / "violations").read_text().splitlines() if (root / "violations").exists() else ():
        outcome, _, reason = line.partition(" ")
        yield Outcome(outcome), reason
    if (root / "inside/home" / MARKER).exists():
        yield Outcome.EXECUTED, "the input's code ran"
    outside = sorted(path.name for path in (root / "outside").iterdir())
    if outside != ["thesis.txt"] or (root / "outside/thesis.txt").read_text() != _KEPT:
        yield Outcome.OUTSIDE, f"the folder beside is changed: {outside}"
    if (told := root / "inside" / OTHER_HOST_FILE).exists() and TOKEN in told.read_text():
        yield Outcome.OUTSIDE, "another host got the token"
    for page in (root / "inside/work").glob("*.html"):
        if SCRIPT in page.read_text(errors="replace"):
            yield Outcome.EXECUTED, f"{page.name} has a script of the input"
    if peak > attempt.limits.memory:
        yield Outcome.HANG, f"used {peak:.0f} MiB"
    for place, command in enumerate(attempt.commands):
        if not (root / SAID / f"{place}.out").exists():
            return
        shown = shown_command(command)
        out, err = ((root / SAID / f"{place}.{name}").read_text(errors="replace") for name in ("out", "err"))
        if not (root / SAID / f"{place}.code").exists():
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            hung = number in (signal.SIGKILL, signal.SIGXCPU)
            yield Outcome.HANG if hung else Outcome.TRACEBACK, f"{shown}: died of signal {number}; said {err[-300:]!r}"
            return
        code = int((root / SAID / f"{place}.code").read_text())
        if attempt.is_valid and code:
            raise RuntimeError(f"{attempt.what}: {shown} ended with {code}: {err}")
        yield from ((outcome, f"{shown}: {reason}") for outcome, reason in _judged(command, code, out, err))


def shown_command(command: Command) -> str:
    """Return a command as it is typed."""
    return f"tap-hf {' '.join(command.arguments)}"[:200]


def _judged(command: Command, code: int, out: str, err: str) -> Iterator[tuple[Outcome, str]]:
    """Yield what is wrong with a command that ended by itself."""
    everything = out + err
    if "Traceback (most recent call last)" in everything:
        last = err.strip().splitlines()[-1][:300] if err.strip() else ""
        yield Outcome.HANG if "MemoryError" in last else Outcome.TRACEBACK, last
        return
    if code not in _DOCUMENTED:
        yield Outcome.TRACEBACK, f"exit code {code}: {err[-300:]}"
    elif code and (blocks := len(re.findall(r"^(?:Error:|╭─ Error)", err, re.MULTILINE))) != 1:
        yield Outcome.TRACEBACK, f"{blocks} messages: {err[-300:]!r}"
    if found := _OBEYED.search(everything):
        yield Outcome.WRONG, f"wrote {found[0]!r} to the terminal"
    if len(err) > _LONGEST_MESSAGE:
        yield Outcome.WRONG, f"a message of {len(err)} characters: {err[:80]!r}"
    if code == 0:
        if command.arguments[0] not in _ECHO and (found := _NOT_FINITE.search(out)):
            yield Outcome.WRONG, f"succeeded with {out[max(0, found.start() - 60) : found.end()]!r}"
        if command.expected is not None and _comparable(out) != _comparable(command.expected):
            yield Outcome.WRONG, f"succeeded with another answer: {out[:200]!r}"


def _comparable(text: str) -> object:
    """Return the results that a command prints; of others, all."""
    try:
        values = json.loads(text)
    except ValueError:
        return text
    return values["results"] if isinstance(values, dict) and "results" in values else values
