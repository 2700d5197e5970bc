"""The cache of encoded data: bit-equal when nothing changed, never stale, and never torn."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from tap_hf import Backbone, DataError, Federation, Recipe, load_backbone, load_recipe
from tap_hf.data import (
    SPLITS,
    ClientData,
    ExampleReader,
    as_tensors,
    cache,
    cache_key,
    load_clients,
    read_dataset,
    write_dataset,
)
from tap_hf.models import TensorDataset, TokenSequences, joined, selected
from tests.idx_files import write_idx
from tests.notes import everyone, notes, recipe_of, write_rows


@pytest.fixture(scope="module")
def backbone(federation: Federation) -> Backbone:
    return federation.population.model.backbone


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, Backbone], int]:
    """Return a function that loads a recipe's clients and says how many rows were read for it."""
    count, read = [0], ExampleReader.read

    def counting(self: ExampleReader, row: int) -> Any:
        count[0] += 1
        return read(self, row)

    monkeypatch.setattr(ExampleReader, "read", counting)

    def load(recipe: Recipe, backbone: Backbone) -> int:
        count[0] = 0
        load_clients(recipe, backbone)
        return count[0]

    return load


def contents(clients: list[ClientData]) -> Iterator[tuple[Any, ...]]:
    """Yield everything that the clients hold, in plain values."""
    for client in clients:
        for name, held in client.tasks.items():
            for split in SPLITS:
                data = getattr(held, split)
                tensors = as_tensors(data)
                values = {key: (value.dtype, value.shape, value.numpy().tobytes()) for key, value in tensors.items()}
                backbone = (data.task, data.normalise_images, data.pad_token_id)
                yield client.id, name, split, values, backbone, list(data.targets), list(data.fingerprints), held.task


def entry() -> Path:
    """Return the folder of the one entry in the cache."""
    (folder,) = (path for path in cache.cache_folder().iterdir() if path.is_dir())
    return folder


def notes_recipe(folder: Path, count: int = 60, **changes: Any) -> Recipe:
    return recipe_of(write_rows(folder / "notes.csv", notes(count)), everyone(2), {"train": 10}, **changes)


# Hits


def test_a_hit_is_bit_equal_and_reads_no_row(
    raw: dict[str, Any], backbone: Backbone, reads: Callable[[Recipe, Backbone], int]
) -> None:
    recipe = load_recipe(raw)
    fresh = list(contents(load_clients(recipe.model_copy(update={"cache": False}), backbone)[1]))
    assert not cache.cache_folder().exists()
    assert reads(recipe, backbone) > 0
    tasks, clients = load_clients(recipe, backbone)
    assert reads(recipe, backbone) == 0
    assert list(contents(clients)) == fresh
    assert {name: task.labels for name, task in tasks.items()}["digit"] == tuple("0123456789")


@pytest.mark.slow
def test_what_is_trained_and_how_makes_no_difference(
    raw: dict[str, Any], backbone: Backbone, reads: Callable[[Recipe, Backbone], int]
) -> None:
    reads(load_recipe(raw), backbone)
    raw["training"]["local_steps"], raw["name"], raw["federation"]["rounds"] = 7, "other", 3
    assert reads(load_recipe(raw), backbone) == 0


@pytest.mark.slow
def test_a_recorded_recipe_hits_what_its_run_wrote(
    raw: dict[str, Any], backbone: Backbone, reads: Callable[[Recipe, Backbone], int]
) -> None:
    recipe = load_recipe(raw)
    reads(recipe, backbone)
    assert reads(load_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))), backbone) == 0


def test_shared_test_rows_are_one_file_and_one_object(tmp_path: Path, backbone: Backbone) -> None:
    write_rows(tmp_path / "train.csv", notes(60))
    write_rows(tmp_path / "test.csv", notes(90)[60:])
    recipe = recipe_of(tmp_path, everyone(3), {"train": 5, "test": "all"}, shared_test=True)
    for _ in range(2):
        _, clients = load_clients(recipe, backbone)
        assert len({id(client.tasks["sort"].test) for client in clients}) == 1


