"""Slices of a split in the notation of `datasets`: `train[:500]`, `validation[10%:20%]`, `train+test`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = r"-?\d[\d_]*%?"
# As `datasets.ReadInstruction.from_spec` reads it, whose import takes a second.
_SLICE = re.compile(rf"\w+(\.\w+)*(\[({_NUMBER})?:({_NUMBER})?\](\((closest|pct1_dropremainder)\))?)?", re.ASCII)
_MIXED = re.compile(r"\[-?[\d_]+%:-?[\d_]+\]|\[-?[\d_]+:-?[\d_]+%\]")


@dataclass(frozen=True)
class SplitRows:
    """Consecutive rows of one split."""

    split: str
    rows: range


def slice_problem(spec: str) -> str | None:
    """Return what is wrong with one or several slices of splits, or `None`."""
    percents = (abs(int(found)) for found in re.findall(r"(-?[\d_]+)%", spec))
    if not all(_SLICE.fullmatch(one.strip()) for one in spec.split("+")) or any(found > 100 for found in percents):
        return f'expected a split or slice such as validation, "train[:500]" or "train[10%:20%]", got {spec!r}'
    if _MIXED.search(spec):  # `datasets` would take both for percents
        return f"expected two numbers of rows or two percents, got {spec!r}"
    return None


def part_problem(part: str) -> str | None:
    """Return what is wrong with a slice that names no split, such as `[0%:33%]`, or `None`."""
    spec = f"train{part}"
    if not part.startswith("[") or "+" in part or slice_problem(spec) is not None:
        return f'expected a slice such as "[0%:33%]" or "[:500]", got {part!r}'
    return None


def split_names(spec: str) -> list[str]:
    """Return the splits that a specification is made of.

    Examples:
        >>> split_names("train[:500]+test")
        ['train', 'test']
    """
    from datasets import ReadInstruction

    return [re.split(r"[\[(]", one)[0] for one in ReadInstruction.from_spec(spec).to_spec().split("+")]


def split_rows(spec: str, sizes: Mapping[str, int]) -> list[SplitRows]:
    """Return which rows a specification means.

    Args:
        spec: one or several slices of splits, joined with `+`.
        sizes: rows of each split.

    Raises:
        ValueError: for a split that does not exist, or what `slice_problem` would name.

    Examples:
        >>> split_rows("train[10%:20%]", {"train": 50})
        [SplitRows(split='train', rows=range(5, 10))]
    """
    from datasets import ReadInstruction

    absolute = ReadInstruction.from_spec(spec).to_absolute(dict(sizes))
    return [SplitRows(one.splitname, range(one.from_, max(one.from_, one.to))) for one in absolute]


def part_rows(part: str, rows: range) -> range:
    """Return what a slice that names no split means of these rows.

    Examples:
        >>> part_rows("[50%:]", range(100, 200))
        range(150, 200)
    """
    (one,) = split_rows(f"train{part}", {"train": len(rows)})
    return rows[one.rows.start : one.rows.stop]
