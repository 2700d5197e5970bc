"""A task of the federation."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, ValidationInfo, model_validator

from tap_hf.errors import did_you_mean
from tap_hf.pairs import ALL_PAIRS, Modality, ModalityTaskPair
from tap_hf.recipe.column_templates import Template, TemplateError
from tap_hf.recipe.metric_section import Metrics, metric_problems
from tap_hf.recipe.partition_section import PartitionSection
from tap_hf.recipe.section import Section, refuse, wrong
from tap_hf.recipe.values import Labels
from tap_hf.tasks.metrics import MetricSpec


def _known_pair(name: str) -> str:
    if name not in (known := [pair.name for pair in ALL_PAIRS]):
        raise wrong(f'unknown pair "{name}"{did_you_mean(name, known)}')
    return name


def _template(text: str) -> str:
    try:
        Template.parse(text)
    except TemplateError as error:
        raise wrong(str(error)) from error
    return text


class TaskSection(Section):
    """A task: a pair, a dataset and how its columns are used."""

    pair: Annotated[str, AfterValidator(_known_pair)]
    dataset: str
    columns: dict[Literal["image", "text", "target"], Annotated[str, AfterValidator(_template)]] = Field(
        description='the input image, the input text and the target: a column, or a template such as "{title}: {body}"'
    )
    metric: Metrics = Field(description="one or several, each a name or a name with options; the first is the main one")
    labels: Labels | None = Field(
        None,
        description="label space, or the name of each value in the data; null: the values in the training split",
    )
    image_size: PositiveInt = 64  # TAP, experimental setup
    max_target_length: PositiveInt = 32
    partition: PartitionSection = PartitionSection()
    missing_target: Literal["refuse", "leave_out"] = Field(
        "refuse", description="what becomes of rows without a target: the run is refused, or they are left out"
    )
    shared_test: bool = Field(False, description="judge all clients on the same rows of the dataset's test split")

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        """The task's metrics, the main one first."""
        given = self.metric if isinstance(self.metric, tuple) else (self.metric,)
        return tuple(MetricSpec(m) if isinstance(m, str) else MetricSpec(**m.model_dump()) for m in given)

    @model_validator(mode="after")
    def _fits_its_pair(self, info: ValidationInfo) -> "TaskSection":
        run_code = (info.context or {}).get("run_code") is not False
        refuse(self._problems(ModalityTaskPair.parse(self.pair), run_code))
        return self

    def _problems(self, pair: ModalityTaskPair, run_code: bool) -> Iterator[str]:
        needed = {str(modality) for modality in pair.modalities}
        if pair.output is not Modality.IMAGE:
            needed.add("target")
        columns: set[str] = set(self.columns)
        yield from (f"columns.{column}: missing, the pair {pair} needs it" for column in sorted(needed - columns))
        yield from (f"columns.{column}: the pair {pair} has no use for it" for column in sorted(columns - needed))
        yield from metric_problems(self.metric, pair, run_code)
        if self.labels is not None and pair.output is not None:
            yield f"labels: the pair {pair} has no label space"
        listed = list(self.labels) if isinstance(self.labels, tuple) else []
        yield from (f'labels: "{label}" is listed twice' for label in sorted({*listed}) if listed.count(label) > 1)
