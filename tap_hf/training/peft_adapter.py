"""The active adapter of any `PeftModel` as values, and other adapters that can replace it."""

import contextlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer
from transformers.utils import cached_file

from tap_hf.errors import AdapterError, did_you_mean
from tap_hf.models.adapters import Adapters, LiveParameters, check_matches, dump_from, held_in, load_into
from tap_hf.models.peft_folder import difference_of
from tap_hf.pairs import Component


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter that PEFT has saved.

    Attributes:
        source: a folder or a Hub id.
        revision: branch, tag or commit of a Hub id.
    """

    source: str
    subfolder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.source, self.subfolder) if part)


class LiveAdapter:
    """The one active adapter of a model, whose values can be read, loaded and held.

    Args:
        model: the model; its parameters are used in place.
        component: the name of the adapter's values in a set; the adapter's own name unless given.
        head: the name in a set of the adapter's `modules_to_save`, such as a classifier; a part of the adapter's
            component unless given.

    Raises:
        AdapterError: unless the model is a `PeftModel` with one active adapter inside the model's layers.
    """

    def __init__(self, model: nn.Module, component: Component | None = None, head: Component | None = None) -> None:
        if not isinstance(model, PeftModel):
            raise AdapterError(f"got a {type(model).__name__}, expected a PeftModel. Wrap it with peft.get_peft_model.")
        if len(model.active_adapters) != 1:
            raise AdapterError(
                f"{len(model.active_adapters)} adapters are active ({', '.join(model.active_adapters)}), expected one. "
                "Call model.set_adapter with its name."
            )
        (self.name,) = model.active_adapters
        self._model = model
        self._component = component or self.name
        self._head = head or self._component
        self.config: PeftConfig = model.peft_config[self.name]
        if self.config.is_prompt_learning:
            raise AdapterError(
                f'Adapter "{self.name}" is a {self.config.peft_type.value} of virtual tokens, expected one inside the '
                "model's layers, such as LoRA."
            )
        self.parameters: LiveParameters = self._find(self.name)

    def _find(self, name: str) -> dict[Component, dict[str, nn.Parameter]]:
        """Return the parameters of an adapter of the model, under the names in PEFT's files."""
        state = get_peft_model_state_dict(
            self._model,
            state_dict=self._model.state_dict(keep_vars=True),
            adapter_name=name,
            save_embedding_layers=False,
        )
        wrappers = (m for m in self._model.modules() if isinstance(m, AuxiliaryTrainingWrapper))
        beside = {id(parameter) for wrapper in wrappers for parameter in wrapper.parameters()}
        found: dict[Component, dict[str, nn.Parameter]] = {}
        for tensor_name, parameter in state.items():
            component = self._head if id(parameter) in beside else self._component
            found.setdefault(component, {})[tensor_name] = parameter
        return found

    def load(self, adapters: Adapters) -> None:
        """Copy values into the adapter; see `load_into`."""
        load_into(self.parameters, adapters)

    def dump(self) -> Adapters:
        """Return copies of the adapter's values on the CPU."""
        return dump_from(self.parameters, self.parameters)

    def held(self, adapters: Adapters) -> AbstractContextManager[None]:
        """Load other values within a block, then restore the former ones."""
        return held_in(self.parameters, adapters)

    def read(self, source: str | SavedAdapter) -> Adapters:
        """Return the values of another adapter: one of the model's by name, or one in a folder or on the Hub.

        Raises:
            AdapterError: if there is none, or if its values would mean something else in this adapter.
        """
        if isinstance(source, str) and source in self._model.peft_config:
            self._check_config(source, self._model.peft_config[source].to_dict())
            values = dump_from(found := self._find(source), found)
        else:
            saved = SavedAdapter(source) if isinstance(source, str) else source
            self._check_config(str(saved), json.loads(self._file(saved, "adapter_config.json").read_text()))
            tensors = load_file(self._file(saved, "adapter_model.safetensors"))
            homes = {name: component for component, held in self.parameters.items() for name in held}
            read: dict[Component, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                component = homes.get(name, self._component)
                live = self.parameters[component].get(name)
                # In the precision of the model's own adapter, as PEFT loads it.
                read.setdefault(component, {})[name] = tensor if live is None else tensor.to(live.dtype)
            values = read
        check_matches(values, self.parameters, f'Adapter "{source}"')
        if missing := sorted(self.parameters.keys() - values.keys()):
            raise AdapterError(f'Adapter "{source}" lacks {", ".join(missing)}. Was it saved with modules_to_save?')
        return values

    def _file(self, saved: SavedAdapter, name: str) -> Path:
        try:
            return Path(cached_file(saved.source, name, subfolder=saved.subfolder, revision=saved.revision) or "")
        except OSError as error:
            known = did_you_mean(saved.source, self._model.peft_config)
            raise AdapterError(
                f'"{saved}" is neither an adapter of the model{known}, nor a folder or Hub id with {name} ({error}).'
            ) from error

    def difference(self, other: "LiveAdapter") -> str | None:
        """Return the first option for which the same values would mean something else in another live adapter."""
        return difference_of(self.config.to_dict(), other.config.to_dict())

    def _check_config(self, what: str, config: dict[str, Any]) -> None:
        if difference := difference_of(self.config.to_dict(), config):
            raise AdapterError(
                f'Adapters "{self.name}" and "{what}": {difference}. Values of the second would mean something else in '
                "the first; expected one with the same options."
            )


def best_model_problem(trainer: Trainer, adapter: LiveAdapter) -> str | None:
    """Return why the trainer would not load the adapter's best values at the end, though it shall."""
    if not trainer.args.load_best_model_at_end or adapter.name == "default":
        return None
    return (
        f'load_best_model_at_end finds only an adapter called "default", and this one is called "{adapter.name}". '
        "Rename it, or turn load_best_model_at_end off."
    )


@contextlib.contextmanager
def activated(model: PeftModel, name: str) -> Iterator[None]:
    """Activate another adapter of a model within a block.

    `set_adapter` would also change `requires_grad`: a backward pass after it would silently give the former adapter no
    gradients.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    before = [layer._active_adapter for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [name]
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode within a block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def validation_loss(trainer: Trainer, eval_dataset: str | None = None) -> float:
    """Return the loss of the trainer's own evaluation; see `evaluation_metrics`."""
    return float(evaluation_metrics(trainer, eval_dataset, loss_only=True)["eval_loss"])


def evaluation_metrics(trainer: Trainer, data: Any = None, *, loss_only: bool = False) -> dict[str, Any]:
    """Return the metrics of the trainer's own evaluation, without a log and its callbacks' `on_evaluate`.

    Args:
        trainer: with its own `compute_loss`, collator, `compute_metrics` and evaluation data.
        data: other data, or the name of one of several evaluation sets.
        loss_only: leave `compute_metrics` out.

    Raises:
        ValueError: if the evaluation has no loss.
    """
    # A loader draws a seed from the global generator, which must not change the training in progress.
    with torch.random.fork_rng(devices=[]):
        loader = trainer.get_eval_dataloader(data)
        alone = True if loss_only or trainer.compute_metrics is None else None
        metrics: dict[str, Any] = trainer.evaluation_loop(loader, "Validation", prediction_loss_only=alone).metrics
    if "eval_loss" not in metrics:
        raise ValueError(NO_LOSS)
    return metrics


NO_LOSS = (
    "The trainer's evaluation has no loss, expected one to compare adapters. Does the batch have labels, and does "
    'TrainingArguments(label_names=["labels"]) name them?'
)
