"""Damage to a file: its bytes, and other things in its place."""

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path


def damaged_bytes(content: bytes, draw: random.Random, flips: int = 4) -> Iterator[tuple[str, bytes]]:
    """Yield damaged contents, each with what was done."""
    for eighth in range(8):
        yield f"cut after {eighth} eighths", content[: len(content) * eighth // 8]
    for name, new in CONTENTS.items():
        yield f"that is {name}", new
    yield "with a byte order mark", b"\xef\xbb\xbf" + content
    yield "in UTF-16", content.decode(errors="replace").encode("utf-16")
    yield "with a byte that is not UTF-8", content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :]
    yield "with a NUL", content[: len(content) // 2] + b"\0" + content[len(content) // 2 :]
    yield "twice", content + content
    yield "backwards", content[::-1]
    for _ in range(flips):
        place, size = draw.randrange(len(content)), draw.choice([1, 1, 8, 64])
        noise = bytes(draw.randrange(256) for _ in range(size))
        yield f"with {size} random bytes at {place}", content[:place] + noise + content[place + size :]


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "a number": b"1" * 5000,
    "a text": b'"x"',
    "all bytes": bytes(range(256)) * 16,
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a surrogate": b'{"recipe": "\\ud800"}',
    "spaces": b" " * 100_000,
    "lines": b"\n" * 100_000,
    "lines of null": b"null\n" * 1000,
    "a pickle": b"cos\nsystem\n(S'touch $HOME/code_ran'\ntR.",
    "a zip": b"PK\x03\x04" + bytes(200),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(200),
}


def as_something_else() -> dict[str, Callable[[Path], None]]:
    """Return what can be put in a file's place, by name."""
    return {
        "missing": _away,
        "a folder": lambda file: (_away(file), file.mkdir())[0],
        "a full folder": _full_folder,
        "a pipe": lambda file: (_away(file), os.mkfifo(file))[0],
        "a socket": _socket,
        "a link to a file outside": lambda file: (_away(file), file.symlink_to("../../outside/thesis.txt"))[0],
        "a link to a folder outside": lambda file: (_away(file), file.symlink_to("../../outside"))[0],
        "a link to nothing": lambda file: (_away(file), file.symlink_to("../../outside/new"))[0],
        "a link to itself": lambda file: (_away(file), file.symlink_to(file.name))[0],
        "a link to a device": lambda file: (_away(file), file.symlink_to("/dev/zero"))[0],
        "a link to its copy": _linked_copy,
    }


def _away(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _full_folder(file: Path) -> None:
    _away(file)
    (file / "inner").mkdir(parents=True)
    (file / "inner/x.json").write_text("{}")


def _socket(file: Path) -> None:
    _away(file)
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(".", os.O_RDONLY)
        os.chdir(file.parent)  # the path of a socket has at most 108 bytes
        bound.bind(file.name)
        os.fchdir(here)
        os.close(here)


def _linked_copy(file: Path) -> None:
    copy = file.with_name("copy_of_" + file.name)
    file.rename(copy)
    file.symlink_to(copy.name)
