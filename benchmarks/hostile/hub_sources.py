"""What a recipe names on the Hub: backbones with their tokenizers, and datasets with their archives."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.hostile.attempt import Attempt, Command, Limits
from benchmarks.hostile.damages import damaged_bytes
from benchmarks.hostile.data_files import images
from benchmarks.hostile.guards import EVIL
from benchmarks.hostile.originals import RECIPE, notes, write_recipe
from benchmarks.hostile.repositories import serving
from benchmarks.hostile.values import edited
from tap_hf.models.backbones.tiny import checkpoint_dir

_SMALL = 2**20  # bytes that a file unpacks to, in these attempts
_RUN = Command(("run", "recipe.yaml", "--output-dir", "run", "--json"))
_DATA = Command(("data", "recipe.yaml", "--json"))
_TEXTS: dict[str, Any] = {
    "tasks": {"urgency": RECIPE["tasks"]["urgency"]},
    "clients": {"clinic": {"tasks": ["urgency"]}},
    "federation": {"rounds": 1, "clients_per_round": 1},
}
_BACKTRACKING = {"type": "Split", "pattern": {"Regex": "((a+)+)+$"}, "behavior": "Isolated", "invert": False}
_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"

TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    "a pre-tokenizer that backtracks": {"pre_tokenizer": _BACKTRACKING},
    "a normalizer that backtracks": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(.*)*.*x"}, "content": "y"}
    },
    "a normalizer that prepends 1 MB": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "a normalizer that grows": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "ab" * 20}] * 4,
        }
    },
    "padding to 10**9": {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
    },
    "a regular expression that is none": {"pre_tokenizer": {**_BACKTRACKING, "pattern": {"Regex": "(("}}},
    "an unknown model": {"model": {"type": "Evil", "vocab": {}}},
    "an empty vocabulary": {"model": {"type": "WordPiece", "vocab": {}, "unk_token": "[UNK]"}},
    "numbers of tokens beyond the embedding": {
        "model": {
            "type": "WordPiece",
            "vocab": {"[UNK]": 10**6, "[CLS]": 10**6 + 1, "[SEP]": 10**6 + 2, "[PAD]": 0},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }
    },
    "200,000 added tokens": {"added_tokens": [{"id": n, "content": f"t{n}"} for n in range(200_000)]},
}
CHECKPOINTS: Mapping[str, Mapping[str, bytes | None]] = {
    "a tokenizer.json of 100,000 levels": {"tokenizer.json": b'{"a":' * 100_000},
    "a tokenizer.json of 40 MB": {"tokenizer.json": b" " * 40_000_000 + b"{}"},
    "a chat template of loops": {"chat_template.jinja": _LOOP.encode()},
    "another chat template": {"additional_chat_templates/evil.jinja": _LOOP.encode()},
    "100 other chat templates": {f"additional_chat_templates/t{n}.jinja": b"{{ 1 / 0 }}" for n in range(100)},
    "a chat template whose name leads out": {"additional_chat_templates/../../x.jinja": b"x"},
    "chat templates that are a list": {
        "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer", "chat_template": [{"name": 1}]}'
    },
    "a tokenizer of code": {
        "tokenizer_config.json": b'{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}',
        "evil.py": EVIL.encode(),
    },
    "a model of code": {"config.json": b'{"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}}'},
    "a processor of code": {"processor_config.json": b'{"auto_map": {"AutoProcessor": "other/x--evil.Evil"}}'},
    "a tokenizer of Python objects": {
        "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer", "unk_token": {"__type": "os.system"}}'
    },
    "no tokenizer": {"tokenizer.json": None, "tokenizer_config.json": None},
    "no processor": {"processor_config.json": None},
    "weights that are a pickle": {"model.safetensors": None, "pytorch_model.bin": b"cos\nsystem\n(S'true'\ntR."},
    "an index of weights that leads out": {
        "model.safetensors": None,
        "model.safetensors.index.json": b'{"metadata": {}, "weight_map": {"a": "../../../outside/x.safetensors"}}',
    },
}


def backbone_attempts(draw: random.Random) -> list[Attempt]:
    """Return attempts on `run` with a backbone of the Hub, mostly of its tokenizer."""
    files = {file.name: file.read_bytes() for file in checkpoint_dir().iterdir() if file.is_file()}
    tokenizer = json.loads(files["tokenizer.json"])
    found = [replace(_backbone("a backbone", files), is_valid=True)]
    for what, change in TOKENIZERS.items():
        content = json.dumps(tokenizer | dict(change)).encode()
        found.append(_backbone(f"a tokenizer with {what}", files | {"tokenizer.json": content}))
    for what, changes in CHECKPOINTS.items():
        kept = {path: new for path, new in {**files, **changes}.items() if new is not None}
        found.append(_backbone(f"a backbone with {what}", kept))
    for name in ("tokenizer_config.json", "config.json", "processor_config.json"):
        for _ in range(6):
            what, values = edited(json.loads(files[name]), draw)
            found.append(_backbone(f"a backbone whose {name} has {what}", files | {name: json.dumps(values).encode()}))
        for what, content in draw.sample(list(damaged_bytes(files[name], draw)), 3):
            found.append(_backbone(f"a backbone whose {name} {what}", files | {name: content}))
    for what, content in draw.sample(list(damaged_bytes(files["tokenizer.json"], draw)), 5):
        found.append(_backbone(f"a tokenizer {what}", files | {"tokenizer.json": content}))
    return found


def _backbone(what: str, files: Mapping[str, bytes]) -> Attempt:
    recipe = RECIPE | _TEXTS | {"backbone": {"name": "org/x"}}

    def prepare(folder: Path) -> None:
        write_recipe(folder, recipe)
        (folder / "notes.csv").write_text(notes().replace("room", f"room {'a' * 40}!"))

    return Attempt(what, (_RUN,), prepare, serving(files), limits=Limits(cpu=60))


def _tar(kind: bytes = tarfile.REGTYPE, name: str = "train.jsonl", content: bytes = b"", size: int = -1) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, len(content), "../../../../outside/thesis.txt"
        archive.addfile(member, io.BytesIO(content))
    if size < 0:
        return packed.getvalue()
    member.size = size
    return member.tobuf() + content


def _zip(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _datasets() -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Yield the files of datasets of texts, each with what they are."""
    table = notes().encode()
    header, *rows = [line.split(",") for line in notes().splitlines()]
    lines = "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in rows).encode()
    bomb = bytes(64 * _SMALL)
    yield "a CSV", {"train.csv": table}
    yield "JSON lines", {"train.jsonl": lines}
    yield "packed JSON lines", {"train.jsonl.gz": gzip.compress(lines)}
    yield "JSON lines of null", {"train.jsonl": b"null\n" * 1000}
    yield "JSON lines that end with null", {"train.jsonl": lines + b"\nnull\n"}
    yield "deep JSON", {"train.json": b"[" * 100_000}
    yield "deep rows", {"train.jsonl": b'{"note":' * 100_000}
    yield "JSON of a list of null", {"train.json": b"[null, null]"}
    yield "JSON of 20,000 keys", {"train.jsonl": b"\n".join(b'{"k%d": 1}' % n for n in range(20_000))}
    yield "a CSV of 1,000,000 columns", {"train.csv": b",".join([b"x"] * 10**6) + b"\na\n"}
    for suffix, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        yield f"a bomb in {suffix}", {f"train.jsonl.{suffix}": pack(bomb)}
    yield "a bomb in a zip", {"train.zip": _zip({"train.jsonl": bomb})}
    yield "a zip that leads out", {"train.zip": _zip({"../../../../outside/new.jsonl": lines})}
    yield "a zip in a zip", {"train.zip": _zip({"train.zip": _zip({"train.jsonl": bomb})})}
    yield "a zip cut in half", {"train.zip": _zip({"train.jsonl": lines})[:-40]}
    yield "a tar with a link", {"train.jsonl": _tar(tarfile.SYMTYPE)}
    yield "a tar with a hard link", {"train.jsonl": _tar(tarfile.LNKTYPE)}
    yield "a tar with a device", {"train.jsonl": _tar(tarfile.CHRTYPE)}
    yield "a tar that leads out", {"train.jsonl": _tar(name="../../../../outside/new.jsonl", content=lines)}
    yield "a tar of a huge size", {"train.jsonl": _tar(content=lines, size=2**33)}
    yield "a packed tar", {"train.jsonl.gz": gzip.compress(_tar(content=lines))}
    yield "HDF5", {"train.h5": b"\x89HDF\r\n\x1a\n" + bytes(200)}
    yield "a script", {"x.py": EVIL.encode(), "train.csv": table}
    yield "a pickle", {"train.pkl": b"cos\nsystem\n(S'touch $HOME/code_ran'\ntR."}
    for what, front in (
        ("a file outside", "configs:\n- config_name: default\n  data_files: ../../../outside/thesis.txt"),
        ("another repository", "configs:\n- config_name: default\n  data_files: hf://datasets/other/x/a.csv"),
        ("a URL", "configs:\n- config_name: default\n  data_files: http://127.0.0.2:9/x.csv"),
        ("a Python tag", 'configs: !!python/object/apply:os.system ["touch $HOME/code_ran"]'),
        ("features that there are not", "dataset_info:\n  features:\n  - name: note\n    dtype: evil"),
        ("deep YAML", "a: " + "[" * 20_000),
    ):
        yield f"a CSV, and a README of {what}", {"train.csv": table, "README.md": f"---\n{front}\n---\n".encode()}


