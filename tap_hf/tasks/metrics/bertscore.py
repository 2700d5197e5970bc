"""BERTScore, a metric of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from tap_hf.errors import MetricError
from tap_hf.hub_guard import bounded
from tap_hf.tasks.scores import Scores

_BATCH = 64  # texts per forward pass, as in the authors' code


class BertScore:
    """BERTScore F1 of texts (Zhang et al., https://arxiv.org/abs/1904.09675).

    Each token is matched with the most similar token of the other text, by the cosine of their hidden states: F1 of
    equations 1 and 2, without idf weights and baseline rescaling. As in the authors' code, special tokens can be
    matched but are not averaged over, and a text without words scores 0. The package `bert_score` is not used: its last
    release (0.3.13) fails with transformers 5 on empty texts and on tokenizers without a maximum length.

    Args:
        model: folder or Hub id for `AutoModel` and `AutoTokenizer`; of an encoder-decoder, the encoder is used.
        layer: whose hidden states are compared; 0 for the embeddings.
        revision: branch, tag or commit of a Hub model.

    Raises:
        MetricError: if the model does not load or has fewer layers.
    """

    @bounded()
    def __init__(self, model: str, layer: int, revision: str | None = None) -> None:
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        try:
            # Byte-level tokenizers encode the first word like the others only after a space.
            self._tokenizer = AutoTokenizer.from_pretrained(model, add_prefix_space=True, **options)
            scorer = AutoModel.from_pretrained(model, dtype=torch.float32, use_safetensors=True, **options)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise MetricError(
                f'Metric "bertscore": no model loads from "{model}" ({reason}). Expected a folder with a '
                "transformers checkpoint and its tokenizer, or a Hub id that this machine can reach."
            ) from error
        self._scorer = (scorer.get_encoder() if scorer.config.is_encoder_decoder else scorer).eval()
        self._layer = layer
        if (layers := getattr(scorer.config, "num_hidden_layers", None)) is None:
            raise MetricError(f'Metric "bertscore": "{model}" is not a text encoder; expected one such as BERT.')
        if layer > layers:
            raise MetricError(f'Metric "bertscore": got layer {layer}; "{model}" has {layers} layers.')
        limits = {self._tokenizer.model_max_length, getattr(scorer.config, "max_position_embeddings", None)}
        known = limits - {VERY_LARGE_INTEGER, None}  # both mean no limit
        self._cut = {"truncation": True, "max_length": min(known)} if known else {}

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
        """Return the F1 of each text."""
        scores = []
        for start in range(0, len(predictions), _BATCH):
            end = start + _BATCH
            scores.append(_f1(self._encode(predictions[start:end]), self._encode(references[start:end])))
        return torch.cat(scores).double().numpy()

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> "_States":
        encoded = self._tokenizer(
            [text.strip() for text in texts],
            padding=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
            **self._cut,
        )
        special = encoded.pop("special_tokens_mask").bool()
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        outputs = self._scorer.to(device)(**encoded.to(device), output_hidden_states=True)
        tokens = encoded["attention_mask"].bool().cpu()
        states = F.normalize(outputs.hidden_states[self._layer].float().cpu(), dim=-1)
        return _States(states, tokens, tokens & ~special)


@dataclass(frozen=True)
class _States:
    """A batch of texts.

    Attributes:
        vectors: unit vectors (B, T, D).
        tokens: mask of tokens that are not padding (B, T).
        words: mask of tokens that are neither padding nor special (B, T).
    """

    vectors: Tensor
    tokens: Tensor
    words: Tensor


def _f1(predicted: _States, true: _States) -> Tensor:
    """Return the F1 of each pair of texts (B,)."""
    similarity = predicted.vectors @ true.vectors.transpose(1, 2)
    similarity = similarity.masked_fill(~(predicted.tokens[:, :, None] & true.tokens[:, None, :]), -torch.inf)
    precision = _mean_over(predicted.words, similarity.amax(dim=2))
    recall = _mean_over(true.words, similarity.amax(dim=1))
    total = precision + recall  # 0 where neither text has words
    return (2 * precision * recall / total).masked_fill(total == 0, 0.0)


def _mean_over(words: Tensor, best: Tensor) -> Tensor:
    return best.masked_fill(~words, 0.0).sum(dim=1) / words.sum(dim=1).clamp(min=1)
