"""A short form of `benchmarks.hostile`: no attack crashes, hangs, misleads, runs code or leaves its folder."""

import pytest

from tests.commands import measured

BAD = ("traceback", "hang", "wrong", "executed", "outside")


def assert_clean(*options: str) -> None:
    found = measured("benchmarks.hostile", "--json", *options)
    assert found["findings"] == []
    for counts in found["counts"].values():
        assert counts["clean"] == counts["attempts"] > 0


@pytest.mark.slow
def test_each_misbehaviour_is_noticed() -> None:
    found = measured("benchmarks.hostile", "--json", "--kind", "traps")
    assert [one["outcome"] for one in found["findings"]] == [one["what"].split(":")[0] for one in found["findings"]]
    counts = found["counts"]["traps"]
    assert counts["attempts"] == len(found["findings"]) == sum(counts[name] for name in BAD)
    assert all(counts[name] for name in BAD)


@pytest.mark.slow
def test_some_recipes_of_others() -> None:
    assert_clean("--kind", "recipes", "--sample", "12")


@pytest.mark.slow
def test_some_inputs_of_every_kind() -> None:
    assert_clean("--sample", "6")
