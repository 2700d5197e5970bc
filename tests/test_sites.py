"""Federations of several parties: the same run, in two halves between which only bytes cross."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import tap_hf
from tap_hf import RunDirectory, load_recipe, read_events
from tap_hf.federation import open_site, serve
from tap_hf.models import equal
from tap_hf.recipe import load_site
from tap_hf.records import read_record
from tests.sites import Direct, federation_of

TWO = {"north": ["chapter"], "south": ["chapter", "digit"]}
EVERYTHING = ["decisions", "losses", "metrics", "costs"]


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
