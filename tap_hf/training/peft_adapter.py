"""The active adapter of any `PeftModel` as values, and other adapters that may stand in its place."""

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
from tap_hf.pairs import Component

# Tensors alone do not say what an adapter computes: these options scale or place them.
_MEANING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "alpha")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter that PEFT has saved.

    Attributes:
        source: a folder or a Hub id.
        subfolder: where in it the adapter lies.
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
        head: the name in a set of what PEFT saves beside the adapter (`modules_to_save`, such as a classifier); a part
            of the adapter's component unless given.

    Raises:
        AdapterError: unless the model is a `PeftModel` with one active adapter that sits in the model's layers.
    """

    def __init__(self, model: nn.Module, component: Component | None = None, head: Component | None = None) -> None:
        if not isinstance(model, PeftModel):
            raise AdapterError(f"got a {type(model).__name__}, needed a PeftModel. Wrap it with peft.get_peft_model.")
        if len(model.active_adapters) != 1:
            raise AdapterError(
                f"{len(model.active_adapters)} adapters are active ({', '.join(model.active_adapters)}), needed one. "
                "Call model.set_adapter with its name."
            )
        (self.name,) = model.active_adapters
        self._model = model
        self._component = component or self.name
        self._head = head or self._component
        self.config: PeftConfig = model.peft_config[self.name]
        if self.config.is_prompt_learning:
            raise AdapterError(
                f'Adapter "{self.name}" is a {self.config.peft_type.value} of virtual tokens, needed one inside the '
                "model's layers, such as LoRA."
            )
        self.parameters: LiveParameters = self._find(self.name)

    def _find(self, name: str) -> dict[Component, dict[str, nn.Parameter]]:
        """Return the parameters of an adapter of the model, under the names that PEFT saves them by."""
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
        """Hold other values for the length of a block, then put the former ones back."""
        return held_in(self.parameters, adapters)

    def read(self, source: str | SavedAdapter) -> Adapters:
        """Return the values of another adapter that may stand in place of this one.

        Args:
            source: the name of an adapter in the model, else a folder or a Hub id.

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
                # As PEFT loads it: in the precision of the model's own.
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
        """Return the first option by which the same values would mean something else in another live adapter."""
        return self._difference(other.config.to_dict())

    def _difference(self, config: dict[str, Any]) -> str | None:
        own = self.config.to_dict()
        for option in _MEANING:
            if own.get(option) != (got := config.get(option, own.get(option))):
                return f"{option} is {own.get(option)} in one and {got} in the other"
        return None

    def _check_config(self, what: str, config: dict[str, Any]) -> None:
        if difference := self._difference(config):
            raise AdapterError(
                f'Adapters "{self.name}" and "{what}": {difference}. Values of the second would mean something else in '
                "the first; needed one with the same options."
            )


@contextlib.contextmanager
def activated(model: PeftModel, name: str) -> Iterator[None]:
    """Let another adapter have its say for the length of a block.

    `set_adapter` would also flip `requires_grad`, and a backward pass after it would leave the former adapter without
    gradients, silently.

    Args:
        model: the model.
        name: one of its adapters.
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


def validation_loss(trainer: Trainer, eval_dataset: str | None = None) -> float:
    """Return the loss that the trainer's own evaluation gives; see `evaluation_metrics`.

    Args:
        trainer: with its own `compute_loss`, collator and evaluation data.
        eval_dataset: which, where the trainer has several by name.

    Raises:
        ValueError: if the evaluation gives no loss.
    """
    return float(evaluation_metrics(trainer, eval_dataset, loss_only=True)["eval_loss"])


def evaluation_metrics(trainer: Trainer, data: Any = None, *, loss_only: bool = False) -> dict[str, Any]:
    """Return what the trainer's own evaluation gives, without a log and without its callbacks' `on_evaluate`.

    Args:
        trainer: with its own `compute_loss`, collator, `compute_metrics` and evaluation data.
        data: other data, or the name of one of several evaluation sets.
        loss_only: leave `compute_metrics` out.

    Raises:
        ValueError: if the evaluation gives no loss.
    """
    # A loader draws a seed from the global generator: looking at a loss shall not change the training that goes on.
    with torch.random.fork_rng(devices=[]):
        loader = trainer.get_eval_dataloader(data)
        alone = True if loss_only or trainer.compute_metrics is None else None
        metrics: dict[str, Any] = trainer.evaluation_loop(loader, "Validation", prediction_loss_only=alone).metrics
    if "eval_loss" not in metrics:
        raise ValueError(NO_LOSS)
    return metrics


NO_LOSS = (
    "The trainer's evaluation gives no loss, needed one to compare adapters. Does the batch have labels, and does "
    'TrainingArguments(label_names=["labels"]) name them?'
)
