"""What a redacted publication depends on: for whatever names hypothesis can think of, on none of them."""

import copy
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings, strategies as st

from tap_hf import Recipe, RunDirectoryError, RunRecord
from tap_hf.hub import (
    client_card,
    client_publication,
    federation_card,
    federation_publication,
    published_name,
    published_record,
)
from tap_hf.hub.published_recipe import (
    Adapters,
    Aggregation,
    Algorithm,
    Backbone,
    Examples,
    Federation,
    Final,
    Lora,
    OpenClient,
    OpenDataset,
    OpenRecipe,
    OpenTask,
    Partition,
    ServerOptimizer,
    Training,
)
from tap_hf.models import BackboneReference, adapter_files
from tap_hf.pairs import NAME_PATTERN
from tap_hf.recipe import (
    METHODS,
    AdaptersSection,
    AggregationSection,
    BackboneSection,
    ClientSection,
    DatasetSection,
    ExamplesSection,
    FederationSection,
    FinalSection,
    LoraSection,
    OtherAlgorithmSection,
    PartitionSection,
    ServerOptimizerSection,
    TaskSection,
    TrainingSection,
)
from tap_hf.records import parse_record, record_json, recorded_recipe, write_record
from tests.conftest import ROOT

EXAMPLE = json.loads((ROOT / "model_cards/examples/run.json").read_text())


@dataclass(frozen=True)
class Names:
    """What a redacted publication may not show."""

    clients: list[str]
    datasets: list[str]
    labels: list[str]
    user: str
    host: str
    seed: int

    @property
    def all(self) -> set[str]:
        return {*self.clients, *self.datasets, *self.labels, self.user, self.host, str(self.seed)}


WORDS = [
    "rounds",
    "factors",
    "mean",
    "tap",
    "name",
    "tasks",
    "client_1",
    "client_2",
    "own",
    "withheld",
    "main",
    "image",
]
IDS = st.sampled_from(WORDS) | st.from_regex(NAME_PATTERN, fullmatch=True)
TEXTS = st.sampled_from([*WORDS, "Zoë", "жена", "北京", "a|b`c", "2.13.0+cpu"]) | st.text(min_size=1, max_size=20)
PLAIN = st.sampled_from(WORDS) | st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)  # of a path
NAMES = st.builds(
    Names,
    st.lists(IDS, min_size=3, max_size=3, unique=True),
    st.lists(IDS, min_size=3, max_size=3, unique=True),
    st.lists(TEXTS, min_size=40, max_size=40, unique=True),
    PLAIN,
    PLAIN,
    st.integers(0, 2**63),
)
ODD = Names(
    ["qzxa_north", "qzxb_south", "qzxc_east"],
    ["qzxd_notes", "qzxe_scans", "qzxf_bills"],
    [f"qzx label {n}" for n in range(40)],
    "qzxuser",
    "qzxhost",
    79_079_079,
)
"""Names that are part of no other word."""


