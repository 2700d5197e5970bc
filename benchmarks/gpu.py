"""Measure training on an accelerator: `python -m benchmarks.gpu [--json] [--size tiny] [FAMILY ...]`.

Checkpoints with random weights: FLAVA and CLIP of base size (768 wide, 12 layers, 224 px) and `vlm`, a LLaVA of two
billion parameters (2,048 wide, 24 layers). Frozen weights are bfloat16, adapters float32. Seconds are wall-clock, with
the device's queue empty at both ends. Without a GPU everything runs on the CPU, where only `--size tiny` ends soon.

- `peak`: TFLOP/s of a large bfloat16 matrix product, which is what `share` is of.
- `samples/s`, `share`: of one training in a round, `TapTrainer` included. Its FLOPs are counted by PyTorch, forward and
  backward, without the optimizer's.
- `clients/s`: in a round with its validation losses, decisions and files, in the first round and in the next: with LoRA
  in all layers, in the last ones, and in the last ones with the states below them kept from the first round.
- `KB per client`: of the device's memory, from federations of `FEWER` and `MORE` clients, after a round.
- `grouped`: several clients' adapters trained in one batch, each on its own samples, against one client after the
  other; seconds of the same steps, after comparing their losses.
"""

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tap_hf import Adapters, Federation, RunDirectory, TapModel, load_federation, load_recipe
from tap_hf.data.clients import ClientData
from tap_hf.models.tensor_dataset import Batch, joined
from tap_hf.training import young_garbage_only
from tests.checkpoints import BASE, TINY, Shape, build

FAMILIES = {"flava": "flava", "clip": "clip", "vlm": "llava"}
SHAPES: Mapping[str, Shape] = {
    "base": BASE,
    "tiny": TINY,
    "vlm": Shape(width=2048, text_width=2048, depth=24, heads=16, side=224, patch=14),
}
FEWER, MORE = 2, 6
RATE = 1e-2
KB = 1000


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        batch: samples in a step.
        steps: of a training.
        side: of the matrices whose product is the peak.
        clients: in a grouped batch.
    """

    batch: int
    steps: int
    side: int
    clients: int


SIZES = {"base": Size(32, 20, 8192, 8), "tiny": Size(2, 2, 64, 2)}


def device() -> torch.device:
    """Return the accelerator, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call, the device's included."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_flops(side: int) -> float:
    """Return the FLOP/s of a bfloat16 matrix product, the best of five."""
    left, right = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(left, right)
    return float(2 * side**3 / min(seconds(partial(torch.matmul, left, right)) for _ in range(5)))


def recipe_for(checkpoint: Path, size: Size, clients: int, **lora: Any) -> dict[str, Any]:
    """Return a recipe's plain values: clients that classify digits, which are as large as the model's images."""
    training = {"local_steps": size.steps, "batch_size": size.batch, "gradient_accumulation_steps": 1}
    task = {"pair": "image__classification", "dataset": "digits", "metric": "accuracy"}
    return {
        "name": "gpu",
        "backbone": {"name": str(checkpoint), "dtype": "bfloat16"},
        "lora": {"default": {"rank": 8, "dropout": 0.0, **lora}},
        "datasets": {"digits": {"source": "digits"}},
        "tasks": {"digit": {**task, "columns": {"image": "image", "target": "digit"}}},
        "examples": {"train": 2 * size.batch, "validation": size.batch, "test": 1},
        "clients": {f"client_{number:02}": {"tasks": ["digit"]} for number in range(clients)},
        "federation": {"rounds": 2, "clients_per_round": clients},
        "training": {**training, "eval_batch_size": size.batch, "trainer": {"use_cpu": device().type == "cpu"}},
    }


