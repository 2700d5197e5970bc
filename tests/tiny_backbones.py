"""A tiny checkpoint of each model family, with untrained weights, as `save_pretrained` writes it."""

import json
from collections.abc import Callable
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
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tap_hf.backbones.tiny import checkpoint_dir

SIDE, PATCH = 32, 8
LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": SIDE, "patch_size": PATCH}
CHAT = (
    "{% for message in messages %}{{ message['role'] + ':' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
LETTERS = [chr(n) for n in range(ord("a"), ord("z") + 1)] + list("0123456789?:.,")


def vocabulary() -> list[str]:
    """Return word pieces that spell the texts of all packaged data."""
    tokenizer = json.loads((checkpoint_dir() / "tokenizer.json").read_text())
    return [piece for piece, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])]


def byte_tokenizer(special: list[str], **tokens: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, with special tokens, as language models have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*special, *alphabet]
    raw = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(special)
    if "bos_token" in tokens:
        bos = tokens["bos_token"]
        raw.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, names.index(bos))])
    elif tokens.get("ends") == "yes":
        eos = tokens["eos_token"]
        raw.post_processor = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, names.index(eos))])
    tokens.pop("ends", None)
    return PreTrainedTokenizerFast(tokenizer_object=raw, **tokens)


def words() -> BertTokenizer:
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(vocabulary())}, do_lower_case=True)


def vilt() -> tuple[Any, Any]:
    config = ViltConfig(**VISION, vocab_size=len(vocabulary()), max_position_embeddings=40, hidden_dropout_prob=0.0)
    return ViltModel(config), ViltProcessor(ViltImageProcessorPil(size={"shortest_edge": SIDE}), words())


def clip() -> tuple[Any, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: n for n, name in enumerate(names)}, merges=[])
    text = {**LAYERS, "hidden_size": 24, "vocab_size": len(names), "max_position_embeddings": 77}
    text |= {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)), CLIPProcessor(
        images, tokenizer
    )


def siglip() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(
        ["<pad>", "</s>", "<unk>"], pad_token="<pad>", eos_token="</s>", unk_token="<unk>", ends="yes"
    )
    text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return SiglipModel(config), SiglipProcessor(images, tokenizer)


def vit_and_bert() -> tuple[Any, Any]:
    """Two towers of other families, as `AutoModel` gives them."""
    text = BertConfig(**{**LAYERS, "hidden_size": 24}, vocab_size=len(vocabulary()), max_position_embeddings=64)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(ViTConfig(**VISION), text, projection_dim=16)
    images = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return VisionTextDualEncoderModel(config), VisionTextDualEncoderProcessor(images, words())


def llava() -> tuple[Any, Any]:
    """LLaVA 1.5's shape: CLIP's next-to-last layer without CLS, LLaMA, no chat template."""
    tokenizer = byte_tokenizer(
        ["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    text = LlamaConfig(
        **LAYERS, vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=3
    )
    vision = CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3})
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, vision_feature_layer=-2)
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return model, processor


def idefics3() -> tuple[Any, Any]:
    """Idefics3's and SmolVLM's shape: SigLIP patches shuffled into fewer tokens, and a chat template."""
    tokenizer = byte_tokenizer(
        ["<unk>", "<s>", "</s>", "<pad>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"],
        unk_token="<unk>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    text = {**LAYERS, "model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    text |= {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 4}
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=VISION, text_config=text, image_token_id=image_token, scale_factor=2, pad_token_id=3
        )
    )
    model.generation_config.eos_token_id = [4, 2]
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    tokens = (SIDE // PATCH // 2) ** 2
    return model, Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=CHAT)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "vilt": vilt,
    "clip": clip,
    "siglip": siglip,
    "vit_and_bert": vit_and_bert,
    "llava": llava,
    "idefics3": idefics3,
}


def build(family: str, folder: Path) -> Path:
    """Write a family's checkpoint into `folder / family` and return that."""
    target = folder / family
    if not target.exists():
        torch.manual_seed(0)
        model, processor = FAMILIES[family]()
        for parameter in model.parameters():  # as large as trained ones: some start at zero
            torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return target
