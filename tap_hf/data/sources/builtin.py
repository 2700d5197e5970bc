"""Real data that PyPI packages ship, for the quickstart and the tests, without a network.

Install them with `pip install "tap_hf[demo]"`.
"""

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from tap_hf.errors import DataError


def digits() -> DatasetDict:
    """Return scikit-learn's handwritten digits: `image` (8x8, grey), `digit`; 1,797 rows, all in `train`.

    Source: UCI Optical Recognition of Handwritten Digits, CC BY 4.0.
    """
    data = _import("sklearn.datasets", "scikit-learn").load_digits()
    images = [np.uint8(np.rint(image * (255 / 16))) for image in data.images]
    features = Features({"image": Image(), "digit": ClassLabel(names=[str(n) for n in range(10)])})
    return DatasetDict({"train": Dataset.from_dict({"image": images, "digit": data.target.tolist()}, features)})


def easy_vqa() -> DatasetDict:
    """Return easy-VQA: `image` (64x64), `question`, `answer`, `kind`; no image is in two splits.

    `kind` is the kind of answer: a shape, a colour, or yes/no. Source: the package `easy-vqa`, MIT. The last fifth of
    its training images is the validation split.
    """
    root = Path(_import("easy_vqa", "easy-vqa").__file__).parent / "data"
    train, test = _questions(root / "train"), _questions(root / "test")
    last = max(image_id for image_id, _ in train) * 4 // 5
    splits = {
        "train": [row for image_id, row in train if image_id <= last],
        "validation": [row for image_id, row in train if image_id > last],
        "test": [row for _, row in test],
    }
    features = Features(
        {"image": Image(), "question": Value("string"), "answer": Value("string"), "kind": Value("string")}
    )
    return DatasetDict({split: Dataset.from_list(rows, features) for split, rows in splits.items()})


def _questions(folder: Path) -> list[tuple[int, dict[str, str]]]:
    """Return each row with the number of its image."""
    rows = []
    for question, answer, image_id in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        image = str(folder / "images" / f"{image_id}.png")
        rows.append((image_id, {"image": image, "question": question, "answer": answer, "kind": _kind(answer)}))
    return rows


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "colour"


def icd10cm() -> DatasetDict:
    """Return ICD-10-CM: `description` of a disease, `chapter`, `section`; one row per code, all in `train`.

    Example row: "Typhoid meningitis", "Certain infectious and parasitic diseases", "Intestinal infectious diseases".
    Source: US government data in the package `simple-icd-10-cm`, MIT.
    """
    return DatasetDict({"train": _codes()})


@cache
def _codes() -> Dataset:
    package = "simple_icd_10_cm"
    needed_only_here = package not in sys.modules
    icd = _import(package, "simple-icd-10-cm")
    rows: dict[str, dict[str, str]] = {}
    for code in icd.get_all_codes():
        # Seven-character codes repeat their parent's description with an encounter; sections and chapters are targets.
        if icd.is_chapter_or_block(code) or icd.is_extended_subcategory(code):
            continue
        *_, section, chapter = icd.get_ancestors(code)
        description = icd.get_description(code)
        row = {"description": description, "chapter": _title(icd, chapter), "section": _title(icd, section)}
        rows.setdefault(description, row)
    if needed_only_here:  # its tree of codes is 180 MB in 600,000 objects
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
    return Dataset.from_list(list(rows.values()))


def _title(icd: Any, code: str) -> str:
    """Return a chapter's or section's title without the range of codes behind it."""
    title: str = icd.get_description(code)
    return title.rsplit(" (", 1)[0]


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f'This data comes with the package "{package}", which is not installed. Run: pip install "tap_hf[demo]"'
        ) from error


PACKAGED = {"digits": digits, "easy_vqa": easy_vqa, "icd10cm": icd10cm}
PACKAGES = {"digits": "scikit-learn", "easy_vqa": "easy-vqa", "icd10cm": "simple-icd-10-cm"}
"""The package that ships each; its version is the version of the data."""
