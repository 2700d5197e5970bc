"""The weighted mean over holders, and which updates the server refuses."""

import pytest
import torch

from tap_hf.aggregation import check_update
from tap_hf.aggregation.weighted_mean import weighted_mean
from tap_hf.errors import UpdateRefusedError
from tap_hf.models import Adapters, equal


def value(**components: float) -> Adapters:
    return {name: {"w": torch.tensor([number, -number])} for name, number in components.items()}


def test_mean_is_weighted_by_the_examples_of_each_component() -> None:
    sets = [value(a=1.0, b=10.0), value(a=4.0, b=20.0)]
    counts = [{"a": 1, "b": 3}, {"a": 2, "b": 1}]
    result = weighted_mean(value(a=0.0, b=0.0), sets, counts)
    assert result["a"]["w"].tolist() == [3.0, -3.0]
    assert result["b"]["w"].tolist() == [12.5, -12.5]


def test_mean_ignores_clients_without_the_pair() -> None:
    result = weighted_mean(value(a=0.0, b=7.0), [value(a=1.0), value(a=3.0, b=9.0)], [{"a": 1}, {"a": 1, "b": 5}])
    assert result["a"]["w"].tolist() == [2.0, -2.0]
    assert result["b"]["w"].tolist() == [9.0, -9.0]


def test_components_that_nobody_holds_stay() -> None:
    current = value(a=1.0, b=7.0)
    assert weighted_mean(current, [value(a=3.0)], [{"a": 1}])["b"] == current["b"]
    assert equal(weighted_mean(current, [], []), current)


def test_mean_of_equal_sets_is_that_set_bit_for_bit() -> None:
    """Sums run in float64: three thirds of a float32 are that float32 again."""
    one = {"a": {"w": torch.rand(1000, generator=torch.Generator().manual_seed(0))}}
    assert equal(weighted_mean(one, [one, one, one], [{"a": 3}, {"a": 7}, {"a": 1}]), one)


def refuse(regular: Adapters, counts: object = None, max_norm: float = 100.0) -> None:
    check_update(regular, counts or dict.fromkeys(regular, 1), value(a=1.0, b=1.0), max_norm)  # type: ignore[arg-type]


def test_a_sound_update_is_accepted() -> None:
    refuse(value(a=2.0, b=2.0))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (value(a=2.0), "expected the components a, b"),
        (value(a=2.0, b=2.0, c=2.0), '"c", which the model lacks'),
        (value(a=float("nan"), b=2.0), "NaN"),
        (value(a=float("inf"), b=2.0), "NaN or infinite"),
        (value(a=1000.0, b=2.0), "norm is 1413"),
        ({"a": {"w": torch.zeros(3)}, "b": {"w": torch.zeros(2)}}, r"shape \(3,\), expected .* \(2,\)"),
        ({"a": {"v": torch.zeros(2)}, "b": {"w": torch.zeros(2)}}, "tensors that the model lacks"),
        ({"a": {}, "b": {"w": torch.zeros(2)}}, "lacks 1 of 1 tensors"),
        ({"a": {"w": torch.zeros(2).double()}, "b": {"w": torch.zeros(2)}}, "float64"),
    ],
)
def test_an_update_that_cannot_be_averaged_is_refused(update: Adapters, message: str) -> None:
    with pytest.raises(UpdateRefusedError, match=message):
        refuse(update)


@pytest.mark.parametrize("count", [0, -1, 1.5, float("nan")])
def test_counts_must_be_positive_integers(count: float) -> None:
    with pytest.raises(UpdateRefusedError, match="positive"):
        refuse(value(a=2.0, b=2.0), {"a": count, "b": 1})
