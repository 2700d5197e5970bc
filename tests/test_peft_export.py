"""What a run leaves behind loads with plain PEFT, without this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tap_hf import Federation
from tap_hf.models import equal
from tests.conftest import randomised

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")

PLAIN_PEFT = """
import sys, torch
from safetensors.torch import load_file
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModel

backbone, adapter, check = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone, dtype=torch.float32), adapter).eval()
saved, loaded = load_file(adapter + "/adapter_model.safetensors"), get_peft_model_state_dict(model)
assert saved.keys() == loaded.keys(), saved.keys() ^ loaded.keys()
assert all(torch.equal(saved[name], loaded[name]) for name in saved)
check = load_file(check)
with torch.no_grad():
    if "pixel_values" in check:
        states = model.base_model.model.image_model(pixel_values=check["pixel_values"]).last_hidden_state
    else:
        inputs = {name: check[name] for name in ("input_ids", "attention_mask")}
        states = model.base_model.model.text_model(**inputs).last_hidden_state
assert torch.equal(states[:, 0], check["pooled"]), "the adapted backbone says something else"
assert "tap_hf" not in sys.modules
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("client", "task"), [("scanner", "digit"), ("clinic", "section")])
def test_plain_peft_loads_a_saved_adapter_bit_equal(
    federation: Federation, tmp_path: Path, client: str, task: str
) -> None:
    model = federation.population.model
    personal = randomised({c: model.initial[c] for c in federation.clients[client].components})
    model.save_pretrained(tmp_path / client, tasks=federation.clients[client].tasks, adapters=personal)
    model.load(personal)
    batch = federation.clients[client].tasks[task].test.__getitems__(range(4))
    with torch.no_grad():
        pooled = model.encode(task, batch).pooled
    inputs = {n: t for n, t in batch.items() if n in ("pixel_values", "input_ids", "attention_mask")}
    save_file({**inputs, "pooled": pooled.clone()}, tmp_path / "check.safetensors")

    backbone = Path(__file__).resolve().parent.parent / "tap_hf/models/backbones/tiny/checkpoint"
    several = len({held.task.pair for held in federation.clients[client].tasks.values()}) > 1
    pair = tmp_path / client / (model.tasks[task].pair.name if several else "")
    script = [sys.executable, "-c", PLAIN_PEFT, str(backbone), str(pair), str(tmp_path / "check.safetensors")]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})  # noqa: S603
    assert done.stdout.strip() == "equal", done.stderr


def test_each_adapter_gets_its_own_folder_and_an_only_one_none(federation: Federation, tmp_path: Path) -> None:
    client, model = federation.clients["scanner"], federation.population.model
    model.save_pretrained(tmp_path / "two", tasks=client.tasks, adapters=model.initial)
    files = {str(file.relative_to(tmp_path / "two")) for file in (tmp_path / "two").rglob("*.*")}
    assert {file for file in files if not file.startswith("processor/")} == {
        "config.json",
        "heads.safetensors",
        *(f"{pair}/{file}" for pair in ("image__classification", "image__generation") for file in PEFT_FILES),
    }
    model.save_pretrained(tmp_path / "one", tasks=["digit"], adapters=model.initial)
    assert {file.name for file in (tmp_path / "one").iterdir()} == {
        "config.json", "heads.safetensors", "processor", *PEFT_FILES
    }  # fmt: skip
    for folder in (tmp_path / "two/image__classification", tmp_path / "one"):
        adapter = load_file(folder / "adapter_model.safetensors")
        assert equal({"pair": adapter}, {"pair": model.initial["image__classification"]})
    [task] = json.loads((tmp_path / "one/config.json").read_text())["tasks"]
    assert task["labels"] == [str(n) for n in range(10)]
