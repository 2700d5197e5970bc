"""Runs a command until the process that started it ends: `python -P child.py flower-supernode ...`.

It is started as a script, because importing the package would import torch. Standard input is a pipe whose other end
only the parent holds: however the parent ends, SIGKILL included, the pipe closes.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import entry_points

_PATIENCE = 5.0  # seconds for an orderly end, in which a SuperNode signs off


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    if hasattr(os, "killpg"):  # what this process has started too
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Run the command that the arguments name, one of Flower's in this process."""
    sys.argv = sys.argv[1:]
    command = next(iter(entry_points(group="console_scripts", name=sys.argv[0])), None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if command is not None:
        code = 1
        try:
            command.load()()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        finally:  # a SuperNode whose connection was cut would wait for a thread that never ends
            sys.stdout.flush()
            os._exit(code)
    process = subprocess.Popen(sys.argv, stdin=subprocess.DEVNULL)  # noqa: S603 - the parent's own command
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    sys.exit(process.wait())


if __name__ == "__main__":
    main()
