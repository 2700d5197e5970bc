"""The committed benchmarks still measure what they say."""

from pathlib import Path

import pytest

from benchmarks.gpu import measure
from benchmarks.processes import gains
from benchmarks.speed import LOOPS, WAYS, loop_rounds, recipe_of, run_rounds
from benchmarks.structure import figures
from tests.checkpoints import build
from tests.commands import measured

pytestmark = pytest.mark.slow

SHORT = [
    "federation.rounds=1",
    "federation.clients_per_round=3",
    "training.local_steps=2",
    "training.batch_size=4",
    "algorithm.final.steps=4",
    "examples.train=8",
    "examples.validation=4",
    "examples.test=4",
]


def test_a_raw_loop_takes_the_same_steps_as_a_run() -> None:
    """The benchmark compares all values and losses bit by bit before it times anything."""
    found = measured("benchmarks.overhead", "--json", "--repetitions", "1", *SHORT)
    assert found["backbone_loads"] == 1
    assert found["ratio"]["median"] > 0


def test_the_overhead_of_the_trainer_is_measured() -> None:
    """It compares all values of the raw loop bit by bit before it times anything."""
    found = measured("benchmarks.trainer_overhead", "--json", "--repetitions", "1", "--size", "tiny")
    rows = [row for rows in found["parts"].values() for row in rows]
    assert len(rows) == 6
    assert all(row["ratio"] > 0 for row in rows)


def test_a_clients_round_is_measured_in_every_way(tmp_path: Path) -> None:
    """All values of the loops are compared bit by bit, those of the ways by their losses."""
    recipe = recipe_of("text", build("flava", tmp_path), steps=1)
    default, rounded = (run_rounds(recipe, WAYS[way], 2) for way in ("default", "bfloat16"))
    assert len(default.seconds) == 2
    assert default.difference(default) == "bit-equal"
    assert "of 2 decisions differ" in rounded.difference(default)
    kept, computed = (
        run_rounds(recipe, [one.format(last=1) for one in WAYS[way]], 2) for way in ("last layers, kept", "last layers")
    )
    assert kept.difference(computed) == "bit-equal"
    seconds = loop_rounds(recipe, rounds=1, repetitions=1)
    assert all(one > 0 for way in LOOPS for one in seconds[way])


def test_training_on_an_accelerator_is_measured_on_a_cpu_too() -> None:
    """The losses of grouped batches are compared with those of one client after the other."""
    row = measure("clip", "tiny")
    assert row["samples_per_second"] > 0
    assert 0 < row["share_of_peak"] < 1
    assert all(one > 0 for ones in row["clients_per_second"].values() for one in ones)


def test_what_processes_could_gain_is_computed_from_a_run(all_pairs_run: Path) -> None:
    table = [line.split(" | ") for line in gains(all_pairs_run, 2).splitlines()]
    seconds = {line[0].strip("| "): float(line[1]) for line in table[2:6]}
    one, waves, queue = (seconds[way] for way in ("one process", "waves", "queue"))
    assert one / 2 - 0.1 <= queue <= waves < one


def test_a_backbone_family_is_measured() -> None:
    found = measured("benchmarks.backbone_families", "--only", "vilt", "2", "--size", "tiny")
    assert found["parameters"] > found["personal_set"] / 4 > 0
    assert found["seconds"] > 0


def test_memory_of_a_small_federation_is_measured() -> None:
    assert measured("benchmarks.memory_per_client", "--only", "10", "1")["clients"] == 10


def test_the_structure_of_a_package_is_counted(tmp_path: Path) -> None:
    """Two rooms: a -> b.one <-> b.two, and b.two -> c."""
    files = {
        "a.py": "from p.b import one",
        "b/__init__.py": "",
        "b/one.py": "import p.b.two",
        "b/two.py": "def f():\n    from p.b.one import x\n    from p.c import y\n",
        "c.py": "",
        "__init__.py": "from p.a import z",
    }
    for name, text in files.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(text)
    found = figures(tmp_path / "p")
    assert (found["modules"], found["module arrows"], found["module circles"]) == ("5", "4", "1 (of 2)")
    assert (found["module floors"], found["rooms"], found["room arrows"], found["room circles"]) == ("3", "3", "2", "0")
    assert (found["entries of the package"], found["lines"], found["longest file"]) == ("3", "3", "3 (b/two.py)")


def test_a_run_of_many_clients_is_measured() -> None:
    """It checks how many clients were reached; the files of a client that is in no cohort are none."""
    few = "clients={clinic: {tasks: [chapter], count: 150}, registry: {tasks: [section], count: 50}}"
    rounds = ["federation.rounds=2", "federation.clients_per_round=10", "training.local_steps=1"]
    found = measured("benchmarks.scale", "--json", few, *rounds, "federation.finalize.clients={sampled: 5}")
    phases = {one["name"]: one for one in found["phases"]}
    assert list(phases) == ["imports", "recipe", "loading", "rounds", "stage 2", "evaluation", "end", "loading again"]
    assert phases["loading"]["files"] < 12
    assert phases["end"]["files"] < 120
    assert phases["end"]["files"] < phases["stage 2"]["files"]
    assert all(0 < one["resident"] <= one["peak"] for one in found["phases"])
