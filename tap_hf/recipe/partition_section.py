"""Which rows of a dataset a client may hold."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from tap_hf.recipe.options import checked_options
from tap_hf.recipe.section import Section, refuse, wrong
from tap_hf.registry import Registry

_ROOM = "tap_hf.data.allocation.partitions"
PARTITIONS: Registry[Callable[..., Mapping[str, Any]]] = Registry(
    kind="partition",
    group="tap_hf.partitions",
    builtin={
        "iid": f"{_ROOM}:contiguous_part",
        "dirichlet": f"{_ROOM}:dirichlet_shares",
        "shards": f"{_ROOM}:assign_shards",
        "column": f"{_ROOM}:rows_with",
    },
)
"""The partitions that `partition.by` may name; those from outside are functions as `assign_shards` is one."""

_KEYS: dict[str, set[str]] = {
    "iid": set(),
    "dirichlet": {"column", "alpha"},
    "shards": {"column", "per_client"},
    "column": {"column"},
}
"""The keys that each of this package's own needs."""


class PartitionSection(Section):
    """Which rows of a dataset a client may hold."""

    by: str = Field(
        "iid",
        description="iid: any; dirichlet: a mix of a column's values of its own; shards: few pieces of the rows sorted "
        "by a column; column: those with the client's `values` in a column; or file.py:function, your own",
    )
    column: str | None = Field(None, description="of dirichlet, shards and column")
    alpha: float | None = Field(None, gt=0, description="of dirichlet; the smaller, the more the clients differ")
    per_client: PositiveInt | None = Field(None, description="of shards: how many each client gets")
    options: Any = Field({}, validate_default=True, description="of your own: its keyword arguments")

    @field_validator("by")
    @classmethod
    def _known(cls, by: str) -> str:
        if (problem := PARTITIONS.problem(by)) is not None:
            raise wrong(problem)
        return by

    @field_validator("options", mode="before")
    @classmethod
    def _of_the_function(cls, given: Any, info: ValidationInfo) -> Any:
        by = info.data.get("by", "iid")
        return given if by in PARTITIONS.builtin else checked_options(PARTITIONS, by, given, info)

    @model_validator(mode="after")
    def _consistent(self) -> "PartitionSection":
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        given = {key for key in ("column", "alpha", "per_client") if getattr(self, key) is not None}
        needed = _KEYS.get(self.by, given & {"column"})
        yield from (f"{key}: missing, {self.by} needs it" for key in sorted(needed - given))
        yield from (f"{key}: {self.by} has no use for it" for key in sorted(given - needed))
        if self.by in PARTITIONS.builtin and self.options:
            yield f"options: {self.by} has no use for it"
