"""What is published: of whom, which pairs, and nothing that the recipe keeps private."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from peft import get_peft_model_state_dict

from tap_hf import Modality, RunResult, TapModel, load_recipe, run
from tap_hf.card_templates import escape_markdown
from tap_hf.hub import federation_publication, load_client_model
from tap_hf.models import checkpoint_dir, equal
from tests.conftest import ROOT, Cli
from tests.hub_server import HubServer


def with_privacy(run: Path, folder: Path, **privacy: Any) -> Path:
    """Return a run directory like another one, but for what its recipe says of privacy."""
    shutil.copytree(run, folder)
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["privacy"] = privacy
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_client_of_a_result_is_pushed_as_any_model(hub: HubServer, two_pairs_run: Path) -> None:
    client = TapModel.from_pretrained(RunResult(two_pairs_run, [], {}).clients["scanner"])
    address = client.push_to_hub("org/scanner", private=True)
    assert address.endswith(hub.repos["model org/scanner"].commits[-1][0])
    assert hub.repos["model org/scanner"].private
    assert equal(TapModel.from_pretrained("org/scanner").dump(), client.dump())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21's
def test_a_model_is_pushed_with_a_card_that_loads_it_and_spares_its_owners_card(
    hub: HubServer, all_pairs_run: Path
) -> None:
    client = TapModel.from_pretrained(all_pairs_run / "clients/clinic")
    client.push_to_hub("org/clinic")
    text = hub.files("model org/clinic")["README.md"].decode()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.base_model) == ("peft", None)  # the backbone is not on the Hub
    for name, task in client.tasks.items():
        assert f"| {name} | `{task.pair}` | {len(task.labels) or ''} |" in text
        assert all(escape_markdown(label) in text for label in task.labels[:30])
    assert "It does not know what the model was trained on" in text
    (with_tap,) = re.findall(r"```python\n(from tap_hf .*?)```", text, re.DOTALL)
    exec(with_tap, names := {})  # noqa: S102
    assert equal(names["model"].dump(), client.dump())
    (with_peft,) = re.findall(r"```python\n(import torch.*?)```", text, re.DOTALL)
    exec(with_peft.replace('"backbone"', repr(str(checkpoint_dir()))), names := {})  # noqa: S102
    adapter = get_peft_model_state_dict(names["model"], save_embedding_layers=False)
    assert equal({"a": adapter}, {"a": client.dump()["text__classification"]})

    HfApi().upload_file(path_or_fileobj=b"my own", path_in_repo="README.md", repo_id="org/clinic")
    client.push_to_hub("org/clinic")
    assert hub.files("model org/clinic")["README.md"] == b"my own"


def test_every_client_gets_a_repository_of_its_own(hub: HubServer, two_pairs_run: Path, cli: Cli) -> None:
    done = cli("push", two_pairs_run, "--all", "--repo-id", "org/tap-{client}", "--yes", "--json")
    assert [one["repo_id"] for one in json.loads(done.out)["pushed"]] == ["org/tap-scanner", "org/tap-clinic"]
    for client, other in (("scanner", "clinic"), ("clinic", "scanner")):
        files = hub.files(f"model org/tap-{client}")
        assert json.loads(files["config.json"])["model_type"] == "tap"
        assert list(json.loads(files["run.json"])["recipe"]["clients"]) == [client]
        assert f'"{other}"'.encode() not in files["run.json"]


def test_of_a_client_only_some_pairs_may_be_pushed(hub: HubServer, all_pairs_run: Path, cli: Cli) -> None:
    arguments = ("push", all_pairs_run, "--client", "clinic", "--repo-id", "org/clinic", "--yes")
    assert cli(*arguments).code == 0
    both = {path.split("/")[0] for path in hub.files("model org/clinic") if path.endswith("adapter_config.json")}
    assert both == {"text__classification", "text__generation"}
    assert cli(*arguments, "--pair", "text__generation").code == 0
    files = hub.files("model org/clinic")
    assert [path for path in files if path.endswith("adapter_config.json")] == ["adapter_config.json"]
    assert list(json.loads(files["config.json"])["adapters"]) == ["text__generation"]
    assert list(TapModel.from_pretrained("org/clinic").initial) == ["text__generation", "head__section"]
    assert b"chapter" not in files["README.md"]
    told = cli(*arguments, "--pair", "text__generatoin")
    assert (told.code, 'did you mean "text__generation"?' in told.err) == (2, True)


def test_a_federations_repository_has_each_client_and_the_global_set(
    hub: HubServer, two_pairs_run: Path, cli: Cli
) -> None:
    assert cli("push", two_pairs_run, "--all", "--repo-id", "org/fed", "--yes").code == 0
    for set_name in ("personal", "global"):
        for client in ("clinic", "scanner"):
            loaded = load_client_model("org/fed", client, set_name).model.dump()
            own = load_client_model(two_pairs_run, client, set_name).model.dump()
            assert equal({component: loaded[component] for component in own}, own)


@pytest.mark.parametrize("redact", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_best_set_of_a_repository_is_one_that_it_holds(
    hub: HubServer, two_pairs_run: Path, cli: Cli, tmp_path: Path, redact: bool
) -> None:
    """A client's other sets are not published, however good they were."""
    run = with_privacy(two_pairs_run, tmp_path / "site", redact=redact)
    record = json.loads((run / "run.json").read_text())
    for row in record["results"]:
        row["validation"] = dict.fromkeys(row["validation"], 0.5) | {"stage1": 0.9, "global": 0.6}
    (run / "run.json").write_text(json.dumps(record))
    assert cli("push", run, "--all", "--repo-id", "org/fed", "--yes").code == 0
    assert cli("push", run, "--client", "clinic", "--repo-id", "org/clinic", "--yes").code == 0
    assert load_client_model(run, "clinic", "best", inputs=(Modality.TEXT,)).set_name == "stage1"
    published = json.loads(hub.files("model org/fed")["run.json"])["recipe"]["clients"]
    [client] = [name for name, held in published.items() if held["tasks"] == ["chapter"]]
    assert load_client_model("org/fed", client, "best", inputs=(Modality.TEXT,)).set_name == "global"
    assert load_client_model("org/clinic", None, "best", inputs=(Modality.TEXT,)).set_name == "personal"


