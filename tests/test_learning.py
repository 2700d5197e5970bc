"""Federating pays: what a client lacks, it gets from the others of its pair."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tap_hf

pytestmark = pytest.mark.slow


def test_personal_sets_beat_the_untouched_backbone(raw: dict[str, Any], tmp_path: Path) -> None:
    """On held-out data, by a wide margin, with heads trained as long as the personal sets were."""
    raw["tasks"] = {name: raw["tasks"][name] for name in ("digit", "sketch")}
    raw["tasks"]["sketch"]["metric"] = "mse"
    raw["datasets"] = {name: raw["datasets"][name] for name in ("digits", "easy_vqa")}
    raw["lora"] = {"default": {"rank": 8, "alpha": 16, "dropout": 0.0, "layers": ["query", "value"]}}
    raw["clients"] = {f"camera_{n}": {"tasks": ["sketch"]} for n in range(3)} | {
        f"scanner_{n}": {"tasks": ["digit"]} for n in range(4)
    }
    raw["examples"] = {"train": 16, "validation": 40, "test": 150}
    raw["federation"] = {"rounds": 6, "clients_per_round": 7}
    raw["training"] = {
        "local_steps": 10,
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": {"start": 3e-3, "end": 3e-3, "rounds": 0},
        "trainer": {"adam_epsilon": 1e-4},
    }
    raw["algorithm"] = {"distillation": {"weight": 4.0}, "final": {"steps": 16, "learning_rate": 1e-3}}
    results = tap_hf.run(tap_hf.load_recipe(raw), tmp_path / "run").results
    means = {
        (task, name): np.mean([row.values[name] for row in results if row.task == task])
        for task in raw["tasks"]
        for name in ("backbone", "personal")
    }
    assert means["sketch", "personal"] < 0.7 * means["sketch", "backbone"]
    assert 1 - means["digit", "personal"] < 0.9 * (1 - means["digit", "backbone"])
