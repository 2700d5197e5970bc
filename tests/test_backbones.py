"""Each backbone family against transformers itself, and how backbones load."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, FlavaModel

from tap_hf import Backbone, BackboneError, Modality, load_backbone
from tap_hf.models import IGNORED, Encoding, checkpoint_dir
from tests.checkpoints import TINY, build

IMAGE, TEXT = Modality.IMAGE, Modality.TEXT
WORDS = ["what shape is in the image?", "is there a circle?"]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in WORDS]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def batch_for(backbone: Backbone, pictures: list[Image.Image], modalities: tuple[Modality, ...]) -> dict[str, Tensor]:
    rows = [torch.tensor(ids) for ids in backbone.tokenize(WORDS, modalities).ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True, padding_value=backbone.pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "pixel_values": backbone.normalise_images(torch.from_numpy(backbone.prepare_images(pictures))),
    }


def encode(backbone: Backbone, pictures: list[Image.Image], modalities: tuple[Modality, ...]) -> Encoding:
    inputs = batch_for(backbone, pictures, modalities)
    if modalities == (IMAGE,):
        del inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        return backbone.encode(inputs, modalities)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# FLAVA


def test_flavas_states_are_those_of_transformers(pictures: list[Image.Image]) -> None:
    """For each tower, and for both fused: what `FlavaModel` says of the processor's output."""
    model = AutoModel.from_pretrained(checkpoint_dir(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint_dir())
    inputs = dict(processor(images=pictures, text=WORDS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        expected = model(**inputs)
    for modalities, output in (
        ((IMAGE,), expected.image_output),
        ((TEXT,), expected.text_output),
        ((IMAGE, TEXT), expected.multimodal_output),
    ):
        got = encode(load_backbone("tiny"), pictures, modalities)
        close(got.states, output.last_hidden_state[:, 1:])
        close(got.pooled, output.last_hidden_state[:, 0])


def test_padding_is_masked(pictures: list[Image.Image]) -> None:
    backbone = load_backbone("tiny")
    lengths = [len(ids) for ids in backbone.tokenizer(WORDS)["input_ids"]]
    assert encode(backbone, pictures, (TEXT,)).mask.sum(dim=1).tolist() == [length - 1 for length in lengths]
    fused = encode(backbone, pictures, (IMAGE, TEXT))
    assert fused.mask.shape == fused.states.shape[:2]
    assert fused.mask.sum(dim=1).tolist() == [17 + length for length in lengths]
    assert encode(backbone, pictures, (IMAGE,)).states.shape == (2, backbone.num_patches, 128)


# ViLT


def test_vilt_says_of_both_modalities_what_transformers_says(checkpoints: Path, pictures: list[Image.Image]) -> None:
    """`ViltModel` shuffles the patches; sorted, its states are ours, and so is its summary."""
    backbone = load_backbone(str(build("vilt", checkpoints)))
    inputs = batch_for(backbone, pictures, (IMAGE, TEXT))
    words = inputs["input_ids"].shape[1]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(checkpoints / "vilt", dtype=torch.float32).eval()(**inputs)
        got = backbone.encode(inputs, (IMAGE, TEXT))
    close(got.pooled, expected.pooler_output)
    close(got.states[:, : words - 1], expected.last_hidden_state[:, 1:words])
    for ours, theirs in zip(got.states[:, words - 1 :], expected.last_hidden_state[:, words + 1 :], strict=True):
        close(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()])


def test_vilts_patches_keep_their_place(checkpoints: Path) -> None:
    """A picture that is black but for one patch changes that patch's embedding, row by row from the top left."""
    backbone: Any = load_backbone(str(build("vilt", checkpoints)))
    black = Image.new("RGB", (TINY.side, TINY.side))
    for place in (0, 5, 15):
        spot = black.copy()
        spot.paste("white", (place % 4 * 8, place // 4 * 8, place % 4 * 8 + 8, place // 4 * 8 + 8))
        pixels = backbone.normalise_images(torch.from_numpy(backbone.prepare_images([black, spot])))
        with torch.no_grad():
            plain, changed = backbone._embed_patches(pixels)
        assert (plain != changed).any(dim=-1).nonzero().flatten().tolist() == [place + 1]  # CLS comes first


# Dual encoders


@pytest.mark.parametrize("family", ["clip", "siglip", "vit_and_bert"])
def test_dual_encoders_embed_as_transformers_does(checkpoints: Path, pictures: list[Image.Image], family: str) -> None:
    """Up to length, each tower's summary is what the model embeds the processor's output to."""
    backbone = load_backbone(str(build(family, checkpoints)))
    model = AutoModel.from_pretrained(checkpoints / family, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoints / family)
    # SigLIP as its model card says.
    padding = {"padding": "max_length", "max_length": 64} if family == "siglip" else {"padding": True}
    texts = processor.tokenizer(WORDS, **padding, return_tensors="pt")
    images = processor.image_processor(pictures, return_tensors="pt")
    if family == "siglip":
        del texts["attention_mask"]
    with torch.no_grad():
        wanted = {
            IMAGE: model.get_image_features(**images).pooler_output,
            TEXT: model.get_text_features(**{k: v for k, v in texts.items() if k != "token_type_ids"}).pooler_output,
        }
    for modality, embedding in wanted.items():
        got = encode(backbone, pictures, (modality,)).pooled
        torch.testing.assert_close(torch.cosine_similarity(got, embedding), torch.ones(2), atol=2e-3, rtol=0)
        close(got.square().mean(dim=1), torch.ones(2))
    both = encode(backbone, pictures, (IMAGE, TEXT))
    image, text, product = both.pooled.chunk(3, dim=-1)
    close(product, image * text)
    assert both.states.shape[1] == both.mask.shape[1] > backbone.num_patches


# Vision-language models


@pytest.fixture(params=["llava", "idefics3"])
def generative(request: pytest.FixtureRequest, checkpoints: Path) -> tuple[Backbone, Any, Any]:
    folder = build(request.param, checkpoints)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return load_backbone(str(folder)), model, AutoProcessor.from_pretrained(folder)


def prompts(processor: Any) -> list[str]:
    if processor.chat_template is None:
        return [f"<image>\n{text}" for text in WORDS]
    return [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
        )
        for text in WORDS
    ]


def test_prompts_and_pictures_are_what_the_processor_makes(
    generative: tuple[Backbone, Any, Any], pictures: list[Image.Image]
) -> None:
    backbone, _, processor = generative
    square = [image.resize((TINY.side, TINY.side), Image.Resampling.BICUBIC) for image in pictures]
    if hasattr(processor.image_processor, "do_image_splitting"):
        processor.image_processor.do_image_splitting = False
    made = processor(text=prompts(processor), images=[[image] for image in square])
    assert backbone.tokenize(WORDS, (IMAGE, TEXT)).ids == list(made["input_ids"])
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in made["pixel_values"]]))
    inputs = batch_for(backbone, pictures, (IMAGE, TEXT))
    assert inputs["pixel_values"].shape == pixels.shape
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=0.02, rtol=0)  # rounded to 8 bits once


