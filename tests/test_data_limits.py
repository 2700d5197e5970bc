"""Data files that are small but unpack to something huge, never end, or end the process that reads them."""

import gzip
import io
import os
import resource
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Image as ImageFeature, Value
from PIL import Image
from pyarrow import parquet

from tap_hf import DataError
from tap_hf.data import ExampleReader, ImageFiles, load_source, read_idx
from tap_hf.models.inputs import open_image
from tap_hf.recipe import DatasetSection


def error_of(path: Path, source: str | None = None) -> str:
    section = DatasetSection(source=source or path.suffix[1:], path=str(path))
    with pytest.raises(DataError) as caught:
        load_source("notes", section)
    return str(caught.value)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a grey PNG whose pixels are compressed to almost nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = zlib.compressobj(9)
    rows = b"".join(pixels.compress(bytes(1 + width)) for _ in range(height)) + pixels.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("null\nnull\n", "line 1: expected an object, got null"),
        ('{"text": "a"}\nnull\n', "line 2: expected an object, got null"),
        ("1\n2\n", "line 1: expected an object, got int"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "line 1: has more than 100 levels of nesting"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: has more than 100 levels of nesting"),
        ('{"a":' * 200 + "1" + "}" * 200, "line 1: has more than 100 levels of nesting"),
        ("\n".join(f'{{"key{i}": 1}}' for i in range(20_000)), "has more than 10,000 different keys up to line 10001"),
        ('[{"a": [' + ",".join(f'{{"key{i}": 1}}' for i in range(20_000)) + "]}]", "different keys up to row 0"),
        ("{nope", "is not readable as json: neither one text nor an object a line"),
        ('{"a": 1}\n{"a": ', "is not readable as json: line 2: Expecting value"),
        ('{"a": 1e999}\n{"a": 2}\n', "Number too big to be stored in double"),
        ('{"a": 1, "a": 2}\n{"a": 2}\n', "Column(/a) was specified twice in row 0"),
    ],
)
def test_json_that_arrow_cannot_survive_does_not_reach_it(tmp_path: Path, content: str, said: str) -> None:
    """The first, fourth and fifth end the process with SIGSEGV; the seventh takes minutes."""
    (tmp_path / "rows.json").write_text(content)
    assert said in error_of(tmp_path / "rows.json")


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a", "more": {"b": [1, 2]}}\n\n{"text": null, "more": null}\n',
        '[\n {"text": "a"},\n {"text": "b"}\n]\n',
        '{\n "text": "a"\n}\n',
        '\ufeff{"text": "a"}\n',
    ],
)
def test_ordinary_json_is_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    loaded = load_source("notes", DatasetSection(source="json", path=str(tmp_path / "rows.json")))
    assert loaded["train"][0]["text"] == "a"


