"""Which clients end with a personal model and results, and that everything that reads a run says so."""

import json
from pathlib import Path
from typing import Any

import pytest

import tap_hf
from tap_hf import Recipe, RecipeError, RunDirectoryError, RunRecord, load_recipe
from tap_hf.benchmark import compare, read_runs
from tap_hf.federation import chosen_clients
from tap_hf.hub import federation_publication, load_client_model
from tap_hf.recipe import ReachSection
from tap_hf.records import read_record, read_status
from tap_hf.report import run_page
from tests.conftest import ROOT, Cli

SMOKE = ROOT / "recipes/smoke/two_pairs.yaml"
FEW = (
    "clients={site: {count: 6, tasks: [digit]}, clinic: {tasks: [chapter]}}",
    "federation.clients_per_round=2",
    "federation.rounds=1",
    "training.local_steps=1",
    "algorithm.final.steps=1",
    "algorithm.references=[]",
    "federation.finalize.clients={sampled: 3}",
    "federation.evaluate.clients={sampled: 2}",
)


def few(*overrides: str) -> Recipe:
    return load_recipe(SMOKE, [*FEW, *overrides])


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seven clients, of which three are finalized and two of these evaluated."""
    return tap_hf.run(few(), tmp_path_factory.mktemp("runs") / "partial").directory


@pytest.fixture(scope="module")
def record(partial: Path) -> RunRecord:
    return read_record(partial)


def test_a_count_makes_clients_one_by_one() -> None:
    assert list(few().clients) == [*(f"site_{number}" for number in range(1, 7)), "clinic"]
    sections = [few("clients.site.count=1200").clients[name] for name in ("site_0001", "site_1200")]
    assert sections[0].tasks == ("digit",)
    assert sections[0].count is None
    with pytest.raises(RecipeError, match='two clients "site_2"'):
        few("clients={site: {count: 3, tasks: [digit]}, site_2: {tasks: [chapter]}}")


def test_only_the_chosen_clients_are_finalized_and_evaluated(partial: Path, record: RunRecord) -> None:
    assert record.finalized is not None
    assert record.evaluated is not None
    assert (len(record.finalized), len(record.evaluated)) == (3, 2)
    assert {row.client for row in record.results or ()} == {*record.evaluated} < {*record.finalized}
    assert {file.parent.name for file in partial.glob("clients/*/config.json")} == {*record.finalized}
    assert {*record.steps} == {*record.evaluated}


def test_the_draw_depends_on_seed_and_purpose_alone() -> None:
    clients = [f"c{number}" for number in range(50)]
    some = ReachSection.model_validate({"clients": {"sampled": 5}})
    first = chosen_clients(clients, some, 41, "finalize")
    assert first == chosen_clients(clients[::-1], some, 41, "finalize")[::-1]
    assert len({*first}) == 5
    assert first != chosen_clients(clients, some, 42, "finalize")
    assert first != chosen_clients(clients, some, 41, "evaluate")
    listed = ReachSection.model_validate({"clients": ["c3", "c1"]})
    assert chosen_clients(clients, listed, 41, "finalize") == ["c1", "c3"]


@pytest.mark.slow
def test_the_sets_of_finalized_clients_do_not_depend_on_how_many_others_are(partial: Path, tmp_path: Path) -> None:
    everyone = tap_hf.run(few("federation.finalize.clients=all", "federation.evaluate.clients=all"), tmp_path / "all")
    rows = {(row.client, row.metric): row.values for row in everyone.results}
    assert len({client for client, _ in rows}) == 7
    assert all(rows[row.client, row.metric] == row.values for row in read_record(partial).results or ())


def test_everything_that_reads_the_run_says_who_has_no_model(
    partial: Path, record: RunRecord, cli: Cli, tmp_path: Path
) -> None:
    said = "3 of 7 clients were finalized and 2 of these evaluated"
    status = read_status(partial)
    assert (status.clients, str(status.finalized), str(status.evaluated)) == (7, "3 of 3", "2 of 2")
    assert said in run_page(partial)
    for command in (["status"], ["explain"], ["card"], ["evaluate"]):
        assert said in " ".join(cli(*command, str(partial)).out.split()), command
    values = json.loads((partial / "run.json").read_text())
    values["recipe"]["name"] = "other"
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert said in " ".join(cli("compare", str(partial), str(tmp_path)).out.split())
    left = next(client for client in record.recipe.clients if client not in record.finalized_clients)
    assert f"{left} was not finalized" in cli("explain", str(partial), "--client", left).out
    for command in (["card"], ["push", "--repo-id", "me/few", "--dry-run"]):
        assert "was not finalized" in cli(*command, str(partial), "--client", left).err, command
    with pytest.raises(RunDirectoryError, match="was not finalized"):
        load_client_model(partial, left)


def test_the_page_of_many_clients_shows_the_recipe_of_some(partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tap_hf.report.page._MOST_ROWS", 3)
    page = run_page(partial)
    assert "3 of 7 clients; run.json has all" in page
    assert "site_3:" in page
    assert "site_4:" not in page


def test_a_comparison_needs_the_same_evaluated_clients(partial: Path, tmp_path: Path) -> None:
    values = json.loads((partial / "run.json").read_text())
    values["recipe"]["name"] = "other"
    values["results"] = values["results"][1:]
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(RunDirectoryError, match="different evaluated clients"):
        compare(read_runs([partial, tmp_path]))


def test_a_publication_has_the_finalized_clients_and_says_of_how_many(partial: Path, record: RunRecord) -> None:
    published = federation_publication(partial, "me/few")
    shown: dict[str, Any] = json.loads(published.files["run.json"])
    assert {*shown["recipe"]["clients"]} == {*(record.finalized or ())} == {*shown["finalized"]}
    assert shown["population"] == 7
    assert "3 of 7 clients were finalized" in published.card


def test_the_evaluation_of_a_finished_run_is_of_the_same_clients(partial: Path, record: RunRecord) -> None:
    assert [row.values for row in tap_hf.evaluate(partial)] == [row.values for row in record.results or ()]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["federation.finalize.clients=some"], "federation.finalize.clients: expected all, {sampled: N}, or a list"),
        (["federation.finalize.clients=[site_9]"], 'unknown client "site_9"'),
        (["federation.finalize.clients={sampled: 8}"], "got 8, but there are 7 clients"),
        (["federation.evaluate.clients={sampled: 4}"], "got 4, but there are 3 clients"),
        (["federation.evaluate.clients=[site_1]"], "needs the clients of finalize as a list too"),
    ],
)
def test_clients_that_there_are_not_are_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(RecipeError) as refused:
        few(*overrides)
    assert problem in str(refused.value)
