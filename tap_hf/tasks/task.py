"""A task of a client: its pair, output space and metrics."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from tap_hf.pairs import NAME_PATTERN, Component, ModalityTaskPair, head_component
from tap_hf.tasks.metric_spec import MetricLike, MetricSpec


def _parsed_pair(value: Any) -> Any:
    return ModalityTaskPair.parse(value) if isinstance(value, str) else value


RecordedPair = Annotated[ModalityTaskPair, BeforeValidator(_parsed_pair), PlainSerializer(str)]
"""A pair, serialized by its name."""


Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
"""A name of a task, client or dataset, which may be part of a path."""


@dataclass(frozen=True)
class Task:
    """A pair with a label space or output format: two tasks of a pair share its adapter and differ in their head.

    Attributes:
        name: unique in a federation.
        metrics: the main metric first; a name means the metric without options.
        labels: the classes in the order of the head's outputs; empty for generation.
        image_size: side of a generated image in pixels.
        max_target_length: maximum length of a generated text in tokens, without the start token.
        shared: adapters shared with tasks of other pairs; their outputs are added to the pair's.
        has_head: false if the backbone generates texts itself.
    """

    name: Name
    pair: RecordedPair
    metrics: tuple[MetricLike, ...]
    labels: tuple[str, ...] = ()
    image_size: Annotated[int, Field(gt=0, le=4096)] = 64
    max_target_length: Annotated[int, Field(gt=0, le=65_536)] = 32
    shared: tuple[Component, ...] = ()
    has_head: bool = True

    @property
    def adapters(self) -> tuple[Component, ...]:
        """Its active LoRA adapters, in the order in which they are summed."""
        return (self.pair.name, *self.shared)

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            raise TypeError(f'metrics must be a tuple such as ("{self.metrics}",), got "{self.metrics}"')
        specs = tuple(MetricSpec(metric) if isinstance(metric, str) else metric for metric in self.metrics)
        object.__setattr__(self, "metrics", specs)  # one form, so that equal tasks compare equal

    @property
    def components(self) -> frozenset[Component]:
        """The components that are trained, communicated and replaced for it."""
        return frozenset((*self.adapters, *([head_component(self.name)] if self.has_head else [])))

    def record(self) -> dict[str, Any]:
        """Return the task as JSON values."""
        return {**asdict(self), "pair": self.pair.name}
