"""The limits that environment variables set."""

import pytest

from tap_hf import TapError
from tap_hf.limits import HUB_SECONDS, LIMITS
from tests.conftest import ROOT


def test_the_guide_has_every_limit() -> None:
    rows = [f"| `{limit.variable}` | {limit.default:,} | {limit.meaning} |" for limit in LIMITS]
    table = [line for line in (ROOT / "docs/limits.md").read_text().splitlines() if line.startswith("| `TAP_HF_")]
    assert table == rows


def test_a_variable_changes_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HUB_SECONDS.variable, "2.5")
    assert HUB_SECONDS.value == 2.5


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(HUB_SECONDS.variable, text)
    with pytest.raises(TapError, match=f"TAP_HF_HUB_SECONDS is '{text}'; expected a number above 0"):
        _ = HUB_SECONDS.value
