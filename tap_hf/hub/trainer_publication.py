"""The files of a push from a federation of users' Trainers: adapters for plain PEFT, heads included."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from tap_hf.hub.layout import CLIENTS_FOLDER
from tap_hf.models.config import BackboneReference
from tap_hf.models.peft_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILE, adapter_files
from tap_hf.models.pretrained_files import open_files
from tap_hf.pairs import Component, head_component
from tap_hf.records.directory import RunDirectory
from tap_hf.records.run_record import RunRecord


def trainer_client_files(folder: Path, base: BackboneReference, prefix: str) -> dict[str, bytes]:
    """Return the files of a client's personal adapter."""
    files = open_files(folder)
    files.tensors(ADAPTER_FILE)  # raises for values that are not finite
    return _files(folder, files.path(ADAPTER_FILE).read_bytes(), base, prefix)


def trainer_server_files(
    run_dir: Path, record: RunRecord, base: BackboneReference, tasks: Sequence[str], prefix: str
) -> dict[str, bytes]:
    """Return the files of the averaged adapters of some tasks; a pair's has a head if one task has the pair."""
    server = RunDirectory(run_dir).server(record.recipe.federation.rounds - 1).components
    by_pair: dict[Component, list[str]] = {}
    for task in tasks:
        by_pair.setdefault(record.tasks[task].pair.name, []).append(task)
    files: dict[str, bytes] = {}
    for pair, named in by_pair.items():
        heads = [head_component(named[0])] if len(named) == 1 and head_component(named[0]) in server else []
        tensors = {name: t.contiguous() for c in (pair, *heads) for name, t in server[c].items()}
        holders = (name for name, section in record.finalized_clients.items() if set(section.tasks) & set(named))
        if (client := next(holders, None)) is None:  # nobody has the options of the adapter
            continue
        place = prefix if len(by_pair) == 1 else f"{prefix}{pair}/"
        files |= _files(run_dir / CLIENTS_FOLDER / client, save(tensors, {"format": "pt"}), base, place)
    return files


def _files(folder: Path, tensors: bytes, base: BackboneReference, prefix: str) -> dict[str, bytes]:
    config = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    return adapter_files(config, tensors, base, prefix)
