"""What encoded data depends on, as a hash that costs much less than decoding the data again."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from datasets.fingerprint import generate_fingerprint
from PIL import Image

from tap_hf import seeds
from tap_hf.data.cache_files import FORMAT, as_tensors
from tap_hf.data.label_spaces import build_task
from tap_hf.data.sources.builtin import PACKAGED, PACKAGES
from tap_hf.data.sources.files import FILE_FORMATS, file_status, local_path
from tap_hf.data.sources.load import load_source
from tap_hf.models import encoding, inputs, tensor_dataset
from tap_hf.models.backbones import Backbone
from tap_hf.models.encoding import ExampleEncoder
from tap_hf.models.inputs import Example
from tap_hf.recipe import DatasetSection, Recipe, column_templates, split_slices

_LIBRARIES = ("tap_hf", "transformers", "tokenizers", "pillow", "datasets", "numpy", "torch")
# What a release is by its version, a checkout is by its code.
_CODE = (
    *sorted(Path(__file__).parent.rglob("*.py")),
    *(Path(str(m.__file__)) for m in (seeds, split_slices, column_templates, encoding, inputs, tensor_dataset)),
)
_PROBE_TEXT = "Is this 1 Probe, or naïve 日本 text?"
_PROBE_SIZES = ((32, 32), (300, 200), (50, 120))


def cache_key(recipe: Recipe, backbone: Backbone, loaded: dict[str, DatasetDict]) -> str:
    """Return the hash of all that a recipe's encoded data depends on, but for image files that its rows name.

    Args:
        recipe: its data sections and seed count; what it trains and how does not.
        backbone: its processor and tokenizer count; its weights do not.
        loaded: is filled with the datasets that had to be read for this.
    """
    sections = recipe.model_dump(
        mode="json",
        include={"datasets", "tasks", "examples", "clients", "groups", "seed"},
        exclude={"tasks": {"__all__": {"metric"}}, "clients": {"__all__": {"rank"}}},
    )
    parts = {
        "format": FORMAT,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _CODE],
        "recipe": sections,
        "order": [list(recipe.clients), recipe.federation.held_out],
        "sources": {name: list(_source_fingerprint(name, section, loaded)) for name, section in recipe.sources.items()},
        "backbone": [backbone.source, backbone.revision, _encoder_fingerprint(recipe, backbone)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _source_fingerprint(name: str, section: DatasetSection, loaded: dict[str, DatasetDict]) -> Iterator[object]:
    """Yield what changes when a dataset changes; local files are not read for it."""
    if section.source in PACKAGED:
        yield _version(PACKAGES[section.source])
    elif section.source in (*FILE_FORMATS, "idx"):
        path = local_path(section.path).absolute()
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            yield [str(file), file_status(file)]
    else:
        splits = loaded[name] = load_source(name, section)
        # A stream and a function of the user's own may give other rows each time: their fingerprint is of the rows.
        by_content = section.source == "python" or section.stream is not None
        for split, dataset in splits.items():
            yield [split, generate_fingerprint(dataset) if by_content else dataset._fingerprint]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # reading the data will say what to install
        return None


def _encoder_fingerprint(recipe: Recipe, backbone: Backbone) -> str:
    """Return a hash of the tokenizer, and of what the encoder makes of some inputs.

    An image processor is known by what it does: its options are kept in as many ways as there are model families.
    """
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in _PROBE_SIZES]
    digest = hashlib.sha256()
    tokenizer = getattr(backbone.tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(backbone.tokenizer.get_vocab(), sort_keys=True) if tokenizer is None else tokenizer.to_str()
    digest.update(vocabulary.encode())
    kinds = {(task.pair, task.image_size, task.max_target_length): task for task in recipe.tasks.values()}
    for kind, section in sorted(kinds.items(), key=lambda one: one[0]):
        task = build_task("probe", section, (_PROBE_TEXT,))
        columns = {str(modality) for modality in task.pair.modalities}
        probes = [
            Example(
                image if "image" in columns else None,
                f"{_PROBE_TEXT} {number}" if "text" in columns else None,
                _PROBE_TEXT,
                bytes([number]),
            )
            for number, image in enumerate(images)
        ]
        digest.update(json.dumps([kind, backbone.pad_token_id]).encode())
        for name, tensor in sorted(as_tensors(ExampleEncoder(backbone).encode(task, probes, "probe")).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
