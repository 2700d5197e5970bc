"""Model cards: valid for the Hub, safe against what records hold, honest, and silent about what is redacted."""

import contextlib
import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from tap_hf import CardError, RunDirectoryError, RunRecord
from tap_hf.hub import (
    client_card,
    federation_card,
    global_tasks,
    history_line,
    published_name,
    published_record,
    withheld_components,
)
from tap_hf.records import parse_record, record_json
from tests.conftest import ROOT, Cli

EXAMPLES = ROOT / "model_cards/examples"
HOSTILE = "x|y `z` <script>\n---\nlicense: mit\n```\n# heading"


@pytest.fixture
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / "run.json").read_text())
    return found


def typed(values: dict[str, Any]) -> RunRecord:
    return parse_record(json.dumps(values), "run.json")


def redacting(record: dict[str, Any]) -> dict[str, Any]:
    record = copy.deepcopy(record)
    record["recipe"]["privacy"] = {"redact": True, "min_contributors": 2}
    return record


def test_examples_are_what_the_templates_give(record: dict[str, Any]) -> None:
    cards = {
        "client.md": client_card(typed(record), "clinic"),
        "federation.md": federation_card(typed(record)),
        "redacted.md": federation_card(typed(redacting(record))),
    }
    for name, card in cards.items():
        if os.environ.get("TAP_HF_WRITE_CARDS"):
            (EXAMPLES / name).write_text(card)
        assert (EXAMPLES / name).read_text() == card


def test_the_hubs_parser_reads_results_and_metadata(record: dict[str, Any]) -> None:
    record["backbone_commit"], record["recipe"]["backbone"]["name"] = "0" * 40, "facebook/flava-full"
    record["recipe"]["datasets"]["easy_vqa"]["source"] = "org/vqa"
    card = ModelCard(client_card(typed(record), "kiosk"))
    data = card.data.to_dict()
    assert data["base_model"] == "facebook/flava-full"
    assert data["pipeline_tag"] == "image-text-to-text"
    assert data["datasets"] == ["org/vqa"]
    (result,) = card.data.eval_results or ()
    assert (result.metric_type, result.metric_value) == ("exact_match", record["results"][5]["values"]["personal"])
    index = data["model-index"]
    assert model_index_to_eval_results(index)[0] == "smoke-all-pairs"


def test_only_chosen_pairs_are_on_a_clients_card(record: dict[str, Any]) -> None:
    card = client_card(typed(record), "clinic", pairs=["text__classification"])
    assert "chapter" in card
    assert "section" not in card.partition("# smoke")[2]
    with pytest.raises(CardError, match="has no task of the pairs"):
        client_card(typed(record), "clinic", pairs=["image__generation"])
    with pytest.raises(RunDirectoryError, match='did you mean "clinic"'):
        client_card(typed(record), "clinik")


def test_nothing_in_a_record_changes_a_cards_structure(record: dict[str, Any]) -> None:
    record["tasks"]["chapter"]["labels"][0] = HOSTILE
    record["recipe"]["datasets"]["icd10cm"]["source"] = HOSTILE
    record["recipe"]["name"] = HOSTILE
    record["results"][0]["metric"] = HOSTILE
    card = client_card(typed(record), "clinic")
    plain = (EXAMPLES / "client.md").read_text()
    assert "license" not in ModelCard(card).data.to_dict()
    body, expected = (text.split("\n---\n", 1)[1] for text in (card, plain))
    assert "<script" not in body
    for start in ("#", "```", "|"):
        assert [x.startswith(start) for x in body.splitlines()] == [x.startswith(start) for x in expected.splitlines()]


def test_a_card_says_where_the_personal_set_is_not_best(record: dict[str, Any]) -> None:
    record["results"][5]["values"] |= {"personal": None, "global": 0.9}
    card = client_card(typed(record), "kiosk")
    assert "Better for kiosk, vqa, exact_match: global." in card
    assert "Undefined or infinite: kiosk, vqa, exact_match: personal." in card
    assert "model-index" not in card


def test_redaction_leaves_out_names_and_counts(record: dict[str, Any]) -> None:
    record["recipe"]["examples"] |= {"train": 7919}
    record["recipe"]["clients"]["kiosk"]["slices"] = {"vqa": "[0:7907]"}
    shown = published_record(typed(redacting(record)))
    for text in (record_json(shown).decode(), federation_card(typed(redacting(record)))):
        for secret in ("kiosk", "clinic", "scanner", "icd10cm", "easy_vqa", "digits", "Neoplasms", "7919", "7907"):
            assert secret not in text
    assert all(row.n is None for row in shown.results or ())
    assert published_record(shown) == shown
    assert published_name(typed(redacting(record)), "kiosk") in shown.recipe.clients
    assert shown.tasks["digit"].labels == tuple(f"label_{n}" for n in range(10))


