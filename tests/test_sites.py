"""Federations of several parties: the same run, in two halves between which only bytes cross."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import tap_hf
from tap_hf import RunDirectory, RunDirectoryError, load_recipe, read_events
from tap_hf.federation import Response, open_site, serve
from tap_hf.federation.messages import decode
from tap_hf.models import equal
from tap_hf.recipe import load_site
from tap_hf.records import read_outgoing, read_record
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli
from tests.sites import Direct, federation_of

TWO = {"north": ["chapter"], "south": ["chapter", "digit"]}
OUTGOING = "outgoing.jsonl"
EVERYTHING = ["decisions", "losses", "metrics", "costs"]


def decoded(reply: bytes) -> Response:
    return decode(Response, reply)


def sharing(site: Path, *fields: str, **more: Any) -> Path:
    """Let a site share these fields."""
    values = yaml.safe_load(site.read_text()) | {"privacy": {"share": list(fields)}} | more
    site.write_text(yaml.safe_dump(values))
    return site


@contextlib.contextmanager
def sites_of(recipe: Path, sites: Mapping[str, Path], folder: Path, resume: bool = False) -> Iterator[Direct]:
    """Open all sites in this process."""
    with contextlib.ExitStack() as held:
        runs = {
            client: held.enter_context(
                open_site(load_recipe(recipe), client, load_site(file), folder / client, resume=resume)
            )
            for client, file in sites.items()
        }
        yield Direct({client: run.answer for client, run in runs.items()})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in process, and the same run as two sites that share everything and a server."""
    folder = tmp_path_factory.mktemp("two")
    recipe, sites = federation_of(folder, TWO)
    tap_hf.run(load_recipe(recipe), folder / "whole")
    for site in sites.values():
        sharing(site, *EVERYTHING)
    with sites_of(recipe, sites, folder) as transport:
        serve(load_recipe(recipe), transport, folder / "server")
    return folder


def test_sites_end_with_the_sets_of_the_run_in_process(two: Path) -> None:
    whole, server = RunDirectory(two / "whole"), RunDirectory(two / "server")
    assert equal(server.server(1).components, whole.server(1).components)
    for client in TWO:
        at_site, before = RunDirectory(two / client).sets(client), whole.sets(client)
        assert at_site.keys() == before.keys()
        assert all(equal(at_site[name], before[name]) for name in before)


def comparable(event: Any) -> dict[str, Any]:
    """Return an event without how long it took."""
    values: dict[str, Any] = json.loads(json.dumps(event.__dict__, default=lambda one: one.__dict__))
    values.get("cost", {}).pop("seconds", None)
    return values


def test_a_server_to_which_all_is_shared_has_the_record_of_the_run_in_process(two: Path) -> None:
    events = [[comparable(event) for event in read_events(two / run)] for run in ("whole", "server")]
    assert events[0] == events[1]
    whole, server = (read_record(two / run) for run in ("whole", "server"))
    assert server.lineage == whole.lineage
    assert server.steps == whole.steps
    assert server.replacements == whole.replacements
    assert not server.withheld
    for row, own in zip(whole.results, server.results, strict=True):
        assert (own.values, own.validation, own.validation_loss) == (row.values, row.validation, row.validation_loss)
        assert row.scores
        assert not own.scores  # those of single samples never leave


def test_a_sites_record_is_the_clients_part_of_the_run_in_process(two: Path) -> None:
    whole = read_record(two / "whole")
    for client in TWO:
        own = read_record(two / client)
        assert own.results == [row for row in whole.results if row.client == client]
        assert own.lineage.history == {client: whole.lineage.history[client]}
        assert own.steps == {client: whole.steps[client]}
        assert list(own.finalized_clients) == [client]
        assert not [path for path in (two / client / "clients").iterdir() if path.name != client]
    assert not (two / "server" / "clients").exists()


@pytest.fixture(scope="module")
def silent(two: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Direct]:
    """The same federation, whose sites have no policy, so that nothing beside the updates leaves them."""
    folder = tmp_path_factory.mktemp("silent")
    recipe, sites = federation_of(folder, TWO)
    with sites_of(recipe, sites, folder) as transport:
        serve(load_recipe(recipe), transport, folder / "server")
    return folder, transport


