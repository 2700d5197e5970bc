"""What a run is made with: recipe, versions, code, threads, backbone and data. Only the same can resume it."""

import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_hf.errors import RunDirectoryError
from tap_hf.recipe import Recipe, RunOptions
from tap_hf.records.recipe_record import record_recipe
from tap_hf.records.run_record import Origin, RunRecord
from tap_hf.user_code import code_file

if TYPE_CHECKING:  # what can be refused without them is
    from tap_hf.data.clients import ClientData
    from tap_hf.models.tap_model import TapModel

_LIBRARIES = ("tap_hf", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "huggingface_hub")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that results depend on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def made_with(recipe: Recipe) -> RunRecord:
    """Return the record of a recipe's run that starts now."""
    return record_of(recipe, recipe.model_dump(mode="json"))


def record_of(options: RunOptions, values: Mapping[str, Any]) -> RunRecord:
    """Return the record of a run that starts now."""
    import torch

    threads = options.cpu_threads or torch.get_num_threads()
    return RunRecord(record_recipe(values), versions(), threads, _checksums(options.code))


def refuse_other_tools(path: Path, old: RunRecord, code: Iterable[str]) -> None:
    """Raise unless the libraries and the users' code are those of the run; see `refuse_differences`."""
    refuse_differences(path, "versions", old.versions, versions())
    refuse_differences(path, "code", old.code, _checksums(code))


def _checksums(code: Iterable[str]) -> dict[str, str]:
    return {name: code_file(name).sha256 for name in code}


def loaded_with(model: "TapModel", clients: "Iterable[ClientData]") -> Origin:
    """Return where the loaded backbone and data come from."""
    return Origin(model.backbone.revision, _data_checksum(clients))


def refuse_differences(path: Path, what: str, old: Any, new: Any) -> None:
    """Raise unless a part of a run's provenance, such as its recipe, is the same now.

    Raises:
        RunDirectoryError: with each difference on a line.
    """
    if lines := [f"  {key}: {before} -> {now}" for key, before, now in _differences(what, old, new)]:
        raise RunDirectoryError(
            f"The run in {path} was made with another {what}, and the two cannot be mixed:\n"
            + "\n".join(lines)
            + f"\nBring back the same {what}, or start a run with this one in another --output-dir."
        )


def _differences(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(f"{key}.{name}", old.get(name, "absent"), new.get(name, "absent"))
    elif old != new:
        yield key, old, new


def _data_checksum(clients: "Iterable[ClientData]") -> str:
    """Return a checksum of all inputs, by their fingerprints, and of all targets that are not images."""
    digest = hashlib.sha256()
    for client in sorted(clients, key=lambda client: client.id):
        for name, held in sorted(client.tasks.items()):
            for split in (held.train, held.validation, held.test):
                digest.update(repr((client.id, name, list(split.targets))).encode())
                digest.update(b"".join(split.fingerprints))
    return digest.hexdigest()
