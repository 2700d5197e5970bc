"""A card's front matter, as the Hub reads it (https://huggingface.co/docs/hub/model-cards)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

PIPELINE_TAGS = {
    "image__classification": "image-classification",
    "text__classification": "text-classification",
    "image_text__classification": "visual-question-answering",
    "image__generation": "image-to-image",
    "text__generation": "text-generation",
    "image_text__generation": "image-text-to-text",
}
_HUB_METRICS = {"rouge_l": "rouge", "macro_f1": "f1"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NOT_ON_THE_HUB = (
    *("digits", "easy_vqa", "icd10cm", "csv", "json", "parquet", "imagefolder", "disk", "idx", "python", "withheld"),
)


def card_metadata(record: Mapping[str, Any], held: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the front matter of a card about some tasks of some clients.

    Args:
        record: a published one.
        held: the tasks that the card is about, by client.
    """
    recipe = record["recipe"]
    names = list(dict.fromkeys(task for tasks in held.values() for task in tasks))
    tags = sorted({PIPELINE_TAGS[record["tasks"][name]["pair"]] for name in names})
    sources = [recipe["datasets"][recipe["tasks"][name]["dataset"]]["source"] for name in names]
    rows = [row for row in record["results"] if row["task"] in held.get(row["client"], ())]
    on_hub = record.get("backbone_commit") is not None
    card = recipe.get("card") or {}
    metadata = {
        "base_model": recipe["backbone"]["name"] if on_hub else None,
        "base_model_relation": "adapter" if on_hub else None,
        "library_name": "peft",
        "pipeline_tag": tags[0] if len(tags) == 1 else None,
        "tags": ["lora", "federated-learning", "personalization", "tap_hf"],
        "datasets": sorted({s for s in sources if s not in _NOT_ON_THE_HUB and _HUB_ID.fullmatch(s)}),
        "metrics": sorted({_metric_type(row["metric"]) for row in rows}),
        "language": list(card.get("language") or ()),
        "license": card.get("license"),
        "model-index": _model_index(record, rows),
    }
    return {key: value for key, value in metadata.items() if value}


def _model_index(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the personal sets' results; only finite numbers are results."""
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if (value := row["values"].get("personal")) is None:
            continue
        section = record["recipe"]["tasks"][row["task"]]
        source = record["recipe"]["datasets"][section["dataset"]]["source"]
        result = results.setdefault(
            (row["client"], row["task"]),
            {
                "task": {"type": PIPELINE_TAGS[row["pair"]], "name": row["task"]},
                "dataset": {"type": source, "name": f"{section['dataset']}, test data of client {row['client']}"},
                "metrics": [],
            },
        )
        result["metrics"].append({"type": _metric_type(row["metric"]), "value": value, "name": row["metric"]})
    return [{"name": record["recipe"]["name"], "results": list(results.values())}] if results else []


def _metric_type(name: str) -> str:
    return _HUB_METRICS.get(name, name)