def test_redaction_goes_for_every_pushed_byte(hub: HubServer, all_pairs_run: Path, cli: Cli, tmp_path: Path) -> None:
    run = with_privacy(all_pairs_run, tmp_path / "site", redact=True)
    record = json.loads((run / "run.json").read_text())
    assert cli("push", run, "--all", "--repo-id", "org/fed", "--yes").code == 0
    assert cli("push", run, "--all", "--repo-id", "org/{client}", "--yes").code == 0
    labels = {label for task in record["tasks"].values() for label in task["labels"] if len(label) > 3}
    assert len(labels) > 10
    secrets = {*record["recipe"]["clients"], *record["recipe"]["datasets"], *labels}
    assert hub.repos.keys() == {"model org/fed", *(f"model org/client_{n}" for n in (1, 2, 3))}
    for key in hub.repos:
        for path, content in hub.files(key).items():
            if not path.startswith("processor/"):  # the base model's words
                found = {secret for secret in secrets if secret in path or secret.encode() in content}
                assert not found, f"{key}: {path}"


def test_what_too_few_clients_shaped_is_withheld(hub: HubServer, all_pairs_run: Path, cli: Cli, tmp_path: Path) -> None:
    run = with_privacy(all_pairs_run, tmp_path / "site", min_contributors=2)
    done = cli("push", run, "--all", "--repo-id", "org/fed", "--yes")
    assert "text__classification of global/ is withheld: 1 of at least 2 clients contributed to it" in done.out
    files = hub.files("model org/fed")
    assert not [path for path in files if path.startswith("global/")]  # each pair has one client here
    assert "clients/clinic/config.json" in files
    assert "not published: 1 of at least 2 clients contributed to it" in files["README.md"].decode()


@pytest.mark.parametrize("least", [1, 2])
def test_withholding_one_of_two_leaves_the_other(
    hub: HubServer, two_pairs_run: Path, cli: Cli, tmp_path: Path, least: int
) -> None:
    run = with_privacy(two_pairs_run, tmp_path / "site", min_contributors=least)
    record = json.loads((run / "run.json").read_text())
    record["lineage"]["contributors"]["image__classification"] = ["scanner", "another"]
    record["lineage"]["contributors"]["head__digit"] = ["scanner", "another"]
    (run / "run.json").write_text(json.dumps(record))
    assert cli("push", run, "--all", "--repo-id", "org/fed", "--yes").code == 0
    shared = json.loads(hub.files("model org/fed")["global/config.json"])["adapters"]
    assert shared.keys() == {"image__classification"} | ({"text__classification"} if least == 1 else set())


@pytest.mark.slow
def test_nothing_is_published_as_global_that_nobody_averaged(tmp_path: Path) -> None:
    """Of Local, all; of FedPer, whose heads stay with the clients, what needs a head."""
    for method in ("local", "fedper"):
        recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", [f"algorithm={{name: {method}}}"])
        publication = federation_publication(run(recipe, tmp_path / method).directory, "org/fed")
        assert not [path for path in publication.files if path.startswith("global/")]
        assert publication.notes == ()
