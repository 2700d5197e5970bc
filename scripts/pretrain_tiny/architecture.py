"""The tiny FLAVA's shape, its starting weights, its tokenizer and its processor."""

from collections.abc import Iterable

import torch
from tokenizers import normalizers, pre_tokenizers
from torch import nn
from transformers import BertTokenizer, FlavaConfig, FlavaModel, FlavaProcessor
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

from scripts.pretrain_tiny.scenes import IMAGE_SIZE, PATCHES_PER_SIDE
from scripts.pretrain_tiny.wordpieces import learn_word_pieces

HIDDEN_SIZE = 128
VOCAB_SIZE = 3072
MAX_TEXT_LENGTH = 64
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_TOKENS))


def tiny_config() -> FlavaConfig:
    """Return the configuration: hidden 128, 3 image, 2 text and 2 multimodal layers, no dropout, no image codebook."""
    shared = {
        "hidden_size": HIDDEN_SIZE,
        "num_attention_heads": 4,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.05,
    }
    return FlavaConfig(
        image_config={
            **shared,
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": IMAGE_SIZE // PATCHES_PER_SIDE,
        },
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": MAX_TEXT_LENGTH,
            "pad_token_id": PAD_ID,
        },
        multimodal_config={**shared, "num_hidden_layers": 2},
        hidden_size=HIDDEN_SIZE,
        projection_dim=64,
        init_codebook=False,
    )


def new_model(seed: int) -> FlavaModel:
    """Return the untrained model pretraining starts from.

    transformers starts position and CLS embeddings at zero, where a patch cannot tell its place; here they are drawn
    like the rest.
    """
    torch.manual_seed(seed)
    model = FlavaModel(tiny_config())
    for parameter in (
        model.image_model.embeddings.position_embeddings,
        model.image_model.embeddings.cls_token,
        model.image_model.embeddings.mask_token,
        model.multimodal_model.cls_token,
    ):
        if parameter is not None:
            nn.init.normal_(parameter, std=0.1)
    return model


def train_tokenizer(texts: Iterable[str]) -> BertTokenizer:
    """Train a lower-casing WordPiece tokenizer of `VOCAB_SIZE` pieces."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = (word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = learn_word_pieces(words, VOCAB_SIZE, SPECIAL_TOKENS)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return BertTokenizer(vocab=vocabulary, model_max_length=MAX_TEXT_LENGTH, do_lower_case=True)


def build_processor(tokenizer: BertTokenizer) -> FlavaProcessor:
    """Return the processor: pictures resized to 32 x 32 and scaled to [-1, 1], text as word pieces."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = FlavaImageProcessorPil(
        size=size,
        do_center_crop=False,  # FLAVA's default crops to 224 whatever the size.
        crop_size=size,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return FlavaProcessor(image_processor=image_processor, tokenizer=tokenizer)
