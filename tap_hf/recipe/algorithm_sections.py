"""The methods and their options."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag
from pydantic_core import PydanticCustomError

from tap_hf.errors import did_you_mean
from tap_hf.recipe.section import Section


def _number(value: Any) -> Any:
    """Return the number that `inf` and `-inf` mean: YAML writes them `.inf`, and JSON has no such numbers."""
    return float(value) if value in ("inf", "-inf") else value


def _plain(value: float) -> float | str:
    return str(value) if math.isinf(value) else value


Margin = Annotated[float, BeforeValidator(_number), PlainSerializer(_plain, when_used="json")]
"""A margin; plus infinity keeps the personal set always, minus infinity replaces it always."""


class ReplacementSection(Section):
    """Stage 1: when a task's personal set is replaced by the regular one."""

    compare: Literal["validation", "train_history"] = "validation"
    margin: Margin = 0.01  # TAP, FLAVA
    margins: dict[str, Margin] = Field({}, description="margins of single tasks")
    relative: bool = Field(False, description="scale the margin by the personal loss")
    replace_shared: Literal["unanimous", "any"] = Field(
        "unanimous", description="whether all or any of a client's tasks must ask, where they share an adapter"
    )


class DistillationSection(Section):
    """Stage 2: the teacher's fine-tuning and the student's training."""

    teacher_steps: int = Field(50, ge=0)
    steps: int = Field(50, ge=0)  # TAP, stage 2
    learning_rate: float | None = Field(None, gt=0, description="of teacher and student; null: that of the last round")
    weight: float = Field(2e-3, ge=0)  # TAP, lambda
    weights: dict[str, float] = Field({}, description="weights of single tasks")
    temperature: float = Field(1.0, gt=0)  # TAP, stage 2


class TapSection(Section):
    """TAP: adaptive replacement, then distillation."""

    name: Literal["tap"] = "tap"
    replacement: ReplacementSection = ReplacementSection()
    distillation: DistillationSection = DistillationSection()
    backbone_reference: bool = Field(
        True,
        description="judge the untouched backbone too, whose heads are trained for as many steps as the personal set",
    )


class FinalSection(Section):
    """Steps on the client's own data after the last round."""

    steps: int = Field(0, ge=0)
    steps_per_round: int = Field(0, ge=0, description="more of them, for each round that the client took part in")
    learning_rate: float | None = Field(None, gt=0, description="null: that of the last round")


class LocalSection(Section):
    """Each client alone."""

    name: Literal["local"] = "local"
    final: FinalSection = FinalSection()


class FedAvgSection(Section):
    """One averaged set for all, fine-tuned by each client where `final` says so."""

    name: Literal["fedavg"] = "fedavg"
    final: FinalSection = FinalSection()


_SECTIONS: tuple[type[Section], ...] = (TapSection, LocalSection, FedAvgSection)
METHODS = {section.model_fields["name"].default: section for section in _SECTIONS}
"""The section of each method, by the name in `algorithm.name`."""


def _method(value: Any) -> str:
    """Return which section a value is; in brackets, which errors leave out of their path."""
    return f"[{value.get('name', 'tap') if isinstance(value, dict) else getattr(value, 'name', 'tap')}]"


def _known_method(value: Any) -> Any:
    if isinstance(value, dict) and (name := value.get("name", "tap")) not in METHODS:
        raise PydanticCustomError(
            "method", "{problem}", {"problem": f'unknown method "{name}"{did_you_mean(str(name), METHODS)}'}
        )
    return value


AlgorithmSection = Annotated[
    Annotated[TapSection, Tag("[tap]")]
    | Annotated[LocalSection, Tag("[local]")]
    | Annotated[FedAvgSection, Tag("[fedavg]")],
    Discriminator(_method),
    BeforeValidator(_known_method),
]