@contextmanager
def loaded(recipe: Mapping[str, Any]) -> Iterator[Federation[ClientData]]:
    """Load a federation with its model on the device, and free its memory afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        federation = load_federation(load_recipe(dict(recipe)), RunDirectory.create(Path(folder) / "run"))
        federation.population.model.to(device())
        with young_garbage_only():
            yield federation
        del federation
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def training_speed(recipe: Mapping[str, Any], size: Size) -> dict[str, float]:
    """Return samples and FLOPs per second of a training."""
    with loaded(recipe) as federation:
        client = next(iter(federation.clients.values()))
        local = federation.population.local_training(client, 0)
        start = client.part_of(federation.population.initial)
        local.train(start, "regular", steps=1)
        taken = seconds(partial(local.train, start, "regular"))
        model = federation.population.model
        model.set_trainable(start)
        batch = _on_device(next(client.tasks["digit"].train.batches(size.batch)))
        with FlopCounterMode(display=False) as counter:
            model(**batch).loss.backward()
        model.zero_grad()
        flops = counter.get_total_flops() * size.steps / taken
        return {"samples_per_second": size.batch * size.steps / taken, "flops_per_second": flops}


def clients_per_second(recipe: Mapping[str, Any]) -> list[float]:
    """Return how many clients a second take part in the first round, and in the second."""
    ended: list[float] = []
    with loaded(recipe) as federation:

        def observe(event: Any) -> None:
            if type(event).__name__ == "RoundFinished":
                _wait()
                ended.append(time.perf_counter())

        _wait()
        started = time.perf_counter()
        dataclasses.replace(federation, observer=observe).run_rounds()
        number = len(federation.clients)
    return [number / (end - start) for start, end in zip([started, *ended], ended, strict=False)]


def memory_after_a_round(recipe: Mapping[str, Any]) -> int:
    """Return the bytes that are allocated on the device after the rounds; 0 on a CPU."""
    with loaded(recipe) as federation:
        federation.run_rounds()
        return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def grouped_speed(recipe: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return the seconds of the clients' steps one after the other, and of the same steps in one batch."""
    with loaded(recipe) as federation:
        model = federation.population.model
        clients = list(federation.clients.values())
        batches = [_on_device(next(one.tasks["digit"].train.batches(size.batch))) for one in clients]
        together = joined([one.tasks["digit"].train for one in clients])
        places = [n * 2 * size.batch + place for n in range(len(clients)) for place in range(size.batch)]
        batch = _on_device(together.__getitems__(places))
        start = clients[0].part_of(federation.population.initial)
        components = list(start)
        apart = partial(_one_after_the_other, model, start, batches, size.steps)
        grouped = partial(_in_one_batch, model, start, components, batch, len(clients), size.steps)
        one, other = apart(), grouped()
        torch.testing.assert_close(other, one, rtol=0.02, atol=0.02)  # bfloat16 sums in another order
        return {"clients": len(clients), "apart_seconds": seconds(apart), "grouped_seconds": seconds(grouped)}


def _one_after_the_other(model: TapModel, start: Adapters, batches: Sequence[Batch], steps: int) -> Tensor:
    """Return the last loss of each client, which trains from the same set on its own batch."""
    losses = []
    for batch in batches:
        model.load(start)
        model.set_trainable(start)
        optimizer = torch.optim.AdamW(model.trainable(), lr=RATE)
        for _ in range(steps):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def _in_one_batch(
    model: TapModel, start: Adapters, components: Sequence[str], batch: Batch, clients: int, steps: int
) -> Tensor:
    """Return the last loss of each client; layers multiply each client's samples by its own weights."""
    model.load(start)
    model.set_trainable([])
    live = model.live(components)
    values = {
        id(p): p.detach().repeat(clients, *[1] * p.dim()).requires_grad_() for c in live.values() for p in c.values()
    }
    optimizer = torch.optim.AdamW(values.values(), lr=RATE)
    with _grouped_layers(model, values, clients):
        for _ in range(steps):
            logits = model(**{**batch, "labels": None}).logits
            losses = torch.nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="none")
            losses = losses.view(clients, -1).mean(dim=1)
            losses.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses.detach()


