"""States below the lowest adapter, kept on disk or in memory up to a bound."""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tap_hf.data.sources.files import file_status
from tap_hf.models.backbones import Tower
from tap_hf.models.split_prefix import RaggedStates

logger = logging.getLogger(__name__)

States = Mapping[Tower, RaggedStates]
Rows = Mapping[Tower, Sequence[Tensor]]
"""The states (L, D) of each sample of a batch, by tower."""

_INDEX = "index.json"
_GB = 10**9
_IN_MEMORY = 1.0  # GB


class PrefixStore:
    """Keeps the states of each split under a key, as long as all of them fit.

    On disk, a split is a folder that appears when it is complete, and what is read from it are the pages of its files.
    Splits that no run has used for longest make room for new ones; those of this run stay. Processes that write at the
    same time do not see each other's splits, and may exceed the bound together.

    Args:
        folder: where splits are kept; `None` for memory, where they take at most a gigabyte.
        gigabytes: the bound; 0 keeps nothing.
    """

    def __init__(self, folder: Path | None, gigabytes: float) -> None:
        self._folder = folder
        self._limit = int((gigabytes if folder is not None else min(gigabytes, _IN_MEMORY)) * _GB)
        self._gigabytes = gigabytes
        self._open: dict[str, States | None] = {}
        self._used: int | None = None
        self._started = time.time() - 1  # the clock of a file system ticks more slowly, and so may be behind
        self._has_warned = False

    def get(self, key: str, size: int, batches: Iterable[Rows]) -> States | None:
        """Return a split's states, from `batches` the first time; `None` if they do not fit.

        Args:
            key: names all that the states depend on.
            size: the number of samples.
            batches: of all samples, in order; not read if the states are kept already.
        """
        if self._limit == 0:
            return None
        if key not in self._open:
            self._open[key] = self._find(key, size, batches)
        return self._open[key]

    def _find(self, key: str, size: int, batches: Iterable[Rows]) -> States | None:
        if self._folder is None:
            return self._collected(size, batches)
        try:
            if (states := _read(self._folder / key)) is None:
                if not self._write(self._folder / key, size, batches):
                    return None
                states = _read(self._folder / key)
            return states
        except OSError as error:
            self._warn(f"{self._folder} cannot be used ({error})")
            return None

    def _collected(self, size: int, batches: Iterable[Rows]) -> States | None:
        found: dict[Tower, list[Tensor]] = {}
        for number, batch in enumerate(batches):
            if number == 0 and not self._fits(batch, size):
                return None
            for tower, rows in batch.items():
                found.setdefault(tower, []).extend(row.cpu() for row in rows)
        states = {tower: RaggedStates(torch.cat(rows), _ends(rows)) for tower, rows in found.items()}
        self._used = self._total() + sum(one.flat.nbytes for one in states.values())
        return states

    def _write(self, folder: Path, size: int, batches: Iterable[Rows]) -> bool:
        """Write a split's folder, and return whether it fits."""
        draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
        shutil.rmtree(draft, ignore_errors=True)  # of a killed process with the same id
        draft.mkdir(parents=True)
        try:
            index: dict[Tower, dict[str, object]] = {}
            ends: dict[Tower, list[int]] = {}
            for number, batch in enumerate(batches):
                if number == 0 and not self._fits(batch, size):
                    return False
                for tower, rows in batch.items():
                    flat = torch.cat(list(rows)).cpu()
                    with (draft / tower).open("ab") as file:
                        file.write(flat.view(torch.uint8).numpy().tobytes())
                    index[tower] = {"dtype": str(flat.dtype).removeprefix("torch."), "width": flat.shape[1]}
                    ends.setdefault(tower, [0]).extend((_ends(rows)[1:] + ends.get(tower, [0])[-1]).tolist())
            described = {t: {**one, "ends": ends[t], "file": file_status(draft / t)} for t, one in index.items()}
            (draft / _INDEX).write_text(json.dumps(described), encoding="utf-8")
            used = self._total()
            _publish(draft, folder)
            self._used = used + _size(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def _fits(self, first: Rows, size: int) -> bool:
        """Make room for a split, given its first batch, and return whether there is enough."""
        count = max(map(len, first.values()))
        needed = sum(row.nbytes for rows in first.values() for row in rows) * size // count
        if self._total() + needed > self._limit and self._folder is not None:
            self._used = self._make_room(self._folder, needed)
        if self._total() + needed <= self._limit:
            return True
        self._warn(
            f"prefix_cache, {self._gigabytes:g} GB, has no room"
            + (" (1 GB without files on disk)" if self._folder is None and self._gigabytes > _IN_MEMORY else "")
        )
        return False

    def _total(self) -> int:
        if self._used is None:
            self._used = sum(map(_size, _splits(self._folder))) if self._folder is not None else 0
        return self._used

    def _make_room(self, folder: Path, needed: int) -> int:
        """Delete splits that were not used since this run has started, the oldest first, and return the bytes left."""
        used = {split: (_last_use(split), _size(split)) for split in _splits(folder)}
        total = sum(size for _, size in used.values())
        for split, (last, size) in sorted(used.items(), key=lambda one: one[1]):
            if total + needed <= self._limit or last >= self._started:
                break
            shutil.rmtree(split, ignore_errors=True)
            total -= size
        return total

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            logger.warning(
                "%s: the states below the adapters of some splits are computed again in each batch. Raise "
                "`prefix_cache`, or set it to 0 if this is meant.",
                reason,
            )
        self._has_warned = True


def _publish(draft: Path, folder: Path) -> None:
    """Rename a complete split, unless another process was faster."""
    try:
        draft.rename(folder)
    except OSError:
        if _read(folder) is None:  # damaged
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)


def _splits(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _size(split: Path) -> int:
    return sum(file.stat().st_size for file in split.iterdir())


def _last_use(split: Path) -> float:
    index = split / _INDEX
    return (index if index.exists() else split).stat().st_mtime


def _read(folder: Path) -> States | None:
    """Return what a folder holds, and mark it as used; `None` if it is not there or was changed."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        states = {}
        for name, one in index.items():
            if file_status(folder / name) != tuple(one["file"]):
                return None
            dtype, width, ends = getattr(torch, one["dtype"]), one["width"], torch.tensor(one["ends"])
            size = one["ends"][-1] * width
            flat = torch.from_file(str(folder / name), shared=False, size=size, dtype=dtype).view(-1, width)
            states[Tower(name)] = RaggedStates(flat, ends)
        os.utime(folder / _INDEX)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    return states


def _ends(rows: Sequence[Tensor]) -> Tensor:
    return torch.tensor([0, *map(len, rows)]).cumsum(0)
