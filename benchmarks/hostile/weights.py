"""Damage to a safetensors file: lies in its header, and values that no training gives."""

import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.hostile.values import edited

Header = dict[str, Any]


def split(content: bytes) -> tuple[Header, bytes]:
    """Return the header and the data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    """Return a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def damaged_weights(content: bytes, draw: random.Random, edits: int = 8) -> Iterator[tuple[str, bytes]]:
    """Yield damaged files, each with what was done."""
    header, data = split(content)
    first = next(name for name in header if name != "__metadata__")
    numbers = len(data) // 4
    for name, number in VALUES.items():
        yield f"full of {name}", joined(header, struct.pack("<f", number) * numbers)
    yield "with one NaN", joined(header, struct.pack("<f", math.nan) + data[4:])
    yield "with other signs", joined(header, bytes(b ^ 0x80 if n % 4 == 3 else b for n, b in enumerate(data)))
    for name, change in LIES.items():
        lying = json.loads(json.dumps(header))
        change(lying, first, len(data))
        yield f"that has {name}", joined(lying, data)
    for length in (0, 1, len(content), 2**31, 2**63, 2**64 - 1):
        yield f"whose header has {length} bytes", length.to_bytes(8, "little") + content[8:]
    yield "whose header is not UTF-8", joined(b"\xff" * 64, data)
    yield "whose header is deep", joined(b'{"a":' * 50_000, data)
    yield "whose header is 8 MB of spaces", joined(b" " * 8_000_000 + json.dumps(header).encode(), data)
    yield (
        "whose header has a tensor twice",
        joined(json.dumps(header).encode()[:-1] + b", " + json.dumps({first: header[first]}).encode()[1:], data),
    )
    for _ in range(edits):
        what, values = edited(header, draw)
        yield f"whose header has {what}"[:200], joined(json.dumps(values).encode("utf-8", "surrogatepass"), data)


VALUES = {"NaN": math.nan, "infinity": math.inf, "1e38": 1e38, "1e20": 1e20, "zeros": 0.0}


def _set(key: str, value: Any) -> Callable[[Header, str, int], None]:
    def change(header: Header, first: str, size: int) -> None:
        header[first][key] = value

    return change


def _add(name: str, shape: list[int], offsets: Callable[[int], list[int]]) -> Callable[[Header, str, int], None]:
    def change(header: Header, first: str, size: int) -> None:
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets(size)}

    return change


LIES: dict[str, Callable[[Header, str, int], None]] = {
    "a tensor of integers": _set("dtype", "I32"),
    "a tensor of half precision": _set("dtype", "F16"),
    "a tensor of an unknown type": _set("dtype", "F7"),
    "a scalar": _set("shape", []),
    "a tensor of no rows": _set("shape", [0, 4]),
    "a huge shape": _set("shape", [2**40, 2**40]),
    "a negative shape": _set("shape", [-1, -4]),
    "a flat tensor": lambda h, first, _: h[first].update(shape=[math.prod(h[first]["shape"])]),
    "a turned tensor": lambda h, first, _: h[first].update(shape=h[first]["shape"][::-1]),
    "a tensor of many dimensions": lambda h, first, _: h[first].update(shape=[1] * 200 + h[first]["shape"]),
    "offsets behind the end": lambda h, first, size: h[first].update(data_offsets=[size, 2 * size]),
    "offsets that are swapped": lambda h, first, _: h[first].update(data_offsets=h[first]["data_offsets"][::-1]),
    "a tensor less": lambda h, first, _: h.pop(first),
    "an empty tensor more": _add("more", [0], lambda size: [size, size]),
    "a tensor of an empty name": _add("", [0], lambda size: [size, size]),
    "a tensor of a name that leads out": _add("../../../outside/x", [0], lambda size: [size, size]),
    "a tensor of a name with control characters": _add("\x1b[2J", [0], lambda size: [size, size]),
    "10,000 empty tensors": lambda h, _, size: h.update(
        {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]} for n in range(10_000)}
    ),
    "no metadata": lambda h, _first, _size: h.pop("__metadata__", None),
    "metadata of numbers": lambda h, _first, _size: h.update(__metadata__={"format": 1}),
    "metadata of another format": lambda h, _first, _size: h.update(__metadata__={"format": "tf"}),
    "metadata of 1 MB": lambda h, _first, _size: h.update(__metadata__={"x": "y" * 1_000_000}),
}
