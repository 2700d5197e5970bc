"""Adapters as values: the sets that are trained, sent, averaged, replaced and saved.

A set maps a component (a pair's LoRA adapter, a task's head) to its tensors. Global, regular, personal and teacher sets
are loaded into the one live model in turn.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_hf.atomic_files import write_atomically
from tap_hf.errors import AdapterError
from tap_hf.pairs import Component

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
else:  # methods and their options are imported to validate a recipe, without torch
    Tensor = Parameter = Any

Adapters = Mapping[Component, Mapping[str, Tensor]]
"""`{component: {tensor name: tensor}}`, on the CPU. Never changed in place."""

LiveParameters = Mapping[Component, Mapping[str, Parameter]]
"""A model's own parameters under the names of a set."""

_SEPARATOR = "/"  # not allowed in components and module paths


def check_matches(adapters: Adapters, template: Adapters, what: str) -> None:
    """Raise if a component of `adapters` does not have exactly the tensors of `template`; it may lack components.

    Raises:
        AdapterError: for unknown components, missing or unexpected tensors, other shapes or dtypes.
    """
    for component, tensors in adapters.items():
        if component not in template:
            raise AdapterError(
                f'{what} has the component "{component}", which the model lacks. '
                f"Expected: {', '.join(sorted(template))}. Was it made by another recipe?"
            )
        wanted = template[component]
        if unexpected := sorted(tensors.keys() - wanted.keys()):
            raise AdapterError(
                f'{what}: "{component}" has {len(unexpected)} tensors that the model lacks (first: {unexpected[0]}). '
                "Was it saved from another base model or with other LoRA targets?"
            )
        if missing := sorted(wanted.keys() - tensors.keys()):
            raise AdapterError(
                f'{what}: "{component}" lacks {len(missing)} of {len(wanted)} tensors (first: {missing[0]}). '
                "Was it saved from another base model or with other LoRA targets?"
            )
        for name, tensor in tensors.items():
            if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
                raise AdapterError(
                    f'{what}: "{component}", {name}: got {tensor.dtype} of shape {tuple(tensor.shape)}, '
                    f"expected {wanted[name].dtype} of shape {tuple(wanted[name].shape)}. Do the ranks agree?"
                )


def load_into(live: LiveParameters, adapters: Adapters) -> None:
    """Copy a set into the live parameters; components outside it keep their values.

    Raises:
        AdapterError: if a component does not have exactly the model's tensors.
    """
    import torch

    check_matches(adapters, live, "The set to load")
    targets: list[Tensor] = [live[c][n] for c, tensors in adapters.items() for n in tensors]
    with torch.no_grad():
        torch._foreach_copy_(targets, [t for tensors in adapters.values() for t in tensors.values()])


def dump_from(live: LiveParameters, components: Iterable[Component]) -> Adapters:
    """Return copies of the components' live values on the CPU."""
    return {c: {n: p.detach().to("cpu", copy=True) for n, p in live[c].items()} for c in components}


@contextlib.contextmanager
def held_in(live: LiveParameters, adapters: Adapters) -> Iterator[None]:
    """Load a set for the duration of a `with` block, then restore the previous values."""
    kept = {c: {n: live[c][n].detach().clone() for n in tensors} for c, tensors in adapters.items()}
    load_into(live, adapters)
    try:
        yield
    finally:
        load_into(live, kept)


def select(adapters: Adapters, components: frozenset[Component]) -> Adapters:
    """Return the components of a set that are in `components`, without copying tensors."""
    return {component: tensors for component, tensors in adapters.items() if component in components}


def rank_dimension(name: str) -> int | None:
    """Return which dimension of LoRA's A or B has the size of the rank; `None` for other tensors."""
    return 0 if name.endswith("lora_A.weight") else 1 if name.endswith("lora_B.weight") else None


def with_rank(adapters: Adapters, rank: int | None) -> Adapters:
    """Return a set with at most this rank: A's first rows and B's first columns."""
    if rank is None:
        return adapters
    return {
        c: {
            n: t if (d := rank_dimension(n)) is None or t.shape[d] <= rank else t.narrow(d, 0, rank).contiguous()
            for n, t in tensors.items()
        }
        for c, tensors in adapters.items()
    }


def cut_to(adapters: Adapters, template: Adapters) -> Adapters:
    """Return a set cut to the ranks of a template with the same components."""
    return {
        c: {
            n: t if t.shape == (wanted := template[c][n].shape) else t[tuple(map(slice, wanted))].contiguous()
            for n, t in tensors.items()
        }
        for c, tensors in adapters.items()
    }


def padded_to(adapters: Adapters, template: Adapters) -> Adapters:
    """Return a set whose LoRA factors are padded with zeros to the template's ranks."""
    return {
        c: {n: _padded(n, t, template[c][n]) if n in template.get(c, ()) else t for n, t in tensors.items()}
        for c, tensors in adapters.items()
    }


