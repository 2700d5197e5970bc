"""The `lora` section: options of the adapters."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from tap_hf.recipe.lora_checks import MAX_ALPHA, MAX_RANK, lora_option_problems
from tap_hf.recipe.section import Section, check_keys
from tap_hf.recipe.values import Names


class LoraSection(Section):
    """One LoRA adapter."""

    rank: int = Field(8, gt=0, le=MAX_RANK)
    alpha: float = Field(16, gt=0, le=MAX_ALPHA)
    dropout: float = Field(0.3, ge=0, lt=1)  # TAP, experimental setup
    layers: Names | None = Field(None, description="such as [query, value]; null: all linear layers")
    last: PositiveInt | None = Field(
        None,
        description="adapt only this many layers of each tower, the last ones; what is below is computed once and "
        "kept, see prefix_cache; null: all",
    )
    towers: Annotated[tuple[Literal["image", "text", "fusion"], ...], Field(strict=False)] | None = Field(
        None, description="parts of the backbone to adapt; null: all that the pair uses"
    )
    options: Annotated[dict[str, Any], check_keys(lora_option_problems)] = Field(
        {}, description="more options of peft.LoraConfig, such as use_rslora: true"
    )


class AdaptersSection(Section):
    """LoRA options: the default, and those of single pairs and of shared adapters."""

    default: LoraSection = LoraSection()
    pairs: dict[str, LoraSection] = Field({}, description="options of single pairs, instead of the default")
    shared: dict[str, LoraSection] = Field(
        {},
        description="adapters that pairs share, summed with the pair's own: over `all` pairs, those with one modality "
        "(image, text) or one task type (classification, generation)",
    )
