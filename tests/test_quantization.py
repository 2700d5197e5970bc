"""A quantised backbone, for real: bitsandbytes works on a CPU too."""

from typing import Any

import pytest
import torch

from tap_hf import LoraOptions, ModalityTaskPair, TapModel, Task, load_backbone, load_recipe, run
from tap_hf.models import equal
from tests.conftest import randomised

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # bitsandbytes' own


@torch.no_grad()
def test_adapters_in_float32_sit_on_layers_of_four_bits() -> None:
    pair = ModalityTaskPair.parse("text__classification")
    task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
    backbone = load_backbone("tiny", dtype="bfloat16", quantization=FOUR_BITS)
    kinds = {type(m).__name__ for m in backbone.model.text_model.encoder.modules() if hasattr(m, "in_features")}
    assert kinds == {"Linear4bit"}
    words = torch.arange(10, 20)[None]
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    untouched = backbone.encode(inputs, pair.modalities).pooled
    exact = load_backbone("tiny").encode(inputs, pair.modalities).pooled
    assert 0 < (untouched - exact).norm() / exact.norm() < 0.3
    model = TapModel(backbone, [task], {pair.name: LoraOptions(rank=2)}, seed=1)
    assert {t.dtype for tensors in model.initial.values() for t in tensors.values()} == {torch.float32}
    assert torch.equal(model.encode("urgency", inputs).pooled, untouched)
    values = randomised(model.initial)
    model.load(values)
    assert equal(model.dump(), values)
    assert not torch.equal(model.encode("urgency", inputs).pooled, untouched)


@pytest.mark.slow
def test_both_stages_run_on_a_quantised_backbone(raw: dict[str, Any], tmp_path: Any) -> None:
    raw["backbone"] = {"name": "tiny", "dtype": "bfloat16", "quantization": FOUR_BITS}
    raw["examples"] = {"train": 8, "validation": 4, "test": 4}
    raw["federation"] = {"rounds": 1, "clients_per_round": 3}
    raw["training"] |= {"local_steps": 1, "batch_size": 4, "gradient_accumulation_steps": 1}
    raw["algorithm"]["final"] = {"steps": 2}
    assert {row.task for row in run(load_recipe(raw), tmp_path / "run").results} == set(raw["tasks"])
