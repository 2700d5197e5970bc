"""The FLAVA backbone behind the protocol, against transformers itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, FlavaModel

from tap_hf.backbones import Encoding, load_backbone
from tap_hf.backbones.tiny import checkpoint_dir
from tap_hf.errors import BackboneError
from tap_hf.pairs import Modality

IMAGE, TEXT = Modality.IMAGE, Modality.TEXT
WORDS = ["what shape is in the image?", "is there a circle?"]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in WORDS]


def encode(pictures: list[Image.Image], modalities: tuple[Modality, ...]) -> Encoding:
    backbone = load_backbone("tiny")
    inputs = dict(backbone.tokenizer(WORDS, padding=True, return_tensors="pt"))
    inputs["pixel_values"] = backbone.normalise_images(torch.from_numpy(backbone.prepare_images(pictures)))
    with torch.no_grad():
        return backbone.encode(inputs, modalities)


def test_states_are_those_of_transformers(pictures: list[Image.Image]) -> None:
    """For each tower, and for both fused: bit for bit what `FlavaModel` says of the processor's output."""
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
        got = encode(pictures, modalities)
        torch.testing.assert_close(got.states, output.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.pooled, output.last_hidden_state[:, 0], rtol=1e-4, atol=1e-4)


def test_padding_is_masked(pictures: list[Image.Image]) -> None:
    lengths = [len(ids) for ids in load_backbone("tiny").tokenizer(WORDS)["input_ids"]]
    assert encode(pictures, (TEXT,)).mask.sum(dim=1).tolist() == [length - 1 for length in lengths]
    fused = encode(pictures, (IMAGE, TEXT))
    assert fused.mask.shape == fused.states.shape[:2]
    assert fused.mask.sum(dim=1).tolist() == [17 + length for length in lengths]


def test_patches_are_a_square(pictures: list[Image.Image]) -> None:
    assert encode(pictures, (IMAGE,)).states.shape == (2, load_backbone("tiny").num_patches, 128)


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
    with pytest.raises(BackboneError, match='No backbone loads from "nobody/nothing": needed "tiny"'):
        load_backbone("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match='of type "bert", needed one of flava'):
        load_backbone(str(tmp_path))


def test_an_unknown_layer_is_explained() -> None:
    with pytest.raises(BackboneError, match="no layers called q_proj, needed some of query, key"):
        load_backbone("tiny").lora_targets((TEXT,), ["q_proj", "query"])