def test_no_path_of_the_machine_is_published(record: dict[str, Any]) -> None:
    record["recipe"]["backbone"]["name"] = "/home/someone/models/mine"
    record["recipe"]["datasets"]["digits"]["path"] = "private/place/digits.csv"
    record["recipe"]["training"]["trainer"] = {"logging_dir": "/home/someone/logs", "hub_token": "hf_abc"}
    text = record_json(published_record(typed(record))).decode()
    assert "someone" not in text
    assert "private" not in text
    assert "hf_abc" not in text


def test_global_components_of_too_few_clients_are_withheld(record: dict[str, Any]) -> None:
    assert withheld_components(typed(record)) == {}
    record["lineage"]["contributors"]["image__generation"] = ["kiosk", "scanner"]
    withheld = withheld_components(typed(redacting(record)))
    assert withheld["text__classification"] == "1 of at least 2 clients contributed to it"
    assert "image__generation" not in withheld
    assert "not published: 1 of at least 2" in federation_card(typed(redacting(record)))


def test_long_histories_are_binned() -> None:
    assert history_line("RK-X") == "█░·✗"
    assert len(history_line("R" * 100 + "-" * 100)) == 60
    assert history_line("R" * 100 + "-" * 100) in ("█" * 30 + "·" * 30,)
    assert history_line("") == ""


def test_templates_of_ones_own(record: dict[str, Any], tmp_path: Path, all_pairs_run: Path, cli: Cli) -> None:
    (tmp_path / "client.md.j2").write_text("{{ client }} has {{ tasks | length }} tasks")
    done = cli("card", all_pairs_run, "--client", "clinic", "--templates", tmp_path)
    assert done.out.endswith("---\n\nclinic has 2 tasks\n")
    (tmp_path / "client.md.j2").write_text("{{ nothing }}")
    with pytest.raises(CardError, match="'nothing' is undefined"):
        client_card(typed(record), "clinic", templates=tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_snippet_for_plain_peft_runs(all_pairs_run: Path, tmp_path: Path, cli: Cli) -> None:
    made = json.loads((all_pairs_run / "run.json").read_text())
    (tmp_path / "ORG").mkdir()
    (tmp_path / "ORG/NAME").symlink_to(all_pairs_run)
    with contextlib.chdir(tmp_path):
        assert cli("backbone", "export", "backbone").code == 0
        names: dict[str, Any] = {}
        exec(re.findall(r"```python\n(.*?)```", federation_card(typed(made)), flags=re.DOTALL)[0], names)  # noqa: S102
    assert any(t.abs().sum() > 0 for n, t in names["model"].named_parameters() if "lora_B" in n)


def test_a_run_records_its_lineage(all_pairs_run: Path) -> None:
    made = json.loads((all_pairs_run / "run.json").read_text())
    history = made["lineage"]["history"]
    marks = "".join(line for tasks in history.values() for line in tasks.values())
    assert marks.count("R") == made["replacements"]["made"]
    assert marks.count("R") + marks.count("K") == made["replacements"]["decided"]
    assert made["lineage"]["contributors"]["image_text__generation"] == ["kiosk"]


def test_cards_show_the_sets_that_a_method_has(record: dict[str, Any]) -> None:
    """Of FedAvg: no stage 1, no untouched backbone; nothing of these is called undefined."""
    record["recipe"]["algorithm"] = {"name": "fedavg", "final": {"steps": 0}}
    record["recipe"]["federation"] |= {"held_out": ["kiosk"], "aggregation": {"lora": "product", "clip_norm": 1.0}}
    for row in record["results"]:
        row["values"] = {name: row["values"][name] for name in ("global", "personal")}
    card = federation_card(typed(record))
    assert "| client | task | metric | n | global | personal |" in card
    assert "Undefined" not in card
    assert "LoRA aggregation: product; updates clipped to 1.0" in card
    assert "Clients that did not take part" not in card
    assert "## Rounds" in card
    assert "eplace" not in card


def test_a_card_claims_no_average_where_nothing_was_averaged(record: dict[str, Any]) -> None:
    record["recipe"]["algorithm"] = {"name": "local", "final": {"steps": 3}}
    record["lineage"]["contributors"] = {}
    card = federation_card(typed(record))
    assert "Nothing was averaged" in card
    assert "3 steps of local training for each client" in card
    for untrue in ("Aggregator", "global/", "withheld"):
        assert untrue not in card
    assert (withheld_components(typed(record)), global_tasks(typed(record))) == ({}, [])


@pytest.mark.parametrize("redact", [False, True])
def test_the_card_of_a_newcomer_tells_where_it_started(record: dict[str, Any], redact: bool) -> None:
    pair = {"start": "clients/north/text__classification", "better_than": 4, "start_loss": 1.23456, "loss": 1.0}
    record["adopted"] = {"source": "org/fed", "steps": 16, "pairs": {"text__classification": pair}}
    del record["lineage"]
    card = client_card(typed(redacting(record) if redact else record), "clinic")
    assert "joined a federation after its end" in card
    assert "Then 16 steps of" in card
    told = {"org/fed", "clients/north/text__classification", "1.23456"}
    assert {name for name in told if name in card} == (set() if redact else told)
    for untrue in ("Aggregation:", "## Replacements", "whose updates", "of distillation"):
        assert untrue not in card
