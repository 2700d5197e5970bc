"""The weighted mean over holders, and which updates the server refuses."""

import pytest
import torch

from tap_hf import Adapters, UpdateRefusedError
from tap_hf.aggregation import check_update, weighted_mean
from tap_hf.models import equal


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


def refuse(regular: Adapters, counts: object = None, **extra: Adapters) -> None:
    counted = dict.fromkeys(regular, 1) if counts is None else counts
    check_update(regular, counted, extra, value(a=1.0, b=1.0), max_norm=100.0)  # type: ignore[arg-type]


def test_a_sound_update_is_accepted() -> None:
    refuse(value(a=2.0, b=2.0), control=value(b=40.0))
    refuse(value(a=2.0))  # b was not trained
    refuse(value(a=71.0, b=1.0))  # 70 in two values: a norm of 99
    refuse({}, {}, control=value(a=1.0))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (value(a=2.0, b=2.0, c=2.0), '"c", which the model lacks'),
        (value(a=float("nan"), b=2.0), "NaN"),
        (value(a=float("inf"), b=2.0), "NaN or infinite"),
        (value(a=72.0, b=1.0), "the norm of the update is 100.4, expected at most 100"),
        (value(a=1000.0, b=2.0), "the norm of the update is 1413, expected at most 100"),
        ({"a": {"w": torch.zeros(3)}, "b": {"w": torch.zeros(2)}}, r"shape \(3,\), expected .* \(2,\)"),
        ({"a": {"v": torch.zeros(2)}, "b": {"w": torch.zeros(2)}}, "tensors that the model lacks"),
        ({"a": {}, "b": {"w": torch.zeros(2)}}, "lacks 1 of 1 tensors"),
        ({"a": {"w": torch.zeros(2).double()}, "b": {"w": torch.zeros(2)}}, "float64"),
    ],
)
def test_an_update_that_cannot_be_averaged_is_refused(update: Adapters, message: str) -> None:
    with pytest.raises(UpdateRefusedError, match=message):
        refuse(update)


def test_numbers_of_examples_are_those_of_the_components() -> None:
    for counts, got in (({"a": 1}, "got those of a"), ({"a": 1, "b": 1, "c": 1}, "got those of a, b, c")):
        with pytest.raises(UpdateRefusedError, match=f"expected the numbers of examples of a, b, {got}"):
            refuse(value(a=2.0, b=2.0), counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (value(c=1.0), '"control" beside the update has the component "c", which the model lacks'),
        (value(a=float("nan")), '"control" beside the update has NaN'),
        (
            value(a=1e6),
            '"control" beside the update is 1.414e\\+06, expected at most 100',
        ),  # from zero, not from the set
        ({"a": {"w": torch.zeros(3)}}, r"shape \(3,\), expected .* \(2,\)"),
    ],
)
def test_what_is_sent_beside_the_set_is_checked_as_the_set_is(change: Adapters, message: str) -> None:
    with pytest.raises(UpdateRefusedError, match=message):
        refuse(value(a=2.0, b=2.0), control=change)


@pytest.mark.parametrize("count", [0, -1, 1.5, float("nan")])
def test_counts_must_be_positive_integers(count: float) -> None:
    with pytest.raises(UpdateRefusedError, match="positive"):
        refuse(value(a=2.0, b=2.0), {"a": count, "b": 1})