def named(values: dict[str, Any], names: Names) -> dict[str, Any]:
    """Return the values of a record of all pairs with these names, in every place that can hold one."""
    values = copy.deepcopy(values)
    recipe, home = values["recipe"], f"/home/{names.user}"
    clients = dict(zip(sorted(recipe["clients"]), names.clients, strict=True))
    datasets = dict(zip(sorted(recipe["datasets"]), names.datasets, strict=True))
    labels = iter(names.labels)
    options = {names.user: names.host, "where": home, "seed": names.seed, "list": [names.clients[0]]}
    recipe["privacy"] = {"redact": True, "min_contributors": 1}
    recipe["datasets"] = {
        datasets[name]: {**one, "source": "csv", "path": f"{home}/{names.host}/{datasets[name]}.csv"}
        for name, one in recipe["datasets"].items()
    }
    for task in recipe["tasks"].values():
        task["dataset"] = datasets[task["dataset"]]
        task["columns"] = dict.fromkeys(task["columns"], names.user)
        task["partition"] = {"by": f"{home}/parts.py:{names.host}", "column": names.user, "options": options}
    recipe["clients"] = {
        clients[name]: {**one, "values": [names.user], "slices": {one["tasks"][0]: "[0:7907]"}}
        for name, one in recipe["clients"].items()
    }
    recipe["federation"]["held_out"] = [names.clients[1]]
    recipe["federation"]["aggregation"] |= {"robust": f"{home}/rules.py:{names.host}", "options": options}
    recipe["seed"] = names.seed
    recipe["backbone"] |= {"family": f"{home}/family.py:{names.host}", "device_map": names.host}
    recipe["training"]["trainer"] = {
        "project": names.user,
        "trackio_space_id": f"{names.user}/{names.host}",
        "resume_from_checkpoint": f"{home}/checkpoint",
        "run_name": names.host,
        "report_to": [names.user],
        "optim": names.user,
        "adam_beta1": 0.8,
    }
    for task in values["tasks"].values():
        task["labels"] = [next(labels) for _ in task["labels"]]
        if task["name"] in recipe["tasks"]:
            recipe["tasks"][task["name"]]["labels"] = task["labels"] or None
    scorer = {"name": names.host, "path": f"{home}/{names.host}.py", "higher_is_better": True}
    recipe["tasks"]["section"]["metric"] = [scorer, {"name": "bertscore", "model": f"{home}/{names.user}", "layer": 2}]
    values["tasks"]["section"]["metrics"] = recipe["tasks"]["section"]["metric"]
    for row in values["results"]:
        row["client"] = clients[row["client"]]
        row["metric"] = names.host if row["task"] == "section" else row["metric"]
    values["code"] = {f"{home}/rules.py:{names.host}": "0" * 64}
    values["steps"] = {clients[name]: steps for name, steps in values.get("steps", {}).items()}
    lineage = values["lineage"]
    lineage["history"] = {clients[name]: marks for name, marks in lineage["history"].items()}
    lineage["contributors"] = {c: [clients[name] for name in who] for c, who in lineage["contributors"].items()}
    lineage["diverged"] = {names.clients[0]: ["personal"]}
    values["adopted"] = None
    return values


def adopted(values: dict[str, Any], names: Names) -> dict[str, Any]:
    """Return the values of a record of a client that joined."""
    start = {"start": f"clients/{names.clients[0]}/x", "better_than": 4, "start_loss": 1.23456, "loss": 1.0}
    source = {"source": f"/home/{names.user}/{names.host}", "steps": 16, "pairs": {"text__classification": start}}
    return values | {"adopted": source}


def published(values: dict[str, Any], names: Names) -> list[bytes]:
    """Return the record and the cards, of the federation and of each client."""
    texts = []
    for one in (values, adopted(values, names)):
        record = parse_record(json.dumps(one), "run.json")
        texts += [record_json(published_record(record)), federation_card(record).encode()]
        for client in names.clients:
            texts += [record_json(published_record(record, client)), client_card(record, client).encode()]
    return texts


def shown_names(texts: list[bytes], names: Names) -> set[str]:
    """Return the names that are in some text, as they are or as JSON writes them."""
    return {name for name in names.all for text in texts if name.encode() in text}


@pytest.fixture(scope="module")
def expected() -> list[bytes]:
    return published(named(EXAMPLE, ODD), ODD)


def test_no_odd_name_is_in_a_published_record_or_card(expected: list[bytes]) -> None:
    assert shown_names(expected, ODD) == set()
    assert not [text for text in expected if b"qzx" in text or b"/home" in text or b"7907" in text]


@given(names=NAMES)
@settings(max_examples=10)
def test_other_names_give_the_same_bytes(names: Names, expected: list[bytes]) -> None:
    """So nothing is renamed that only looks like an id, and nobody can guess names and compare."""
    assert published(named(EXAMPLE, names), names) == expected


def test_a_redacted_record_still_says_how_it_was_trained() -> None:
    shown = published_record(parse_record(json.dumps(named(EXAMPLE, ODD)), "run.json")).recipe
    given, recipe = EXAMPLE["recipe"], shown.values
    assert recipe["federation"]["rounds"] == given["federation"]["rounds"]
    assert recipe["federation"]["aggregation"]["lora"] == "factors"
    assert recipe["federation"]["aggregation"]["robust"] == "own"
    assert recipe["algorithm"] == given["algorithm"]
    assert recipe["lora"] == given["lora"]
    assert recipe["training"] == given["training"] | {"trainer": {"optim": None, "adam_beta1": 0.8}}
    assert shown.federation.held_out[0] in shown.clients
    assert shown.seed is None


