"""What a push publishes of a federation of users' Trainers: adapters that plain PEFT loads, heads included."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save

from tap_hf.hub.layout import CLIENTS_FOLDER
from tap_hf.models.config import BackboneReference
from tap_hf.models.peft_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tap_hf.pairs import Component, head_component
from tap_hf.records.directory import RunDirectory
from tap_hf.records.run_record import RunRecord


@dataclass(frozen=True)
class TrainerAdapters:
    """The adapters of a finished federation of Trainers.

    Attributes:
        run_dir: its run directory.
        record: its record.
        base: the base model, as others find it.
    """

    run_dir: Path
    record: RunRecord
    base: BackboneReference

    def of_client(self, client: str, prefix: str) -> dict[str, bytes]:
        """Return the files of a client's personal adapter."""
        folder = self.run_dir / CLIENTS_FOLDER / client
        return self._files(folder, (folder / ADAPTER_FILE).read_bytes(), prefix)

    def of_server(self, tasks: Sequence[str], prefix: str) -> dict[str, bytes]:
        """Return the files of the averaged adapters of some tasks; a pair's has a head if one task has the pair."""
        server = RunDirectory(self.run_dir).server(self.record.recipe.federation.rounds - 1).components
        by_pair: dict[Component, list[str]] = {}
        for task in tasks:
            by_pair.setdefault(self.record.tasks[task].pair.name, []).append(task)
        files: dict[str, bytes] = {}
        for pair, named in by_pair.items():
            heads = [head_component(named[0])] if len(named) == 1 and head_component(named[0]) in server else []
            tensors = {name: t.contiguous() for c in (pair, *heads) for name, t in server[c].items()}
            held = self.record.recipe.clients
            client = next(client for client, section in held.items() if set(section.tasks) & set(named))
            place = prefix if len(by_pair) == 1 else f"{prefix}{pair}/"
            files |= self._files(self.run_dir / CLIENTS_FOLDER / client, save(tensors, {"format": "pt"}), place)
        return files

    def _files(self, folder: Path, adapter: bytes, prefix: str) -> dict[str, bytes]:
        described: Mapping[str, object] = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
        shown = {**described, "base_model_name_or_path": self.base.name, "revision": self.base.revision}
        return {
            f"{prefix}{ADAPTER_CONFIG_FILE}": (json.dumps(shown, indent=2) + "\n").encode(),
            f"{prefix}{ADAPTER_FILE}": adapter,
        }
