"""The page of a run: its numbers are the record's, its intervals hold, and a browser shows it without complaint."""

import json
import re
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tap_hf import ResultRow, RunDirectoryError, read_events, read_finished, write_report
from tap_hf.records import ClientUpdated, Cost, UpdateRefused, write_record
from tap_hf.report import curves, difference_interval, gains_of, mean_interval, run_page
from tap_hf.tasks import packed, sets_of
from tests.commands import assert_a_users_mistake
from tests.conftest import ROOT, Cli
from tests.pages import SCREENS, Tables, assert_shown_well


@pytest.fixture(scope="module")
def page(all_pairs_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(all_pairs_run, tmp_path_factory.mktemp("page") / "page.html")


def row_of(scores: dict[str, list[float]], *, higher_is_better: bool = True, client: str = "clinic") -> ResultRow:
    arrays = {name: np.array(one) for name, one in scores.items()}
    return ResultRow(
        client=client,
        task="chapter",
        pair="text__classification",
        metric="accuracy",
        higher_is_better=higher_is_better,
        n=len(next(iter(scores.values()))),
        values={name: float(one.mean()) for name, one in arrays.items()},
        scores={name: packed(one) for name, one in arrays.items()},
    )


def test_every_value_of_the_record_is_on_the_page(all_pairs_run: Path, page: Path) -> None:
    record, tables = read_finished(all_pairs_run), Tables(page.read_text())
    results = record.results or ()
    sets = sets_of(results)
    for row in results:
        cells = next(c for c in tables.rows if c[:2] == [row.client, f"{row.metric} {row.arrow}"])
        shown = [cell.split()[0] for cell in cells[3:]]
        wanted = ["undefined" if (v := row.values[name]) is None else f"{v:.4g}" for name in sets]
        assert shown[: len(sets)] == wanted
        assert shown[-1] == ("-" if row.constant is None else f"{row.constant:.4g}")
    marks = {(c[0], c[1]): "".join(c[2:]).replace("·", "-") for c in tables.rows}
    for client, tasks in record.lineage.history.items():
        for task, history in tasks.items():
            assert marks[client, task] == history


def test_every_decision_is_told_with_its_losses(all_pairs_run: Path, page: Path) -> None:
    titles = Tables(page.read_text()).titles
    decisions = [e for e in read_events(all_pairs_run) if e.event == "decision"]
    assert decisions
    for one in decisions:
        sign = "<" if one.replaced else "≥"
        said = f"regular {one.regular_loss:.4f} + margin {one.margin:.4f} {sign} personal {one.personal_loss:.4f}"
        start = f"{one.client}, {one.task}, round {one.round + 1}: {'replaced' if one.replaced else 'kept'}; "
        assert start + said in titles


def test_curves_are_the_means_of_the_rounds_clients() -> None:
    def updated(round_: int, client: str, loss: float) -> ClientUpdated:
        return ClientUpdated(round=round_, client=client, components=[], train_losses={"t": loss}, cost=Cost())

    found = curves([updated(0, "a", 1.0), updated(0, "b", 3.0), updated(2, "a", 5.0), updated(3, "a", float("inf"))])
    curve = found["t"]["regular set, training"]
    assert (curve.rounds, curve.means, curve.lows, curve.highs) == ([0, 2], [2.0, 5.0], [1.0, 5.0], [3.0, 5.0])


@pytest.mark.parametrize("hits", [0, 1, 13, 40])
def test_shares_have_wilsons_interval(hits: int) -> None:
    scores = np.array([1.0] * hits + [0.0] * (40 - hits))
    wanted = scipy.stats.binomtest(hits, 40).proportion_ci(0.95, "wilson")
    assert mean_interval(scores) == pytest.approx((wanted.low, wanted.high))


def test_other_scores_have_students_interval() -> None:
    scores = np.array([0.2, 0.7, 0.4, 0.9, 0.55])
    wanted = scipy.stats.t.interval(0.95, 4, loc=scores.mean(), scale=scipy.stats.sem(scores))
    assert mean_interval(scores) == pytest.approx(wanted)
    assert difference_interval(scores - 0.5) == pytest.approx(tuple(np.array(wanted) - 0.5))
    assert mean_interval(scores[:1]) is None


@pytest.mark.parametrize("agreement", [0.5, 0.8, 0.95])
def test_equal_sets_are_rarely_called_different(agreement: float) -> None:
    draw = np.random.default_rng(0)
    called = 0
    for _ in range(1000):
        differences = draw.choice([-1.0, 0.0, 1.0], 60, p=[(1 - agreement) / 2, agreement, (1 - agreement) / 2])
        low, high = difference_interval(differences) or (0.0, 0.0)
        called += low > 0 or high < 0
    assert called <= 70  # of 1,000; 5 % and two standard errors


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_better_and_worse_follow_the_metrics_direction(higher_is_better: bool) -> None:
    high, low = [1.0] * 30 + [0.0] * 2, [1.0] * 8 + [0.0] * 24
    row = row_of({"global": low, "stage1": high, "personal": high}, higher_is_better=higher_is_better)
    (gain,) = gains_of([row])
    to_global, to_stage1 = gain.against("global"), gain.against("stage1")
    assert to_global is not None
    assert to_stage1 is not None
    assert to_global.verdict == ("better" if higher_is_better else "worse")
    assert to_global.difference.value == pytest.approx(22 / 32 * (1 if higher_is_better else -1))
    assert gain.is_worse is not higher_is_better
    assert to_stage1.verdict == "unclear"


def test_without_scores_nothing_is_called_different(all_pairs_run: Path) -> None:
    published = [replace(row, scores={}) for row in read_finished(all_pairs_run).results or ()]
    verdicts = {one.verdict for gain in gains_of(published) for one in gain.versus}
    assert verdicts == {"unclear"}


def copied(run: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("run.json", "events.jsonl"):
        shutil.copy(run / name, folder / name)
    return folder


def test_texts_of_others_stay_texts(all_pairs_run: Path, tmp_path: Path) -> None:
    run = copied(all_pairs_run, tmp_path / "run")
    reason = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    record = read_finished(run)
    client, task = next((c, t) for c, tasks in record.lineage.history.items() for t in tasks)
    history = {**record.lineage.history, client: {task: "X" + record.lineage.history[client][task][1:]}}
    write_record(run, replace(record, lineage=replace(record.lineage, history=history)))
    events = [e for e in read_events(run) if not (e.event == "decision" and (e.client, e.round) == (client, 0))]
    cost = next(e.cost for e in events if e.event == "client_updated")
    lines = [asdict(e) for e in [*events, UpdateRefused(round=0, client=client, reason=reason, cost=cost)]]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(run).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert any(reason in title for title in Tables(text).titles)


def test_of_thousands_of_clients_those_that_lose_most_are_shown(all_pairs_run: Path, tmp_path: Path) -> None:
    run = copied(all_pairs_run, tmp_path / "run")
    record = read_finished(run)
    (one,) = (c for name, c in record.recipe.clients.items() if name == "clinic")
    names = [f"client_{n:05d}" for n in range(3_000)]
    good, bad = [1.0] * 16, [0.0] * 16
    rows = [row_of({"global": good, "personal": bad if n == 2_777 else good}, client=c) for n, c in enumerate(names)]
    values = {**record.recipe.values, "clients": {name: {"tasks": list(one.tasks)} for name in names}}
    recipe = replace(record.recipe, values=values, clients=dict.fromkeys(names, one))
    history = {name: {"chapter": "T" * record.recipe.federation.rounds} for name in names}
    many = replace(record, recipe=recipe, results=rows, steps={}, lineage=replace(record.lineage, history=history))
    write_record(run, many)
    text = write_report(run).read_text()
    assert len(text.encode()) < 3e6
    losing = [cells for cells in Tables(text).rows if cells[:1] == ["client_02777"]]
    assert losing
    assert "client_00100" not in text.split("<summary>Recipe")[0]


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")>\s]+)', page.read_text())
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert page.stat().st_size < 3e6


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_a_browser_shows_it(page: Path, width: int, scheme: str) -> None:
    assert_shown_well(page, width, scheme)


def test_the_command_writes_where_it_is_told(all_pairs_run: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("report", all_pairs_run, "-o", tmp_path / "mine.html")
    assert (done.code, done.out) == (0, f"{tmp_path / 'mine.html'}\n")
    assert (tmp_path / "mine.html").stat().st_mode & 0o777 == 0o600


def test_mistakes_are_named(all_pairs_run: Path, tmp_path: Path, cli: Cli) -> None:
    assert_a_users_mistake(cli("report", tmp_path), "is not a run directory")
    absent = tmp_path / "absent" / "page.html"
    assert_a_users_mistake(cli("report", all_pairs_run, "-o", absent), "cannot be written")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_report(all_pairs_run, tmp_path)


def test_resuming_a_run_that_was_killed_before_its_page_writes_it(
    two_pairs_run: Path, tmp_path: Path, cli: Cli
) -> None:
    run, record = tmp_path / "run", json.loads((two_pairs_run / "run.json").read_text())
    shutil.copytree(two_pairs_run, run)
    page = run / "report.html"
    page.unlink(missing_ok=True)
    done = cli("run", "--resume", run)
    assert (done.code, f"report: {page}" in done.err) == (0, True)
    assert page.read_text() == run_page(run)
    page.write_text("mine")
    assert (cli("run", "--resume", run).code, page.read_text()) == (0, "mine")
    page.unlink()
    record["recipe"]["report"] = False
    (run / "run.json").write_text(json.dumps(record))
    assert (cli("run", "--resume", run).code, page.exists()) == (0, False)


@pytest.mark.slow
def test_a_run_ends_with_its_page_unless_the_recipe_says_no(tmp_path: Path, cli: Cli) -> None:
    short = [ROOT / "recipes/smoke/two_pairs.yaml", "federation.rounds=1", "training.local_steps=1"]
    done = cli("run", *short, "--output-dir", tmp_path / "with")
    assert (done.code, (tmp_path / "with/report.html").is_file()) == (0, True)
    assert f"report: {tmp_path / 'with/report.html'}" in done.err
    assert done.out.splitlines()[-1] == str(tmp_path / "with")
    following = [line.removeprefix("next: tap-hf ") for line in done.err.splitlines() if line.startswith("next: ")]
    assert len(following) == 3
    for command in following:
        again = cli(*shlex.split(command))
        assert again.code == 0, again.err
    assert cli("run", *short, "report=false", "--output-dir", tmp_path / "without").code == 0
    assert not (tmp_path / "without/report.html").exists()
