"""The page of several runs: the numbers of `compare`, in a browser."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tap_hf.benchmark import compare, comparison_tables, find_runs, read_runs
from tap_hf.report import write_sweep_report
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli
from tests.pages import SCREENS, Tables, assert_shown_well

GAINS = {"tap": 0.1, "local": 0.0, "fedavg": -0.2}


@pytest.fixture(scope="module")
def folder(two_pairs_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, as if of three methods over three seeds."""
    made, original = tmp_path_factory.mktemp("sweep"), (two_pairs_run / "run.json").read_text()
    for method, gain in GAINS.items():
        for seed in (41, 42, 43):
            record: dict[str, Any] = json.loads(original)
            record["recipe"] |= {"name": method, "seed": seed, "benchmark": {"reference": "local"}}
            record["data"] = f"of seed {seed}"
            for row in record["results"]:
                row["values"] = dict.fromkeys(row["values"], 0.5 + gain + seed / 1000)
                row["scores"] = {}
            (run := made / method / f"seed-{seed}").mkdir(parents=True)
            (run / "run.json").write_text(json.dumps(record))
    (made / "tap/seed-41/report.html").write_text("its page")
    return made


def test_the_page_has_all_numbers_of_the_comparison(folder: Path, tmp_path: Path, cli: Cli) -> None:
    page = tmp_path / "page.html"
    done = cli("report", folder, "-o", page)
    assert (done.code, done.out) == (0, f"{page}\n")
    assert page.stat().st_mode & 0o777 == 0o600
    rows = Tables(page.read_text()).rows
    comparison = compare(read_runs(find_runs([folder])), "local")
    for table in comparison_tables(comparison):
        assert list(table.header) in rows
        for row in table.rows:
            assert [cell.strip() for cell in row] in rows
    assert page.read_text().count("<svg") == len(comparison.tasks)


def test_it_compares_with_the_recipes_reference_unless_told(folder: Path, tmp_path: Path, cli: Cli) -> None:
    assert "compared with local" in write_sweep_report(folder, tmp_path / "a.html").read_text()
    assert cli("report", folder, "-o", tmp_path / "b.html", "--reference", "tap").code == 0
    assert "compared with tap" in (tmp_path / "b.html").read_text()
    assert_a_users_mistake(cli("report", folder, "--reference", "tab"), 'did you mean "tap"')


def test_links_lead_to_the_pages_of_runs(folder: Path, tmp_path: Path) -> None:
    for place in (folder, tmp_path):
        page = write_sweep_report(folder, place / "page.html")
        (link,) = re.findall(r'<a href="([^"]+)"', page.read_text())
        assert link.startswith("./")
        assert (place / link).resolve() == (folder / "tap/seed-41/report.html").resolve()
    (folder / "page.html").unlink()


def test_a_single_run_has_no_reference(two_pairs_run: Path, cli: Cli) -> None:
    done = cli("report", two_pairs_run, "--reference", "tap")
    assert (done.code, "compared with nothing" in done.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_a_browser_shows_it(folder: Path, tmp_path: Path, width: int, scheme: str) -> None:
    assert_shown_well(write_sweep_report(folder, tmp_path / "page.html"), width, scheme)