@pytest.mark.parametrize("line", [0, 1])
def test_a_table_with_a_million_columns_is_refused_at_once(tmp_path: Path, line: int) -> None:
    lines = ["text,label", "a,b"]
    lines[line] = ",".join(["x"] * 10**6)
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (
        "has 1,000,000 columns, expected fewer. If this is what you want, set TAP_HF_COLUMNS to more than"
        in error_of(tmp_path / "rows.csv")
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_parquet_file_with_too_many_columns_or_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({f"column{i}": [1] for i in range(10_001)}), path)
    assert "has 10,001 columns, expected fewer" in error_of(path)
    monkeypatch.setattr("tap_hf.data.sources.tables._MOST_ROWS", 10**6)
    parquet.write_table(pa.table({"text": pa.repeat(pa.scalar("a"), 10**6 + 1)}), path)
    assert path.stat().st_size < 10_000  # equal rows take no space
    assert "has 1,000,001 rows, expected at most 1,000,000" in error_of(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.parquet"])
def test_a_compressed_table_is_not_unpacked(tmp_path: Path, name: str) -> None:
    """`datasets` would do so by content, whatever the name is."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"text,label\na,b\n" * 100))
    assert f"{path} is compressed (gzip). Unpack it first" in error_of(path)


def idx(shape: tuple[int, ...], values: int) -> bytes:
    head = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    return gzip.compress(head + bytes(values), 1, mtime=0)  # its time would be in the names of tests


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (idx((1, 2, 2), 200 * 2**20), r"has at least 5 values, but its header says 1 x 2 x 2"),
        (idx((2**32 - 1,) * 3, 10), r"says that it has [\d,]+ values, expected at most 4,294,967,296"),
    ],
    ids=["more values", "a huge header"],
)
def test_an_idx_file_unpacks_to_no_more_than_its_header_says(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=said):
        read_idx(path, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# ---------------------------------------------------------------- images and cells


def stored(content: bytes, folder: Path) -> Dataset:
    return Dataset.from_dict({"image": [{"bytes": content, "path": None}]}, Features({"image": ImageFeature()}))


def file_of_a_column(content: bytes, folder: Path) -> Dataset:
    (folder / "image.png").write_bytes(content)
    return Dataset.from_dict({"image": ["image.png"]})


def file_of_a_dataset(content: bytes, folder: Path) -> Dataset:
    (folder / "image.png").write_bytes(content)
    rows = {"image": [{"bytes": None, "path": str(folder / "image.png")}]}
    return Dataset.from_dict(rows, Features({"image": ImageFeature()}))


def read(dataset: Dataset, files: ImageFiles) -> None:
    ExampleReader(dataset, {"image": "image"}, "dataset notes", files).read(0)


@pytest.mark.parametrize("place", [stored, file_of_a_column, file_of_a_dataset])
def test_an_image_with_too_many_pixels_is_not_decoded(
    tmp_path: Path, place: Callable[[bytes, Path], Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = place(png(13_000, 13_000), tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"13000 x 13000 are 169,000,000 pixels, expected at most 50,000,000. If this"):
        read(dataset, ImageFiles(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    before_ = Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("TAP_HF_PIXELS", "100")
    dataset = place(png(11, 10), tmp_path)
    with pytest.raises(DataError, match="11 x 10 are 110 pixels, expected at most 100"):
        read(dataset, ImageFiles(tmp_path))
    monkeypatch.setenv("TAP_HF_PIXELS", "110")
    read(dataset, ImageFiles(tmp_path))
    assert before_ == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("place", [file_of_a_column, file_of_a_dataset])
def test_a_pipe_is_not_waited_for(tmp_path: Path, place: Callable[[bytes, Path], Dataset]) -> None:
    dataset = place(b"", tmp_path)
    (tmp_path / "image.png").unlink()
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(DataError, match="a pipe, a device or a folder"):
        read(dataset, ImageFiles(tmp_path))


@pytest.mark.parametrize("source", ["csv", "json", "parquet"])
def test_a_table_that_is_a_pipe_is_not_waited_for(tmp_path: Path, source: str) -> None:
    os.mkfifo(tmp_path / f"rows.{source}")
    assert "is a pipe or a device, expected a file" in error_of(tmp_path / f"rows.{source}")
    assert "is a pipe or a device, expected a file" in error_of(tmp_path, source)


@pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt"])
def test_a_chunk_of_an_image_does_not_unpack_to_gigabytes(tmp_path: Path, chunk: bytes) -> None:
    bomb = zlib.compressobj(9)
    packed = b"".join(bomb.compress(bytes(2**20)) for _ in range(200)) + bomb.flush()
    (tmp_path / "image.png").write_bytes(png(8, 8, (chunk, b"name\0\0" + packed)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        open_image(tmp_path / "image.png")
    except DataError as error:
        assert "is not a readable image" in str(error)  # noqa: PT017 - or it is read without the chunk
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB


def test_no_other_program_decodes_an_image(tmp_path: Path) -> None:
    """PIL runs Ghostscript for EPS, by content."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    (tmp_path / "image.png").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="cannot identify image file"):
        open_image(tmp_path / "image.png")


def test_data_of_the_hub_name_no_image_of_this_disk(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data of the Hub names the image file .*image\.png"):
        read(file_of_a_dataset(png(8, 8), tmp_path), ImageFiles(within=(), remote="hf://datasets/org/notes@"))


@pytest.mark.parametrize("columns", [{"text": "note"}, {"text": "A {note}"}])
def test_a_cell_of_ten_megabytes_is_refused(columns: dict[str, str]) -> None:
    dataset = Dataset.from_dict({"note": ["x" * 10**7]}, Features({"note": Value("string")}))
    with pytest.raises(
        DataError, match=r"the text has 10,000,\d+ characters. If this is what you want, set TAP_HF_CELL"
    ):
        ExampleReader(dataset, columns, "dataset notes").read(0)  # type: ignore[arg-type]


# ---------------------------------------------------------------- damaged Arrow and parquet files


def damaged(file: Path, rng: np.random.Generator) -> None:
    """Overwrite some bytes with what offsets and lengths must not be."""
    content = bytearray(file.read_bytes())
    for place in rng.integers(len(content), size=rng.integers(1, 4)):
        content[place : place + 4] = rng.choice([b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff\xff\xff\xff", b"\x80abc"])
    file.write_bytes(content)


def outcome_of(section: DatasetSection) -> str:
    """Return how a process ends that reads all rows: it may be killed."""
    process = os.fork()
    if not process:
        code = 3
        try:
            rows = load_source("notes", section)["train"]
            assert all(isinstance(row["note"], str | None) for row in rows)
            code = 0
        except DataError:
            code = 2
        finally:
            os._exit(code)
    status = os.waitpid(process, 0)[1]
    return {0: "read", 2: "refused"}.get(os.waitstatus_to_exitcode(status), f"status {status}")


@pytest.mark.parametrize("source", ["disk", "parquet"])
def test_a_damaged_file_of_rows_is_read_or_refused(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these stored datasets, some end the process with SIGSEGV or SIGBUS; parquet has texts that are none."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = Dataset.from_dict({"note": [f"note {n} é" for n in range(60)], "tags": [["a"] * (n % 3) for n in range(60)]})
    rows.save_to_disk(tmp_path / "disk") if source == "disk" else None
    (tmp_path / "parquet").mkdir()
    parquet.write_table(rows.data.table, tmp_path / "parquet/train.parquet", compression="none")
    rng, found = np.random.default_rng(1), []
    for number in range(12):
        copy = tmp_path / f"{source}-{number}"
        shutil.copytree(tmp_path / source, copy)
        damaged(next(file for file in copy.iterdir() if file.suffix in (".arrow", ".parquet")), rng)
        found.append(outcome_of(DatasetSection(source=source, path=str(copy))))
    assert {"refused"} <= set(found) <= {"read", "refused"}


def test_a_parquet_file_that_unpacks_to_anything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_HF_UNPACKED_BYTES", "10_000_000")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": pa.repeat(pa.scalar("a" * 10**6), 200)}), path)
    assert path.stat().st_size < 2 * 10**6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "unpacks to more than 10,000,000 bytes. If this is what you want, set TAP_HF_UNPACKED" in error_of(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
