"""Many inputs to predict for: the rows of a table, the pictures of a folder, or lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from tap_hf.data.examples import ExampleReader, Role
from tap_hf.data.sources.load import load_source
from tap_hf.data.sources.tables import TABLE_SUFFIXES
from tap_hf.errors import DataError, did_you_mean
from tap_hf.models.inputs import Example
from tap_hf.pairs import Modality
from tap_hf.recipe import DatasetSection

_SCALARS = (str, int, float, bool, type(None))


class PredictionInputs:
    """Rows that a task's inputs are read from.

    Args:
        rows: the rows.
        modalities: what the task takes.
        columns: the recipe's columns of the task; `image` and `text` are the columns of these names where the rows
            lack them.
        where: what the rows are called in messages.
        folder: what paths of pictures are relative to.

    Raises:
        DataError: for a column that the rows lack.
    """

    def __init__(
        self,
        rows: Dataset,
        modalities: Sequence[Modality],
        columns: Mapping[str, str] | None = None,
        where: str = "input",
        folder: Path = Path(),
    ) -> None:
        self.rows = rows
        used: dict[Role, str] = {}
        for modality in modalities:
            role: Role = "image" if modality is Modality.IMAGE else "text"
            named = (columns or {}).get(role, role)
            used[role] = role if named not in rows.column_names and role in rows.column_names else named
        self._reader = ExampleReader(rows, used, where, folder)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[list[Example]]:
        """Yield the inputs in order.

        Raises:
            DataError: for a missing value or a picture that cannot be read; the message names the row.
        """
        for start in range(0, len(self.rows), size):
            yield [self._reader.read(row) for row in range(start, min(start + size, len(self.rows)))]

    def plain(self) -> dict[str, list[Any]]:
        """Return the columns whose values are texts or numbers, as they were read."""
        found = {name: self.rows[name][:] for name in self.rows.column_names if _is_plain(self.rows, name)}
        return {name: values for name, values in found.items() if all(isinstance(one, _SCALARS) for one in values)}


def _is_plain(rows: Dataset, column: str) -> bool:
    return hasattr(rows.features[column], "dtype") and not hasattr(rows.features[column], "decode_example")


def read_inputs(path: Path, modalities: Sequence[Modality], columns: Mapping[str, str]) -> PredictionInputs:
    """Return the rows of a table, or the pictures in a folder in the order of their names.

    Raises:
        DataError: if the file has no known suffix or cannot be read, or if the folder has no picture.
    """
    if path.is_dir():
        known = Image.registered_extensions()
        files = sorted(file.name for file in path.iterdir() if file.suffix.lower() in known)
        if not files:
            raise DataError(f"{path} holds no picture. Expected files such as photo.png or scan.jpg.")
        return PredictionInputs(Dataset.from_dict({"image": files}), modalities, None, str(path), path)
    source = next((name for name, suffixes in TABLE_SUFFIXES.items() if path.suffix.lower() in suffixes), None)
    if source is None:
        known_suffixes = [suffix for suffixes in TABLE_SUFFIXES.values() for suffix in suffixes]
        raise DataError(
            f"{path} ends in none of {', '.join(known_suffixes)}{did_you_mean(path.suffix, known_suffixes)} "
            "Give such a table, a folder of pictures, or - for lines of text on standard input."
        )
    rows = load_source(path.name, DatasetSection(source=source, path=str(path)))["train"]
    return PredictionInputs(rows, modalities, columns, str(path), path.parent)


def lines_of(text: str, modalities: Sequence[Modality]) -> PredictionInputs:
    """Return each line that is not empty as one text.

    Raises:
        DataError: if there is no line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError("Standard input has no text. Give one text a line.")
    return PredictionInputs(Dataset.from_dict({"text": lines}), modalities, None, "standard input")
