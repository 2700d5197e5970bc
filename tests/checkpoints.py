"""A checkpoint of each model family, with random weights, as `save_pretrained` writes it: tiny, or of base size."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    FlavaConfig,
    FlavaModel,
    FlavaProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    ViltConfig,
    ViltModel,
    ViltProcessor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tap_hf.models import checkpoint_dir

CHAT = (
    "{% for message in messages %}{{ message['role'] + ':' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """How large a model is; a text tower may be narrower than the image tower."""

    width: int
    text_width: int
    depth: int
    heads: int
    side: int
    patch: int

    @property
    def vision(self) -> dict[str, int]:
        return {**self.layers(self.width), "image_size": self.side, "patch_size": self.patch}

    @property
    def square(self) -> dict[str, int]:
        return {"height": self.side, "width": self.side}

    def layers(self, width: int) -> dict[str, int]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
        }


TINY = Shape(width=32, text_width=24, depth=2, heads=2, side=32, patch=8)
BASE = Shape(width=768, text_width=512, depth=12, heads=8, side=224, patch=16)


def vocabulary() -> list[str]:
    """Return word pieces that spell the texts of all packaged data."""
    tokenizer = json.loads((checkpoint_dir() / "tokenizer.json").read_text())
    return [piece for piece, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])]


def word_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(vocabulary())}, do_lower_case=True)


def byte_tokenizer(special: list[str], template: str | None = None, **tokens: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with special tokens, as language models have them.

    Args:
        special: the special tokens, in order of their ids.
        template: how a text is surrounded by them, such as `<s> $A`.
        **tokens: which of them is `bos_token`, `eos_token`, `pad_token` and `unk_token`.
    """
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(special)
    if template is not None:
        used = [(name, names.index(name)) for name in template.split() if name in special]
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=raw, **tokens)


def flava(shape: Shape) -> tuple[Any, Any]:
    layers = shape.layers(shape.width)
    text = {**layers, "vocab_size": len(vocabulary()), "max_position_embeddings": 64}
    config = FlavaConfig(
        image_config=shape.vision, text_config=text, multimodal_config=layers, hidden_size=shape.width,
        init_codebook=False,
    )  # fmt: skip
    images = FlavaImageProcessorPil(size=shape.square, do_center_crop=False, crop_size=shape.square)
    return FlavaModel(config), FlavaProcessor(images, word_tokenizer())


def vilt(shape: Shape) -> tuple[Any, Any]:
    config = ViltConfig(**shape.vision, vocab_size=len(vocabulary()), max_position_embeddings=40)
    return ViltModel(config), ViltProcessor(ViltImageProcessorPil(size={"shortest_edge": shape.side}), word_tokenizer())


def clip(shape: Shape) -> tuple[Any, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: n for n, name in enumerate(names)}, merges=[])
    text = {**shape.layers(shape.text_width), "vocab_size": len(names), "max_position_embeddings": 77}
    text |= {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    config = CLIPConfig(text_config=text, vision_config=shape.vision, projection_dim=shape.text_width)
    images = CLIPImageProcessorPil(size={"shortest_edge": shape.side}, crop_size=shape.square)
    return CLIPModel(config), CLIPProcessor(images, tokenizer)


def siglip(shape: Shape) -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(
        ["<pad>", "</s>", "<unk>"], "$A </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    text = {**shape.layers(shape.width), "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text |= {"projection_size": shape.width, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=shape.vision))
    return model, SiglipProcessor(SiglipImageProcessorPil(size=shape.square), tokenizer)


def vit_and_bert(shape: Shape) -> tuple[Any, Any]:
    """Two towers of other families, as `AutoModel` gives them."""
    text = BertConfig(**shape.layers(shape.text_width), vocab_size=len(vocabulary()), max_position_embeddings=64)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**shape.vision), text, projection_dim=shape.text_width
    )
    processor = VisionTextDualEncoderProcessor(ViTImageProcessorPil(size=shape.square), word_tokenizer())
    return VisionTextDualEncoderModel(config), processor


def llava(shape: Shape) -> tuple[Any, Any]:
    """LLaVA 1.5's shape: CLIP's next-to-last layer without CLS, LLaMA, no chat template."""
    tokenizer = byte_tokenizer(
        ["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        "<s> $A",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    text = LlamaConfig(
        **shape.layers(shape.width),
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": shape.side}, crop_size=shape.square),
        tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config), processor


def idefics3(shape: Shape) -> tuple[Any, Any]:
    """Idefics3's and SmolVLM's shape: SigLIP patches shuffled into fewer tokens, and a chat template."""
    tokenizer = byte_tokenizer(
        ["<unk>", "<s>", "</s>", "<pad>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"],
        unk_token="<unk>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    text = {**shape.layers(shape.width), "model_type": "llama", "vocab_size": len(tokenizer)}
    text |= {"max_position_embeddings": 512, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 4}
    config = Idefics3Config(
        vision_config=shape.vision, text_config=text, image_token_id=image_token, scale_factor=2, pad_token_id=3
    )
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [4, 2]
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * shape.side}, max_image_size={"longest_edge": shape.side}
    )
    tokens = (shape.side // shape.patch // 2) ** 2
    return model, Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=CHAT)


FAMILIES: dict[str, Callable[[Shape], tuple[Any, Any]]] = {
    "flava": flava,
    "vilt": vilt,
    "clip": clip,
    "siglip": siglip,
    "vit_and_bert": vit_and_bert,
    "llava": llava,
    "idefics3": idefics3,
}


def build(family: str, folder: Path, shape: Shape = TINY) -> Path:
    """Write a family's checkpoint into `folder / family`, unless it is there, and return that."""
    target = folder / family
    if not target.exists():
        torch.manual_seed(0)
        model, processor = FAMILIES[family](shape)
        for parameter in model.parameters():  # as large as trained ones: some start at zero
            torch.nn.init.normal_(parameter, std=0.1 * (TINY.width / shape.width) ** 0.5)
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return target
