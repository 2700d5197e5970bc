"""A client's folder of a run is a pretrained `TapModel`: its sets, its messages, predictions for one input or many."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tap_hf import AdapterError, DataError, RunDirectory, TapModel
from tap_hf.models import equal, load_adapters


def test_personal_tensors_are_stored_once(two_pairs_run: Path) -> None:
    sets = RunDirectory(two_pairs_run).sets("clinic")
    stored = {file.stem for file in (two_pairs_run / "clients/clinic/sets").iterdir()}
    assert stored == sets.keys() - {"personal"}
    assert equal(TapModel.from_pretrained(two_pairs_run / "clients/clinic").dump(), sets["personal"])


def test_a_variant_is_another_set_of_the_client(two_pairs_run: Path) -> None:
    folder = two_pairs_run / "clients/clinic"
    loaded = TapModel.from_pretrained(two_pairs_run, subfolder="clients/clinic", variant="stage1")
    assert equal(loaded.dump(), load_adapters(folder / "sets/stage1.safetensors")[0])
    with pytest.raises(AdapterError, match='has no variant "stage2", did you mean "stage1"'):
        TapModel.from_pretrained(folder, variant="stage2")


def test_a_model_without_variants_says_so(two_pairs_run: Path, tmp_path: Path) -> None:
    TapModel.from_pretrained(two_pairs_run / "clients/clinic").save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="only a client of a run has variants"):
        TapModel.from_pretrained(tmp_path, variant="stage1")


def test_a_name_that_cannot_be_a_repository_asks_no_hub() -> None:
    for name in ("nowhere", "./nowhere/at/all"):
        with pytest.raises(AdapterError, match=f"{name} is neither a folder nor the name of a repository"):
            TapModel.from_pretrained(name)


def test_an_unknown_task_is_one_message(two_pairs_run: Path, tmp_path: Path) -> None:
    model = TapModel.from_pretrained(two_pairs_run / "clients/clinic")
    for call in (
        lambda: model(task="chaptr", input_ids=[[1]], attention_mask=[[1]]),
        lambda: model.save_pretrained(tmp_path, tasks=["chaptr"]),
    ):
        with pytest.raises(DataError, match='The model has no task "chaptr", did you mean "chapter"'):
            call()


def test_a_model_with_one_task_needs_no_name_of_it(two_pairs_run: Path, model: TapModel) -> None:
    clinic = TapModel.from_pretrained(two_pairs_run / "clients/clinic")
    batch = clinic.backbone.tokenizer(["Asthma"], return_token_type_ids=False)
    assert torch.equal(clinic(labels=[0], **batch).loss, clinic("chapter", labels=[0], **batch).loss)
    with pytest.raises(DataError, match="got no task; the model has several, expected one of digit, chapter"):
        model(labels=[0], **batch)


def test_a_folder_that_cannot_be_saved_to_is_one_message(two_pairs_run: Path, tmp_path: Path) -> None:
    model = TapModel.from_pretrained(two_pairs_run / "clients/clinic")
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "file", tmp_path / "folder/processor"):
        file.write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/below", tmp_path / "folder"):
        with pytest.raises(
            AdapterError, match=rf"^{place} cannot be written \({tmp_path}/.*\)\. Save to another folder"
        ):
            model.save_pretrained(place)
        with pytest.raises(AdapterError):
            TapModel.from_pretrained(place)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/processor").read_text() == "mine"
    with pytest.raises(DataError, match="got no tasks to save; expected some of chapter"):
        model.save_pretrained(tmp_path / "none", tasks=[])
    with pytest.raises(AdapterError, match="the set to save lacks head__chapter; expected all that chapter use"):
        model.save_pretrained(tmp_path / "none", adapters={"text__classification": {}})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float99"}, 'dtype is "float99"; expected float32, bfloat16, float16, or auto'),
        ({"dtype": "int8"}, 'dtype is "int8"; expected float32'),
        ({"torch_dtype": "float32"}, 'from_pretrained has no option "torch_dtype", did you mean "dtype"'),
        ({"name": "tiny"}, 'from_pretrained has no option "name", expected one of attn_implementation'),
    ],
)
def test_a_wrong_option_is_one_message(two_pairs_run: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises((AdapterError, ValueError), match=said):
        TapModel.from_pretrained(two_pairs_run / "clients/clinic", **options)


@pytest.mark.parametrize(
    ("file", "option", "said"),
    [
        ("adapter_config.json", "r", r"does not fit config\.json: r is \d+ in one and 99 in the other"),
        ("adapter_config.json", "lora_alpha", r"lora_alpha is [\d.]+ in one and 99 in the other"),
        ("adapter_config.json", None, r"adapter_config\.json is not JSON"),
        ("processor/tokenizer_config.json", None, r"tokenizer_config\.json is not JSON"),
        ("processor/tokenizer.json", None, r"tokenizer\.json is not JSON"),
    ],
)
def test_a_folder_is_damaged_wherever_another_program_would_read_it(
    two_pairs_run: Path, tmp_path: Path, file: str, option: str | None, said: str
) -> None:
    folder = shutil.copytree(two_pairs_run / "clients/clinic", tmp_path / "clinic")
    content = (folder / file).read_text()
    (folder / file).write_text(content[1:] if option is None else json.dumps({**json.loads(content), option: 99}))
    with pytest.raises(AdapterError, match=said):
        TapModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("subfolder", "said"),
    [
        ("", "is not a saved TapModel: it has no config.json. It holds several: pass subfolder='clients/clinic'"),
        ("clients/clinik", 'has no folder "clients/clinik"'),
        ("../elsewhere", 'subfolder is "../elsewhere"; expected a path such as clients/clinic_a'),
    ],
)
def test_a_wrong_folder_is_one_message(two_pairs_run: Path, subfolder: str, said: str) -> None:
    with pytest.raises(AdapterError) as raised:
        TapModel.from_pretrained(two_pairs_run, subfolder=subfolder)
    assert said in str(raised.value)


def test_a_list_of_inputs_gives_a_list_of_predictions(two_pairs_run: Path, picture: Path) -> None:
    texts = ["Fracture of lower end of left femur", "Asthma", "Acute myocardial infarction of the anterior wall"]
    clinic = TapModel.from_pretrained(two_pairs_run / "clients/clinic", dtype=torch.float32)
    alone = [clinic.predict(text=text) for text in texts]
    together = clinic.predict(text=texts * 20)  # several batches
    assert [one.label for one in together] == [one.label for one in alone] * 20
    for one, other in zip(together, alone, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert clinic.predict(text=[]) == []
    with pytest.raises(DataError, match="got an empty text"):
        clinic.predict(text=["Asthma", " "])
    for wrong in (5, [1, 2]):
        with pytest.raises(DataError, match="needs text as input, got int"):
            clinic.predict(text=wrong)  # type: ignore[call-overload]
    scanner = TapModel.from_pretrained(two_pairs_run / "clients/scanner")
    both, one = scanner.predict(image=[picture, picture]), scanner.predict(image=picture)
    assert [two.label for two in both] == [one.label] * 2


@pytest.mark.parametrize("task", ["chapter", "sketch", "vqa"])
def test_values_that_overflow_predict_nothing(model: TapModel, picture: Path, task: str) -> None:
    """Finite weights can be so large that every output is undefined: neither `nan%`, nor a black image, nor a text."""
    model.load({c: {n: torch.full_like(t, 3e38) for n, t in held.items()} for c, held in model.initial.items()})
    image, text = None if task == "chapter" else picture, None if task == "sketch" else "Which colour?"
    with pytest.raises(AdapterError, match="gives values that are not finite"):
        model.predict(task, image=image, text=text)


def test_forward_takes_lists_as_tokenizers_give_them(two_pairs_run: Path) -> None:
    model = TapModel.from_pretrained(two_pairs_run / "clients/clinic")
    encoded = model.backbone.tokenizer(["Asthma", "Fracture of femur"], padding=True, return_token_type_ids=False)
    lists = model("chapter", labels=[0, 1], **encoded)
    tensors = model("chapter", labels=torch.tensor([0, 1]), **encoded.convert_to_tensors("pt"))
    assert torch.equal(lists.logits, tensors.logits)
    assert torch.equal(lists.loss, tensors.loss)
