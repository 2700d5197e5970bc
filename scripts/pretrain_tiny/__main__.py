"""Rebuild the embedded backbone from nothing: `python -m scripts.pretrain_tiny OUT_DIR`.

Needs WordNet's data files (`apt-get install wordnet-base`) and no network. One core, seeded: the same command gives the
same weights with the same versions and thread count.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import BertTokenizer, FlavaModel

from scripts.pretrain_tiny import wordnet
from scripts.pretrain_tiny.architecture import HIDDEN_SIZE, VOCAB_SIZE, build_processor, new_model, train_tokenizer
from scripts.pretrain_tiny.cooccurrence import cooccurrence_embeddings
from scripts.pretrain_tiny.image_stage import ImageHeads, image_loss, sample_image_batch
from scripts.pretrain_tiny.multimodal_stage import MultimodalHeads, multimodal_loss, sample_scene_batch
from scripts.pretrain_tiny.questions import ANSWERS
from scripts.pretrain_tiny.text_stage import (
    TextHeads,
    TokenizedMeaning,
    length_buckets,
    make_text_batch,
    text_loss,
    tokenize_meanings,
)

IMAGE_STEPS, TEXT_STEPS, MULTIMODAL_STEPS = 6000, 2000, 2200
IMAGE_BATCH, TEXT_BATCH, SCENE_BATCH = 64, 128, 32
LEARNING_RATE = 2e-3

Step = Callable[[float], tuple[Tensor, dict[str, float]]]  # progress in [0, 1] -> loss, readings


def train(name: str, steps: int, step: Step, modules: list[nn.Module], learning_rate: float) -> None:
    """Minimise a stage's loss with AdamW: 5 % linear warm-up, then cosine decay to a fiftieth."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warm_up, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / steps)))
    )
    with tqdm(range(steps), desc=name, mininterval=2) as bar:
        for i in bar:
            loss, readings = step(i / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(readings, refresh=False)


class Pretraining:
    """The model, its throw-away heads and one random stream per stage."""

    def __init__(self, meanings: list[wordnet.Meaning], seed: int) -> None:
        self.tokenizer: BertTokenizer = train_tokenizer(_tokenizer_texts(meanings))
        self.model: FlavaModel = new_model(seed)
        self.image_heads = ImageHeads(HIDDEN_SIZE)
        self.text_heads = TextHeads()
        self.multimodal_heads = MultimodalHeads()
        self._meanings = tokenize_meanings(meanings, self.tokenizer)
        self._rng = Random(seed)  # noqa: S311 (draws pictures, guards nothing)
        self._generator = torch.Generator().manual_seed(seed)
        self._text_batches = self._endless_text()
        self._start_word_embeddings()

    def _start_word_embeddings(self) -> None:
        texts = (
            ids for meaning in self._meanings for ids in (meaning.words[0] + meaning.definition, *meaning.examples)
        )
        weight = self.model.text_model.embeddings.word_embeddings.weight
        counted = cooccurrence_embeddings(texts, VOCAB_SIZE, HIDDEN_SIZE, std=0.05)
        with torch.no_grad():
            weight.copy_(torch.where(counted.any(1, keepdim=True), counted, weight))

    def _endless_text(self) -> Iterator[list[TokenizedMeaning]]:
        while True:
            for indices in length_buckets(self._meanings, TEXT_BATCH, self._rng):
                yield [self._meanings[i] for i in indices]

    def image_step(self, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Pictures, from easy to hard over the first two thirds of the stage."""
        batch = sample_image_batch(self._rng, IMAGE_BATCH, difficulty=min(1.0, 1.5 * progress))
        return image_loss(self.model, self.image_heads, batch, self._generator)

    def text_step(self, progress: float) -> tuple[Tensor, dict[str, float]]:
        """WordNet meanings."""
        return text_loss(
            self.model, self.text_heads, make_text_batch(next(self._text_batches), self._rng), self._generator
        )

    def multimodal_step(self, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Questions on scenes; a quarter of the steps repeats the other stages, so that neither tower forgets."""
        draw = self._rng.random()
        if draw < 0.15:
            return self.image_step(1.0)[0], {}
        if draw < 0.25:
            return self.text_step(1.0)[0], {}
        batch = sample_scene_batch(self._rng, SCENE_BATCH, min(1.0, 0.2 + 2 * progress), self.tokenizer)
        return multimodal_loss(self.model, self.multimodal_heads, self.text_heads.masked_words, batch, self._generator)

    def run(self) -> None:
        """Run the three stages."""
        model = self.model
        train("images", IMAGE_STEPS, self.image_step, [model.image_model, self.image_heads], LEARNING_RATE)
        train("text", TEXT_STEPS, self.text_step, [model.text_model, self.text_heads], LEARNING_RATE)
        everything: list[nn.Module] = [model, self.image_heads, self.text_heads, self.multimodal_heads]
        train("both", MULTIMODAL_STEPS, self.multimodal_step, everything, LEARNING_RATE / 2)


def _tokenizer_texts(meanings: list[wordnet.Meaning]) -> Iterator[str]:
    for meaning in meanings:
        yield from (*meaning.words, meaning.definition, *meaning.examples)
    for answer in ANSWERS:  # Frequent enough to become whole pieces.
        yield from [f"what color is the {answer}? does the picture contain a shape?"] * 300


def main() -> None:
    """Parse the command line, pretrain and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write the checkpoint to")
    parser.add_argument("--wordnet", type=Path, default=wordnet.DEFAULT_DIR, help="folder with WordNet's data.* files")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums, and so weights, depend on the number of threads.
    pretraining = Pretraining(wordnet.read_meanings(arguments.wordnet), arguments.seed)
    pretraining.run()
    pretraining.model.save_pretrained(arguments.out)
    build_processor(pretraining.tokenizer).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
