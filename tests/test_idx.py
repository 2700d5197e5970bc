"""IDX files: what MNIST and Fashion-MNIST ship, and how damaged ones are named."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from tap_hf import DataError
from tap_hf.data import ExampleReader, load_idx, read_idx
from tests.idx_files import idx, write_idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_and_labels_come_as_they_were(tmp_path: Path, suffix: str) -> None:
    images = write_idx(tmp_path, suffix)
    found = load_idx("digits", str(tmp_path))
    assert {split: len(dataset) for split, dataset in found.items()} == {"train": 6, "test": 6}
    assert found["train"]["label"][:] == list(range(6))
    for row, image in enumerate(found["train"]["image"]):
        assert (np.asarray(image) == images[row]).all()
    example = ExampleReader(found["train"], {"image": "image", "target": "label"}, "digits", labels={"5": "five"}).read(
        5
    )
    assert example.target == "five"


def test_a_test_split_may_be_absent(tmp_path: Path) -> None:
    write_idx(tmp_path, prefixes=("train",))
    assert list(load_idx("digits", str(tmp_path))) == ["train"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-1], "has 119 values, but its header says 6 x 4 x 5. Was it cut off?"),
        (lambda content: content + b"\0", "has at least 121 values, but its header says 6 x 4 x 5"),
        (lambda content: content[:9], "is not an IDX file of unsigned bytes in 3 dimensions"),
        (lambda content: b"", "is not an IDX file of unsigned bytes in 3 dimensions"),
        (lambda content: b"\0\0\x0d" + content[3:], "it starts with 00000d03, expected 00000803"),
        (lambda content: idx(np.arange(6, dtype=np.uint8)), "it starts with 00000801, expected 00000803"),
        (lambda content: idx(np.zeros((0, 4, 5), dtype=np.uint8)), "has 0 values, but its header says 0 x 4 x 5"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_file_is_named(tmp_path: Path, damage, said: str, suffix: str) -> None:  # type: ignore[no-untyped-def]
    write_idx(tmp_path, suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    content = damage(gzip.decompress(path.read_bytes()) if suffix else path.read_bytes())
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError) as caught:
        load_idx("digits", str(tmp_path))
    assert str(caught.value).startswith(f'Dataset "digits": {path} ')
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 1000, mtime=0)[:-20]])
def test_a_file_that_does_not_unpack_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"x.gz cannot be read \("):
        read_idx(tmp_path / "x.gz", 3)


def test_absent_files_and_unequal_counts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'"digits": .* lacks train-images-idx3-ubyte or train-labels-idx1-ubyte'):
        load_idx("digits", str(tmp_path))
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks t10k-images-idx3-ubyte or t10k-labels-idx1-ubyte"):
        load_idx("digits", str(tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(5, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte has 6 images, but .*t10k-labels-idx1-ubyte 5 labels"):
        load_idx("digits", str(tmp_path))
