"""Compressed files: what they are, and how much they unpack to."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tap_hf.errors import DataError
from tap_hf.limits import UNPACKED_BYTES

_BLOCK = 1 << 20
_STREAMS: Mapping[str, Callable[[str], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"PK\x07\x08": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Rar!": "rar",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x04\x22\x4d\x18": "lz4",
}


def compression_of(file: str | Path) -> str | None:
    """Return what a file is compressed with, or packed into, by its content; `None` for neither."""
    with Path(file).open("rb") as opened:
        return _format(opened.read(tarfile.BLOCKSIZE))


def _format(start: bytes) -> str | None:
    if (found := next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)) is not None:
        return found
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return "tar"


def check_unpacked(where: str, file: str, kind: str) -> None:
    """Raise unless a compressed file unpacks to a bounded size of ordinary files.

    Args:
        where: the dataset and the file, for messages.
        file: its path.
        kind: as `compression_of`.

    Raises:
        DataError: if it is of another kind, broken, larger than the limit, or holds links or archives.
    """
    limit, total = int(UNPACKED_BYTES.value), 0
    try:
        for size in _sizes(where, file, kind):
            if (total := total + size) > limit:
                raise DataError(f"{where} unpacks to more than {limit:,} bytes. {UNPACKED_BYTES.hint}")
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{where} cannot be unpacked ({kind}): {error}") from error


def _sizes(where: str, file: str, kind: str) -> Iterator[int]:
    """Yield sizes that add up to what a file unpacks to; nothing is kept of it."""
    if kind == "zip":
        with zipfile.ZipFile(file) as packed:  # `zipfile` unpacks no more than it says
            yield from (one.file_size for one in packed.infolist())
    elif kind == "tar":
        with tarfile.open(file, "r:") as members:
            for one in members:
                if not (one.isreg() or one.isdir()):
                    raise ValueError(f"{one.name} is neither a file nor a folder")
                yield one.size
    elif kind in _STREAMS:
        with _STREAMS[kind](file) as stream:
            yield from _blocks(stream)
    else:
        raise DataError(f"{where} is compressed ({kind}); expected gzip, bzip2, xz, zip or tar.")


def _blocks(stream: IO[bytes]) -> Iterator[int]:
    block = stream.read(_BLOCK)
    if (inner := _format(block[: tarfile.BLOCKSIZE])) is not None:
        raise ValueError(f"it holds an archive ({inner})")
    while block:
        yield len(block)
        block = stream.read(_BLOCK)
