"""Text generation, by a small decoder that attends to the backbone's states or by the backbone itself."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, ElectraConfig, ElectraForCausalLM, EncoderDecoderCache

from tap_hf.models.backbones import IGNORED, Backbone, Encoding
from tap_hf.models.heads.base import TaskHead
from tap_hf.models.heads.distillation_loss import token_distance
from tap_hf.pairs import ModalityTaskPair

_HEADS = 4
_MAX_WIDTH = 256  # wider decoders would outweigh the adapters that are sent


class TokenHead(TaskHead):
    """Logits (B, T, V) for each next token; predicts strings."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, mean over tokens without padding; labels (B, T)."""
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return KL(teacher || student) at a temperature, mean over tokens without padding."""
        return token_distance(logits, teacher_logits, labels, temperature)

    def references(self, labels: Tensor) -> list[Any]:
        """Return the decoded text of each sample."""
        tokens = labels.masked_fill(labels == IGNORED, self.backbone.pad_token_id)
        texts: list[str] = self.backbone.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


class DecoderHead(TokenHead):
    """Logits (B, T, V) for each next token; predicts strings, decoded greedily with `generate`.

    ELECTRA's decoder factorises its embeddings, so that the backbone's frozen word embeddings are its input and output
    embeddings at any decoder width, neither trained nor sent.
    """

    def __init__(self, backbone: Backbone, pair: ModalityTaskPair, max_target_length: int) -> None:
        super().__init__(backbone, pair)
        embeddings = backbone.word_embeddings
        state_size, pooled_size = backbone.state_size(pair.modalities), backbone.pooled_size(pair.modalities)
        width = min(_MAX_WIDTH, state_size // _HEADS * _HEADS)
        config = ElectraConfig(
            vocab_size=embeddings.num_embeddings,
            embedding_size=embeddings.embedding_dim,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=_HEADS,
            max_position_embeddings=max_target_length + 1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            is_decoder=True,
            add_cross_attention=True,
            tie_word_embeddings=False,  # tied by hand below, to the backbone's
            bos_token_id=backbone.start_token_id,
            eos_token_id=backbone.end_token_id,
            pad_token_id=backbone.pad_token_id,
        )
        self.project_states = nn.Linear(state_size, width)
        self.project_pooled = nn.Linear(pooled_size, width)
        self.decoder = ElectraForCausalLM(config)
        self.decoder.electra.embeddings.word_embeddings = embeddings
        self.decoder.generator_lm_head = _TiedOutput(embeddings, self.decoder.generator_lm_head.bias)
        self._max_target_length = max_target_length

    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return logits (B, T, V) for labels (B, T), each position with the labels before it as input."""
        if labels is None:
            raise ValueError("text logits need the labels; use predict to generate text")
        encoding, config = self.encode(inputs), self.decoder.config
        previous = labels.roll(1, dims=1).masked_fill(labels.roll(1, dims=1) == IGNORED, config.pad_token_id)
        previous[:, 0] = config.bos_token_id
        logits: Tensor = self.decoder(
            input_ids=previous,
            encoder_hidden_states=self._memory(encoding),
            encoder_attention_mask=encoding.mask,
            use_cache=False,
        ).logits
        return logits

    def _memory(self, encoding: Encoding) -> Tensor:
        """Return the states that the decoder attends to (B, S, width).

        The pooled state, where pretraining collects the answer to a question, is added to every state, so that the
        decoder's initially uniform attention finds it everywhere.
        """
        memory: Tensor = self.project_states(encoding.states) + self.project_pooled(encoding.pooled)[:, None]
        return memory

    def predict(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Return the greedily decoded text of each sample."""
        encoding, config = self.encode(inputs), self.decoder.config
        start = torch.full((len(encoding.states), 1), config.bos_token_id, device=encoding.states.device)
        tokens = self.decoder.generate(
            start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=self._memory(encoding),
            encoder_attention_mask=encoding.mask,
            max_new_tokens=self._max_target_length,
            do_sample=False,
            # The default cache does not hold the keys of cross-attention (transformers 5.23).
            past_key_values=EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
        )
        texts: list[str] = self.backbone.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


class _TiedOutput(nn.Module):
    """Logits from frozen word embeddings, which may have less precision than the decoder."""

    def __init__(self, embeddings: nn.Embedding, bias: nn.Parameter) -> None:
        super().__init__()
        self.weight = embeddings.weight
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight.to(states.dtype), self.bias)


class LanguageModelHead(TokenHead):
    """A head without parameters, for backbones that generate text themselves."""

    def __init__(self, backbone: Backbone, pair: ModalityTaskPair, max_target_length: int) -> None:
        super().__init__(backbone, pair)
        self._max_target_length = max_target_length

    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return the backbone's logits (B, T, V) for labels (B, T)."""
        if labels is None:
            raise ValueError("text logits need the labels; use predict to generate text")
        return self.backbone.next_token_logits(inputs, labels)

    def predict(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Return the greedily decoded text of each sample."""
        return self.backbone.generate(inputs, self._max_target_length)