def test_a_redacted_record_has_no_number_that_counts_examples() -> None:
    """Nor what one could compare with data that one guesses."""
    values = named(EXAMPLE, ODD) | {"data": "0" * 64}
    values["steps"] = {client: {"personal": 7} for client in ODD.clients}
    values["costs"] = {"steps": 1, "seconds": 1.0, "peak_memory": 1}
    values["results"][0] |= {"n": 7907, "values": {"personal": 0.123456}, "constant": 0.654321}
    shown = published_record(parse_record(json.dumps(values), "run.json"))
    assert (shown.data, shown.costs, shown.steps) == (None, None, {})
    assert {row.n for row in shown.results or ()} == {None}
    numbers = {value for row in shown.results or () for value in (*row.values.values(), row.constant)}
    assert {0.12, 0.65} <= numbers
    assert all(value is None or float(f"{value:.2g}") == value for value in numbers)


def test_an_open_record_has_no_folder_of_the_machine() -> None:
    values = named(EXAMPLE, ODD)
    values["recipe"]["privacy"]["redact"] = False
    for dataset in values["recipe"]["datasets"].values():
        dataset["image_folder"] = f"/home/{ODD.user}/pictures"
    shown = record_json(published_record(parse_record(json.dumps(values), "run.json")))
    assert b"/home" not in shown
    assert b'"pictures"' in shown


def test_a_publication_keeps_the_options_of_own_code_or_names_those_that_it_withholds(tmp_path: Path) -> None:
    """Defaults in their place would evaluate other rows without a word."""
    values = copy.deepcopy(EXAMPLE)
    task = next(iter(values["recipe"]["tasks"]))
    options = {"first": 1, "where": "/home/me/rows", "by": ["a", 1]}
    values["recipe"]["tasks"][task]["partition"] = {"by": "mine.py:part", "options": options}
    values["recipe"]["algorithm"] = {"name": "mine.py:Method", "options": {"table": {"a": 1}, "rate": 0.5}}
    values["recipe"]["federation"]["aggregation"] |= {"robust": "mine.py:rule", "options": {"step": [0.5, 1]}}
    shown = published_record(parse_record(json.dumps(values), "run.json"))
    withheld = [
        "algorithm.options.table",
        f"tasks.{task}.partition.options.where",
        f"tasks.{task}.partition.options.by",
    ]
    assert shown.recipe.withheld_options == withheld
    assert shown.recipe.values["algorithm"]["options"]["rate"] == 0.5
    assert shown.recipe.values["federation"]["aggregation"]["options"] == {"step": [0.5, 1]}
    assert b"/home" not in record_json(shown)
    write_record(tmp_path, shown)
    for allow_code in (False, True):
        with pytest.raises(RunDirectoryError, match=r"withholds options .*: algorithm\.options\.table"):
            recorded_recipe(tmp_path, None, allow_code=allow_code)


def test_of_an_adapters_config_only_known_texts_and_numbers_are_published() -> None:
    config = {"r": 4, "use_rslora": True, "target_modules": "a.*b", "cache_file": "/home/me/x", "new": ["north"]}
    content = adapter_files(config, b"", BackboneReference("org/base"), "")["adapter_config.json"]
    shown = json.loads(content)
    assert {key: shown.get(key) for key in config} == config | {"cache_file": None, "new": None}


def test_a_published_record_is_published_as_it_is() -> None:
    for redact in (False, True):
        values = copy.deepcopy(EXAMPLE)
        values["recipe"]["privacy"]["redact"] = redact
        for client in (None, "clinic"):
            once = published_record(parse_record(json.dumps(values), "run.json"), client)
            assert published_record(once) == once


NOT_PUBLISHED = {
    "Recipe": {
        "engine",
        "cache",
        "prefix_cache",
        "report",
        "predictions",
        "benchmark",
    },  # of the machine, or of several runs
    "BackboneSection": {"device_map", "remote_code"},
    # A publication has the clients that were finalized; how long the server waits changes no result.
    "FederationSection": {"save_total_limit", "finalize", "evaluate", "round_timeout", "min_replies"},
    "ClientSection": {"count", "datasets", "columns"},  # each is listed; its own files are of its site
}
SECTIONS = {
    Recipe: OpenRecipe,
    BackboneSection: Backbone,
    DatasetSection: OpenDataset,
    TaskSection: OpenTask,
    PartitionSection: Partition,
    ClientSection: OpenClient,
    ExamplesSection: Examples,
    AdaptersSection: Adapters,
    LoraSection: Lora,
    TrainingSection: Training,
    FederationSection: Federation,
    AggregationSection: Aggregation,
    ServerOptimizerSection: ServerOptimizer,
    FinalSection: Final,
    OtherAlgorithmSection: Algorithm,
    **{METHODS.find(name).options_class: Algorithm for name in METHODS.builtin},
}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_of_every_option_it_is_decided_whether_it_is_published(section: Any) -> None:
    """So that a pulled recipe trains and evaluates as the published one did."""
    listed = get_type_hints(SECTIONS[section]).keys()
    assert section.model_fields.keys() - listed == NOT_PUBLISHED.get(section.__name__, set())