@pytest.mark.parametrize("file_bytes", [1, 1000, 2**20])
def test_many_clients_share_a_file(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    """Whatever it holds: what comes back is what was encoded, also joined and selected."""
    monkeypatch.setattr("tap_hf.data.cache_files.FILE_BYTES", file_bytes)
    path = write_rows(tmp_path / "notes.csv", notes(90))
    recipe = recipe_of(path, everyone(6), {"train": 5, "validation": 2, "test": 2})
    uncached = list(contents(load_clients(recipe.model_copy(update={"cache": False}), backbone)[1]))
    for _ in range(2):
        _, clients = load_clients(recipe, backbone)
        assert list(contents(clients)) == uncached
    assert (len(list(entry().glob("*.safetensors"))) == 1) == (file_bytes > 10_000)
    last = clients[-1].tasks["sort"].train
    both = joined([clients[0].tasks["sort"].train, last])
    texts = [tokens.tolist() for tokens in both.texts or ()]
    assert texts[5:] == [tokens.tolist() for tokens in last.texts or ()]
    assert selected(both, [7]).texts[0].tolist() == texts[7]  # type: ignore[index]


def test_truncated_texts_give_a_warning_each_time(
    tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(tmp_path / "notes.csv", [{"text": f"{n} note " * 90, "topic": f"{n % 2}"} for n in range(20)])
    for _ in range(2):
        caplog.clear()
        load_clients(recipe_of(path, everyone(1), {"train": 5}), backbone)
        (record,) = caplog.records
        assert "were truncated: 7 input texts of task sort" in record.getMessage()


# Misses


def change_csv(folder: Path, recipe: Recipe) -> Recipe:
    text = (folder / "notes.csv").read_text()
    (folder / "notes.csv").write_text(text.replace("note 3 ", "nota 3 "))  # of the same size
    return recipe


def changed(**sections: Any) -> Callable[[Path, Recipe], Recipe]:
    def change(folder: Path, recipe: Recipe) -> Recipe:
        raw = recipe.model_dump(mode="json")
        raw["tasks"]["sort"] |= sections.pop("task", {})
        return load_recipe(raw | sections)

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_csv,
        changed(seed=7),
        changed(examples={"train": 11, "validation": 1, "test": 1}),
        changed(clients={"c0": {"tasks": ["sort"]}, "other": {"tasks": ["sort"]}}),
        changed(task={"columns": {"text": "a {text}", "target": "topic"}}),
        changed(task={"partition": {"by": "dirichlet", "column": "topic", "alpha": 1}}),
        changed(task={"labels": {f"topic {n}": f"label {n}" for n in range(4)}}),
    ],
    ids=["row", "seed", "examples", "clients", "template", "partition", "labels"],
)
def test_what_data_depends_on_encodes_it_again(
    tmp_path: Path,
    backbone: Backbone,
    reads: Callable[[Recipe, Backbone], int],
    change: Callable[[Path, Recipe], Recipe],
) -> None:
    recipe = notes_recipe(tmp_path)
    assert (reads(recipe, backbone) > 0, reads(recipe, backbone)) == (True, 0)
    other = change(tmp_path, recipe)
    assert reads(other, backbone) > 0
    assert reads(other, backbone) == 0


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_changed_idx_file_encodes_again(
    tmp_path: Path, backbone: Backbone, reads: Callable[[Recipe, Backbone], int], suffix: str
) -> None:
    write_idx(tmp_path, suffix)
    sort = {"pair": "image__classification", "dataset": "d", "metric": "accuracy"}
    recipe = load_recipe(
        {
            "name": "digits",
            "backbone": {"name": "tiny"},
            "datasets": {"d": {"source": "idx", "path": str(tmp_path), "splits": {"train": "train", "test": "train"}}},
            "tasks": {"sort": {**sort, "columns": {"image": "image", "target": "label"}}},
            "examples": {"train": 2, "validation": 1, "test": 1},
            "clients": {"c": {"tasks": ["sort"]}},
            "federation": {"rounds": 1, "clients_per_round": 1},
        }
    )
    assert (reads(recipe, backbone) > 0, reads(recipe, backbone)) == (True, 0)
    labels = tmp_path / f"train-labels-idx1-ubyte{suffix}"
    os.utime(labels, ns=(labels.stat().st_atime_ns, labels.stat().st_mtime_ns + 1))
    assert reads(recipe, backbone) > 0