@contextmanager
def _grouped_layers(model: TapModel, values: Mapping[int, Tensor], clients: int) -> Iterator[None]:
    """Let the layers of adapters and heads use stacked values, by the id of the live parameter, within a block."""
    changed = []
    for layer in (m for m in model.peft_model.modules() if isinstance(m, LoraLayer)):
        for name in layer.lora_A:
            if id(layer.lora_A[name].weight) in values:
                down, up = (values[id(part[name].weight)] for part in (layer.lora_A, layer.lora_B))
                layer.forward = partial(_grouped_lora, layer.base_layer, down, up, layer.scaling[name], clients)
                changed.append(layer)
    for layer in (m for m in model.heads.modules() if isinstance(m, torch.nn.Linear)):
        if id(layer.weight) in values:
            layer.forward = partial(_grouped_linear, values[id(layer.weight)], values[id(layer.bias)], clients)
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _grouped_lora(
    base: torch.nn.Module, down: Tensor, up: Tensor, scale: float, clients: int, states: Tensor
) -> Tensor:
    parts = states.reshape(clients, -1, states.shape[-1]).to(down.dtype)
    added = torch.bmm(torch.bmm(parts, down.transpose(1, 2)), up.transpose(1, 2)) * scale
    plain: Tensor = base(states)
    return plain + added.view_as(plain).to(plain.dtype)


def _grouped_linear(weight: Tensor, bias: Tensor, clients: int, states: Tensor) -> Tensor:
    parts = states.reshape(clients, -1, states.shape[-1])
    return torch.baddbmm(bias[:, None], parts, weight.transpose(1, 2)).flatten(0, 1)


def _on_device(batch: Batch) -> Batch:
    return {name: one.to(device()) if isinstance(one, Tensor) else one for name, one in batch.items()}


def measure(family: str, size_name: str) -> dict[str, Any]:
    """Return all that is reported of a family."""
    size = SIZES[size_name]
    shape = SHAPES["vlm" if family == "vlm" and size_name == "base" else size_name]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = build(FAMILIES[family], Path(folder), shape)
        everywhere = recipe_for(checkpoint, size, FEWER)
        speed = training_speed(everywhere, size)
        memory = [memory_after_a_round(recipe_for(checkpoint, size, number)) for number in (FEWER, MORE)]
        last = recipe_for(checkpoint, size, FEWER, last=max(1, shape.depth // 3))
        rounds = {
            "all layers": clients_per_second(everywhere),
            "last third": clients_per_second({**last, "prefix_cache": 0}),
            "last third, kept": clients_per_second(last),
        }
        return {
            "family": family,
            "samples_per_second": speed["samples_per_second"],
            "share_of_peak": speed["flops_per_second"] / peak_flops(size.side),
            "kb_per_client": (memory[1] - memory[0]) / (MORE - FEWER) / KB,
            "clients_per_second": rounds,
            "grouped": grouped_speed(recipe_for(checkpoint, size, size.clients), size),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"some of {', '.join(FAMILIES)}; all by default")
    parser.add_argument("--size", choices=tuple(SIZES), default="base", help="of the checkpoints")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows = [measure(family, options.size) for family in options.families or FAMILIES]
    versions = {one: importlib.metadata.version(one) for one in ("torch", "transformers", "peft")}
    peak = peak_flops(SIZES[options.size].side)
    found = {"device": name, "peak_tflops": peak / 1e12, "rows": rows, "versions": versions}
    print(json.dumps(found, indent=2) if options.json else _table(found))


def _table(found: Mapping[str, Any]) -> str:
    rounds = list(found["rows"][0]["clients_per_second"])
    lines = [
        f"{found['device']}, {found['peak_tflops']:.1f} TFLOP/s in bfloat16; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "",
        "| backbone | samples/s | share of the peak | KB per client | "
        f"{' | '.join(f'clients/s, {name}' for name in rounds)} | grouped: times as fast |",
        f"|---|---|---|---|{'---|' * len(rounds)}---|",
    ]
    for row in found["rows"]:
        numbers = " | ".join(" / ".join(f"{one:.2f}" for one in row["clients_per_second"][name]) for name in rounds)
        times = row["grouped"]["apart_seconds"] / row["grouped"]["grouped_seconds"]
        lines.append(
            f"| {row['family']} | {row['samples_per_second']:.1f} | {row['share_of_peak']:.2f} | "
            f"{row['kb_per_client']:.0f} | {numbers} | {times:.2f} ({row['grouped']['clients']} clients) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
