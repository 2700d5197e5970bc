"""`predictions/<client>/<task>.parquet`: what each set predicts for a client's test rows.

A row per test row, in their order, readable by `datasets.load_dataset("parquet", ...)`:

- `id`: the start of the hash of the input, equal for equal inputs.
- `target`, and a column for each set: the class, or the text.
- `<set>_probabilities`: of the classes, in half precision: half the size, and an error below 0.0005.
- `<set>_score`: the main metric, where it is a mean over rows and the output is not a class.
- `text`, `image`: the input of the ten best and the ten worst rows of the personal set; empty for all others. Of images
  that are generated, only these rows have the target and what the personal set made.

They are private like the run's other files, and never published.
"""

import heapq
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tap_hf.atomic_files import write_atomically
from tap_hf.errors import RunDirectoryError
from tap_hf.pairs import Modality
from tap_hf.records.checksums import check_files
from tap_hf.records.run_record import PREDICTIONS_FOLDER, RunRecord
from tap_hf.tasks import Task
from tap_hf.tasks.results import main_row
from tap_hf.tasks.scores import Scores

if TYPE_CHECKING:  # commands that only read need no torch
    from tap_hf.training.predictions import TaskPredictions

_PROBABILITIES, _SCORE = "_probabilities", "_score"
_MOST_BYTES = 2**30
"""Of the values of a file that is read; a run directory may be somebody else's."""
_FEATURES = "huggingface"  # where `datasets` looks for them
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class PredictedRow:
    """A test row, and what the sets say of it; images are JPEG, classes are their labels.

    Attributes:
        row: its place in the client's test data.
        id: the start of the hash of its input.
        score: of the personal set: the target's probability, or the main metric.
    """

    client: str
    task: str
    row: int
    id: str
    score: float
    target: str | bytes | None
    answers: Mapping[str, str | bytes | None]
    text: str | None
    image: bytes | None


@dataclass(frozen=True)
class KeptPredictions:
    """The predictions of a client's task, as they were kept.

    Attributes:
        sets: whose answers there are.
        scores: of the personal set, of each row; see `PredictedRow`. `None` where nothing says how good it is.
        sign: 1, or -1 where lower scores are better.
        columns: by name.
    """

    client: str
    task: Task
    sets: Sequence[str]
    scores: Scores | None
    sign: int
    columns: Mapping[str, Sequence[Any]]

    def row(self, place: int) -> PredictedRow:
        """Return one row."""
        held = {name: values[place] for name, values in self.columns.items()}
        score = 0.0 if self.scores is None else float(self.scores[place])
        return PredictedRow(
            self.client,
            self.task.name,
            place,
            held["id"],
            score,
            self._answer(held["target"]),
            {name: self._answer(held[name]) for name in self.sets},
            held.get("text"),
            _jpeg(held.get("image")),
        )

    def confusion(self) -> npt.NDArray[np.int64]:
        """Return how often the personal set answers each class (columns) to each class (rows) of a classification."""
        counts = np.zeros((len(self.task.labels),) * 2, dtype=np.int64)
        np.add.at(counts, (self.columns["target"], self.columns["personal"]), 1)
        return counts

    def _answer(self, value: Any) -> str | bytes | None:
        if self.task.pair.output is Modality.IMAGE:
            return _jpeg(value)
        return self.task.labels[value] if self.task.pair.output is None else value


def worst_rows(kept: Iterable[KeptPredictions], count: int) -> list[PredictedRow]:
    """Return the rows of a task that personal sets do worst, the worst first; none that is as it should be."""
    return [one.row(place) for _, _, place, one in heapq.nsmallest(count, _ranked(kept, wrong=True))]


def best_rows(kept: Iterable[KeptPredictions], count: int) -> list[PredictedRow]:
    """Return the rows of a task that personal sets do best, the best first; of classes, right ones only."""
    return [one.row(place) for _, _, place, one in heapq.nlargest(count, _ranked(kept, wrong=False))]


def _ranked(kept: Iterable[KeptPredictions], *, wrong: bool) -> Iterator[tuple[float, str, int, KeptPredictions]]:
    """Yield goodness, client and place of each wrong row, or of each row that may be good."""
    for one in kept:
        output = one.task.pair.output
        for place, score in enumerate(() if one.scores is None else one.scores.tolist()):
            differs = output is Modality.IMAGE or one.columns["target"][place] != one.columns["personal"][place]
            if differs == wrong or (output is not None and not wrong):
                yield one.sign * score, one.client, place, one


def predictions_file(folder: Path, client: str, task: str) -> Path:
    """Return the file of a client's task in a run directory."""
    return folder / PREDICTIONS_FOLDER / client / f"{task}.parquet"