def test_without_a_policy_only_updates_and_counts_leave(silent: tuple[Path, Direct]) -> None:
    folder, transport = silent
    for _, _, reply in transport.crossed:
        answer = decoded(reply)
        if answer.round is not None and answer.round.update is not None:
            update = answer.round.update
            assert not update.state.personal
            assert (update.decisions, update.train_losses) == ([], {})
            assert update.regular.keys() == update.num_examples.keys() != set()
            assert (answer.round.cost.steps, answer.round.cost.seconds) == (0, 0.0)
        if answer.final is not None:
            assert (answer.final.result.sets, answer.final.result.decisions) == ({}, [])
        if answer.evaluation is not None:
            assert not answer.evaluation.rows
    assert equal(RunDirectory(folder / "server").server(1).components, whole_server(folder))


def whole_server(folder: Path) -> Any:
    """Return the last server set of a run in process of the recipe in a folder."""
    if not (folder / "whole").exists():
        tap_hf.run(load_recipe(folder / "federation.yaml"), folder / "whole")
    return RunDirectory(folder / "whole").server(1).components


def test_a_server_says_what_is_not_shared_with_it(silent: tuple[Path, Direct], cli: Cli) -> None:
    server = silent[0] / "server"
    record = read_record(server)
    assert record.withheld == {client: sorted(EVERYTHING) for client in TWO}
    assert (record.results, record.steps, record.lineage.history["north"]) == ([], {}, {"chapter": "SS"})
    for command in ("status", "explain", "card"):
        found = cli(command, server)
        assert found.code == 0, found
        assert "shared by the site of north: costs, decisions, losses, metrics" in found.out
    assert cli("report", server).code == 0
    assert_a_users_mistake(cli("push", server, "--all", "--repo-id", "org/x", "--dry-run"), "Push at each site")
    assert_a_users_mistake(cli("evaluate", server), "they and the models are at the sites")
    found = cli("predict", server, "--client", "north", "--text", "x")
    assert_a_users_mistake(found, 'The personal model of client "north" is at its own site')


def test_a_sites_directory_is_a_whole_run_directory(silent: tuple[Path, Direct], cli: Cli) -> None:
    """Offline, of one client."""
    south, record = silent[0] / "south", read_record(silent[0] / "south")
    for command in (
        ["status"],
        ["explain", "--client", "south"],
        ["card", "--client", "south"],
        ["predict", "--task", "chapter", "--text", "Fracture of femur"],
        ["push", "--client", "south", "--repo-id", "org/south", "--dry-run"],
        ["report"],
        ["outgoing"],
    ):
        found = cli(command[0], south, *command[1:])
        assert found.code == 0, found
        assert "north" not in found.out
    again = json.loads(cli("evaluate", south, "--json").out)["results"]
    assert [row["values"] for row in again] == [dict(row.values) for row in record.results or ()]


def test_all_that_left_a_site_is_in_its_log(silent: tuple[Path, Direct]) -> None:
    folder, transport = silent
    for client in TWO:
        entries = [entry for entry, _ in read_outgoing(folder / client)]
        replies = [reply for site, _, reply in transport.crossed if site == client]
        assert [entry.sha256 for entry in entries] == [hashlib.sha256(reply).hexdigest() for reply in replies]
        assert [entry.bytes for entry in entries] == list(map(len, replies))
        assert [entry.kind for entry in entries] == ["hello", "round", "round", "finalize", "evaluate"]
        update = decoded(replies[1]).round.update
        assert entries[1].num_examples == update.num_examples
        assert entries[1].components.keys() == update.regular.keys()
        assert entries[1].norm > 0
        assert entries[1].removed == ["costs", "decisions", "losses", "private"]


@pytest.mark.parametrize("line", [0, 2, 4])
def test_a_changed_log_of_what_left_is_noticed(silent: tuple[Path, Direct], tmp_path: Path, line: int) -> None:
    lines = (silent[0] / "north" / OUTGOING).read_text().splitlines(keepends=True)
    changed = [text.replace('"kind": "', '"kind": "x') if number == line else text for number, text in enumerate(lines)]
    for broken in (changed, [*lines[:line], *lines[line + 1 :]]):
        (tmp_path / OUTGOING).write_text("".join(broken))
        if broken[line:] and line < 4:
            with pytest.raises(RunDirectoryError, match="the chain is broken"):
                list(read_outgoing(tmp_path))
        else:  # of the last line, only who has its checksum notices
            whole = [checksum for _, checksum in read_outgoing(silent[0] / "north")]
            assert [checksum for _, checksum in read_outgoing(tmp_path)][-1] != whole[-1]
