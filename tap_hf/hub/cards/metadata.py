"""A card's front matter, as the Hub reads it (https://huggingface.co/docs/hub/model-cards)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tap_hf.hub.cards.facts import UNKNOWN, rows_of
from tap_hf.records.run_record import RunRecord
from tap_hf.tasks.results import ResultRow

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


def card_metadata(record: RunRecord, held: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the front matter of a card about these tasks of each client, from a published record."""
    recipe = record.recipe
    names = list(dict.fromkeys(task for tasks in held.values() for task in tasks))
    tags = sorted({PIPELINE_TAGS[record.tasks[name].pair.name] for name in names})
    sources = {source for name in names if (source := recipe.source_of(name)) is not None}
    rows = rows_of(record, held)
    on_hub = record.backbone_commit is not None
    data = ModelCardData(
        base_model=recipe.backbone.name if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        library_name="peft",
        pipeline_tag=tags[0] if len(tags) == 1 else None,
        tags=["lora", "federated-learning", "personalization", "tap_hf"],
        datasets=sorted(s for s in sources if s not in _NOT_ON_THE_HUB and _HUB_ID.fullmatch(s)) or None,
        metrics=sorted({_metric_type(row.metric) for row in rows}) or None,
        language=list(recipe.card.language if recipe.card else ()) or None,
        license=recipe.card.license if recipe.card else None,
        model_name=recipe.name,
        eval_results=_eval_results(record, rows) or None,
    )
    return data.to_dict()


def _eval_results(record: RunRecord, rows: Sequence[ResultRow]) -> list[EvalResult]:
    """Return the finite results of the personal sets."""
    results = []
    for row in rows:
        if (value := row.values.get("personal")) is None:
            continue
        source = record.recipe.source_of(row.task) or UNKNOWN
        dataset = record.recipe.tasks[row.task].dataset if row.task in record.recipe.tasks else None
        results.append(
            EvalResult(
                task_type=PIPELINE_TAGS[row.pair],
                task_name=row.task,
                dataset_type=source,
                dataset_name=f"{dataset or UNKNOWN}, test data of client {row.client}",
                metric_type=_metric_type(row.metric),
                metric_value=value,
                metric_name=row.metric,
            )
        )
    return results


def _metric_type(name: str) -> str:
    return _HUB_METRICS.get(name, name)
