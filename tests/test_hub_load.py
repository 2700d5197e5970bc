"""Loading what others published: it works, or says why it is not trusted."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

from tap_hf import (
    AdapterError,
    HubError,
    LoraOptions,
    ModalityTaskPair,
    TapModel,
    Task,
    load_backbone,
    load_recipe,
    read_finished,
)
from tap_hf.data import load_clients
from tap_hf.hub import (
    Publication,
    adopt,
    client_publication,
    federation_publication,
    load_client_model,
    published_pairs,
    pull,
    push,
)
from tap_hf.hub_client import download, list_files
from tap_hf.models import equal, open_files
from tap_hf.training import mean_loss
from tests.checkpoints import build
from tests.commands import assert_a_users_mistake
from tests.conftest import ROOT, Cli
from tests.hub_server import Fault, HubServer

KEY = "model org/clinic"


def changed_tensors(content: bytes, change: Callable[[str, Tensor], Tensor]) -> bytes:
    """Return a safetensors file with other values of the same names."""
    tensors = {name: change(name, tensor) for name, tensor in safetensors.torch.load(content).items()}
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    return bytes(safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}, metadata=metadata))


@pytest.fixture(scope="module")
def publication(two_pairs_run: Path) -> Publication:
    return client_publication(two_pairs_run, "clinic", "org/clinic")


def test_the_model_of_a_repository_is_that_of_the_run(
    hub: HubServer, publication: Publication, two_pairs_run: Path
) -> None:
    push(publication)
    loaded, own = TapModel.from_pretrained("org/clinic"), TapModel.from_pretrained(two_pairs_run / "clients/clinic")
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
    options = ("clients={new_client: {tasks: [chapter]}}", "federation.clients_per_round=1", "--output-dir")
    done = cli("adopt", "--from", "org/clinic", "--data", recipe, *options, tmp_path / "new", "--json")
    assert done.code == 0, done.err
    [pair] = json.loads(done.out)["pairs"]
    losses = [candidate["loss"] for candidate in pair["candidates"]]
    assert losses == sorted(losses)
    assert {candidate["name"] for candidate in pair["candidates"]} == {"nothing published", "text__classification"}
    assert pair["loss"] <= losses[0]
    assert cli("predict", tmp_path / "new", "--text", "Fracture of femur").code == 0
    assert "From `org/clinic`" in cli("card", tmp_path / "new", "--client", "new_client").out


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"weights.pkl": b"x"}, "loading such a file can run any code"),
        ({"../evil.json": b"{}"}, "leads out of its folder"),
        ({"adapter_model.safetensors": (10**10).to_bytes(8, "little") + b"{}"}, "its header asks for 10,000,000,000"),
        ({"config.json": b"[]"}, "expected keys and values"),
        ({"config.json": b"{"}, r"config\.json is not JSON"),
    ],
)
def test_a_poisoned_repository_is_refused(
    hub: HubServer, publication: Publication, files: dict[str, bytes], said: str
) -> None:
    hub.put(KEY, {**publication.files, **files})
    with pytest.raises(AdapterError, match=said):
        TapModel.from_pretrained("org/clinic")


def test_a_missing_file_and_a_file_of_ten_gigabytes(hub: HubServer, publication: Publication) -> None:
    files = {path: content for path, content in publication.files.items() if path != "heads.safetensors"}
    hub.put(KEY, files)
    with pytest.raises(AdapterError, match=r"lacks head__chapter"):
        TapModel.from_pretrained("org/clinic")
    hub.put(KEY, publication.files, {"adapter_model.safetensors": 10**10})
    with pytest.raises(AdapterError, match="has 10,000,000,000 bytes"):
        TapModel.from_pretrained("org/clinic")


def test_a_private_repository_looks_like_none_to_others(hub: HubServer, publication: Publication) -> None:
    push(publication, private=True)
    with pytest.raises(HubError, match="There is no repository org/clinic, or it is private"):
        TapModel.from_pretrained("org/clinic", token="hf_bob")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["personal", "global"])
def test_adopt_takes_the_candidate_with_the_lower_loss(
    hub: HubServer, two_pairs_run: Path, cli: Cli, tmp_path: Path, where: str
) -> None:
    """Of the client's and the federation's, one has a head that is sure of what is wrong."""
    places = {"personal": "clients/clinic/text__classification", "global": "global/text__classification"}
    files = dict(federation_publication(two_pairs_run, "org/fed").files)
    [worse] = [place for name, place in places.items() if name != where]
    heads = f"{worse.partition('/text')[0]}/heads.safetensors"
    files[heads] = changed_tensors(files[heads], lambda name, t: -1000 * t if name.startswith("head__chapter") else t)
    hub.put("model org/fed", files)
    recipe = tmp_path / "new.yaml"
    text = (ROOT / "recipes/smoke/two_pairs.yaml").read_text()
    recipe.write_text("\n".join(line for line in text.splitlines() if "digit" not in line))
    options = ("clients={new_client: {tasks: [chapter]}}", "federation.clients_per_round=1", "--output-dir")
    done = cli("adopt", "--from", "org/fed", "--data", recipe, *options, tmp_path / "new", "--json")
    [pair] = json.loads(done.out)["pairs"]
    losses = {candidate["name"]: candidate["loss"] for candidate in pair["candidates"]}
    assert losses[places[where]] < losses[worse]
    assert pair["candidates"][0]["loss"] == min(losses.values())
    recorded = json.loads((tmp_path / "new/run.json").read_text())["results"]
    assert json.loads(cli("evaluate", tmp_path / "new", "--json").out)["results"] == recorded
    if pair["candidates"][0]["name"] == places[where]:
        start, own = (
            load_client_model(tmp_path / "new", "new_client", "adopted").model,
            load_client_model(two_pairs_run, "clinic", where).model,
        )
        assert equal(start.dump(), own.dump(start.dump()))


def test_adopted_adapters_are_judged_on_validation_rows_and_kept_if_training_does_harm(
    two_pairs_run: Path, tmp_path: Path
) -> None:
    text = (ROOT / "recipes/smoke/two_pairs.yaml").read_text()
    (tmp_path / "new.yaml").write_text("\n".join(line for line in text.splitlines() if "digit" not in line))
    options = ["clients={new_client: {tasks: [chapter]}}", "federation.clients_per_round=1", "training.learning_rate=3"]
    recipe = load_recipe(tmp_path / "new.yaml", options)
    done = adopt(str(two_pairs_run), recipe, tmp_path / "new")
    adopted, personal = (
        load_client_model(done.directory, "new_client", name).model for name in ("adopted", "personal")
    )
    assert equal(adopted.dump(), personal.dump())
    [pair], (_, [client]) = done.pairs, load_clients(recipe, adopted.backbone)
    loss = mean_loss(adopted, adopted.dump(), client.tasks["chapter"].validation, 128)
    assert pair.loss == pair.candidates[0].loss == pytest.approx(loss)
    record = read_finished(done.directory)
    assert record.adopted is not None
    assert record.adopted.steps == recipe.training.local_steps * recipe.federation.rounds


def test_a_loss_of_nan_is_never_the_lowest(hub: HubServer, two_pairs_run: Path, tmp_path: Path) -> None:
    """Neither of a candidate, whose head overflows, nor after training that diverges."""
    files = dict(federation_publication(two_pairs_run, "org/fed").files)
    broken = "clients/clinic/heads.safetensors"
    files[broken] = changed_tensors(files[broken], lambda _, tensor: tensor.sign() * 3e38)
    hub.put("model org/fed", files)
    text = (ROOT / "recipes/smoke/two_pairs.yaml").read_text()
    (tmp_path / "new.yaml").write_text("\n".join(line for line in text.splitlines() if "digit" not in line))
    options = ["clients={new_client: {tasks: [chapter]}}", "federation.clients_per_round=1"]
    recipe = load_recipe(tmp_path / "new.yaml", [*options, "training.learning_rate=1e30"])
    [pair] = adopt("org/fed", recipe, tmp_path / "new").pairs
    losses = {candidate.name: candidate.loss for candidate in pair.candidates}
    assert math.isnan(losses["clients/clinic/text__classification"])
    assert pair.candidates[0].loss == min(loss for loss in losses.values() if not math.isnan(loss))
    assert pair.loss <= pair.candidates[0].loss


def test_every_door_opens_the_revision_that_is_asked_for(
    hub: HubServer, publication: Publication, two_pairs_run: Path, tmp_path: Path
) -> None:
    """A later commit has other heads."""
    old = hub.put(KEY, publication.files)
    heads = changed_tensors(publication.files["heads.safetensors"], lambda name, t: t + 1)
    hub.put(KEY, {"heads.safetensors": heads})
    own = TapModel.from_pretrained(two_pairs_run / "clients/clinic").dump()
    assert equal(TapModel.from_pretrained("org/clinic", revision=old).dump(), own)
    assert equal(load_client_model("org/clinic", revision=old).model.dump(), own)
    assert equal(TapModel.from_pretrained(pull("org/clinic", tmp_path / "old", old) / "clients/clinic").dump(), own)
    assert not equal(TapModel.from_pretrained("org/clinic").dump(), own)
    [found] = published_pairs(open_files("org/clinic", old), load_backbone("tiny"))
    assert equal(found.heads, {"head__chapter": own["head__chapter"]})


def test_files_are_of_one_commit_whoever_pushes_in_the_meantime(hub: HubServer, publication: Publication) -> None:
    hub.put(KEY, publication.files)
    listing = list_files("org/clinic", None, None)
    hub.put(KEY, {"run.json": b"{}"})
    assert download(listing, "run.json", None).read_bytes() == publication.files["run.json"]


def test_the_backbone_is_that_of_the_recorded_commit(hub: HubServer, picture: Path, tmp_path: Path) -> None:
    """A later commit of it has other weights."""
    folder = build("clip", tmp_path / "base")
    old = hub.put("model org/base", {file.name: file.read_bytes() for file in folder.iterdir()})
    weights = (folder / "model.safetensors").read_bytes()
    changed = changed_tensors(weights, lambda name, t: 2 * t if t.is_floating_point() else t)
    hub.put("model org/base", {"model.safetensors": changed})
    pair = ModalityTaskPair.parse("image__classification")
    task = Task("digit", pair, metrics=("accuracy",), labels=("0", "1"))
    saved = TapModel(load_backbone("org/base", revision=old), [task], {pair.name: LoraOptions(rank=2)}, seed=1)
    saved.save_pretrained(tmp_path / "saved")
    assert saved.config.backbone.revision == old
    assert TapModel.from_pretrained(tmp_path / "saved").predict(image=picture) == saved.predict(image=picture)


def test_too_many_requests_are_waited_for_when_reading(
    hub: HubServer, publication: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    push(publication)
    for request in ("GET /api/models/org/clinic", "(HEAD|GET) /org/clinic/resolve"):
        hub.faults.append(Fault(request, 429, times=2))
    TapModel.from_pretrained("org/clinic")
    assert [fault.times for fault in hub.faults] == [0, 0]
    hub.faults.append(Fault("GET /api/models/org/clinic", 429, times=1000))
    with pytest.raises(HubError, match="Too many requests to the Hub"):
        TapModel.from_pretrained("org/clinic")


def test_another_base_model_is_explained(hub: HubServer, publication: Publication, tmp_path: Path) -> None:
    push(publication)
    other = build("clip", tmp_path)
    with pytest.raises(AdapterError, match=r"does not fit .*clip.*It was saved from tiny; use that as base_model"):
        TapModel.from_pretrained("org/clinic", base_model=str(other))
    described = json.loads(publication.files["config.json"])
    for base, said in (
        ({"name": "tiny", "revision": None, "sha256": "0" * 64}, "of another version of tap_hf, whose weights differ"),
        ({"name": "org/base", "revision": "a" * 40, "sha256": None}, "is for org/base@a{40}, which cannot be loaded"),
    ):
        hub.put(KEY, {"config.json": json.dumps(described | {"backbone": base}).encode()})
        with pytest.raises(AdapterError, match=said):
            TapModel.from_pretrained("org/clinic")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("model_type",), "bert", "model_type: "),
        (("tasks", 0, "pair"), "smell__classification", r"tasks\.0\.pair: "),
        (("tasks", 0, "labels"), "low", r"tasks\.0\.labels: "),
        (("tasks", 0, "image_size"), 10**6, r"tasks\.0\.image_size: "),
        (("tasks", 0, "colour"), "red", r"tasks\.0\.colour: Unexpected"),
        (("lora", "text__classification", "rank"), "8", r"lora\.text__classification\.rank: "),
        (
            ("lora", "text__classification", "rank"),
            4000,
            "a rank of 4000, the largest of the tensors is ",
        ),
        (("lora", "text__classification", "rank"), 99999999999, r"rank: Input should be less than or equal to 4096"),
        (("lora", "text__classification", "alpha"), 10**400, r"lora\.text__classification\.alpha: "),
        (("lora", "text__classification", "layers"), ["q"] * 10**6, r"layers: Tuple should have at most 10000 items"),
        (
            ("lora", "text__classification", "options"),
            {"rank_pattern": {"(a+)+": 8}},
            r"options\.rank_pattern: '\(a\+\)\+': .*take for ever",
        ),
        (("lora", "image__generation"), {"rank": 4}, "has image__generation, of which there are no tensors"),
        (("tasks", 0, "labels"), [str(label) for label in range(10**5)], "a task with 100,000 labels, and no tensor"),
        (("lora", "text__classification", "options"), {"bias": "all"}, r"lora\.text__classification\.options\.bias: "),
        (("adapters", "text__classification"), "../elsewhere", r"adapters\.text__classification: "),
        (("backbone",), {}, r"backbone\.name: Field required"),
    ],
)
def test_a_wrong_value_in_the_config_is_one_message_with_its_path(
    publication: Publication, tmp_path: Path, path: tuple[str | int, ...], value: Any, said: str
) -> None:
    for name, content in publication.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    config = json.loads(publication.files["config.json"])
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=said):
        TapModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("adapter_model.safetensors", lambda name, t: t[:, :-1] if "lora_A" in name else t, "does not fit tiny: "),
        ("adapter_model.safetensors", lambda name, t: t / 0, "values that are not finite"),
        ("heads.safetensors", lambda name, t: t[:-1], "does not fit tiny: "),
        ("heads.safetensors", lambda name, t: t / 0, "values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    hub: HubServer, publication: Publication, file: str, change: Callable[[str, Tensor], Tensor], said: str
) -> None:
    hub.put(KEY, {**publication.files, file: changed_tensors(publication.files[file], change)})
    with pytest.raises(AdapterError, match=said):
        TapModel.from_pretrained("org/clinic")


def test_a_task_without_its_head_is_refused(hub: HubServer, publication: Publication) -> None:
    renamed = json.loads(publication.files["config.json"])
    renamed["tasks"][0]["name"] = "triage"
    hub.put(KEY, {**publication.files, "config.json": json.dumps(renamed).encode()})
    with pytest.raises(AdapterError, match="lacks head__triage"):
        TapModel.from_pretrained("org/clinic")


def test_only_what_is_whole_is_adopted(hub: HubServer, two_pairs_run: Path, cli: Cli, tmp_path: Path) -> None:
    """A run directory whose files have changed, and a repository without the heads of its tasks."""
    recipe = tmp_path / "new.yaml"
    text = (ROOT / "recipes/smoke/two_pairs.yaml").read_text()
    recipe.write_text("\n".join(line for line in text.splitlines() if "digit" not in line))
    options = (
        "clients={new_client: {tasks: [chapter]}}",
        "federation.clients_per_round=1",
        "--output-dir",
        tmp_path / "n",
    )
    run = Path(shutil.copytree(two_pairs_run, tmp_path / "run"))
    (run / "clients/clinic/heads.safetensors").unlink()
    files = dict(client_publication(two_pairs_run, "clinic", "org/clinic").files)
    del files["heads.safetensors"]
    hub.put(KEY, files)
    for source, said in ((run, "heads.safetensors cannot be read"), ("org/clinic", "lacks head__chapter")):
        assert_a_users_mistake(cli("adopt", "--from", source, "--data", recipe, *options), said)


@pytest.mark.parametrize("as_json", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_candidate_without_a_finite_loss_is_last_and_shown_as_such(
    hub: HubServer, two_pairs_run: Path, cli: Cli, tmp_path: Path, as_json: bool
) -> None:
    """Its weights are finite, and too large to compute with."""
    files = dict(client_publication(two_pairs_run, "clinic", "org/clinic").files)
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        files[name] = changed_tensors(files[name], lambda _, tensor: tensor * 0 + 1e38)
    hub.put(KEY, files)
    recipe = tmp_path / "new.yaml"
    text = (ROOT / "recipes/smoke/two_pairs.yaml").read_text()
    recipe.write_text("\n".join(line for line in text.splitlines() if "digit" not in line))
    options = ["clients={new_client: {tasks: [chapter]}}", "federation.clients_per_round=1", "training.local_steps=1"]
    options += ["--output-dir", str(tmp_path / "new"), *(["--json"] if as_json else [])]
    done = cli("adopt", "--from", "org/clinic", "--data", recipe, *options)
    assert done.code == 0, done.err
    assert "nan" not in done.out.lower()
    if as_json:
        first, last = json.loads(done.out)["pairs"][0]["candidates"]
        assert (first["name"], last["loss"]) == ("nothing published", None)
    else:
        assert "∞" in done.out