def test_loss_is_the_models_own(generative: tuple[Backbone, Any, Any], pictures: list[Image.Image]) -> None:
    backbone, model, _ = generative
    inputs = batch_for(backbone, pictures, (IMAGE, TEXT))
    answers = [torch.tensor(ids) for ids in backbone.tokenize_targets(["a circle", "no"], 32).ids]
    labels = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=IGNORED)
    with torch.no_grad():
        logits = backbone.next_token_logits(inputs, labels)
        total = 0.0
        for row, answer in enumerate(answers):
            prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
            alone = {
                "input_ids": torch.cat([prompt, answer])[None],
                "labels": torch.cat([torch.full_like(prompt, IGNORED), answer])[None],
                "pixel_values": inputs["pixel_values"][row : row + 1],
            }
            total += model(**alone).loss.item() * len(answer)
    got = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert got.item() == pytest.approx(total / sum(map(len, answers)), rel=1e-5)


def test_generated_text_is_the_models_own(generative: tuple[Backbone, Any, Any], pictures: list[Image.Image]) -> None:
    backbone, model, processor = generative
    inputs = batch_for(backbone, pictures, (IMAGE, TEXT))
    said = backbone.generate(inputs, max_new_tokens=6)
    for row in range(2):
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        tokens = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False,
            pixel_values=inputs["pixel_values"][row : row + 1], eos_token_id=backbone.end_token_id,
        )  # fmt: skip
        wanted = processor.tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        assert said[row] == wanted


def test_answers_are_written_as_the_chat_template_writes_them(checkpoints: Path) -> None:
    backbone = load_backbone(str(build("idefics3", checkpoints)))
    (ids,) = backbone.tokenize_targets(["a circle"], 32).ids
    assert backbone.tokenizer.decode(ids) == " a circle<end_of_utterance>"
    assert ids.count(backbone.end_token_id) == 1
    (short,) = backbone.tokenize_targets(["a circle"], 4).ids
    assert short == [*ids[:3], backbone.end_token_id]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "had not ended after 0 s"),
        ("{% for a in range(10 ** 9) %}{% endfor %}", "fails: Range too big"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ ''.__class__.__mro__ }}", "fails: access to attribute '__class__'"),
    ],
)
def test_a_chat_template_of_others_is_bounded(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, template: str, said: str
) -> None:
    monkeypatch.setenv("TAP_HF_TEMPLATE_SECONDS", "0.3")
    backbone = load_backbone(str(build("idefics3", checkpoints)))
    backbone.processor.chat_template = template
    with pytest.raises(BackboneError, match=f"The chat template of .* {said}"):
        backbone.tokenize(["a"], (TEXT,))


FOREIGN: dict[str, tuple[str, Any]] = {
    "a text": ("tokenizer_config.json", "x"),
    "a list": ("processor_config.json", []),
    "a wrong type": ("config.json", {"model_type": "flava", "image_config": {"num_channels": {"a": 1}}}),
    "a wrong regular expression": (
        "tokenizer.json",
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
    ),
}