PYTHON = "def rows(): return [{{'text': f'note {{n}} {word}', 'topic': f'topic {{n % 2}}'}} for n in range(30)]"


@pytest.mark.parametrize("stream", [False, True])
def test_rows_without_a_file_are_compared(
    tmp_path: Path, backbone: Backbone, reads: Callable[[Recipe, Backbone], int], stream: bool
) -> None:
    """Rows of a function, and of a stream from a repository."""

    def put(word: str) -> None:
        if stream:
            rows = [{"text": f"note {n} {word}", "topic": f"topic {n % 2}"} for n in range(30)]
            write_rows(tmp_path / "repository" / "train.csv", rows)
        else:
            (tmp_path / "rows.py").write_text(f"# {os.urandom(4).hex()}\n" + PYTHON.format(word=word))

    raw = notes_recipe(tmp_path).model_dump(mode="json")
    raw["datasets"]["notes"] = (
        {"source": str(tmp_path / "repository"), "stream": 25}
        if stream
        else {"source": "python", "path": f"{tmp_path / 'rows.py'}:rows"}
    )
    recipe = load_recipe(raw)
    put("one")
    assert (reads(recipe, backbone) > 0, reads(recipe, backbone)) == (True, 0)
    put("one")  # other code or another time of change, the same rows
    assert reads(recipe, backbone) == 0
    put("two")
    assert reads(recipe, backbone) > 0


def test_a_fingerprint_that_does_not_change_with_the_rows_is_not_trusted(
    tmp_path: Path, backbone: Backbone, reads: Callable[[Recipe, Backbone], int]
) -> None:
    raw = notes_recipe(tmp_path).model_dump(mode="json")
    raw["datasets"]["notes"] = {"source": "python", "path": f"{tmp_path / 'rows.py'}:dataset"}
    for word in ("one", "two"):
        (tmp_path / "rows.py").write_text(
            f"from datasets import Dataset\n{PYTHON.format(word=word)}\n"
            "def dataset():\n    made = Dataset.from_list(rows())\n    made._fingerprint = 'same'\n    return made\n"
        )
        assert (reads(load_recipe(raw), backbone) > 0, reads(load_recipe(raw), backbone)) == (True, 0)


def test_a_changed_repository_encodes_again(
    tmp_path: Path, backbone: Backbone, reads: Callable[[Recipe, Backbone], int]
) -> None:
    raw = notes_recipe(tmp_path).model_dump(mode="json")
    raw["datasets"]["notes"] = {"source": str(tmp_path / "repository")}
    recipe = load_recipe(raw)
    write_rows(tmp_path / "repository" / "train.csv", notes(50))
    assert (reads(recipe, backbone) > 0, reads(recipe, backbone)) == (True, 0)
    write_rows(tmp_path / "repository" / "train.csv", notes(51))
    assert reads(recipe, backbone) > 0


@pytest.mark.parametrize("how", ["column", "feature", "folder"])
def test_a_changed_image_encodes_again(
    tmp_path: Path, backbone: Backbone, reads: Callable[[Recipe, Backbone], int], how: str, caplog: Any
) -> None:
    """Images that a table names, that a dataset of a function holds by path, and of an image folder."""
    images = tmp_path / "images" / "train"
    for n in range(12):
        (images / str(n % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * n, dtype=np.uint8)).save(images / str(n % 2) / f"{n}.bmp")
    files = sorted(images.rglob("*.bmp"))
    rows = [{"image": str(file), "label": file.parent.name} for file in files]
    write_rows(tmp_path / "table.csv", rows)
    (tmp_path / "rows.py").write_text(
        "from datasets import Dataset, Image\n"
        f"def rows(): return Dataset.from_list({rows!r}).cast_column('image', Image())\n"
    )
    section = {
        "column": {"source": "csv", "path": str(tmp_path / "table.csv")},
        "feature": {"source": "python", "path": f"{tmp_path / 'rows.py'}:rows"},
        "folder": {"source": "imagefolder", "path": str(tmp_path / "images")},
    }[how]
    sort = {"pair": "image__classification", "dataset": "d", "metric": "accuracy"}
    recipe = load_recipe(
        {
            "name": "images",
            "backbone": {"name": "tiny"},
            "datasets": {"d": section},
            "tasks": {"sort": {**sort, "columns": {"image": "image", "target": "label"}}},
            "examples": {"train": "all", "validation": 2, "test": 2},
            "clients": {"c": {"tasks": ["sort"]}},
            "federation": {"rounds": 1, "clients_per_round": 1},
        }
    )
    assert (reads(recipe, backbone), reads(recipe, backbone)) == (12, 0)
    Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8)).save(files[3])  # of the same size
    assert reads(recipe, backbone) == 12
    assert reads(recipe, backbone) == 0
    if how != "folder":
        assert f"{files[3]} has changed" in caplog.text


