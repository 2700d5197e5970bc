"""Which rows of a dataset a client may hold."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from tap_hf.recipe.options import options_of
from tap_hf.recipe.section import Section, check
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
"""The partitions that `partition.by` may name; user-defined ones are functions like `assign_shards`."""

_KEYS: dict[str, set[str]] = {
    "iid": set(),
    "dirichlet": {"column", "alpha"},
    "shards": {"column", "per_client"},
    "column": {"column"},
}
"""The keys that each built-in partition needs."""


class PartitionSection(Section):
    """Which rows of a dataset a client may hold."""

    by: Annotated[str, check(PARTITIONS.problem)] = Field(
        "iid",
        description="iid: any; dirichlet: the client's own mix of a column's values; shards: few pieces of the "
        "rows sorted by a column; column: those with the client's `values` in a column; or your own, file.py:function",
    )
    column: str | None = Field(None, description="of dirichlet, shards and column")
    alpha: float | None = Field(None, gt=0, description="of dirichlet; the smaller, the more the clients differ")
    per_client: PositiveInt | None = Field(None, description="of shards: how many each client gets")
    options: Annotated[Any, options_of(PARTITIONS, "by")] = Field(
        {}, validate_default=True, description="keyword arguments of your own partition"
    )

    def own_problems(self) -> Iterator[str]:
        """Yield keys that the partition lacks or does not use."""
        given = {key for key in ("column", "alpha", "per_client") if getattr(self, key) is not None}
        needed = _KEYS.get(self.by, given & {"column"})
        yield from (f"{key}: missing, {self.by} needs it" for key in sorted(needed - given))
        yield from (f"{key}: {self.by} does not use it" for key in sorted(given - needed))
        if self.by in PARTITIONS.builtin and self.options:
            yield f"options: {self.by} does not use it"
