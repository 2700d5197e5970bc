"""The regimes of the benchmark differ in what they say, and in nothing else."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from benchmarks.regimes import RECIPE, REGIMES, recipe_of
from tap_hf.benchmark import compared


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("rows_of_regimes", RECIPE.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: getattr(module, name)()[:40] for name in ("alike", "shifted", "conflicting")}


def test_every_second_site_has_other_pictures_or_other_labels(rows: dict[str, Any]) -> None:
    alike, shifted, conflicting = (rows[name] for name in ("alike", "shifted", "conflicting"))
    assert alike["site"] == shifted["site"] == conflicting["site"] == [f"site_{n % 8}" for n in range(40)]
    for number in range(40):
        picture, label = np.array(alike["image"][number]), alike["digit"][number]
        other = number % 2 == 1
        turned = 255 - np.rot90(picture) if other else picture
        assert np.array_equal(np.array(shifted["image"][number]), turned)
        assert shifted["digit"][number] == label
        assert np.array_equal(np.array(conflicting["image"][number]), picture)
        assert conflicting["digit"][number] == ((label + 5) % 10 if other else label)


@pytest.mark.parametrize("regime", REGIMES)
def test_methods_have_equal_steps_in_every_regime(regime: str) -> None:
    """A client has eight rounds on average; Ditto trains two sets in each."""
    recipe = recipe_of(regime, ["benchmark.seeds=[1, 2]"])
    assert recipe.benchmark is not None
    assert recipe.benchmark.seeds == (1, 2)
    steps = {}
    for label, one in compared(recipe).items():
        planned = one.algorithm.planned_steps(one.training.local_steps)
        steps[label] = 8 * (planned.in_round + planned.after_per_round) + planned.after
    assert steps.pop("ditto") == 8 * 8 + 32
    assert set(steps.values()) == {64}
