"""`hub://` references: recipes and tables that lie on the Hub."""

from pathlib import Path

import pytest

from tap_hf import HubError
from tap_hf.hub import client_publication
from tap_hf.hub_client import check_repo_id
from tap_hf.recipe import HubReference, fetch, parse_reference
from tests.conftest import Cli
from tests.hub_server import HubServer

RECIPE = """
name: triage
cpu_threads: 1
backbone: {name: tiny}
lora: {default: {rank: 4, alpha: 8, dropout: 0.1}}
datasets: {notes: {source: csv, path: "hub://datasets/org/notes/all/notes.csv@COMMIT"}}
tasks:
  urgency: {pair: text__classification, dataset: notes, columns: {text: note, target: urgency}, metric: accuracy}
examples: {train: 8, validation: 4, test: 4}
clients: {north: {tasks: [urgency]}}
federation: {rounds: 1, clients_per_round: 1}
training: {local_steps: 1, batch_size: 4}
algorithm: {final: {steps: 2}}
"""


@pytest.fixture(autouse=True)
def _nothing_fetched_yet() -> None:
    fetch.cache_clear()


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hub://org/name/a.yaml", HubReference("org/name", "model", "a.yaml", None)),
        ("hub://org/name/a/b.yaml@v1", HubReference("org/name", "model", "a/b.yaml", "v1")),
        ("hub://datasets/org/name/b.csv@refs/pr/1", HubReference("org/name", "dataset", "b.csv", "refs/pr/1")),
    ],
)
def test_what_references_mean(text: str, reference: HubReference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "hub://org/name",
        "hub://org/name/",
        "hub://org/name//etc/passwd",
        "hub://org/name/../../other/a.yaml",
        "hub://../name/a.yaml",
        "hub://org/name/a\\b.yaml",
        "hub://org/name/a.yaml@../main",
        "hub://org/name/a.yaml@",
        "hub://org/name/a\n.yaml",
        "hub://C:/name/a.yaml",
    ],
)
def test_references_that_lead_elsewhere_are_refused(text: str, hub: HubServer) -> None:
    with pytest.raises(HubError, match="names no file of the Hub, expected hub://ORG/NAME/path"):
        fetch(text)
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo_id", ["org/name.git", "org/a--b", "org/a..b", f"org/{'x' * 97}", "org/name-", "org/a-/b"]
)
def test_names_that_no_repository_can_have(repo_id: str) -> None:
    for refuse in (check_repo_id, lambda text: client_publication(Path("absent"), "north", text)):
        with pytest.raises(HubError, match=f'"{repo_id}" is not the name of a repository; expected ORG/NAME'):
            refuse(repo_id)
    if repo_id.count("/") == 1:
        with pytest.raises(HubError, match=f'"{repo_id}" is not the name of a repository'):
            parse_reference(f"hub://{repo_id}/a.yaml")


def test_a_recipe_and_its_table_come_from_the_hub(hub: HubServer, cli: Cli, tmp_path: Path) -> None:
    notes = "".join(f"{word} in room {n},{word}\n" for n in range(20) for word in ("urgent", "calm"))
    commit = hub.put("dataset org/notes", {"all/notes.csv": f"note,urgency\n{notes}".encode()})
    hub.put("dataset org/notes", {"all/notes.csv": b"other,columns\n1,2\n"})  # which the revision keeps out
    hub.put("model org/recipes", {"clinic/triage.yaml": RECIPE.replace("COMMIT", commit).encode()})
    done = cli("run", "hub://org/recipes/clinic/triage.yaml", "--output-dir", tmp_path / "run")
    assert done.code == 0, done.err
    assert cli("predict", tmp_path / "run", "--text", "urgent in room 3").out.split()[0] in ("urgent", "calm")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("source: csv", "source: imagefolder", "expected one of the sources csv, json, parquet, got imagefolder"),
        ("all/notes.csv", "../notes.csv", 'datasets.notes.path: "hub://datasets/org/notes/../notes.csv'),
        ("name: triage", "title: triage", "title: unknown key"),
    ],
)
def test_a_recipe_of_the_hub_is_checked_as_any(hub: HubServer, cli: Cli, old: str, new: str, said: str) -> None:
    hub.put("model org/recipes", {"triage.yaml": RECIPE.replace(old, new).encode()})
    told = cli("validate", "hub://org/recipes/triage.yaml")
    assert (told.code, said in told.err) == (2, True), told.err
    assert not [request for request in hub.requests if "datasets/" in request]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("hub://org/nowhere/a.yaml", "There is no repository org/nowhere"),
        ("hub://org/recipes/absent.yaml", "org/recipes has no file absent.yaml"),
        ("hub://org/recipes/triage.yaml@v9", "org/recipes has no revision v9"),
    ],
)
def test_what_is_not_there_is_a_users_mistake(hub: HubServer, cli: Cli, reference: str, said: str) -> None:
    hub.put("model org/recipes", {"triage.yaml": RECIPE.encode()})
    told = cli("validate", reference)
    assert (told.code, said in told.err) == (2, True), told.err


def test_all_of_a_run_reads_one_commit(hub: HubServer) -> None:
    hub.put("dataset org/notes", {"notes.csv": b"old"})
    assert fetch("hub://datasets/org/notes/notes.csv").read_bytes() == b"old"
    hub.put("dataset org/notes", {"notes.csv": b"new"})
    assert fetch("hub://datasets/org/notes/notes.csv").read_bytes() == b"old"
    fetch.cache_clear()
    assert fetch("hub://datasets/org/notes/notes.csv").read_bytes() == b"new"
