"""A first recipe for a folder of one's own: what its columns may mean, as a guess to correct."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from datasets import Dataset, Image

from tap_hf.data.sources.load import load_source
from tap_hf.data.sources.tables import TABLE_SUFFIXES
from tap_hf.errors import DataError, did_you_mean
from tap_hf.pairs import NAME_PATTERN
from tap_hf.recipe import DatasetSection

Role = Literal["image", "text", "target", "client"]
QUESTIONS: Mapping[Role, str] = {
    "image": "column of pictures",
    "text": "column of texts that go in",
    "target": "column to predict",
    "client": "column that says whose a row is",
}

_LOOKED_AT = 5_000  # rows
_NAMES: Mapping[Role, Sequence[str]] = {
    "target": ("target", "label", "class", "category", "finding", "diagnosis", "answer", "summary", "output", "y"),
    "client": (
        "client",
        "site",
        "hospital",
        "clinic",
        "centre",
        "center",
        "user",
        "store",
        "region",
        "device",
        "source",
    ),
    "text": ("text", "note", "question", "sentence", "review", "comment", "title", "description", "content", "input"),
    "image": ("image", "picture", "photo", "img", "file", "file_name", "path"),
}
_PICTURE = re.compile(r".+\.(png|jpe?g|bmp|gif|webp|tiff?)", re.IGNORECASE)
_MOST_CLASSES, _MOST_CLIENTS = 200, 50
_FEWEST_ROWS = 10  # of a client
_WITHOUT_COLUMN = ("first", "second", "third")  # clients of data that name none


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        is_image: pictures, or names of files of such.
        values: how often each occurs, most frequent first; empty for images.
        words: of a value, mean.
    """

    is_image: bool
    values: Mapping[str, int]
    words: float

    def __str__(self) -> str:
        if self.is_image:
            return "pictures"
        few = ", ".join(value if len(value) <= 20 else f"{value[:19]}…" for value in list(self.values)[:3])
        return f"{len(self.values):,} values, such as {few}"


@dataclass(frozen=True)
class Table:
    """The rows of a folder or file, looked at."""

    path: Path
    source: str
    rows: int
    columns: Mapping[str, Column]

    @property
    def name(self) -> str:
        """The name of the dataset in the recipe."""
        return _as_name(self.path.stem)


@dataclass(frozen=True)
class Draft:
    """A recipe: its text, and the reasons of its choices."""

    text: str
    reasons: Sequence[str]


def look_at(path: Path) -> Table:
    """Return what is in a table, or in a folder of a table or of pictures.

    Raises:
        DataError: if there is nothing that a recipe can read, or more than one table.
    """
    if not path.exists():
        raise DataError(f"There is no {path}. Expected a folder of pictures, or a CSV, JSON or Parquet file.")
    found, source = _table_in(path) if path.is_dir() else (path, _format_of(path))
    if source is None:
        known = ", ".join(suffix for suffixes in TABLE_SUFFIXES.values() for suffix in suffixes)
        raise DataError(f"{path} is not a table. Expected a folder of pictures, or a file that ends in {known}.")
    rows = load_source(found.stem, DatasetSection(source=source, path=str(found)))["train"]
    return Table(found, source, len(rows), {name: _look(rows, name) for name in rows.column_names})


def _format_of(file: Path) -> str | None:
    return next((kind for kind, suffixes in TABLE_SUFFIXES.items() if file.suffix.lower() in suffixes), None)


def _table_in(folder: Path) -> tuple[Path, str]:
    """Return the one table of a folder, or the folder if it is one of pictures, and the source that reads it."""
    tables = sorted(file for file in folder.iterdir() if _format_of(file) is not None and file.is_file())
    if [file.name for file in tables] in ([], ["metadata.csv"], ["metadata.jsonl"]):
        return folder, "imagefolder"
    formats = {_format_of(file) for file in tables}
    splits = {"train", "validation", "valid", "test"}
    if len(tables) > 1 and not (len(formats) == 1 and all(file.stem.partition("-")[0] in splits for file in tables)):
        names = ", ".join(file.name for file in tables[:5])
        raise DataError(f"{folder} has {len(tables)} tables ({names}). Name one of them, such as {tables[0]}.")
    return (tables[0] if len(tables) == 1 else folder), str(_format_of(tables[0]))


