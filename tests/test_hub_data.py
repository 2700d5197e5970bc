"""Tables of the Hub: what is limited in local files is limited in them too, before `datasets` reads them."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import DatasetDict
from PIL import Image
from pyarrow import parquet

from tap_hf import DataError
from tap_hf.data import load_source
from tap_hf.recipe import DatasetSection
from tests.hub_server import HubServer

ROWS = "".join(json.dumps({"note": f"note {n}", "label": n % 2}) + "\n" for n in range(4)).encode()


@pytest.fixture
def online(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache/downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", tmp_path / "cache/extracted")
    return hub


def loaded(hub: HubServer, files: Mapping[str, bytes], stream: int | None = None) -> DatasetDict:
    hub.put("dataset org/notes", files)
    return load_source("notes", DatasetSection.model_validate({"source": "org/notes", "stream": stream}))


def tar(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize("stream", [None, 20_000])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"null\nnull\n", "line 1: expected an object, got null"),
        (ROWS + b"null\n", "line 5: expected an object, got null"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "has more than 100 levels of nesting"),
        (b"\n".join(b'{"key%d": 1}' % n for n in range(20_000)), "more than 10,000 different keys up to line 10001"),
        (b"[" * 100_000, "has more than 100 levels of nesting"),
        (b'"' + b"a" * 1000, "is not readable as json"),
    ],
    ids=["null", "null at last", "deep", "keys", "deep lists", "a text"],
)
def test_json_of_the_hub_that_arrow_cannot_survive_does_not_reach_it(
    online: HubServer, content: bytes, said: str, stream: int | None
) -> None:
    with pytest.raises(DataError, match=said):
        loaded(online, {"train.jsonl": content}, stream)


@pytest.mark.parametrize("stream", [None, 3])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", ROWS),
        ("train.json", b"[" + b",".join(ROWS.splitlines()) + b"]"),
        ("train.jsonl", b"\xef\xbb\xbf" + ROWS),
        ("train.jsonl.gz", gzip.compress(ROWS)),
        ("train.zip", zipped({"train.jsonl": ROWS})),
    ],
)
def test_ordinary_json_of_the_hub_is_read(online: HubServer, name: str, content: bytes, stream: int | None) -> None:
    rows = loaded(online, {name: content}, stream)["train"].to_list()
    assert rows == [{"note": f"note {n}", "label": n % 2} for n in range(stream or 4)]


def test_columns_that_only_some_streamed_rows_have_are_kept(online: HubServer) -> None:
    rows = loaded(online, {"train.jsonl": b'{"a": "x"}\n{"a": "y", "b": 1}\n'}, 2)["train"].to_list()
    assert rows == [{"a": "x", "b": None}, {"a": "y", "b": 1}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.csv", ",".join(["x"] * 20_000).encode() + b"\na,b\n", "has 20,000 columns, expected fewer"),
        ("train.csv.gz", gzip.compress(b"a,b\n" * 10**6), "unpacks to more than 1,000,000 bytes. If this is what you"),
        ("train.jsonl.gz", gzip.compress(ROWS + bytes(2**21)), "unpacks to more than 1,000,000 bytes"),
        ("train.zip", zipped({"train.jsonl": bytes(2**21)}), "unpacks to more than 1,000,000 bytes"),
        ("train.jsonl.gz", gzip.compress(tar(rows=ROWS)), r"holds an archive \(tar\)"),
        ("train.jsonl.gz", gzip.compress(ROWS)[:40], r"cannot be unpacked \(gzip\)"),
        ("train.jsonl", b"7z\xbc\xaf\x27\x1c" + ROWS, r"is compressed \(7z\); expected gzip"),
        ("train.h5", b"\x89HDF", "are of the format hdf5; expected one of csv, json, parquet"),
        ("train.parquet", b"PAR1" + ROWS, "is not readable as parquet"),
        ("train.arrow", b"ARROW1\0\0" + bytes(64), "nor found on the Hub"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_of_the_hub_are_bounded(
    online: HubServer, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    monkeypatch.setenv("TAP_HF_UNPACKED_BYTES", "1_000_000")
    with pytest.raises(DataError, match=said):
        loaded(online, {name: content})


def test_a_wide_table_is_not_streamed(online: HubServer) -> None:
    with pytest.raises(DataError, match="has 20,000 columns, expected fewer"):
        loaded(online, {"train.csv": ",".join(["x"] * 20_000).encode() + b"\na,b\n"}, 2)


def test_images_in_an_archive_are_read_and_their_table_is_checked(online: HubServer) -> None:
    png = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(png, "PNG")
    table = {"metadata.csv": b"file_name,kind\n1.png,round\n"}
    assert loaded(online, {"train.zip": zipped({"1.png": png.getvalue(), **table})})["train"]["kind"][:] == ["round"]
    with pytest.raises(DataError, match="line 1: expected an object, got null"):
        loaded(online, {"train.zip": zipped({"1.png": png.getvalue(), "metadata.jsonl": b"null\nnull\n"})})


def test_a_parquet_file_of_the_hub_has_a_bounded_number_of_rows(
    online: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tap_hf.data.sources.tables._MOST_ROWS", 10**6)
    file = io.BytesIO()
    parquet.write_table(pa.table({"text": pa.repeat(pa.scalar("a"), 10**6 + 1)}), file)
    with pytest.raises(DataError, match="has 1,000,001 rows, expected at most 1,000,000"):
        loaded(online, {"train.parquet": file.getvalue()})
