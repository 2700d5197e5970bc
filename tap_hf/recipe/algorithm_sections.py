"""The methods and their options."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, PositiveInt, Tag, model_validator
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
    # Losses run from hundredths (images) to several (texts), where an absolute 0.01 is everything or nothing.
    relative: bool = Field(True, description="the margin is a share of the personal loss")
    when: Literal["before_training", "after_training"] = Field(
        "before_training",
        description="whether x is compared, and replaced, before or after its own training of a round",
    )
    first: Literal["decide", "replace", "keep"] = Field(
        "decide", description="what is done in a client's first participation, when both sets started alike"
    )
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
    candidates: Annotated[tuple[float, ...], Field(strict=False)] = Field(
        (), description="train a student with each of these weights, and keep the best of each task by validation loss"
    )
    replace: bool = Field(
        True, description="first let the teacher replace the personal set of a task, by the rule of stage 1"
    )
    temperature: float = Field(1.0, gt=0)  # TAP, stage 2


class TapSection(Section):
    """TAP: adaptive replacement, then distillation."""

    name: Literal["tap"] = "tap"
    compat: Literal["paper"] | None = Field(None, description="paper: what is not given is as it was published")
    replacement: ReplacementSection = ReplacementSection()
    distillation: DistillationSection = DistillationSection()
    personal_steps: int | None = Field(
        None,
        ge=0,
        description="of the personal set's training in a round; null: training.local_steps, as the paper has it",
    )
    backbone_reference: bool = Field(
        True,
        description="judge the untouched backbone too, whose heads are trained for as many steps as the personal set",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("compat") != "paper":
            return given
        sections = {name: given.get(name, {}) for name in _PUBLISHED}
        return given | {
            name: _PUBLISHED[name] | section if isinstance(section, dict) else section
            for name, section in sections.items()
        }


_PUBLISHED: dict[str, dict[str, Any]] = {
    "replacement": {"compare": "train_history", "relative": False},
    "distillation": {"replace": False},
}
"""Where our defaults are others than the paper's."""


class FinalSection(Section):
    """Steps on the client's own data after the last round."""

    steps: int = Field(0, ge=0)
    steps_per_round: int = Field(0, ge=0, description="more of them, for each round that the client took part in")
    learning_rate: float | None = Field(None, gt=0, description="null: that of the last round")


class LocalSection(Section):
    """Each client alone."""

    name: Literal["local"] = "local"
    final: FinalSection = FinalSection()


class HeadsSection(Section):
    """The untouched backbone under heads that each client trains alone."""

    name: Literal["heads"] = "heads"
    final: FinalSection = FinalSection()


class FedAvgSection(Section):
    """One averaged set for all, fine-tuned by each client where `final` says so."""

    name: Literal["fedavg"] = "fedavg"
    final: FinalSection = FinalSection()


class CentralisedSection(Section):
    """One training on all clients' rows together: a reference, not a federation."""

    name: Literal["centralised"] = "centralised"


class FedProxSection(Section):
    """FedAvg with a pull to the server's set."""

    name: Literal["fedprox"] = "fedprox"
    weight: float = Field(0.01, ge=0, description="mu, of the proximal term")
    final: FinalSection = FinalSection()


class ScaffoldSection(Section):
    """FedAvg with control variates."""

    name: Literal["scaffold"] = "scaffold"
    final: FinalSection = FinalSection()


class DisentAflSection(Section):
    """FedAvg with orthogonal pairs."""

    name: Literal["disentafl"] = "disentafl"
    weight: float = Field(0.1, ge=0, description="of the orthogonality loss")
    final: FinalSection = FinalSection()


class DittoSection(Section):
    """FedAvg, and a personal set that is pulled to the server's."""

    name: Literal["ditto"] = "ditto"
    weight: float = Field(0.1, ge=0, description="lambda, of the pull")


class FedPerSection(Section):
    """Some components are averaged, the others stay at the client."""

    name: Literal["fedper"] = "fedper"
    personal: Literal["heads", "adapters"] = "heads"
    final: FinalSection = FinalSection()


class FedRepSection(Section):
    """FedPer that trains personal and shared components in turn."""

    name: Literal["fedrep"] = "fedrep"
    personal: Literal["heads", "adapters"] = "heads"
    personal_share: float = Field(0.5, ge=0, le=1, description="of a round's steps, for the personal components")
    final: FinalSection = FinalSection()


class ApflSection(Section):
    """A mixture of a local and the federated set."""

    name: Literal["apfl"] = "apfl"
    alpha: float = Field(0.5, gt=0, le=1, description="how local the mixture is")


class PFedMeSection(Section):
    """Personal sets near the server's, by Moreau envelopes."""

    name: Literal["pfedme"] = "pfedme"
    weight: float = Field(15.0, ge=0, description="lambda, of the pull")
    inner_steps: PositiveInt = Field(5, description="of each turn")
    step: float = Field(0.5, gt=0, le=1, description="eta lambda: how far w moves to the personal set in a turn")


class PerFedAvgSection(Section):
    """FedAvg of a set that is good once it is adapted."""

    name: Literal["per_fedavg"] = "per_fedavg"
    inner_learning_rate: float | None = Field(None, gt=0, description="of the adaptation; null: the round's")
    final: FinalSection = FinalSection()


_SECTIONS: tuple[type[Section], ...] = (
    TapSection,
    LocalSection,
    FedAvgSection,
    FedProxSection,
    ScaffoldSection,
    DittoSection,
    FedPerSection,
    FedRepSection,
    ApflSection,
    PFedMeSection,
    PerFedAvgSection,
    DisentAflSection,
    HeadsSection,
    CentralisedSection,
)
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
    | Annotated[FedAvgSection, Tag("[fedavg]")]
    | Annotated[FedProxSection, Tag("[fedprox]")]
    | Annotated[ScaffoldSection, Tag("[scaffold]")]
    | Annotated[DittoSection, Tag("[ditto]")]
    | Annotated[FedPerSection, Tag("[fedper]")]
    | Annotated[FedRepSection, Tag("[fedrep]")]
    | Annotated[ApflSection, Tag("[apfl]")]
    | Annotated[PFedMeSection, Tag("[pfedme]")]
    | Annotated[PerFedAvgSection, Tag("[per_fedavg]")]
    | Annotated[DisentAflSection, Tag("[disentafl]")]
    | Annotated[HeadsSection, Tag("[heads]")]
    | Annotated[CentralisedSection, Tag("[centralised]")],
    Discriminator(_method),
    BeforeValidator(_known_method),
]