def test_another_tokenizer_image_size_or_backbone_encodes_again(tmp_path: Path, backbone: Backbone) -> None:
    recipe = notes_recipe(tmp_path)
    keys = {cache_key(recipe, backbone, {})}
    assert cache_key(recipe, load_backbone("tiny"), {}) in keys
    other = load_backbone("tiny")
    other.tokenizer.add_tokens(["quokka"])
    keys.add(cache_key(recipe, other, {}))
    other = load_backbone("tiny")
    other.source = "elsewhere"
    keys.add(cache_key(recipe, other, {}))
    other = load_backbone("tiny")
    other.max_text_length = 8
    keys.add(cache_key(recipe, other, {}))
    assert len(keys) == 4


def test_other_code_encodes_again(tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = notes_recipe(tmp_path)
    monkeypatch.setattr("tap_hf.data.cache_keys._CODE", [tmp_path / "code.py"])
    keys = []
    for code in ("allocate()", "allocate()", "allocate(differently)"):
        (tmp_path / "code.py").write_text(code)
        keys.append(cache_key(recipe, backbone, {}))
    assert keys[0] == keys[1] != keys[2]


def test_an_image_processor_is_known_by_what_it_does(raw: dict[str, Any], backbone: Backbone) -> None:
    other: Any = load_backbone("tiny")
    prepare = other.prepare_images
    other.prepare_images = lambda images: prepare(images)[..., ::-1].copy()
    assert cache_key(load_recipe(raw), backbone, {}) != cache_key(load_recipe(raw), other, {})


# Damage and other processes


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip(folder / "00000.safetensors"), "00000.safetensors has changed"),
        (lambda folder: os.truncate(folder / "00000.safetensors", 100), "00000.safetensors has changed"),
        (lambda folder: (folder / "00000.safetensors").unlink(), "00000.safetensors has changed"),
        (lambda folder: (folder / "index.json").unlink(), "it is damaged (FileNotFoundError"),
        (lambda folder: (folder / "index.json").write_text("{"), "it is damaged (JSONDecodeError"),
        (lambda folder: (folder / "index.json").write_text("[]"), "it is damaged (TypeError"),
    ],
)
def test_damaged_data_is_encoded_again_with_a_warning(
    tmp_path: Path,
    backbone: Backbone,
    reads: Callable[[Recipe, Backbone], int],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    recipe = notes_recipe(tmp_path)
    before = list(contents(load_clients(recipe, backbone)[1]))
    folder = entry()
    damage(folder)
    assert reads(recipe, backbone) > 0
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Encoded data in {folder} is encoded again: {reason}")
    assert reads(recipe, backbone) == 0
    assert list(contents(load_clients(recipe, backbone)[1])) == before


def test_an_aborted_attempt_leaves_nothing(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, reads: Callable[[Recipe, Backbone], int]
) -> None:
    recipe = notes_recipe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tap_hf.data.encode.joined", None)
        patch.setattr("tap_hf.data.encode._CHUNK", 3)
        with pytest.raises(TypeError):
            load_clients(recipe, backbone)
    assert not [path for path in cache.cache_folder().iterdir() if path.is_dir()]
    assert (reads(recipe, backbone) > 0, reads(recipe, backbone)) == (True, 0)


def test_what_a_killed_process_wrote_is_not_read(
    tmp_path: Path, backbone: Backbone, reads: Callable[[Recipe, Backbone], int]
) -> None:
    recipe = notes_recipe(tmp_path)
    before = list(contents(load_clients(recipe, backbone)[1]))
    folder = entry()
    flip(folder / "00000.safetensors")
    folder.rename(draft := folder.with_suffix(".draft"))
    (draft / "99999.safetensors").write_bytes(b"of no split")
    assert (reads(recipe, backbone) > 0, reads(recipe, backbone)) == (True, 0)
    assert list(contents(load_clients(recipe, backbone)[1])) == before
    assert entry() == folder
    assert not (folder / "99999.safetensors").exists()


def test_of_several_at_once_one_encodes(tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, encoded, real = notes_recipe(tmp_path), list[int](), cache.encode
    expected = list(contents(load_clients(recipe.model_copy(update={"cache": False}), backbone)[1]))

    def slow(*arguments: Any) -> Any:
        encoded.append(1)
        time.sleep(0.2)  # time for the other to come to the same point
        return real(*arguments)

    monkeypatch.setattr(cache, "encode", slow)
    with ThreadPoolExecutor(2) as pool:
        for loaded in pool.map(lambda _: load_clients(recipe, backbone), range(2)):
            assert list(contents(loaded[1])) == expected
    assert len(encoded) == 1


def test_a_cache_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    recipe = notes_recipe(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(DataError, match=r"tap_hf cannot be written \(.*Make room, .* or set `cache: false`"):
        load_clients(recipe, backbone)


# Files


def test_any_field_survives_the_way_through_a_file(tmp_path: Path, backbone: Backbone) -> None:
    data = TensorDataset(
        task="odd",
        images=torch.randint(0, 256, (4, 2, 3, 5, 6), dtype=torch.uint8),
        texts=TokenSequences([[1, 2, 3], [], [4], [5, 6]]),
        labels=torch.tensor([3, 1, 2, 0]),
        targets=["one", "", "two words", "a 日本 text\n"],
        fingerprints=[bytes([n] * 16) for n in range(4)],
        normalise_images=backbone.normalise_images,
        pad_token_id=backbone.pad_token_id,
    )
    write_dataset(data, tmp_path / "odd.safetensors")
    back = read_dataset(tmp_path / "odd.safetensors", backbone)
    for field in dataclasses.fields(data):
        mine, theirs = getattr(data, field.name), getattr(back, field.name)
        if isinstance(mine, Tensor):
            assert torch.equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        elif isinstance(mine, TokenSequences):
            assert [row.tolist() for row in mine] == [row.tolist() for row in theirs]
        else:
            assert mine == theirs


@pytest.mark.slow
def test_joined_chunks_are_what_one_chunk_would_be(
    raw: dict[str, Any], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(raw | {"cache": False})
    whole = list(contents(load_clients(recipe, backbone)[1]))
    monkeypatch.setattr("tap_hf.data.encode._CHUNK", 5)
    assert list(contents(load_clients(recipe, backbone)[1])) == whole


def anonymous_memory() -> int:
    """Return the bytes that this process holds outside of files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell memory apart")
def test_images_stay_in_their_file(tmp_path: Path, backbone: Backbone) -> None:
    images = torch.zeros((1200, 3, 128, 128), dtype=torch.uint8)
    data = TensorDataset("big", images, None, images[:0], (), [b"x"] * 1200, backbone.normalise_images, 0)
    write_dataset(data, tmp_path / "big.safetensors")
    size = images.nbytes
    del data, images
    before = anonymous_memory()
    back = read_dataset(tmp_path / "big.safetensors", backbone)
    assert back.images is not None
    assert int(back.images.sum()) == 0  # every page was read
    assert back.images.nbytes == size
    assert anonymous_memory() - before < size // 4


def test_a_hub_dataset_is_read_once_for_key_and_rows(tmp_path: Path, backbone: Backbone) -> None:
    raw = notes_recipe(tmp_path).model_dump(mode="json")
    raw["datasets"]["notes"] = {"source": str(tmp_path / "repository")}
    write_rows(tmp_path / "repository" / "train.csv", notes(50))
    loaded: dict[str, Any] = {}
    cache_key(load_recipe(raw), backbone, loaded)
    assert isinstance(loaded["notes"]["train"], Dataset)
