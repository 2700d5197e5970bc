"""The card of a `TapModel` that is pushed by itself, without a run."""

from typing import Any

from tap_hf.card_templates import render_card
from tap_hf.models.config import ROOT, TapConfig

CARD_FILE = "README.md"


def model_card(config: TapConfig, repo_id: str) -> str:
    """Return the README.md of a model that was saved with this config, in a repository."""
    folder = next(iter(config.adapters.values()))
    values = {
        "repo_id": repo_id,
        "tasks": config.tasks,
        "recipe": {"backbone": {"name": config.backbone.name}, "training": {}},
        "backbone_commit": config.backbone.revision,
        "adapter_folder": "" if folder == ROOT else folder,
        "versions": config.versions,
    }
    metadata: dict[str, Any] = {"library_name": "peft", "tags": ["lora", "tap_hf"]}
    if config.backbone.revision is not None:  # else it is not on the Hub
        metadata |= {"base_model": config.backbone.name, "base_model_relation": "adapter"}
    return render_card("model.md.j2", values, metadata)
