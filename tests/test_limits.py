"""The limits that environment variables set."""

import contextlib
import time

import pytest

from tap_hf import TapError
from tap_hf.limits import HUB_SECONDS, LIMITS, METRIC_SECONDS, OutOfTimeError, ends_within
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


def test_code_that_catches_everything_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def stubborn() -> None:
        with contextlib.suppress(BaseException):
            time.sleep(20)
        time.sleep(20)

    monkeypatch.setenv(METRIC_SECONDS.variable, "0.1")
    begun = time.monotonic()
    with pytest.raises(OutOfTimeError), ends_within(METRIC_SECONDS):
        stubborn()
    assert time.monotonic() - begun < 15
