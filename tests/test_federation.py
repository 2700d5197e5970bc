"""Whole rounds: who takes part, what comes out, and what a fault leaves behind."""

import dataclasses
import errno
import gc
import json
import math
import os
import shutil
import stat
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FlavaModel

import tap_hf
from tap_hf import (
    Adapters,
    ClientState,
    Event,
    Federation,
    Recipe,
    RunDirectory,
    RunDirectoryError,
    ServerState,
    TapError,
    TapModel,
    UpdateRefusedError,
    load_federation,
    load_recipe,
    read_events,
)
from tap_hf.algorithms import ReplacementSection
from tap_hf.atomic_files import sha256_of, store_once, write_atomically
from tap_hf.data import ClientData
from tap_hf.federation import InProcess, Site, sample_cohort
from tap_hf.models import TensorDataset, equal, load_adapters
from tap_hf.recipe import overridden
from tap_hf.records import (
    ClientFinalized,
    ClientUpdated,
    ComponentWithheld,
    Cost,
    RoundReply,
    RoundStarted,
    UpdateRefused,
    read_record,
)
from tap_hf.seeds import seed_for
from tap_hf.training import mean_gradient, mean_loss
from tests.conftest import ROOT, randomised, with_options


def two_pairs(*overrides: str) -> Recipe:
    return load_recipe(
        ROOT / "recipes/smoke/two_pairs.yaml", ["training.local_steps=1", "algorithm.references=[]", *overrides]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tap_hf.run(two_pairs(), tmp_path_factory.mktemp("runs") / "first").directory


def sets_of(run: Path) -> dict[str, Adapters]:
    return {str(file.relative_to(run)): load_adapters(file)[0] for file in sorted(run.glob("**/sets/*.safetensors"))}


def test_one_seed_gives_one_run_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    """Whatever drew from the global generators before (trap 8)."""
    torch.manual_seed(123)
    again = tap_hf.run(two_pairs(), tmp_path / "again").directory
    first, second = sets_of(finished), sets_of(again)
    assert first.keys() == second.keys()
    assert all(equal(first[name], second[name]) for name in first)
    left, right = (json.loads((run / "run.json").read_text())["results"] for run in (finished, again))
    assert left == right


def test_loaded_data_are_excluded_from_garbage_collections(raw: dict[str, Any], tmp_path: Path) -> None:
    """Every `Trainer.train` runs a full one; `gc.get_objects` lists what it walks over."""
    walked: list[ClientData] = []

    def observe(event: Event) -> None:
        if isinstance(event, RoundStarted):
            walked.extend(one for one in gc.get_objects() if type(one) is ClientData)

    raw["tasks"], raw["lora"]["pairs"] = {"digit": raw["tasks"]["digit"]}, {}
    raw["clients"], raw["algorithm"] = {"scanner": {"tasks": ["digit"]}}, {"final": {"steps": 1}}
    raw["federation"] = {"rounds": 1, "clients_per_round": 1}
    tap_hf.run(load_recipe(raw), tmp_path / "run", observe)
    assert not walked


@pytest.mark.slow
def test_another_seed_gives_another_run(finished: Path, tmp_path: Path) -> None:
    other = tap_hf.run(two_pairs("seed=42"), tmp_path / "other").directory
    first, second = sets_of(finished), sets_of(other)
    assert not any(equal(first[name], second[name]) for name in first)


def test_seeds_differ_in_their_very_first_cohort() -> None:
    clients = [f"c{number:02d}" for number in range(30)]
    first = {seed: sample_cohort(clients, 2, seed, 0) for seed in range(41, 45)}
    assert len({tuple(cohort) for cohort in first.values()}) == 4
    assert sample_cohort(clients, 2, 41, 0) == first[41]
    assert sample_cohort(clients, 2, 41, 1) != first[41]


def test_the_runs_seed_decides_the_batches(federation: Federation) -> None:
    """From the same set, on a client without dropout, only the order of samples is left to differ (trap 8)."""
    client = federation.clients["kiosk"]
    sent = {c: federation.population.model.initial[c] for c in client.components}
    first, same, other = (
        federation.algorithm.client_update(
            dataclasses.replace(federation.population.local_training(client, 0), seed=seed),
            ServerState(sent),
            ClientState(sent),
        )
        for seed in (41, 41, 42)
    )
    assert equal(first.regular, same.regular)
    assert not equal(first.regular, other.regular)


def test_cohorts_draw_every_client_equally_often() -> None:
    clients = [f"c{number}" for number in range(10)]
    counts = dict.fromkeys(clients, 0)
    for round_ in range(2000):
        for client in sample_cohort(clients, 3, 41, round_):
            counts[client] += 1
    # 600 draws each; the standard deviation of a binomial with p = 0.3 is 20.5.
    assert all(abs(count - 600) < 4 * 20.5 for count in counts.values())


@pytest.mark.slow
def test_one_backbone_is_loaded_and_no_client_stores_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However many clients, rounds and sets (trap 9)."""
    loads: list[str] = []
    original = FlavaModel.from_pretrained.__func__

    def counting(cls: type, name: str, *args: Any, **kwargs: Any) -> Any:
        loads.append(name)
        return original(cls, name, *args, **kwargs)

    monkeypatch.setattr(FlavaModel, "from_pretrained", classmethod(counting))
    run = tap_hf.run(two_pairs("federation.rounds=1"), tmp_path / "run").directory
    assert len(loads) == 1
    backbone = (ROOT / "tap_hf/models/backbones/tiny/checkpoint/model.safetensors").stat().st_size
    assert max(file.stat().st_size for file in run.rglob("*.safetensors")) < backbone / 10


@pytest.mark.slow
def test_the_order_of_clients_changes_nothing(federation: Federation) -> None:
    """Neither an update nor the mean depends on who came before."""
    server = federation.population.model.initial
    ids = sorted(federation.clients)
    forward, backward = (update_all(federation, order, server) for order in (ids, ids[::-1]))
    assert all(equal(forward[c].state.personal, backward[c].state.personal) for c in ids)
    means = [
        federation.algorithm.aggregate(ServerState(server), [u[c] for c in ids]).server.components
        for u in (forward, backward)
    ]
    assert equal(*means)
    assert not equal(means[0], server)


def update_all(federation: Federation, order: list[str], server: Adapters) -> dict[str, Any]:
    updates = {}
    for client_id in order:
        client = federation.clients[client_id]
        sent = {c: server[c] for c in client.components}
        updates[client_id] = federation.algorithm.client_update(
            federation.population.local_training(client, 0), ServerState(sent), ClientState(sent)
        )
    return updates


def test_every_client_learns_every_one_of_its_components(federation: Federation) -> None:
    """Multimodal clients too (trap 3); in both sets."""
    server = federation.population.model.initial
    for client in federation.clients.values():
        sent, own = client.part_of(server), client.part_of(randomised(server))
        update = federation.algorithm.client_update(
            federation.population.local_training(client, 0), ServerState(sent), ClientState(own)
        )
        assert update.regular.keys() == update.num_examples.keys() == client.components
        for component in client.components:
            personal, regular = update.state.personal[component], update.regular[component]
            assert not equal({"": regular}, {"": sent[component]})
            assert not any(equal({"": personal}, {"": other}) for other in (own[component], regular))


def test_examples_of_a_pair_are_those_of_all_its_tasks(federation: Federation) -> None:
    client = federation.clients["scanner"]
    assert client.num_examples(client.tasks) == dict.fromkeys(client.components, 12)
    digit = client.tasks["digit"]
    task = dataclasses.replace(digit.task, name="parity")
    both = ClientData("x", {"digit": digit, "parity": dataclasses.replace(digit, task=task)})
    assert both.num_examples(both.tasks) == {"image__classification": 24, "head__digit": 12, "head__parity": 12}


@pytest.mark.parametrize(
    "other", [(2, 0, "a", "batches"), (1, 1, "a", "batches"), (1, 0, "b", "batches"), (1, 0, "a", "x")]
)
def test_every_part_of_a_seed_counts(other: tuple[int, int, str, str]) -> None:
    assert seed_for(*other) != seed_for(1, 0, "a", "batches")


def test_a_client_trains_as_the_recipe_says(federation: Federation, model: TapModel) -> None:
    """By the schedule in rounds and its last rate in stage 2; trained on training rows, judged on validation rows."""
    population, client = federation.population, federation.clients["clinic"]
    assert [population.local_training(client, n).learning_rate for n in range(3)] == [1e-3, 2e-3, 2e-3]
    everyone = population.pooled(federation.clients)
    assert [population.local_training(one, 0).local_steps for one in (client, everyone)] == [2, 4]
    work, adapters = population.local_training(client, 0), client.part_of(randomised(model.initial))
    found = work.gradient(adapters)
    assert equal(found, mean_gradient(model, adapters, {t: held.train for t, held in client.tasks.items()}, 4))
    assert work.steps == 2 * 12 // 4
    work.train(adapters, "regular")
    for steps in (3, 1):
        work.train(adapters, "personal", steps=steps)
    assert work.steps == 2 * 12 // 4 + 2 + 3 + 1
    for task, held in client.tasks.items():
        assert work.validation_loss(adapters, task) == mean_loss(model, adapters, held.validation, 128)
    still = work.train(adapters, "personal", steps=1, learning_rate=0.0)
    assert equal(still.adapters, adapters)
    for task in client.tasks:
        own = work.train(adapters, "personal", steps=1, components={f"head__{task}"})
        assert own.losses.keys() == {task}


@pytest.mark.slow
def test_trainings_of_a_round_share_samples_and_not_dropout(federation: Federation, tmp_path: Path) -> None:
    trained: dict[tuple[str, int], list[Adapters]] = {}
    for name in ("kiosk", "clinic"):  # the first one's adapter has no dropout
        client = federation.clients[name]
        start = client.part_of(federation.population.model.initial)
        for round_ in (0, 1, 2):  # 2: after the rounds
            work = dataclasses.replace(federation.population.local_training(client, round_), learning_rate=1e-3)
            trained[name, round_] = [work.train(start, which).adapters for which in ("regular", "personal")]
    alike = {key: equal(*sets) for key, sets in trained.items()}
    assert alike == {key: key in [("kiosk", 0), ("kiosk", 1)] for key in trained}
    assert not equal(trained["kiosk", 0][0], trained["kiosk", 1][0])


def test_held_out_clients_join_by_a_round_of_their_own(federation: Federation) -> None:
    """They are in no cohort; before stage 2 they run a round without sending anything."""
    algorithm = with_options(federation.algorithm, references=())
    options = overridden(federation.population.recipe, ["federation.held_out=[kiosk]"])
    changed = dataclasses.replace(federation, options=options, algorithm=algorithm)
    assert changed.members.keys() == {"clinic", "scanner"}
    population, client = changed.population, changed.clients["kiosk"]
    start = client.part_of(population.model.initial)
    sent = changed.sent_to(client, ServerState(randomised(population.model.initial)))
    site = Site(client, population, algorithm, changed.directory, rounds=2)
    stays, joins = (site.finalize(None, sent, joins=one) for one in (False, True))
    own_round = population.local_training(client, 2, after_rounds=False)
    joined = algorithm.client_update(own_round, sent, ClientState(start)).state.personal
    assert equal(stays.result.sets["stage1"], start)
    assert equal(joins.result.sets["stage1"], joined)
    assert joins.cost.steps == stays.cost.steps + own_round.steps


def test_stage_2_starts_from_the_state_of_the_last_round(tmp_path: Path) -> None:
    federation = load_federation(two_pairs(), directory := RunDirectory.create(tmp_path / "run"))
    federation.finalize(*federation.run_rounds())
    for client in ("clinic", "scanner"):
        assert equal(directory.sets(client)["stage1"], directory.state(client, 1).personal)


def test_a_finished_run_keeps_no_states_and_equal_files_once(finished: Path) -> None:
    assert not list(finished.glob("clients/*/state"))
    assert [file.name for file in finished.glob("server/*")] == ["round-00001.safetensors"]
    tokenizers = sorted(finished.glob("clients/*/processor/tokenizer.json"))
    assert len(tokenizers) == 2
    assert tokenizers[0].samefile(tokenizers[1])
    assert {stat.S_IMODE(file.stat().st_mode) for file in finished.rglob("*") if file.is_file()} == {0o600}


def test_what_changes_a_file_that_is_stored_once_changes_no_other(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, content in zip(files, (b"same", b"same", b"other"), strict=True):
        write_atomically(file, content)
    store_once({file: sha256_of(file) for file in files})
    store_once({file: sha256_of(file) for file in files})
    assert [file.stat().st_nlink for file in files] == [2, 2, 1]
    write_atomically(files[0], b"new")
    assert [file.read_bytes() for file in files] == [b"new", b"same", b"other"]
    assert len(list(tmp_path.iterdir())) == 3


def test_without_hard_links_copies_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {tmp_path / name: "0" for name in ("a", "b")}
    for file in files:
        write_atomically(file, b"same")

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    store_once(files)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"same", b"same"]


class Watched(InProcess):
    """Counts how many updates of clients are in memory whenever one more is made."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []

    def map(self, kind: Any, function: Any, clients: Any) -> Any:
        for reply in super().map(kind, function, clients):
            if isinstance(reply, RoundReply) and reply.update is not None:
                head = next(held for name, held in reply.update.regular.items() if name.startswith("head__"))
                self.made.append(weakref.ref(next(iter(head.values()))))
                self.alive.append(sum(one() is not None for one in self.made))
                del head
            yield reply
            del reply


def test_a_cohort_of_any_size_takes_the_memory_of_a_few_updates(tmp_path: Path) -> None:
    """Each is added to the sum when it comes, and those of a round are gone before the next."""
    recipe = two_pairs(
        "clients={s: {count: 6, tasks: [digit]}, c: {tasks: [chapter]}}",
        "federation.clients_per_round=5",
        "algorithm={name: fedavg}",
    )
    engine = Watched()
    federation = load_federation(recipe, RunDirectory.create(tmp_path / "run"), engine=engine)
    federation.run_rounds()
    assert len(engine.alive) >= 8
    assert max(engine.alive) <= 2


def test_a_client_starts_from_the_state_of_its_base(federation: Federation, tmp_path: Path) -> None:
    client, directory = federation.clients["kiosk"], RunDirectory.create(tmp_path / "run")
    initial = federation.population.model.initial
    site = Site(client, federation.population, federation.algorithm, directory, rounds=9)
    for round_ in (0, 3, 5):
        directory.save_state("kiosk", round_, ClientState(client.part_of(randomised(initial, round_))))
        assert equal(site.state(round_).personal, client.part_of(randomised(initial, round_)))
    assert equal(site.state(None).personal, client.part_of(initial))


def broken(client: ClientData) -> ClientData:
    """Return the client with images that are not numbers."""

    def spoil(images: torch.Tensor) -> torch.Tensor:
        return images * float("nan")

    def spoiled(data: TensorDataset) -> TensorDataset:
        return dataclasses.replace(data, normalise_images=spoil)

    return ClientData(client.id, {n: dataclasses.replace(t, train=spoiled(t.train)) for n, t in client.tasks.items()})


def test_a_diverged_update_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    recipe = two_pairs("clients.scanner_2={tasks: [digit]}", "federation.clients_per_round=3")
    events: list[Event] = []
    loaded = load_federation(recipe, RunDirectory.create(tmp_path / "run"), events.append)
    clients = {**loaded.clients, "scanner_2": broken(loaded.clients["scanner_2"])}
    federation = dataclasses.replace(loaded, population=dataclasses.replace(loaded.population, clients=clients))

    server, bases = federation.run_rounds()

    refused = [event for event in events if isinstance(event, UpdateRefused)]
    assert [(event.round, event.client) for event in refused] == [(0, "scanner_2"), (1, "scanner_2")]
    assert "NaN" in refused[0].reason
    assert set(bases) == {"clinic", "scanner"}
    assert not (tmp_path / "run/clients/scanner_2/state").exists()
    assert all(torch.isfinite(t).all() for tensors in server.components.values() for t in tensors.values())
    # Stage 2 diverges there too: the client keeps what it had.
    federation.finalize(server, bases)
    diverged = {event.client: event.diverged for event in events if isinstance(event, ClientFinalized)}
    assert "personal" in diverged["scanner_2"]
    sets = federation.directory.sets("scanner_2")
    assert equal(sets["personal"], sets["stage1"])


def test_a_personal_set_that_diverges_alone_is_refused_by_the_client(federation: Federation) -> None:
    """The server cannot see it."""
    client = federation.clients["kiosk"]
    sent = {c: federation.population.model.initial[c] for c in client.components}
    state = ClientState({c: {n: t * float("nan") for n, t in tensors.items()} for c, tensors in sent.items()})
    algorithm = with_options(federation.algorithm, replacement=ReplacementSection(margin=float("inf")))
    with pytest.raises(UpdateRefusedError, match="the personal set gave NaN"):
        algorithm.client_update(federation.population.local_training(client, 0), ServerState(sent), state)


def test_a_client_computes_from_its_last_accepted_state(recipe: Recipe, tmp_path: Path) -> None:
    """A state whose update was refused or lost is never read again."""
    directory = RunDirectory.create(tmp_path / "run")
    states = {r: ClientState({"a": {"w": torch.full((2,), float(r))}}, {"t": 0.5 * r}, r + 1) for r in range(4)}
    directory.save_state("c", 0, states[0])
    directory.save_state("c", 1, states[1])  # never accepted
    assert equal(directory.state("c", 0).personal, states[0].personal)
    directory.save_state("c", 3, states[3])
    restored = directory.state("c", 3)
    assert equal(restored.personal, states[3].personal)
    assert restored.train_losses == states[3].train_losses
    assert restored.participations == 4


def test_infinite_losses_are_null_in_the_log(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    losses = {"personal": float("inf"), "regular": float("nan")}
    directory.log(ClientUpdated(round=0, client="c", components=[], train_losses=losses, cost=Cost()))
    logged = json.loads((directory.path / "events.jsonl").read_text())
    assert logged["train_losses"] == {"personal": None, "regular": None}
    [event] = read_events(directory.path)
    assert isinstance(event, ClientUpdated)
    assert event.train_losses == dict.fromkeys(losses, math.inf)


def test_an_existing_run_is_never_overwritten(finished: Path) -> None:
    before = (finished / "run.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="not empty"):
        tap_hf.run(two_pairs(), finished)
    assert (finished / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_mistake_in_the_data_leaves_no_directory_behind(tmp_path: Path) -> None:
    with pytest.raises(TapError, match="needs 100007 rows for test, validation, train"):
        tap_hf.run(two_pairs("examples.train=99999"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_is_named(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for name in ("run.json", "events.jsonl"):
        (tmp_path / "run" / name).write_text('{"event": ')
        with pytest.raises(RunDirectoryError, match=name):
            list(read_events(tmp_path / "run")) if name == "events.jsonl" else read_record(tmp_path / "run")


@pytest.mark.slow
def test_torch_threads_are_left_as_they_were(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    tap_hf.run(two_pairs("federation.rounds=1"), tmp_path / "run")
    assert torch.get_num_threads() == 2


def test_the_log_tells_the_whole_run(finished: Path) -> None:
    kinds = [json.loads(line)["event"] for line in (finished / "events.jsonl").read_text().splitlines()]
    one_round = ["round_started", *["decision", "client_updated"] * 2, "round_finished"]
    assert kinds == one_round * 2 + ["teacher_decision", "client_finalized"] * 2
    record = json.loads((finished / "run.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert load_recipe(record["recipe"]) == two_pairs()


@pytest.mark.slow
def test_a_run_says_which_global_components_too_few_clients_shaped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One client joins after the last round: it shapes nothing that all are sent."""
    clients = "clients={north: {tasks: [digit]}, south: {tasks: [digit]}, late: {tasks: [chapter, digit]}}"
    recipe = two_pairs(clients, "federation.held_out=[late]", "privacy.min_contributors=2")
    run = tap_hf.run(recipe, tmp_path / "run").directory
    told = {event.component: event.reason for event in read_events(run) if isinstance(event, ComponentWithheld)}
    assert told == dict.fromkeys(("text__classification", "head__chapter"), "0 of at least 2 clients contributed to it")
    assert "Global component text__classification will not be published" in caplog.text
    assert read_record(run).lineage.contributors["image__classification"] == ["north", "south"]
    ended = [event for event in read_events(run) if isinstance(event, ClientFinalized)]
    assert [event.client for event in ended if "stage1" in event.cost.steps_of] == ["late"]
