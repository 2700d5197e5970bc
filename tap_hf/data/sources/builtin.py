"""Real data that PyPI packages ship: what the quickstart and the tests run on, with no network.

Install them with `pip install "tap_hf[demo]"`.
"""

import importlib
import json
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

    `kind` says what is asked for: a shape, a colour, or yes/no. Source: the package `easy-vqa`, MIT. The last fifth of
    its training images is the validation split.
    """
    root = Path(_import("easy_vqa", "easy-vqa").__file__).parent / "data"
    train, test = _questions(root / "train"), _questions(root / "test")
    last = max(train["image_id"])
    held_out = [image_id > last * 4 // 5 for image_id in train.pop("image_id")]
    test.pop("image_id")
    parts = {
        "train": {
            name: [v for v, out in zip(column, held_out, strict=True) if not out] for name, column in train.items()
        },
        "validation": {
            name: [v for v, out in zip(column, held_out, strict=True) if out] for name, column in train.items()
        },
        "test": test,
    }
    features = Features(
        {"image": Image(), "question": Value("string"), "answer": Value("string"), "kind": Value("string")}
    )
    return DatasetDict({split: Dataset.from_dict(columns, features) for split, columns in parts.items()})


def _questions(folder: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"image": [], "question": [], "answer": [], "kind": [], "image_id": []}
    for question, answer, image_id in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        columns["image"].append(str(folder / "images" / f"{image_id}.png"))
        columns["question"].append(question)
        columns["answer"].append(answer)
        columns["kind"].append(_kind(answer))
        columns["image_id"].append(image_id)
    return columns


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "colour"


def icd10cm() -> DatasetDict:
    """Return ICD-10-CM: `description` of a disease, `chapter`, `section`; one row per code, all in `train`.

    Example row: "Typhoid meningitis", "Certain infectious and parasitic diseases", "Intestinal infectious diseases".
    Source: US government data in the package `simple-icd-10-cm`, MIT.
    """
    icd = _import("simple_icd_10_cm", "simple-icd-10-cm")
    rows: dict[str, tuple[str, str]] = {}
    for code in icd.get_all_codes():
        # Seven-character codes repeat their parent's description with an encounter; sections and chapters are targets.
        if icd.is_chapter_or_block(code) or icd.is_extended_subcategory(code):
            continue
        *_, section, chapter = icd.get_ancestors(code)
        rows.setdefault(icd.get_description(code), (_title(icd, chapter), _title(icd, section)))
    return DatasetDict(
        {
            "train": Dataset.from_dict(
                {
                    "description": list(rows),
                    "chapter": [chapter for chapter, _ in rows.values()],
                    "section": [section for _, section in rows.values()],
                }
            )
        }
    )


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
"""The package that each comes with: its version is the data's."""
