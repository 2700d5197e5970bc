"""Loading what others published: it works, or says why it is not trusted."""

import json
from pathlib import Path

import pytest

from tap_hf import TapModel
from tap_hf.adapters import equal
from tap_hf.client_model import load_client_model
from tap_hf.errors import HubError
from tap_hf.hub.publication import Publication, client_publication
from tap_hf.hub.push import push
from tests.conftest import ROOT, Cli
from tests.hub_server import HubServer

KEY = "model org/clinic"


@pytest.fixture(scope="module")
def publication(two_pairs_run: Path) -> Publication:
    return client_publication(two_pairs_run, "clinic", "org/clinic")


def test_the_model_of_a_repository_is_that_of_the_run(
    hub: HubServer, publication: Publication, two_pairs_run: Path
) -> None:
    push(publication)
    loaded, own = TapModel.from_pretrained("org/clinic"), load_client_model(two_pairs_run, "clinic")
    assert equal(loaded.dump(), own.dump())
    assert loaded.predict(text="Fracture of femur") == own.predict("chapter", text="Fracture of femur")


def test_pull_predict_and_adopt(hub: HubServer, publication: Publication, cli: Cli, tmp_path: Path) -> None:
    push(publication)
    pulled = tmp_path / "pulled"
    assert cli("pull", "org/clinic", "--output-dir", pulled).code == 0
    said = [
        cli("predict", *source, "--text", "Fracture of femur").out
        for source in ([pulled], ["--repo", "org/clinic"])
    ]  # fmt: skip
    assert said[0] == said[1] != ""
    recipe = tmp_path / "new.yaml"
    text = (ROOT / "recipes/smoke/two_pairs.yaml").read_text()
    recipe.write_text("\n".join(line for line in text.splitlines() if "digit" not in line))
    options = ("clients={newcomer: {tasks: [chapter]}}", "federation.clients_per_round=1", "--output-dir")
    done = cli("adopt", "--from", "org/clinic", "--data", recipe, *options, tmp_path / "new", "--json")
    assert done.code == 0, done.err
    [pair] = json.loads(done.out)["pairs"]
    losses = [candidate["loss"] for candidate in pair["candidates"]]
    assert losses == sorted(losses)
    assert {candidate["name"] for candidate in pair["candidates"]} == {"nothing published", "text__classification"}
    assert pair["loss"] <= losses[0]
    assert cli("predict", tmp_path / "new", "--text", "Fracture of femur").code == 0


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"weights.pkl": b"x"}, "loading such a file can run any code"),
        ({"../evil.json": b"{}"}, "leads out of its folder"),
        ({"adapter_model.safetensors": (10**10).to_bytes(8, "little") + b"{}"}, "its header claims 10,000,000,000"),
        ({"tap_config.json": b"[]"}, "needed keys and values"),
        ({"adapter_config.json": b'{"peft_type": "LORA", "r": 1000000000, "lora_alpha": 8}'}, "got 1000000000"),
    ],
)
def test_a_poisoned_repository_is_refused(
    hub: HubServer, publication: Publication, files: dict[str, bytes], said: str
) -> None:
    hub.put(KEY, {**publication.files, **files})
    with pytest.raises(HubError, match=said):
        TapModel.from_pretrained("org/clinic")


def test_a_missing_file_and_a_file_of_ten_gigabytes(hub: HubServer, publication: Publication) -> None:
    files = {path: content for path, content in publication.files.items() if path != "head.safetensors"}
    hub.put(KEY, files)
    with pytest.raises(HubError, match=r"lacks head\.safetensors"):
        TapModel.from_pretrained("org/clinic")
    hub.put(KEY, publication.files, {"adapter_model.safetensors": 10**10})
    with pytest.raises(HubError, match="has 10,000,000,000 bytes"):
        TapModel.from_pretrained("org/clinic")


def test_a_private_repository_looks_like_none_to_others(hub: HubServer, publication: Publication) -> None:
    push(publication, private=True)
    with pytest.raises(HubError, match="There is no repository org/clinic, or it is private"):
        TapModel.from_pretrained("org/clinic", token="hf_bob")