def read_predictions(folder: Path, record: RunRecord, task: str, clients: Iterable[str]) -> list[KeptPredictions]:
    """Return the predictions of these clients, in their order, as far as the run kept them.

    Raises:
        RunDirectoryError: if a file is missing, damaged, or not one of the run's.
    """
    if not (folder / PREDICTIONS_FOLDER).is_dir():
        return []
    files = {client: predictions_file(folder, client, task) for client in clients}
    kept = {client: file for client, file in files.items() if file.relative_to(folder).as_posix() in record.files}
    if kept:
        check_files(folder, record, *(f"{PREDICTIONS_FOLDER}/{client}" for client in kept))
    return [_read(file, record, task, client) for client, file in kept.items()]


def _read(file: Path, record: RunRecord, name: str, client: str) -> KeptPredictions:
    task, main = record.tasks[name], main_row(record.results or (), client, name)
    try:
        content = pq.ParquetFile(file)
        size = sum(content.metadata.row_group(n).total_byte_size for n in range(content.metadata.num_row_groups))
        if size > _MOST_BYTES:
            raise RunDirectoryError(f"{file} has {size:,} bytes of values, expected {_MOST_BYTES:,} at most.")
        table = content.read()
        if missing := {"id", "target", "personal"}.difference(table.column_names):
            raise ValueError(f"no column {min(missing)}")
        columns = {c: table[c].to_pylist() for c in table.column_names if not c.endswith((_PROBABILITIES, _SCORE))}
        if task.pair.output is None:
            shares = np.stack(table[f"personal{_PROBABILITIES}"].to_numpy()).astype(np.float64)
            scores: Scores | None = shares[range(len(shares)), columns["target"]]
            for one in (columns["target"], columns["personal"]):
                if not 0 <= min(one) <= max(one) < len(task.labels):
                    raise ValueError("a class that the task lacks")
        else:
            scored = f"personal{_SCORE}"
            scores = table[scored].to_numpy().astype(np.float64) if scored in table.column_names else None
    except (OSError, ValueError, TypeError, KeyError, IndexError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{file} is damaged ({error}). Restore it from a copy, or run again.") from error
    sign = -1 if task.pair.output is not None and main is not None and not main.higher_is_better else 1
    sets = [one for one in (main.values if main is not None else ()) if one in columns]
    return KeptPredictions(client, task, sets, scores, sign, columns)


def _jpeg(value: Any) -> bytes | None:
    """Return the bytes of an image that this module has written."""
    content = value["bytes"] if isinstance(value, dict) else None
    return content if isinstance(content, bytes) and content.startswith(_JPEG) else None


def write_predictions(file: Path, predictions: "TaskPredictions") -> None:
    """Write a task's predictions; equal ones give equal files."""
    from datasets import Features

    columns = {name: (feature, values) for name, feature, values in _columns(predictions)}
    schema = Features({name: feature for name, (feature, _) in columns.items()}).arrow_schema
    arrays = [_array(values, schema.field(name).type) for name, (_, values) in columns.items()]
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        schema,
        compression="zstd",
        use_dictionary=[name for name in columns if not name.endswith(_PROBABILITIES)],
        use_byte_stream_split=[f"{name}.list.element" for name in columns if name.endswith(_PROBABILITIES)],
        write_statistics=False,
        store_schema=False,  # it has the features a second time
    ) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({_FEATURES: schema.metadata[_FEATURES.encode()].decode()})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, buffer.getvalue())


def _columns(found: "TaskPredictions") -> Iterator[tuple[str, Any, Any]]:
    """Yield name, feature and values of each column."""
    from datasets import ClassLabel, Image, List, Value

    output = found.task.pair.output
    makes_images = output is Modality.IMAGE
    answer: Any = ClassLabel(names=list(found.task.labels)) if output is None else Value("string")
    answer = Image() if makes_images else answer
    yield "id", Value("string"), found.ids
    if found.texts:
        yield "text", Value("string"), found.texts
    if found.images:
        yield "image", Image(), _images(found.images)
    yield "target", answer, _images(found.targets) if makes_images else found.targets
    for name, one in found.sets.items():
        if one.answers:
            yield name, answer, _images(one.answers) if makes_images else one.answers
        if one.probabilities is not None:
            yield f"{name}{_PROBABILITIES}", List(Value("float16")), one.probabilities.numpy()
        elif one.scores is not None:
            yield f"{name}{_SCORE}", Value("float32"), one.scores


def _images(images: Iterable[bytes | None]) -> list[dict[str, bytes | None] | None]:
    return [None if one is None else {"bytes": one, "path": None} for one in images]


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        ends = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.astype(np.float16).ravel()), type=kind)
    return pa.array(values, kind)