def altered(folder: Path, name: str, values: Any) -> Path:
    """Return a copy of the tiny checkpoint with another file, or with some other values in it."""
    shutil.copytree(checkpoint_dir(), folder)
    if isinstance(values, dict):
        values = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_checkpoint_of_others_that_cannot_be_loaded_is_one_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BackboneError, match="Cannot load"):
        load_backbone(str(altered(tmp_path / "theirs", *FOREIGN[kind])))


def test_tokens_without_an_embedding_are_an_error(tmp_path: Path) -> None:
    vocabulary = {"[UNK]": 10**6, "[CLS]": 10**6 + 1, "[SEP]": 10**6 + 2, "[PAD]": 0, "[MASK]": 1}
    model = json.loads((checkpoint_dir() / "tokenizer.json").read_text())["model"] | {"vocab": vocabulary}
    backbone = load_backbone(str(altered(tmp_path / "theirs", "tokenizer.json", {"model": model})))
    with pytest.raises(BackboneError, match=r"gives the token 1,000,00\d, but the model has [\d,]+\. Is it another"):
        backbone.tokenize(["a"], (TEXT,))


def test_a_text_that_names_the_picture_token_holds_one_picture(generative: tuple[Backbone, Any, Any]) -> None:
    backbone, _, processor = generative
    (ids,) = backbone.tokenize(["look: <image> <image>"], (IMAGE, TEXT)).ids
    assert ids.count(processor.tokenizer.convert_tokens_to_ids("<image>")) == backbone.num_patches
    (alone,) = backbone.tokenize(["look: <image> <image>"], (TEXT,)).ids
    assert processor.tokenizer.convert_tokens_to_ids("<image>") not in alone


def test_a_long_prompt_is_cut_before_its_end(generative: tuple[Backbone, Any, Any]) -> None:
    backbone, _, _ = generative
    tokenized = backbone.tokenize(["x" * 2000, "x"], (IMAGE, TEXT))
    long, short = tokenized.ids
    assert tokenized.cut == [2000]
    assert len(long) - len(short) == backbone.max_text_length - 1
    assert long[-3:] == short[-3:] or long[-1] == short[-1]


# Loading


def test_the_backbone_is_frozen_and_in_evaluation_mode() -> None:
    model = load_backbone("tiny").model
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())


def test_the_checkpoint_loads_whole() -> None:
    _, report = FlavaModel.from_pretrained(checkpoint_dir(), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_local_folder_loads_like_the_shipped_name(tmp_path: Path) -> None:
    load_backbone("tiny").model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(checkpoint_dir()).save_pretrained(tmp_path)
    ours, other = load_backbone("tiny").model.state_dict(), load_backbone(str(tmp_path)).model.state_dict()
    assert all(torch.equal(ours[name], other[name]) for name in ours)


def test_an_unknown_backbone_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match='Cannot load a backbone from "nobody/nothing": expected "tiny"'):
        load_backbone("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match='has the model type "bert"; expected one of flava, vilt, '):
        load_backbone(str(tmp_path))


def test_an_unknown_layer_is_explained() -> None:
    with pytest.raises(BackboneError, match="no layers called q_proj; expected some of query, key"):
        load_backbone("tiny").lora_targets(load_backbone("tiny").towers_of((TEXT,)), ["q_proj", "query"])


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_attention_implementation_is_passed_on(checkpoints: Path, name: str) -> None:
    backbone = load_backbone(str(build("clip", checkpoints)), attn_implementation=name)
    assert backbone.model.config._attn_implementation == name
    with pytest.raises(BackboneError, match=r'Cannot load the backbone "tiny": .*flash_attention_9'):
        load_backbone("tiny", attn_implementation="flash_attention_9")


@pytest.mark.parametrize("family", ["flava", "vilt", "clip", "siglip", "vit_and_bert", "llava", "idefics3"])
def test_a_backbone_of_less_precision_gives_float32_states(
    checkpoints: Path, pictures: list[Image.Image], family: str
) -> None:
    path = "tiny" if family == "flava" else str(build(family, checkpoints))
    half = load_backbone(path, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    for modalities in ((IMAGE,), (TEXT,), (IMAGE, TEXT)):
        got, exact = encode(half, pictures, modalities), encode(load_backbone(path), pictures, modalities)
        assert (got.states.dtype, got.pooled.dtype) == (torch.float32, torch.float32)
        assert 0 < (got.pooled - exact.pooled).norm() / exact.pooled.norm() < 0.1


def test_a_device_map_is_passed_on(checkpoints: Path) -> None:
    path = str(build("clip", checkpoints))
    assert load_backbone(path, device_map="cpu").model.device == torch.device("cpu")
    with pytest.raises(BackboneError, match=r'Cannot load the backbone ".*clip": .*nowhere'):
        load_backbone(path, device_map="nowhere")


def test_a_quantization_that_cannot_be_done_here_is_explained(checkpoints: Path) -> None:
    with pytest.raises(BackboneError, match=r'Cannot load the backbone ".*clip": '):
        load_backbone(str(build("clip", checkpoints)), quantization={"quant_method": "nothing"})
