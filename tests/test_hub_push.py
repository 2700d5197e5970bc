"""Publishing on the Hub, against a server that speaks its protocol."""

import io
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModel, PeftModel, get_peft_model_state_dict
from safetensors.torch import load
from transformers import AutoModel

from tap_hf import HubError, hub_client as connection
from tap_hf.hub import Publication, client_publication, push
from tap_hf.models import checkpoint_dir
from tests.conftest import Cli
from tests.hub_server import CUT, LOST, Fault, HubServer

KEY = "model org/clinic"


@pytest.fixture(scope="module")
def publication(two_pairs_run: Path) -> Publication:
    return client_publication(two_pairs_run, "clinic", "org/clinic")


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft, about transformers
@pytest.mark.filterwarnings("ignore:Could not find a config file in tiny")
def test_plain_peft_loads_what_was_pushed_bit_equal(
    hub: HubServer, publication: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = push(publication)
    assert pushed.is_new
    assert len(hub.repos[KEY].commits) == 2  # that of the creation, and ours
    saved = load(hub.files(KEY)["adapter_model.safetensors"])
    backbone = AutoModel.from_pretrained(checkpoint_dir(), dtype=torch.float32)
    monkeypatch.chdir(tmp_path)
    Path("tiny").symlink_to(checkpoint_dir())  # as `tap-hf backbone export tiny` leaves it
    for model in (PeftModel.from_pretrained(backbone, "org/clinic"), AutoPeftModel.from_pretrained("org/clinic")):
        loaded = get_peft_model_state_dict(model)
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_a_second_push_sends_nothing(hub: HubServer, publication: Publication) -> None:
    first = push(publication)
    uploaded = hub.uploaded
    second = push(publication)
    assert (second.commit, second.is_new, second.deleted) == (first.commit, False, ())
    assert (hub.uploaded, len(hub.repos[KEY].commits)) == (uploaded, 2)


def test_files_of_an_earlier_push_are_deleted_and_others_are_left(hub: HubServer, publication: Publication) -> None:
    push(publication)
    hub.put(KEY, {"LICENSE": b"mine", "image__classification/adapter_config.json": b"{}"})
    assert push(publication).deleted == ("image__classification/adapter_config.json",)
    assert "LICENSE" in hub.files(KEY)


def test_a_push_never_replaces_what_is_of_others(
    hub: HubServer, publication: Publication, two_pairs_run: Path, cli: Cli
) -> None:
    arguments = ("push", two_pairs_run, "--yes", "--repo-id")
    assert cli(*arguments, "org/fed", "--all").code == 0
    before = hub.files("model org/fed")
    told = cli(*arguments, "org/fed", "--client", "clinic")
    assert told.code == 2
    assert "org/fed holds the adapters of a federation, and this push is of the adapters of one client" in told.err
    assert hub.files("model org/fed") == before
    push(publication)
    with pytest.raises(HubError, match='holds the adapters of client "clinic", and this push is of "scanner"'):
        push(client_publication(two_pairs_run, "scanner", "org/clinic"))
    assert cli(*arguments, "org/clinic", "--all").code == 2
    assert publication.files.items() <= hub.files(KEY).items()


@pytest.mark.parametrize(("request_", "status"), [("POST .*/commit/", 429), ("POST .*/commit/", 503), ("PUT", CUT)])
def test_what_passes_is_tried_again(hub: HubServer, publication: Publication, request_: str, status: int) -> None:
    hub.faults.append(Fault(request_, status, times=2))
    push(publication)
    assert len(hub.repos[KEY].commits) == 2


def test_a_lost_answer_makes_no_second_commit(hub: HubServer, publication: Publication) -> None:
    hub.faults.append(Fault("POST .*/commit/", LOST))
    pushed = push(publication)
    assert pushed.commit == hub.repos[KEY].commits[-1][0]
    assert (pushed.is_new, len(hub.repos[KEY].commits)) == (True, 2)


def test_an_interrupted_push_leaves_the_repository_as_it_was(hub: HubServer, publication: Publication) -> None:
    hub.faults.append(Fault("PUT", CUT, times=1000))
    with pytest.raises(HubError, match="org/clinic"):
        push(publication)
    assert hub.files(KEY).keys() == {".gitattributes"}
    hub.faults.clear()
    push(publication)
    assert publication.files.items() <= hub.files(KEY).items()


def test_of_two_pushes_at_once_one_is_told(
    hub: HubServer, publication: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Publication("org/clinic", {**publication.files, "README.md": b"another"})
    push(Publication("org/clinic", {"README.md": b"first"}))
    both_compared, compare = threading.Barrier(2), connection.HfApi.create_commit

    def commit(*arguments: object, **options: object) -> object:
        both_compared.wait(20)
        return compare(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(connection.HfApi, "create_commit", commit)
    told: list[str] = []

    def attempt(one: Publication) -> None:
        try:
            push(one)
        except HubError as error:
            told.append(str(error))

    threads = [threading.Thread(target=attempt, args=[one]) for one in (publication, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert "Someone else committed to org/clinic in the meantime; nothing was written." in told[0]
    assert len(hub.repos[KEY].commits) == 3


@pytest.mark.parametrize(
    ("token", "repo_id", "said"),
    [
        ("hf_wrong", "org/clinic", "The Hub refuses the token"),
        ("hf_bob", "org/clinic", "The token has no permission for this on org/clinic"),
        ("hf_alice", "org/a/b", '"org/a/b" is not the name of a repository'),
    ],
)
def test_refused_pushes_say_why(hub: HubServer, publication: Publication, token: str, repo_id: str, said: str) -> None:
    with pytest.raises(HubError, match=said):
        push(Publication(repo_id, publication.files), token=token)
    assert not hub.repos


def test_private_means_private(hub: HubServer, publication: Publication) -> None:
    push(publication, private=True)
    assert hub.repos[KEY].private
    hub.repos[KEY].private = False
    with pytest.raises(HubError, match="exists and is public"):
        push(publication, private=True)


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def test_nothing_is_sent_before_the_user_agrees(
    hub: HubServer, two_pairs_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("push", two_pairs_run, "--all", "--repo-id", "org/fed")
    shown = cli(*arguments, "--dry-run", "--json")
    [repository] = json.loads(shown.out)["repositories"]
    assert repository["card"].startswith("---\n")
    told = cli(*arguments)
    assert (told.code, "no terminal to ask on. Add --yes" in told.err) == (2, True)
    assert hub.requests == []
    old = "clients/old/config.json"
    hub.put("model org/fed", {old: b"{}"})
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    refused = cli(*arguments)
    assert refused.code == 1  # the answer is no
    assert f"deletes  {old}" in refused.out
    assert "Anyone will be able to read and copy these files" in refused.err
    assert {request.split()[0] for request in hub.requests} == {"GET"}
    assert hub.files("model org/fed").keys() == {old}
    assert cli(*arguments, "--yes").code == 0
    assert {path: len(content) for path, content in hub.files("model org/fed").items()} == repository["files"]
    assert {path.split("/")[0] for path in repository["files"]} == {
        "clients", "global", "processor", "README.md", "run.json",
    }  # fmt: skip


def test_no_path_of_this_machine_is_published(two_pairs_run: Path, cli: Cli, tmp_path: Path) -> None:
    here = Path(shutil.copytree(two_pairs_run, tmp_path / "mine"))
    record = json.loads((two_pairs_run / "run.json").read_text())
    record["recipe"]["backbone"]["name"] = str(checkpoint_dir())
    record["recipe"]["datasets"]["digits"]["path"] = str(tmp_path / "secret" / "digits.csv")
    (here / "run.json").write_text(json.dumps(record))
    with pytest.raises(HubError, match="--base-model ORG/NAME"):
        client_publication(here, "clinic", "org/clinic")
    files = client_publication(here, "clinic", "org/clinic", base_model="org/tiny-flava@abc").files
    assert not [path for path, content in files.items() if str(tmp_path).encode() in content]
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny-flava", "abc")
    for given in ("org/tiny-flava@abc", "org/tiny-flava"):
        files = client_publication(here, "clinic", "org/clinic", base_model=given).files
        assert yaml.safe_load(files["README.md"].split(b"---")[1])["base_model"] == "org/tiny-flava"
        assert json.loads(files["run.json"])["recipe"]["backbone"]["name"] == "org/tiny-flava"
