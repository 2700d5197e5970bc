"""Data files of others: tables, images, stored datasets, IDX files."""

import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.hostile.attempt import Attempt, Command, Limits
from benchmarks.hostile.damages import as_something_else, damaged_bytes
from benchmarks.hostile.guards import EVIL
from benchmarks.hostile.originals import RECIPE, notes, write_recipe
from benchmarks.hostile.values import VALUES

_COMMANDS = (
    Command(("data", "recipe.yaml", "--json")),
    Command(("run", "recipe.yaml", "--output-dir", "run", "--json")),
    Command(("card", "run")),
)
_ROWS = [dict(zip(("note", "urgency", "ward"), line.split(","), strict=True)) for line in notes().splitlines()[1:]]
_PIXELS = bytes(place // 64 for place in range(40 * 64))
_PLACED = list(as_something_else().items())
_HEADER = "note,urgency,ward\n"


def data_attempts(draw: random.Random) -> list[Attempt]:
    """Return attempts on `data` and `run` with damaged tables, images and stored datasets."""
    table, parquet = notes().encode(), _parquet(_ROWS)
    lines = "\n".join(map(json.dumps, _ROWS)).encode()
    valid = [_table("csv", "a CSV", table), _table("json", "JSON lines", lines), _table("parquet", "parquet", parquet)]
    valid += [_image("images", _png(8, 8, grey=200)), _idx("IDX files", gzip.compress(_idx_header(40, 8, 8) + _PIXELS))]
    found = [replace(attempt, is_valid=True) for attempt in valid]
    found += [_table("csv", f"a CSV with {what}", content) for what, content in CSV.items()]
    for source, name, content in (
        ("csv", "a CSV", table),
        ("json", "JSON lines", lines),
        ("parquet", "parquet", parquet),
    ):
        damaged = list(damaged_bytes(content, draw))
        found += [_table(source, f"{name} {what}", new) for what, new in draw.sample(damaged, 14)]
        found += [_placed(source, f"{name}: {what}", put) for what, put in draw.sample(_PLACED, 4)]
    for what, value in VALUES.items():
        rows = [row | {"note": value} if n % 3 == 0 else row for n, row in enumerate(_ROWS)]
        found.append(_table("json", f"JSON lines with notes of {what}", _lines(rows)))
    found += [_image(f"an image that is {what}", content) for what, content in images()]
    found += [_image(f"an image {what}", new) for what, new in draw.sample(list(damaged_bytes(_png(8, 8), draw)), 10)]
    found += [_linked(f"an image is {what}", put) for what, put in _PLACED]
    found += [_idx(f"an IDX file {what}", content) for what, content in _idx_files(draw)]
    found += [_stored(f"a stored dataset whose {name} {what}", name, content) for name, what, content in _stores(draw)]
    return found


CSV: Mapping[str, bytes] = {
    "only a header": _HEADER.encode(),
    "one row": (_HEADER + "a,urgent,a\n").encode(),
    "one label": (_HEADER + "a b,urgent,a\n" * 40).encode(),
    "equal rows": (_HEADER + "a,urgent,a\na,calm,b\n" * 20).encode(),
    "no header": notes().partition("\n")[2].encode(),
    "a column twice": ("note,note,urgency\n" + "a,b,urgent\n" * 40).encode(),
    "a column without a name": (",urgency,ward\n" + "a,urgent,b\n" * 40).encode(),
    "a name of control characters": notes().replace("ward", "\x1b[2J\x1b]0;x\x07").encode(),
    "labels of control characters": notes().replace("calm", "\x1b[2Jcalm\u202e").encode(),
    "labels of markup": notes().replace("calm", "[bold red]x[/link]").encode(),
    "labels of 5,000 characters": notes().replace("calm", "c" * 5000).encode(),
    "a label for each row": (_HEADER + "".join(f"note {n},label {n},a\n" for n in range(5000))).encode(),
    "empty cells": (_HEADER + ",,\n" * 40).encode(),
    "cells of spaces": (_HEADER + " , , \n" * 40).encode(),
    "missing targets": (_HEADER + "a,,a\n" * 40).encode(),
    "more cells than columns": (_HEADER + "a,urgent,a,b,c\n" * 40).encode(),
    "fewer cells than columns": (_HEADER + "a\n" * 40).encode(),
    "quotes that do not end": (notes() + '"abc').encode(),
    "a cell of 10 MB": (notes() + f'"{"x " * 5_000_000}",urgent,a\n').encode(),
    "20,000 columns": (",".join(f"c{n}" for n in range(20_000)) + ",note,urgency\n" + "," * 20_001 + "\n").encode(),
    "NUL in cells": notes().replace("room", "ro\0om").encode(),
    "other ends of lines": notes().replace("\n", "\r").encode(),
    "semicolons": notes().replace(",", ";").encode(),
    "Latin-1": notes().replace("room", "r\xf6\xf6m").encode("latin-1"),
    "unpaired surrogates": notes().replace("room", "\ud800").encode("utf-8", "surrogatepass"),
    "formulas": notes().replace("urgent case", "=cmd|' /C calc'!A0").encode(),
    "numbers": (_HEADER + "".join(f"{n},{n % 2},{n}\n" for n in range(40))).encode(),
    "NaN": (_HEADER + "".join(f"nan {n},nan,nan\n" for n in range(40))).encode(),
    "huge numbers": (_HEADER + "".join(f"{10**400 + n},{n % 2},a\n" for n in range(40))).encode(),
    "Python": EVIL.encode(),
}


def _lines(rows: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def _parquet(rows: list[Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(
    width: int, height: int, *, color: int = 0, rows: int | None = None, more: bytes = b"", grey: int = 0
) -> bytes:
    """Return a PNG whose header may promise more than its data hold."""
    line = b"\0" + bytes([grey]) * min(width, 10_000)
    packed = zlib.compress(line * min(height if rows is None else rows, 10_000), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + more + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def images() -> Iterator[tuple[str, bytes]]:
    """Yield strange images, each with what it is."""
    import numpy as np
    from PIL import Image

    def saved(mode: str, kind: str, size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
        file = io.BytesIO()
        Image.new(mode, size).save(file, kind, **options)
        return file.getvalue()

    yield "a PNG of 13,000 x 13,000", _png(13_000, 13_000)
    yield "a PNG of 60,000 x 60,000", _png(60_000, 60_000)
    yield "a PNG of 2**31 - 1 x 2**31 - 1", _png(2**31 - 1, 2**31 - 1, rows=1)
    yield "a PNG of 1 x 100,000", _png(1, 100_000)
    yield "a PNG of 0 x 0", _png(0, 0)
    yield "a PNG with fewer rows than it says", _png(100, 100, rows=1)
    yield "a PNG of an unknown colour", _png(8, 8, color=5)
    yield "a PNG with a text bomb", _png(8, 8, more=_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9)))
    yield "a PNG with a wrong profile", _png(8, 8, more=_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 100)))
    yield "a GIF", saved("P", "GIF")
    yield "a TIFF", saved("RGB", "TIFF")
    yield "a TIFF of floats", _float_tiff(np.full((8, 8), np.nan, np.float32))
    yield "a BMP", saved("RGB", "BMP")
    yield "a JPEG in CMYK", saved("CMYK", "JPEG")
    yield "a PNG with an alpha channel", saved("LA", "PNG")
    yield "a PNG of 16 bits", saved("I;16", "PNG")
    yield "a PNG of one bit", saved("1", "PNG")
    yield "a picture of one pixel", saved("RGB", "PNG", (1, 1))
    yield "a JPEG cut in half", saved("RGB", "JPEG", (200, 200))[:400]
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
    yield "an SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "a PPM of a huge size", b"P6 99999 99999 255\n" + bytes(100)
    yield "a FITS", b"SIMPLE  =                    T" + b" " * 2850
    yield "a PDF", b"%PDF-1.4\n%%EOF"
    yield "an icon", saved("RGBA", "ICO", (16, 16))
    yield "a WebP", saved("RGB", "WEBP")
    yield "a TGA", saved("RGB", "TGA")


def _float_tiff(values: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


def _recipe(dataset: Mapping[str, Any], *, of_images: bool) -> dict[str, Any]:
    """Return the recipe with one task on one dataset."""
    task, client = ("digit", "scanner") if of_images else ("urgency", "clinic")
    section = RECIPE["tasks"][task] | {"dataset": "mine"}
    if of_images:
        section |= {"columns": {"image": "image", "target": "label"}}
    return RECIPE | {
        "datasets": {"mine": dict(dataset)},
        "tasks": {task: section},
        "clients": {client: {"tasks": [task]}},
        "federation": {"rounds": 1, "clients_per_round": 1},
    }


def _attempt(what: str, recipe: Any, put: Callable[[Path], None]) -> Attempt:
    def prepare(folder: Path) -> None:
        write_recipe(folder, recipe)
        put(folder)

    return Attempt(what, _COMMANDS, prepare, stops=True, limits=Limits(cpu=40))


def _table(source: str, what: str, content: bytes) -> Attempt:
    recipe = _recipe({"source": source, "path": f"mine.{source}"}, of_images=False)
    return _attempt(what, recipe, lambda folder: (folder / f"mine.{source}").write_bytes(content) and None)


def _placed(source: str, what: str, put: Callable[[Path], None]) -> Attempt:
    def prepare(folder: Path) -> None:
        (folder / f"mine.{source}").write_bytes(_parquet(_ROWS) if source == "parquet" else _lines(_ROWS))
        put(folder / f"mine.{source}")

    return _attempt(what, _recipe({"source": source, "path": f"mine.{source}"}, of_images=False), prepare)


def _write_images(folder: Path) -> Path:
    """Write two classes of images, and return one of them."""
    for label in ("light", "dark"):
        (folder / "mine" / label).mkdir(parents=True)
        for number in range(12):
            content = _png(8, 8, grey=100 * (label == "light") + number)
            (folder / "mine" / label / f"{number}.png").write_bytes(content)
    return folder / "mine/light/0.png"


def _image(what: str, content: bytes) -> Attempt:
    recipe = _recipe({"source": "imagefolder", "path": "mine"}, of_images=True)
    return _attempt(what, recipe, lambda folder: _write_images(folder).write_bytes(content) and None)


def _linked(what: str, put: Callable[[Path], None]) -> Attempt:
    """Return an attempt with an image that a table names."""

    def prepare(folder: Path) -> None:
        put(_write_images(folder))
        rows = [f"mine/{label}/{n}.png,{label}" for label in ("light", "dark") for n in range(12)]
        (folder / "mine.csv").write_text("\n".join(["image,label", *rows, "../../outside/thesis.txt,dark"]))

    return _attempt(what, _recipe({"source": "csv", "path": "mine.csv"}, of_images=True), prepare)


def _idx_files(draw: random.Random) -> Iterator[tuple[str, bytes]]:
    pictures = _idx_header(40, 8, 8) + _PIXELS
    damaged = damaged_bytes(pictures, draw)
    yield from ((f"{what}, packed", gzip.compress(content)) for what, content in list(damaged)[::8])
    yield from list(damaged_bytes(gzip.compress(pictures), draw))[::7]
    yield "that is a bomb", _bomb()
    for sizes in ((2**31, 8, 8), (40, 2**31, 2**31), (0, 0, 0), (2**32 - 1,) * 3):
        yield f"of {sizes}", gzip.compress(_idx_header(*sizes) + _PIXELS)


def _idx_header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, 3]) + struct.pack(">III", *sizes)


def _bomb() -> bytes:
    """Return gzip of 1 MB that unpacks to 2 GB: members one after another."""
    return gzip.compress(bytes(2**24), 9) * 128


def _idx(what: str, content: bytes) -> Attempt:
    def prepare(folder: Path) -> None:
        (folder / "mine").mkdir()
        (folder / "mine/train-images-idx3-ubyte.gz").write_bytes(content)
        labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 40) + bytes(n % 2 for n in range(40))
        (folder / "mine/train-labels-idx1-ubyte").write_bytes(labels)

    return _attempt(what, _recipe({"source": "idx", "path": "mine"}, of_images=True), prepare)


def _stores(draw: random.Random) -> Iterator[tuple[str, str, bytes]]:
    state = b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'
    for name in ("state.json", "dataset_info.json"):
        for what, content in list(damaged_bytes(state, draw))[::7]:
            yield name, what, content
    yield "state.json", "leads out", b'{"_data_files": [{"filename": "../../../outside/thesis.txt"}]}'
    yield "dataset_info.json", "names features that there are not", b'{"features": {"note": {"_type": "Evil"}}}'
    for what, content in list(damaged_bytes(b"ARROW1\0\0" + bytes(200), draw))[::7]:
        yield "data-00000-of-00001.arrow", what, content


def _stored(what: str, name: str, content: bytes) -> Attempt:
    def prepare(folder: Path) -> None:
        from datasets import Dataset

        Dataset.from_list(_ROWS).save_to_disk(str(folder / "mine"))
        (folder / "mine" / name).write_bytes(content)

    return _attempt(what, _recipe({"source": "disk", "path": "mine"}, of_images=False), prepare)
