"""A site's process that echoes requests, and does what some of them say; no model, no data."""

import os
import sys
import time
from pathlib import Path

from tap_hf.federation.engines.flower import serve


def answer(request: bytes) -> bytes:
    """Return the process id and the request."""
    print("asked", flush=True)
    word, _, argument = request.partition(b" ")
    if word == b"fail":
        raise RuntimeError(f"SECRET {argument.decode()}")
    if word == b"sleep":
        time.sleep(float(argument))
    if word == b"large":
        return bytes(int(argument))
    if word == b"time":
        return f"{time.time()} ".encode() + argument
    return str(os.getpid()).encode() + b" " + request


if __name__ == "__main__":
    server, ca, key, folder = sys.argv[1:]
    serve(answer, server, Path(ca), Path(key), Path(folder))