def renamed_run(run: Path, folder: Path, names: Names) -> Path:
    """Return a copy of a run of all pairs with these names in its record, its folders and its configs."""
    values = json.loads((run / "run.json").read_text())
    clients = dict(zip(sorted(values["recipe"]["clients"]), names.clients, strict=True))
    changed = named(values, names)
    # Code that the average needs would have to be there.
    changed["recipe"]["backbone"]["family"] = changed["recipe"]["backbone"]["device_map"] = None
    changed["recipe"]["federation"]["aggregation"] |= {"robust": "mean", "options": {}}
    changed["recipe"]["federation"]["held_out"] = []
    changed["recipe"]["training"]["trainer"] |= {"optim": "adamw_torch", "report_to": "none"}
    for task in changed["recipe"]["tasks"].values():
        task["partition"] = {"by": "iid"}
    for client in changed["recipe"]["clients"].values():
        client["values"] = None
    shutil.copytree(run, folder)
    for old, new in clients.items():
        (folder / "clients" / old).rename(folder / "clients" / f"{new}.new")
    for new in names.clients:
        place = (folder / "clients" / f"{new}.new").rename(folder / "clients" / new)
        config = json.loads((place / "config.json").read_text())
        for task in config["tasks"]:
            task |= {key: changed["tasks"][task["name"]][key] for key in ("labels", "metrics")}
        (place / "config.json").write_text(json.dumps(config))
    for file in folder.glob("clients/*/processor/*_config.json"):
        places = {"name_or_path": f"/home/{names.user}/base", "special_tokens_map_file": f"/{names.host}/x.json"}
        file.write_text(json.dumps(json.loads(file.read_text()) | places))
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent != folder]
    changed["files"] = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    (folder / "run.json").write_text(json.dumps(changed))
    return folder


def files_of(run: Path, names: Names) -> dict[str, bytes]:
    """Return all files of all publications of a run, but the base model's words."""
    federation = federation_publication(run, "org/fed")
    found = {f"{federation.repo_id}/{path}": content for path, content in federation.files.items()}
    for number, client in enumerate(names.clients):
        files = client_publication(run, client, f"org/{number}").files
        found |= {f"org/{number}/{path}": content for path, content in files.items()}
    return {path: content for path, content in found.items() if not path.endswith("/processor/tokenizer.json")}


@pytest.mark.slow
def test_no_name_is_in_any_published_file(all_pairs_run: Path, tmp_path: Path) -> None:
    expected = files_of(renamed_run(all_pairs_run, tmp_path / "odd", ODD), ODD)
    assert any(path.startswith("org/fed/global/") for path in expected)
    assert not [path for path, content in expected.items() if b"qzx" in content or "qzx" in path]

    @settings(max_examples=4)
    @given(NAMES)
    def other_names_give_the_same_files(names: Names) -> None:
        folder = tmp_path / "other"
        shutil.rmtree(folder, ignore_errors=True)
        assert files_of(renamed_run(all_pairs_run, folder, names), names) == expected

    other_names_give_the_same_files()


@pytest.mark.parametrize("redact", [False, True])
def test_a_publication_of_one_client_names_no_other(redact: bool) -> None:
    values = named(EXAMPLE, ODD)
    values["recipe"]["privacy"]["redact"] = redact
    values["lineage"]["contributors"]["text__classification"] = [*ODD.clients]
    record: RunRecord = parse_record(json.dumps(values), "run.json")
    for client, other in zip(ODD.clients, reversed(ODD.clients), strict=True):
        shown = published_record(record, client)
        texts = [record_json(shown), client_card(record, client).encode()]
        assert shown_names(texts, ODD) & {*ODD.clients} == (set() if redact else {client})
        assert len(shown.recipe.clients) == 1
        assert shown.federation_size == 3
        assert b"3 clients, 2 rounds" in texts[1]
        if client != other:
            own = set(values["recipe"]["clients"][client]["tasks"])
            assert own == shown.tasks.keys() == shown.recipe.tasks.keys()
    contributors = f"{published_name(record, ODD.clients[0])}, 2 others"
    assert f"| `text__classification` | {contributors} |" in client_card(record, ODD.clients[0])
