"""A federation of users' Trainers is a run as any other: both stages, resumed bit for bit, reported and published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback

import tap_hf
from benchmarks.kill import left_by
from tap_hf import (
    ClientState,
    Event,
    Observer,
    RecipeError,
    RunDirectory,
    RunDirectoryError,
    TrainerClient,
    read_events,
)
from tap_hf.federation import TrainerLocalTraining
from tap_hf.models import equal
from tap_hf.recipe import METHODS, section_class
from tap_hf.records import RoundFinished, UpdateRefused
from tests.conftest import Cli
from tests.peft_models import Rows, Weighted
from tests.trainer_clients import HEAD, PAIR, trainer_client

SHORT_TAP = {"name": "tap", "distillation": {"weight": 0.5}, "final": {"steps": 2}}
NAMES = ("north", "south", "west")
LOWER_IS_BETTER = {"metric_for_best_model": "eval_accuracy", "greater_is_better": False}


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}


def three(folder: Path) -> list[TrainerClient]:
    """Return three new Trainers: one of a subclass, one judged on test data, all with a metric of their own."""
    options: dict[str, Any] = {"new": True, "compute_metrics": accuracy, "arguments": {"max_steps": 2}}
    return [
        trainer_client(folder, "north", Weighted, **options),
        trainer_client(folder, "south", size=24, test_dataset=Rows(20, seed=40), **options),
        trainer_client(folder, "west", **options | {"arguments": {"max_steps": 2} | LOWER_IS_BETTER}),
    ]


def start(folder: Path, **options: Any) -> tap_hf.RunResult:
    more = {"algorithm": SHORT_TAP, "federation": {"clients_per_round": 2}, **options}
    return tap_hf.federate(three(folder), 2, folder / "run", **more)


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed_at(kind: str, nth: int) -> Observer:
    seen = []

    def observe(event: Event) -> None:
        seen.append(event.event)
        if seen.count(kind) == nth:
            raise Killed

    return observe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return start(tmp_path_factory.mktemp("trainers")).directory


def test_both_stages_run_and_every_set_is_judged(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    sets = {"backbone", "global", "fine_tuned", "stage1", "personal"}
    assert [(row["client"], row["metric"]) for row in record["results"]] == [
        (name, metric) for name in NAMES for metric in ("loss", "accuracy")
    ]
    for row in record["results"]:
        assert row["values"].keys() == row["validation"].keys() == row["validation_loss"].keys() == sets
        assert len(set(row["validation_loss"].values())) > 1  # each is of its own set
        if row["metric"] == "loss":
            assert row["validation"] == row["validation_loss"]
            judged_on_validation = row["values"] == row["validation"]
            assert judged_on_validation == (row["client"] != "south")  # it alone has test data
    assert [row["n"] for row in record["results"]] == [12, 12, 20, 20, 12, 12]
    assert [row["higher_is_better"] for row in record["results"]] == [False, True, False, True, False, False]
    kinds = [json.loads(line)["event"] for line in (finished / "events.jsonl").read_text().splitlines()]
    one_round = ["round_started", *["decision", "client_updated"] * 2, "round_finished"]
    assert kinds == one_round * 2 + ["teacher_decision", "client_finalized"] * 3


@pytest.mark.parametrize(
    ("kind", "nth"),
    [
        ("client_updated", 4),
        *(
            pytest.param(*died, marks=pytest.mark.slow)
            for died in (("round_started", 2), ("client_updated", 1), ("client_finalized", 2))
        ),
    ],
)
def test_a_federation_that_died_ends_as_if_it_had_not(finished: Path, tmp_path: Path, kind: str, nth: int) -> None:
    with pytest.raises(Killed):
        start(tmp_path, observer=killed_at(kind, nth))
    start(tmp_path, resume=True)
    assert left_by(tmp_path / "run") == left_by(finished)


def test_another_federation_is_not_gone_on_with(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(tmp_path, observer=killed_at("client_updated", 1))
    with pytest.raises(RunDirectoryError, match=r"recipe.seed: 41 -> 42"):
        start(tmp_path, resume=True, seed=42)
    other = [trainer_client(tmp_path, name, size=9, new=True) for name in NAMES]
    options: dict[str, Any] = {"algorithm": SHORT_TAP, "federation": {"clients_per_round": 2}}
    with pytest.raises(RunDirectoryError, match="was made with another data"):
        tap_hf.federate(other, 2, tmp_path / "run", resume=True, **options)
    with pytest.raises(RunDirectoryError, match="not empty"):
        start(tmp_path)


def test_the_command_line_reports_it(finished: Path, cli: Cli) -> None:
    status = json.loads(cli("status", finished, "--json").out)
    assert (status["state"], status["rounds"], status["finalized"]) == (
        "finished",
        {"done": 2, "of": 2},
        {"done": 3, "of": 3},
    )
    decisions = json.loads(cli("explain", finished, "--client", "south", "--json").out)["decisions"]
    assert decisions
    assert {decision["client"] for decision in decisions} == {"south"}


def test_it_is_published_with_a_card_that_says_how_to_load_it(finished: Path, cli: Cli) -> None:
    for arguments in ((), ("--client", "north")):
        card = cli("card", finished, *arguments)
        assert card.code == 0, card.err
        assert "each client trained with its own `transformers.Trainer`" in card.out
        assert "BertForSequenceClassification.from_pretrained(" in card.out
        assert "TapModel" not in card.out  # plain PEFT loads a Trainer's adapter, head included
    for arguments, files in (
        (("--client", "north"), {"adapter_config.json", "adapter_model.safetensors"}),
        (("--all",), {f"{place}/adapter_model.safetensors" for place in ("clients/west", "global")}),
    ):
        options = ("--repo-id", "org/them", "--dry-run", "--json", "--base-model", "org/base")
        push = cli("push", finished, *options, *arguments)
        assert push.code == 0, push.err
        [repository] = json.loads(push.out)["repositories"]
        assert files | {"README.md", "run.json"} <= set(repository["files"])


@pytest.mark.parametrize("command", [("run", "--resume"), ("evaluate",), ("predict", "--client", "north")])
def test_commands_that_would_have_to_make_the_trainers_say_what_does(
    finished: Path, cli: Cli, command: tuple[str, ...]
) -> None:
    refused = cli(*command, finished)
    assert refused.code == 2
    assert "tap_hf.federate" in refused.err


# peft 0.21 asks transformers 5 for a name that it has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_plain_peft_loads_a_clients_folder_with_its_head(finished: Path, tmp_path: Path) -> None:
    client = trainer_client(tmp_path, "north")
    base = client.trainer.model.unload()
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, finished / "clients/north").eval()
    personal = RunDirectory(finished).sets("north")["personal"]
    own = trainer_client(tmp_path, "north")
    batch = {"input_ids": Rows(4).input_ids}
    with torch.no_grad(), own.adapter.held(personal):
        wanted = own.trainer.model.eval()(**batch).logits
        assert torch.equal(loaded(**batch).logits, wanted)


def test_a_clients_sets_are_stored_once(finished: Path) -> None:
    directory = RunDirectory(finished)
    for name in NAMES:
        sets = directory.sets(name)
        assert {file.stem for file in (finished / "clients" / name / "sets").iterdir()} == sets.keys() - {"personal"}
        assert {c: list(held) for c, held in sorted(sets["personal"].items())} == {
            c: sorted(held) for c, held in sorted(sets["stage1"].items())
        }


def test_the_models_end_with_the_personal_sets(tmp_path: Path) -> None:
    clients = three(tmp_path)
    result = tap_hf.federate(clients, 1, tmp_path / "run", algorithm=SHORT_TAP)
    for client in clients:
        assert equal(client.adapter.dump(), RunDirectory(result.directory).sets(client.id)["personal"])


def test_the_server_set_is_the_mean_of_what_the_trainers_trained(tmp_path: Path) -> None:
    """Weighted by 8 and 24 examples, by hand."""
    clients = [trainer_client(tmp_path, "north", Weighted), trainer_client(tmp_path, "south", size=24)]
    run = tap_hf.federate(clients, 1, tmp_path / "run", algorithm={"name": "fedavg"}, seed=5).directory
    north, south = trainer_client(tmp_path, "north", Weighted), trainer_client(tmp_path, "south", size=24)
    one, other = (TrainerLocalTraining(c, north.initial, 5, 0).train(north.initial, "regular") for c in (north, south))
    server = RunDirectory(run).server(0).components
    for component in (PAIR, HEAD):
        for name, tensor in server[component].items():
            a, b = one.adapters[component][name].double(), other.adapters[component][name].double()
            assert torch.equal(tensor, ((8 * a + 24 * b) / 32).float())
            assert not torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS.builtin))
def test_every_method_runs_a_round_or_says_why_not(tmp_path: Path, method: str) -> None:
    clients = [trainer_client(tmp_path, name, arguments={"max_steps": 2}) for name in ("north", "south")]
    options = SHORT_TAP if method == "tap" else {"name": method}
    if method == "centralised":
        with pytest.raises(RecipeError, match=r"algorithm.name: centralised pools all data"):
            tap_hf.federate(clients, 1, tmp_path / "run", algorithm=options)
        assert not (tmp_path / "run").exists()
        return
    states: list[ClientState] = []

    def keep_state(event: Event) -> None:
        if isinstance(event, RoundFinished):
            states.append(RunDirectory(tmp_path / "run").state("south", 0))

    result = tap_hf.federate(clients, 1, tmp_path / "run", algorithm=options, observer=keep_state)
    recorded = json.loads((result.directory / "run.json").read_text())["recipe"]["algorithm"]
    planned = section_class(recorded).model_validate(recorded).planned_steps(2)
    steps = [event.cost.steps for event in read_events(result.directory) if hasattr(event, "cost")]
    if method not in ("scaffold", "pfedme", "per_fedavg"):  # gradients count as steps, and steps have minimums
        assert steps == [planned.in_round] * 2 + [planned.after + planned.after_per_round] * 2
    initial = TrainerLocalTraining(clients[0], clients[0].initial, 0, 0).initial
    (state,) = states
    assert (method in ("fedavg", "fedprox", "scaffold", "disentafl", "per_fedavg")) == equal(state.personal, initial)
    assert not equal(RunDirectory(result.directory).sets("south")["personal"], initial)


@pytest.mark.parametrize(
    "aggregation",
    [
        {"lora": "frozen_a"},
        pytest.param({"lora": "product"}, marks=pytest.mark.slow),
        pytest.param({"robust": "median"}, marks=pytest.mark.slow),
    ],
)
def test_aggregation_rules_work_for_trainers(tmp_path: Path, aggregation: dict[str, Any]) -> None:
    run = start(tmp_path, federation={"aggregation": aggregation}, algorithm={"name": "fedavg"}).directory
    assert sum(event.event == "round_finished" for event in read_events(run)) == 2
    frozen = aggregation.get("lora") == "frozen_a"
    server, initial = RunDirectory(run).server(1).components, three(tmp_path)[0].initial
    same = [torch.equal(t, initial[PAIR][n]) for n, t in server[PAIR].items() if "lora_A" in n]
    assert all(same) == frozen


def test_wrong_options_are_refused_at_once_before_any_training(tmp_path: Path) -> None:
    federation = {"clients_per_round": 4, "held_out": ["east"]}
    with pytest.raises(RecipeError) as caught:
        start(tmp_path, federation=federation, algorithm={"name": "tap", "replacement": {"margins": {"other": 1.0}}})
    for said in (
        "federate: federation.clients_per_round: got 4, but there are",
        'federation.held_out: unknown client "east"',
        'algorithm.replacement.margins: unknown task "other"',
    ):
        assert said in str(caught.value)
    with pytest.raises(RecipeError, match=r"federation.rounds: "):
        tap_hf.federate(three(tmp_path), 0, tmp_path / "run")
    clients = [trainer_client(tmp_path, "north")]
    with pytest.raises(RecipeError, match='the adapter of client "north" is not new'):
        tap_hf.federate(clients, 1, tmp_path / "run", algorithm={"name": "tap", "references": ["backbone"]})
    with pytest.raises(RecipeError, match=r"algorithm.start.heads: validation compares logits, which only clients of"):
        tap_hf.federate(clients, 1, tmp_path / "run", algorithm={"name": "tap", "start": {"heads": "validation"}})
    with pytest.raises(ValueError, match="got 2 clients with 1 different ids"):
        tap_hf.federate([trainer_client(tmp_path, "north")] * 2, 1, tmp_path / "run")
    with pytest.raises(ValueError, match='federation has "rounds"'):
        tap_hf.federate(clients, 1, tmp_path / "run", federation={"rounds": 2})
    with pytest.raises(ValueError, match="got no clients"):
        tap_hf.federate([], 1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_client_and_no_section_is_refused_in_one_message(tmp_path: Path) -> None:
    north = trainer_client(tmp_path, "north")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"algorithm": "fedavg"}, "algorithm is 'fedavg'; expected keys and values as in a recipe, such as"),
        ({"federation": 3}, "federation is 3; expected keys and values"),
        ({"privacy": True}, "privacy is True; expected keys and values"),
        ({"clients": [north.trainer]}, "got Trainer as a client; expected one of TrainerClient.from_trainer"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            tap_hf.federate(**{"clients": [north], "rounds": 1, "output_dir": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r'Client "north": got int, expected a transformers\.Trainer'):
        TrainerClient.from_trainer(3, id="north", pair=PAIR, task="urgency")  # type: ignore[arg-type]


def test_a_diverged_client_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    north, south = trainer_client(tmp_path, "north"), trainer_client(tmp_path, "south")
    south.trainer.args.learning_rate = float("inf")
    run = RunDirectory(tap_hf.federate([north, south], 1, tmp_path / "run", algorithm=SHORT_TAP).directory)
    [refused] = [event for event in read_events(run.path) if isinstance(event, UpdateRefused)]
    assert refused.client == "south"
    assert equal(run.sets("south")["personal"], south.part_of(north.initial))
    assert not equal(run.sets("north")["personal"], north.initial)


def test_early_stopping_ends_one_local_training(tmp_path: Path) -> None:
    """As docs/trainer.md says: each training starts to count anew."""
    every_step = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    arguments = {**every_step, "load_best_model_at_end": True, "learning_rate": 1e-30}  # the loss never falls
    north = trainer_client(tmp_path, "north", arguments=arguments)
    north.trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    algorithm = {"name": "local", "final": {"steps": 6}}
    tap_hf.federate([north], 2, tmp_path / "run", algorithm=algorithm, federation={"clients_per_round": 1})
    lines = map(json.loads, (tmp_path / "run/events.jsonl").read_text().splitlines())
    assert [line["cost"]["steps"] for line in lines if "cost" in line] == [2, 2, 2]
