"""A client's personal set as files that plain PEFT loads."""

import json
from copy import copy
from pathlib import Path

from safetensors.torch import save

from tap_hf.adapters import Adapters, save_adapters, write_atomically
from tap_hf.data.clients import Client
from tap_hf.model import TapModel
from tap_hf.pairs import head_component


def export_client(model: TapModel, client: Client, personal: Adapters, folder: Path) -> None:
    """Write a folder for each pair: PEFT's two files, `head.safetensors` and `tap_config.json`.

    `PeftModel.from_pretrained(backbone, folder / pair)` loads the adapter; the heads, which PEFT does not know, lie
    beside it with the tasks they are for.

    Args:
        model: whose LoRA options the configuration states.
        client: whose tasks they are.
        personal: the client's personal set.
        folder: the client's folder.
    """
    tasks = [held.task for held in client.tasks.values()]
    for pair in sorted({task.pair.name for task in tasks}):
        target = folder / pair
        target.mkdir(parents=True, exist_ok=True)
        config = copy(model.peft_model.peft_config[pair])
        config.inference_mode = True
        config.save_pretrained(target)
        write_atomically(target / "adapter_model.safetensors", save(dict(personal[pair]), metadata={"format": "pt"}))
        pair_tasks = [task for task in tasks if task.pair.name == pair]
        heads = {head_component(task.name): personal[head_component(task.name)] for task in pair_tasks}
        save_adapters(target / "head.safetensors", heads)
        described = {"tasks": [task.record() for task in pair_tasks]}
        write_atomically(target / "tap_config.json", json.dumps(described, indent=2).encode())
