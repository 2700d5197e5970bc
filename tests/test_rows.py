"""Rows: which images, texts and labels are read, and how broken ones are named."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image as ImageFeature, Value
from PIL import Image

from tap_hf import DataError
from tap_hf.data import MISSING, ExampleReader, ImageFiles, column_values
from tap_hf.models import as_rgb


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def filled(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (4, 4), colour)  # type: ignore[arg-type]


def palette(colour: tuple[int, int, int], transparent: bool = False) -> Image.Image:
    image = filled("P", 0)
    image.putpalette([*colour, 9, 9, 9])
    if transparent:
        image.info["transparency"] = 0
    return image


GOOD = png(filled("RGB", (10, 20, 30)))
SIZE = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)
HUGE = GOOD[:12] + b"IHDR" + SIZE + struct.pack(">I", zlib.crc32(b"IHDR" + SIZE)) + GOOD[33:]  # a decompression bomb
NOISE = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)))


# Kinds of images


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (filled("RGB", (10, 20, 30)), (10, 20, 30)),
        (filled("L", 77), (77, 77, 77)),
        (filled("1", 1), (255, 255, 255)),
        (palette((10, 20, 30)), (10, 20, 30)),
        (palette((10, 20, 30), transparent=True), (255, 255, 255)),
        (filled("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (filled("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (filled("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
        (filled("LA", (0, 0)), (255, 255, 255)),
        (filled("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (filled("I;16", 0x8080), (128, 128, 128)),
        (filled("I", 0x8080), (128, 128, 128)),
        (filled("F", 0.5), (128, 128, 128)),
        (filled("F", 128.0), (128, 128, 128)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value[0]),
)
def test_every_kind_of_image_becomes_rgb_of_its_brightness(image: Image.Image, rgb: tuple[int, int, int]) -> None:
    converted = as_rgb(image)
    assert converted.mode == "RGB"
    assert converted.getpixel((1, 1)) == rgb


@pytest.mark.parametrize("top", [255, 65535, 10**6])
def test_grey_values_beyond_8_bits_keep_their_order_and_fill_the_range(top: int) -> None:
    ramp = np.linspace(0, top, 256).reshape(16, 16)
    grey = np.asarray(as_rgb(Image.fromarray(ramp.astype(np.int32))))[..., 0].ravel().astype(int)
    assert (np.diff(grey) >= 0).all()
    assert (grey[0], grey[-1]) == (0, 255)


def test_16_bit_files_read_back_with_their_mean(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(20_000, 30_000, (8, 8)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    read = np.asarray(as_rgb(Image.open(tmp_path / "x.png")))
    assert abs(read.mean() / 255 - values.mean() / 65535) < 0.005


def test_images_are_turned_upright_wherever_they_come_from(tmp_path: Path) -> None:
    lying = Image.new("RGB", (16, 16), "blue")
    lying.paste("red", (0, 0, 8, 16))  # red left; orientation 6 turns it clockwise: red above
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "x.jpg", exif=exif, quality=100)
    embedded = Dataset.from_dict({"image": [{"path": None, "bytes": (tmp_path / "x.jpg").read_bytes()}]})
    tables = [
        Dataset.from_dict({"image": [str(tmp_path / "x.jpg")]}),
        Dataset.from_dict({"image": [str(tmp_path / "x.jpg")]}).cast_column("image", ImageFeature()),
        embedded.cast_column("image", ImageFeature()),
    ]
    for table in tables:
        image = ExampleReader(table, {"image": "image"}, "rows").read(0).image
        assert image is not None
        top, bottom = image.getpixel((8, 2)), image.getpixel((8, 13))
        assert isinstance(top, tuple)
        assert isinstance(bottom, tuple)
        assert (top[0] > 200, top[2] < 60, bottom[0] < 60, bottom[2] > 200) == (True, True, True, True)


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    table = Dataset.from_dict({"image": [str(tmp_path / "x.gif")]})
    image = ExampleReader(table, {"image": "image"}, "rows").read(0).image
    assert image is not None
    assert image.getpixel((1, 1)) == (255, 0, 0)


# Broken and missing values


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no image",
        GOOD[:20],
        NOISE[: len(NOISE) // 2],
        NOISE[:100] + b"\0" * 50 + NOISE[150:],
        GOOD.replace(b"IDAT", b"\1\2\3\4"),
        HUGE,
    ],
    ids=["empty", "text", "header", "half", "damaged", "chunk", "huge"],
)
@pytest.mark.parametrize("stored_as", ["bytes", "path"])
def test_a_corrupt_image_is_named_by_dataset_row_and_column(tmp_path: Path, broken: bytes, stored_as: str) -> None:
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    for file, content in zip(files, (GOOD, broken), strict=True):
        file.write_bytes(content)
    if stored_as == "path":
        dataset = Dataset.from_dict({"scan": [file.name for file in files]})
    else:
        values = [{"bytes": file.read_bytes(), "path": None} for file in files]
        dataset = Dataset.from_dict({"scan": values}, Features({"scan": ImageFeature()}))
    reader = ExampleReader(dataset, {"image": "scan"}, 'dataset "scans", split train', ImageFiles(tmp_path))
    assert reader.read(0).image is not None
    with pytest.raises(DataError, match='dataset "scans", split train, row 1, column "scan": '):
        reader.read(1)


@pytest.mark.parametrize("path", ["absent.png", ".", ""])
def test_a_path_to_no_image_is_named(tmp_path: Path, path: str) -> None:
    reader = ExampleReader(Dataset.from_dict({"scan": [path]}), {"image": "scan"}, "scans", ImageFiles(tmp_path))
    with pytest.raises(DataError, match=r'scans, row 0, column "scan": .*not a readable image'):
        reader.read(0)


def test_a_missing_image_and_one_of_another_type_are_named() -> None:
    dataset = Dataset.from_dict({"scan": [None]}, Features({"scan": ImageFeature()}))
    with pytest.raises(DataError, match='row 0, column "scan": expected an image or its path, got nothing'):
        ExampleReader(dataset, {"image": "scan"}, "scans").read(0)
    with pytest.raises(DataError, match='row 0, column "scan": expected an image or its path, got list'):
        ExampleReader(Dataset.from_dict({"scan": [[[0, 1]]]}), {"image": "scan"}, "scans").read(0)


@pytest.mark.parametrize("role", ["text", "target"])
@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_missing_text_is_named(role: str, value: str | None) -> None:
    dataset = Dataset.from_dict({"text": ["fine", "fine"], "target": ["fine", "fine"], role: ["fine", value]})
    reader = ExampleReader(dataset, {"text": "text", "target": "target"}, "notes")
    assert reader.read(0).target == "fine"
    with pytest.raises(DataError, match=f'notes, row 1, column "{role}": the {role} is empty'):
        reader.read(1)


def test_a_list_is_no_text() -> None:
    reader = ExampleReader(Dataset.from_dict({"answers": [["yes", "no"]]}), {"text": "answers"}, "notes")
    with pytest.raises(DataError, match='row 0, column "answers": expected a text or number, got list'):
        reader.read(0)


def test_an_unknown_column_is_named_with_those_that_exist() -> None:
    with pytest.raises(DataError, match='notes has no column "txt" for the text, it has text, label'):
        ExampleReader(Dataset.from_dict({"text": ["a"], "label": ["b"]}), {"text": "txt"}, "notes")


def test_hidden_labels_are_no_class() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, None]}, features)
    reader = ExampleReader(dataset, {"text": "text", "target": "label"}, "notes")
    assert reader.read(0).target == "dog"
    with pytest.raises(DataError, match=r'row 1, column "label": the row is not labelled \(-1\)'):
        reader.read(1)
    with pytest.raises(DataError, match='row 2, column "label": the target is empty'):
        reader.read(2)
    assert column_values(dataset, "label") == ["dog", MISSING, MISSING]


# Fingerprints


def test_a_fingerprint_depends_on_the_input_and_on_nothing_else() -> None:
    features = Features({"image": ImageFeature(), "text": Value("string"), "target": Value("string")})
    image, other = png(filled("RGB", (1, 2, 3))), png(filled("RGB", (1, 2, 4)))
    rows = [(image, "a", "x"), (image, "a", "y"), (image, "b", "x"), (other, "a", "x")]
    images, texts, targets = zip(*rows, strict=True)
    dataset = Dataset.from_dict(
        {"image": [{"bytes": i, "path": None} for i in images], "text": texts, "target": targets}, features
    )
    reader = ExampleReader(dataset, {"image": "image", "text": "text", "target": "target"}, "rows")
    first, same, other_text, other_image = (reader.read(row).fingerprint for row in range(4))
    assert first == same
    assert len({first, other_text, other_image}) == 3
