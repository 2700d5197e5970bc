"""The methods: rows of one table."""

from pathlib import Path

from tap_hf.algorithms.base import Algorithm, ClientResult, ClientState, ClientUpdate
from tap_hf.algorithms.tap import Tap
from tap_hf.recipe import Recipe
from tap_hf.training_arguments import ArgumentsFactory

__all__ = ["Algorithm", "ClientResult", "ClientState", "ClientUpdate", "arguments_of", "build_algorithm"]


def build_algorithm(recipe: Recipe, output_dir: Path) -> Algorithm:
    """Return the recipe's algorithm; its Trainers may write below `output_dir`."""
    training = recipe.training
    return Tap(
        seed=recipe.seed,
        rounds=recipe.federation.rounds,
        local_steps=training.local_steps,
        learning_rate=training.learning_rate,
        eval_batch_size=training.eval_batch_size,
        replacement=recipe.algorithm.replacement,
        distillation=recipe.algorithm.distillation,
        arguments=arguments_of(recipe, output_dir),
    )


def arguments_of(recipe: Recipe, output_dir: Path) -> ArgumentsFactory:
    """Return what makes the Trainers' arguments; they may write below `output_dir`."""
    training = recipe.training
    return ArgumentsFactory(
        output_dir,
        batch_size=training.batch_size,
        eval_batch_size=training.eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        extra=training.trainer,
    )