def _look(rows: Dataset, name: str) -> Column:
    feature = rows.features[name]
    if isinstance(feature, Image):
        return Column(True, {}, 0.0)
    names = getattr(feature, "names", None)
    held = [value for value in rows.select(range(min(len(rows), _LOOKED_AT)))[name] if value is not None]
    texts = [names[value] if names else str(value) for value in held]
    if texts and all(map(_PICTURE.fullmatch, texts[:100])):
        return Column(True, {}, 0.0)
    words = sum(len(text.split()) for text in texts[:500]) / max(1, len(texts[:500]))
    return Column(False, dict(Counter(texts).most_common()), words)


def guess(table: Table, given: Mapping[Role, str]) -> dict[Role, str]:
    """Return the column of each role, those that are given first; what cannot be guessed is left out.

    Raises:
        DataError: if there is no such column.
    """
    for role, column in given.items():
        if column not in table.columns:
            raise DataError(f'{table.path} has no column "{column}" for --{role}{did_you_mean(column, table.columns)}')
    found = dict(given)

    def take(role: Role, candidates: Sequence[str]) -> None:
        free = [name for name in candidates if name not in found.values()]
        named = [name for known in _NAMES[role] for name in free if name.lower() == known]
        if role not in found and (named or free):
            found[role] = (named or free)[0]

    texts = {name: one for name, one in table.columns.items() if not one.is_image and one.values}
    take("image", [name for name, one in table.columns.items() if one.is_image])
    groups = [n for n, one in texts.items() if 1 < len(one.values) <= _MOST_CLIENTS and n.lower() in _NAMES["client"]]
    take("client", groups)
    named = [name for known in _NAMES["target"] for name in texts if name.lower() == known]
    classes = [name for name, one in texts.items() if 1 < len(one.values) <= min(_MOST_CLASSES, table.rows // 4)]
    take("target", [*named, *sorted(classes, key=lambda name: len(texts[name].values))])
    long = sorted((n for n, one in texts.items() if one.words > 1.5), key=lambda name: -texts[name].words)
    take("text", [*(n for n in texts if n.lower() in _NAMES["text"]), *long])
    return {role: found[role] for role in QUESTIONS if role in found}


def draft(table: Table, columns: Mapping[Role, str]) -> Draft:
    """Return a recipe for a table with these columns.

    Raises:
        DataError: if a target or an input is missing.
    """
    known = ", ".join(f"{name} ({one})" for name, one in table.columns.items())
    for role, what in (("target", "what to predict"), ("image", "an input")):
        if role not in columns and not (role == "image" and "text" in columns):
            flags = "--target COLUMN" if role == "target" else "--image COLUMN or --text COLUMN"
            raise DataError(f"{table.path} has no column that is clearly {what}. Name it: {flags}. It has {known}.")
    inputs = [role for role in ("image", "text") if role in columns]
    target = table.columns[columns["target"]]
    is_class = len(target.values) <= min(_MOST_CLASSES, max(2, table.rows // 4))
    if not is_class and inputs == ["image"]:
        raise DataError(
            f'The column "{columns["target"]}" has {len(target.values):,} values, too many for classes, and a text is '
            "written only for inputs with a text. Name another --target, or a --text."
        )
    pair = f"{'_'.join(inputs)}__{'classification' if is_class else 'generation'}"
    lines = list(_lines(table, columns, pair, is_class=is_class))
    reasons = [f"{role}: column {column} ({table.columns[column]})" for role, column in columns.items()]
    return Draft("\n".join(lines) + "\n", [*reasons, f"pair: {pair}"])


def _lines(table: Table, columns: Mapping[Role, str], pair: str, *, is_class: bool) -> Iterator[str]:
    task = _as_name(columns["target"])
    used = {role: column for role, column in columns.items() if role != "client"}
    values = table.columns[columns["client"]].values if "client" in columns else {}
    held = {value: count for value, count in values.items() if count >= _FEWEST_ROWS}
    if "client" in columns and len(held) < 2:
        raise DataError(
            f'The column "{columns["client"]}" has not two values with {_FEWEST_ROWS} rows each. Name another --client.'
        )
    clients = _clients(held) if held else dict.fromkeys(_WITHOUT_COLUMN)
    partition: dict[str, Any] = {"by": "column", "column": columns["client"]} if held else {"by": "iid"}
    if not held and is_class:
        partition = {"by": "dirichlet", "column": columns["target"], "alpha": 0.5}
    yield f"# A first recipe for {_comment(table.path.name)}, written by `tap-hf init`: every line may be changed."
    yield "# recipes/README.md explains all sections; `tap-hf data` shows which client has which rows."
    yield f"name: {_as_name(table.path.stem)}"
    yield ""
    yield "backbone: {name: tiny}  # for real work: openai/clip-vit-base-patch32, facebook/flava-full, or a folder"
    yield "lora: {default: {rank: 8, alpha: 16, dropout: 0.1}}"
    yield ""
    yield "datasets:"
    yield f"  {table.name}: {_flow({'source': table.source, 'path': _shown_path(table.path)})}  # {table.rows:,} rows"
    yield ""
    yield "tasks:"
    yield f"  {task}:"
    yield f"    pair: {pair}  # what goes in, and what comes out"
    yield f"    dataset: {table.name}"
    yield f"    columns: {_flow(used)}"
    why = "a client's rows" if held else "the clients' mixes of classes differ" if is_class else "any rows"
    yield f"    partition: {_flow(partition)}  # {why}"
    yield f"    metric: {'[accuracy, macro_f1]' if is_class else '[rouge_l, exact_match]'}"
    yield ""
    yield "# Rows of each client: 15 % for its replacement decisions, 15 % for its test, and of the rest at most 1,000."
    yield "examples: {train: {at_most: 1000}, validation: 0.15, test: 0.15}"
    yield (
        "clients:"
        if held
        else f"clients:  # the data name none (--client COLUMN), so they are shared out to {len(clients)}"
    )
    for client, value in clients.items():
        own = {"tasks": [task]} | ({} if value in (None, client) else {"values": [value]})
        yield f"  {client}: {_flow(own)}"
    if left := sorted(values.keys() - held.keys()):
        yield f"# left out, with fewer than {_FEWEST_ROWS} rows: {', '.join(map(_comment, left[:10]))}"
    yield ""
    yield f"federation: {{rounds: 5, clients_per_round: {min(len(clients), 5)}}}"
    yield "training: {local_steps: 12, batch_size: 16, gradient_accumulation_steps: 1}"
    yield "algorithm: {replacement: {margin: 0.01, relative: true}, distillation: {weight: 1.0}, final: {steps: 32}}"


def _clients(values: Mapping[str, int]) -> dict[str, str | None]:
    """Return an id for each value of the clients' column."""
    found: dict[str, str | None] = {}
    for value in values:
        name = _as_name(value)
        while name in found:
            name += "_"
        found[name] = value
    return found


def _as_name(text: str) -> str:
    """Return a name for recipes that is like a text."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40]
    return name if NAME_PATTERN.fullmatch(name) else f"c_{name}"


def _flow(values: Any) -> str:
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9).strip()


def _comment(text: str) -> str:
    return " ".join(text.split())[:40]


def _shown_path(path: Path) -> str:
    """Return a path as a recipe in this folder names it."""
    here, whole = Path.cwd(), path.resolve()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else str(whole)
