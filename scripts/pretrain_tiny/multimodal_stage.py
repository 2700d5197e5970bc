"""Multimodal pretraining: answer questions about scenes, tell right from wrong captions, fill in hidden words."""

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer, FlavaModel

from scripts.pretrain_tiny.architecture import HIDDEN_SIZE, PAD_ID
from scripts.pretrain_tiny.image_stage import to_pixel_values
from scripts.pretrain_tiny.questions import ANSWER_INDEX, ANSWERS, ask, caption
from scripts.pretrain_tiny.scenes import PATCHES_PER_SIDE, draw_scene, sample_scene
from scripts.pretrain_tiny.text_stage import MaskedWordHead, hide_words, pad

QUESTIONS_PER_SCENE = 3


@dataclass(frozen=True)
class SceneBatch:
    """B scenes: pixel_values (B, 3, 32, 32), captions (B, S), 3 questions each (3B, S) with answers (3B,)."""

    pixel_values: Tensor
    questions: Tensor
    answers: Tensor
    captions: Tensor


def sample_scene_batch(rng: Random, size: int, difficulty: float, tokenizer: BertTokenizer) -> SceneBatch:
    """Draw scenes and ask about them."""
    scenes = [sample_scene(rng, difficulty) for _ in range(size)]
    pictures = [draw_scene(scene, rng) for scene in scenes]
    asked = [ask(scene, rng) for scene in scenes for _ in range(QUESTIONS_PER_SCENE)]
    texts = [question.text for question in asked] + [caption(scene, rng) for scene in scenes]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    answers = torch.tensor([ANSWER_INDEX[question.answer] for question in asked])
    return SceneBatch(to_pixel_values(pictures), pad(ids[: len(asked)]), answers, pad(ids[len(asked) :]))


class MultimodalHeads(nn.Module):
    """Linear read-outs used in pretraining only."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Linear(HIDDEN_SIZE, len(ANSWERS))
        self.match = nn.Linear(HIDDEN_SIZE, 2)


def unimodal_states(encoder: nn.Module, normed: bool, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (states to fuse, CLS state) of one tower.

    FLAVA's own forward fuses the states before the tower's final layer norm; a caller that has only `last_hidden_state`
    fuses those after it. Pretraining alternates, so that both work.
    """
    output = encoder(**inputs, output_hidden_states=True)
    return output.last_hidden_state if normed else output.hidden_states[-1], output.last_hidden_state[:, 0]


def fuse(model: FlavaModel, image: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
    """Return multimodal states (B, 1 + image + text, H), CLS first."""
    joined = torch.cat([model.image_to_mm_projection(image), model.text_to_mm_projection(text)], dim=1)
    mask = torch.cat([text_mask.new_ones(len(text_mask), 1 + image.shape[1]), text_mask], dim=1)
    return model.multimodal_model(joined, attention_mask=mask).last_hidden_state


def multimodal_loss(
    model: FlavaModel, heads: MultimodalHeads, word_head: MaskedWordHead, batch: SceneBatch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss and readings for the progress bar."""
    normed = torch.rand((), generator=generator).item() < 0.5
    image, image_cls = unimodal_states(model.image_model, normed, pixel_values=batch.pixel_values)

    question_mask = (batch.questions != PAD_ID).long()
    question, _ = unimodal_states(model.text_model, normed, input_ids=batch.questions, attention_mask=question_mask)
    fused = fuse(model, image.repeat_interleave(QUESTIONS_PER_SCENE, dim=0), question, question_mask)
    logits = heads.answer(fused[:, 0])
    answer = F.cross_entropy(logits, batch.answers)

    noisy, hidden = hide_words(batch.captions, generator)
    caption_mask = (noisy != PAD_ID).long()
    described, caption_cls = unimodal_states(model.text_model, normed, input_ids=noisy, attention_mask=caption_mask)
    size = len(image)
    wrong = torch.rand(size, generator=generator) < 0.5
    shown = torch.where(wrong, torch.arange(size).roll(1), torch.arange(size))
    fused_captions = fuse(model, image[shown], described, caption_mask)
    match = F.cross_entropy(heads.match(fused_captions[:, 0]), (~wrong).long())
    predict = hidden & ~wrong[:, None]
    word_states = fused_captions[:, 1 + 1 + PATCHES_PER_SIDE**2 :][predict]
    words = F.cross_entropy(
        word_head(word_states, model.text_model.embeddings.word_embeddings.weight), batch.captions[predict]
    )

    similarity = (
        F.normalize(model.image_projection(image_cls), dim=-1)
        @ F.normalize(model.text_projection(caption_cls), dim=-1).T
    )
    similarity = similarity * model.logit_scale.exp().clamp(max=100.0)
    contrast = F.cross_entropy(similarity, torch.arange(size)) + F.cross_entropy(similarity.T, torch.arange(size))

    right = (logits.argmax(-1) == batch.answers).float().mean().item()
    readings = {
        "answer": round(answer.item(), 3),
        "answers_right": round(right, 3),
        "match": round(match.item(), 3),
        "words": round(words.item(), 3),
    }
    return 2 * answer + 0.5 * match + 0.5 * words + 0.15 * contrast, readings
