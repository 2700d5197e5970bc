"""The `tasks` section."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from tap_hf.errors import did_you_mean
from tap_hf.pairs import ALL_PAIRS, Modality, ModalityTaskPair
from tap_hf.recipe.column_templates import Columns
from tap_hf.recipe.metric_section import Metrics, metric_problems, metric_spec
from tap_hf.recipe.partition_section import PartitionSection
from tap_hf.recipe.section import Section, check, refuse
from tap_hf.recipe.values import Labels, repeated
from tap_hf.tasks.metrics import MetricSpec


def _pair_problem(name: str) -> str | None:
    known = [pair.name for pair in ALL_PAIRS]
    return None if name in known else f'unknown pair "{name}"{did_you_mean(name, known)}'


class TaskSection(Section):
    """A task: a pair, a dataset and how its columns are used."""

    pair: Annotated[str, check(_pair_problem)]
    dataset: str
    columns: Columns = Field(
        description='the input image, the input text and the target: a column, or a template such as "{title}: {body}"'
    )
    metric: Metrics = Field(description="one or several, each a name or a name with options; the first is the main one")
    labels: Labels | None = Field(
        None,
        description="label space, or the name of each value in the data; null: the values in the training split",
    )
    image_size: int = Field(64, gt=0, le=4096)  # TAP, experimental setup
    max_target_length: int = Field(32, gt=0, le=65_536)
    partition: PartitionSection = PartitionSection()
    missing_target: Literal["refuse", "leave_out"] = Field(
        "refuse", description="rows without a target: refuse the run, or leave them out"
    )
    shared_test: bool = Field(False, description="test all clients on the same rows of the dataset's test split")

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        """The task's metrics, the main one first."""
        given = self.metric if isinstance(self.metric, tuple) else (self.metric,)
        return tuple(metric_spec(metric) for metric in given)

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
        yield from (f"columns.{column}: the pair {pair} does not use it" for column in sorted(columns - needed))
        yield from metric_problems(self.metric, pair, run_code)
        if self.labels is not None and pair.output is not None:
            yield f"labels: the pair {pair} has no label space"
        if isinstance(self.labels, tuple):
            yield from (f'labels: "{label}" is listed twice' for label in repeated(self.labels))