def dataset_attempts(draw: random.Random) -> list[Attempt]:
    """Return attempts on `data` with a dataset of the Hub: its tables, archives and pictures."""
    found = []
    for number, (what, files) in enumerate(_datasets()):
        for stream in (None, 30):
            attempt = _dataset(f"a dataset of {what}{', streamed' if stream else ''}", files, stream)
            found.append(replace(attempt, is_valid=number < 3))
    for what, content in draw.sample(list(images()), 8):
        pictures = {f"{n}.png": content for n in range(16)}
        table = "file_name,digit\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(16))
        files = {"train.zip": _zip(pictures | {"metadata.csv": table.encode()})}
        found.append(_dataset(f"a zip of images, each {what}", files))
    return found


def _dataset(what: str, files: Mapping[str, bytes], stream: int | None = None) -> Attempt:
    of_images = "images" in what
    dataset = {"source": "org/x", **({} if stream is None else {"stream": stream})}
    task = RECIPE["tasks"]["digit"] if of_images else RECIPE["tasks"]["urgency"]
    recipe = RECIPE | _TEXTS | {"datasets": {"mine": dataset}, "tasks": {"urgency": task | {"dataset": "mine"}}}

    def prepare(folder: Path) -> None:
        os.environ["TAP_HF_UNPACKED_BYTES"] = str(_SMALL)
        write_recipe(folder, recipe)

    return Attempt(what, (_DATA,), prepare, serving(files, kind="dataset"), limits=Limits(cpu=40))
