"""Recipes of others: `validate` reads them, and what it accepts can be trained."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hostile.attempt import Attempt, Command, Limits
from benchmarks.hostile.damages import as_something_else, damaged_bytes
from benchmarks.hostile.originals import RECIPE, shipped, write_recipe
from benchmarks.hostile.values import Place, edited, places

_VALIDATE = (Command(("validate", "recipe.yaml")), Command(("recipes", "recipe.yaml")))
_TRAIN = (
    Command(("validate", "recipe.yaml")),
    Command(("data", "recipe.yaml", "--json")),
    Command(("run", "recipe.yaml", "--output-dir", "run", "--json")),
)

_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
YAML_TRICKS: dict[str, str] = {
    "an integer of nothing": 'seed: !!int ""',
    "a float of nothing": 'seed: !!float ""',
    "a truth of nothing": 'cache: !!bool ""',
    "a float of letters": "seed: !!float abc",
    "a time of letters": 'name: !!timestamp "now"',
    "a time out of range": "name: 2024-99-99",
    "bytes": "name: !!binary AAAA",
    "bytes of letters": 'name: !!binary "a"',
    "a set": "name: !!set {a, b}",
    "an ordered mapping": "name: !!omap [a: 1, b: 2]",
    "pairs": "name: !!pairs [a: 1, a: 2]",
    "pairs of a mapping": "name: !!pairs {a: 1}",
    "a Python object": 'name: !!python/object/apply:os.system ["touch $HOME/code_ran"]',
    "a Python name": "name: !!python/name:os.system",
    "an unknown tag": "name: !mine x",
    "a number in base 60": "seed: 190:20:30",
    "an octal number": "seed: 0o777",
    "a huge number in base 60": "seed: " + ":".join(["59"] * 5000),
    "a huge hexadecimal number": "seed: 0x" + "f" * 100_000,
    "a huge decimal number": "seed: " + "9" * 100_000,
    "a list as a key": "? [a, b]\n: 1",
    "a mapping as a key": "? {a: b}\n: 1",
    "a merge of itself": "name: &x\n  <<: *x",
    "a merge of a number": "lora: {<<: 1}",
    "a merge of many": "lora: {<<: [{rank: 1}, {rank: 2}, 3]}",
    "a list that holds itself": "name: &x [*x]",
    "a mapping that holds itself": "lora: &x {default: *x}",
    "clients that hold themselves": "clients: &x {a: *x}",
    "an alias of nothing": "name: *nothing",
    "aliases of aliases": _BOMB,
    "aliases of aliases in clients": _BOMB + "clients: *a11",
    "merges of merges": "m0: &m0 {a: 1, b: 2}\n"
    + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
    "two documents": "---\nname: x\n---\nname: y",
    "a directive": "%YAML 9.9\n---\nname: x",
    "a tab": "name:\tx\n\tseed: 1",
    "deep lists": "name: " + "[" * 20_000,
    "deep mappings": "name: " + "{a: " * 20_000,
    "deep blocks": "".join("  " * n + "a:\n" for n in range(1500)),
    "30,000 keys": "\n".join(f"k{n}: {n}" for n in range(30_000)),
    "30,000 equal keys": "\n".join("k: 1" for _ in range(30_000)),
    "30,000 clients": "clients:\n" + "\n".join(f"  c{n}: {{tasks: [urgency]}}" for n in range(30_000)),
    "a text of 3 MB": "name: " + "x" * 3_000_000,
    "an anchor of 100,000 characters": "name: &" + "a" * 100_000 + " x",
    "a key of 100,000 characters": "a" * 100_000 + ": 1",
    "a key of 5,000 characters in a section": "lora: {" + "a" * 5000 + ": 1}",
    "a scalar": "42",
    "a list": "[1, 2]",
    "a text": "hello",
    "null": "null",
    "nothing": "",
    "a comment": "# nothing",
    "a key of null": "null: 1",
    "a key of a number": "1: 2\n1.5: 3\ntrue: 4",
    "a flow that does not end": "name: [a, {b: c",
    "quotes that do not end": 'name: "abc',
    "a wrong escape": 'name: "\\xZZ"',
    "a surrogate": 'name: "\\ud800"',
    "a NUL": 'name: "a\\0b"',
    "a raw NUL": "name: a\0b",
    "raw control characters": "name: a\x1b[31mb",
    "a key of control characters": '"\\e[2J\\e]0;x\\a": 1',
    "control characters in a client": 'clients: {"\\e[2J": {tasks: [urgency]}}',
}

OVERRIDES = (
    "",
    "=",
    "=1",
    "seed",
    "seed=",
    "seed=!!int ''",
    "seed=[",
    "seed=*x",
    "seed=&x [*x]",
    "seed=1e999",
    "seed=0x" + "f" * 20_000,
    "a" * 5000 + "=1",
    ".".join("a" * 5000) + "=1",
    "clients.x.y.z=1",
    "clients..x=1",
    "name.x=1",
    "lora.default.rank={}",
    "lora.default=[]",
    "tasks=" + "[" * 5000,
    "tasks=\ud800",
    "name=\x1b[31m",
    "algorithm.name=\x1b[31m",
    "algorithm.name=evil.py:Method",
    "algorithm.name=[]",
    "algorithm.name=" + "x" * 5000,
    "algorithm=1",
    "examples.train=10**400",
    "seed=!!python/object/apply:os.system [touch $HOME/code_ran]",
    "--help",
    "datasets={a: *b}",
    "clients=" + "{a: " * 3000,
)


def recipe_attempts(draw: random.Random) -> list[Attempt]:
    """Return attempts on `validate`: wrong values in all fields, tricks of YAML, damaged files, overrides."""
    found = [_valid(_VALIDATE)]
    found += [_edit(draw, name, recipe) for name, recipe in shipped().items() for _ in range(110)]
    found += [_edit(draw, "full", shipped()["full"], section) for section in shipped()["full"] for _ in range(8)]
    for name, trick in YAML_TRICKS.items():
        found.append(_text(f"a recipe that is {name}", trick.encode(errors="surrogatepass")))
        whole = yaml.safe_dump(RECIPE) + "\n" + trick
        found.append(_text(f"a recipe that ends with {name}", whole.encode(errors="surrogatepass")))
    original = yaml.safe_dump(RECIPE, sort_keys=False).encode()
    found += [_text(f"a recipe {what}", content) for what, content in damaged_bytes(original, draw, flips=20)]
    found += [_placed(f"a recipe is {what}", put) for what, put in as_something_else().items()]
    for override in OVERRIDES:
        printable = override[:60].encode(errors="backslashreplace").decode()
        commands = (Command(("validate", "recipe.yaml", override)),)
        found.append(Attempt(f"the override {printable!r}", commands, lambda folder: write_recipe(folder, RECIPE)))
    return found


def training_attempts(draw: random.Random) -> list[Attempt]:
    """Return attempts on `validate`, `data` and `run`: wrong values in a recipe that trains in a second."""
    numbers = ("training", "examples", "federation", "algorithm", "lora")
    at = [place for place in places(RECIPE) if place[0] in numbers]
    found = [_valid(_TRAIN)]
    found += [_edit(draw, "tiny", RECIPE, commands=_TRAIN, at=at) for _ in range(60)]
    found += [_edit(draw, "tiny", RECIPE, commands=_TRAIN) for _ in range(30)]
    found += [_edit(draw, "full", shipped()["full"], commands=_TRAIN) for _ in range(15)]
    extremes: list[tuple[str, Any]] = [
        ("training.learning_rate", 1e30),
        ("training.learning_rate.start", 1e300),
        ("training.trainer", {"max_grad_norm": 0.0}),
        ("training.trainer", {"adam_epsilon": 0.0, "weight_decay": 1e30}),
        ("training.trainer", {"adam_beta1": 1.0, "adam_beta2": 1.0}),
        ("training.trainer", {"label_smoothing_factor": 9.0}),
        ("training.trainer", {"optim": "adafactor"}),
        ("training.trainer", {"output_dir": "../../outside/x"}),
        ("training.trainer", {"logging_dir": "../../outside/x", "report_to": "tensorboard"}),
        ("training.trainer", {"resume_from_checkpoint": "/etc"}),
        ("training.trainer", {"deepspeed": "/etc/passwd"}),
        ("training.trainer", {"fsdp_config": "/etc/passwd"}),
        ("training.eval_batch_size", 10**9),
        ("training.batch_size", 10**6),
        ("lora.default.alpha", 1e8),
        ("lora.default.rank", 10**6),
        ("lora.default.options", {"rank_pattern": {"(a+)+$": 10**6}}),
        ("lora.default.options", {"init_lora_weights": "pissa"}),
        ("lora.default.options", {"alpha_pattern": {"query": 1e308}}),
        ("tasks.urgency.metric", "perplexity"),
        ("tasks.urgency.metric", {"name": "accuracy", "path": "evil.py"}),
        ("tasks.urgency.labels", {"urgent": "urgent", "calm": "urgent"}),
        ("tasks.urgency.columns.text", "{note:>999999999}"),
        ("tasks.urgency.columns.text", "{note.__class__}"),
        ("tasks.urgency.columns.text", "{note}" * 3000),
        ("tasks.urgency.columns.text", "{" * 5000),
        ("tasks.digit.image_size", 10**6),
        ("examples.train", {"at_most": 10**30}),
        ("examples.train", 1e-300),
        ("federation.server_optimizer", {"name": "fedadam", "learning_rate": 1e30}),
        ("federation.aggregation", {"robust": "krum"}),
        ("federation.max_update_norm", 1e-300),
        ("algorithm.distillation", {"temperature": 1e-300}),
        ("algorithm.distillation", {"weight": 1e300}),
        ("algorithm.replacement", {"margin": 1e300, "relative": True}),
        ("backbone.name", "/etc"),
        ("backbone.name", "."),
        ("backbone.device_map", {"": "cuda:99"}),
        ("backbone.dtype", "int8"),
        ("cpu_threads", 10**6),
        ("seed", 2**64),
        ("seed", -(2**63)),
    ]
    for path, value in extremes:
        found.append(_written(f"{path}: {value!r}"[:120], with_path(RECIPE, path, value), _TRAIN))
    return found


def with_path(recipe: Any, path: str, value: Any) -> Any:
    """Return a recipe with a value at a path, whose sections are made where there are none."""
    first, _, rest = path.partition(".")
    inner = recipe.get(first) if isinstance(recipe.get(first), dict) else {}
    return {**recipe, first: with_path(inner, rest, value) if rest else value}


def _valid(commands: tuple[Command, ...]) -> Attempt:
    return Attempt("a valid recipe", commands, lambda folder: write_recipe(folder, RECIPE), is_valid=True)


def _edit(
    draw: random.Random,
    name: str,
    recipe: Any,
    section: str | None = None,
    *,
    commands: tuple[Command, ...] = _VALIDATE,
    at: list[Place] | None = None,
) -> Attempt:
    where = at if section is None else [place for place in places(recipe) if place[0] == section]
    what, value = edited(recipe, draw, where)
    return _written(f"the recipe {name} with {what}", value, commands)


def _written(what: str, recipe: Any, commands: tuple[Command, ...]) -> Attempt:
    return Attempt(what, commands, lambda folder: write_recipe(folder, recipe), stops=True, limits=Limits(cpu=40))


def _text(what: str, content: bytes) -> Attempt:
    def prepare(folder: Path) -> None:
        write_recipe(folder, RECIPE)
        (folder / "recipe.yaml").write_bytes(content)

    return Attempt(what, _VALIDATE, prepare)


def _placed(what: str, put: Callable[[Path], None]) -> Attempt:
    def prepare(folder: Path) -> None:
        write_recipe(folder, RECIPE)
        put(folder / "recipe.yaml")

    return Attempt(what, _VALIDATE, prepare)