def _padded(name: str, tensor: Tensor, wanted: Tensor) -> Tensor:
    import torch

    dimension = rank_dimension(name)
    if dimension is None or tensor.dim() != wanted.dim() or tensor.shape[dimension] >= wanted.shape[dimension]:
        return tensor
    shape = list(tensor.shape)
    shape[dimension] = wanted.shape[dimension] - tensor.shape[dimension]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dimension)


def number_of_holders(name: str, tensor: Tensor, ranks: Sequence[int | None]) -> Tensor:
    """Return how many of some clients hold each value of a tensor, at least 1, in a shape that broadcasts to it.

    Args:
        name: of the tensor; a client of lower rank does not hold the last ranks of LoRA's factors.
        tensor: at the full rank.
        ranks: of the clients; `None` for the full rank.
    """
    import torch

    dimension = rank_dimension(name)
    shape = [1] * tensor.dim()
    if dimension is None:
        return torch.full(shape, max(1, len(ranks)))
    shape[dimension] = tensor.shape[dimension]
    held = [sum(rank is None or rank > place for rank in ranks) for place in range(shape[dimension])]
    return torch.tensor(held).clamp(min=1).reshape(shape)


def join_sets(sets: Mapping[str, Adapters]) -> Adapters:
    """Return several sets as one, with components named `set.component`, for one file."""
    return {f"{s}.{c}": tensors for s, components in sets.items() for c, tensors in components.items()}


def split_sets(joined: Adapters, names: Iterable[str]) -> dict[str, Adapters]:
    """Return the sets that `join_sets` joined; `names` also lists the empty ones."""
    sets: dict[str, dict[Component, Mapping[str, Tensor]]] = {name: {} for name in names}
    for key, tensors in joined.items():
        name, _, component = key.partition(".")  # names of sets and components have no dots
        sets[name][component] = tensors
    return dict[str, Adapters](sets)


def combined(*terms: tuple[float, Adapters]) -> Adapters:
    """Return the weighted sum of sets with the same components and shapes.

    Examples:
        >>> import torch
        >>> ones = {"a": {"w": torch.ones(2)}}
        >>> combined((3, ones), (-1, ones))["a"]["w"]
        tensor([2., 2.])
    """
    (weight, first), *others = terms
    return {
        c: {n: sum((k * s[c][n] for k, s in others), start=weight * t) for n, t in tensors.items()}
        for c, tensors in first.items()
    }


def zeros_like(adapters: Adapters) -> Adapters:
    """Return a set of zeros with the same components and shapes."""
    import torch

    return {c: {n: torch.zeros_like(t) for n, t in tensors.items()} for c, tensors in adapters.items()}


def equal(left: Adapters, right: Adapters) -> bool:
    """Return whether two sets have the same components, names and values, bit by bit."""
    return left.keys() == right.keys() and all(
        left[c].keys() == right[c].keys() and all(left[c][n].equal(right[c][n]) for n in left[c]) for c in left
    )


def is_finite(adapters: Adapters) -> bool:
    """Return whether no tensor holds a NaN or an infinity."""
    return all(bool(t.isfinite().all()) for tensors in adapters.values() for t in tensors.values())


def save_adapters(path: Path, adapters: Adapters, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a set and JSON values to one safetensors file, atomically; its folder must exist."""
    write_atomically(path, pack(adapters, metadata))


def pack(adapters: Adapters, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Return a set and JSON values as the bytes of one safetensors file."""
    from safetensors.torch import save

    flat: dict[str, Tensor] = {}
    seen: set[int] = set()
    for component, tensors in adapters.items():
        for name, tensor in tensors.items():
            place = tensor.untyped_storage().data_ptr()
            # Sets may share tensors; safetensors needs a separate one for each name.
            flat[f"{component}{_SEPARATOR}{name}"] = tensor.clone() if place in seen else tensor.contiguous()
            seen.add(place)
    return save(flat, metadata={"tap_hf": json.dumps(metadata or {})})


def unpack(blob: bytes) -> tuple[Adapters, dict[str, Any]]:
    """Return the set and the JSON values in the bytes of `pack`."""
    from safetensors.torch import load

    adapters: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load(blob).items():
        component, _, name = key.partition(_SEPARATOR)
        adapters.setdefault(component, {})[name] = tensor
    length = int.from_bytes(blob[:8], "little")  # of the header, which `load` has checked
    return adapters, json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["tap_hf"])


def load_adapters(path: Path) -> tuple[Adapters, dict[str, Any]]:
    """Return the set and the JSON values in a file of `save_adapters`.

    Raises:
        AdapterError: if the file is missing or not from `save_adapters`.
    """
    from safetensors import SafetensorError

    try:
        return unpack(path.read_bytes())
    except (
        OSError,
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # of more than 64 dimensions
        raise AdapterError(f"{path} is not an adapter set written by tap_hf ({error}).") from error
