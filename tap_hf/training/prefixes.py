"""Compute what is below the lowest adapter once for each sample, instead of in each batch."""

import hashlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from tap_hf.atomic_files import sha256_of
from tap_hf.data.clients import ClientData
from tap_hf.data.prefix_store import PrefixStore, Rows
from tap_hf.models import backbones, split_prefix, tensor_dataset
from tap_hf.models.backbones import Cut, Prefix, Tower
from tap_hf.models.split_prefix import SplitPrefix
from tap_hf.models.tap_model import TapModel
from tap_hf.models.tensor_dataset import TensorDataset
from tap_hf.seeds import seeded

logger = logging.getLogger(__name__)

_CODE = (
    *sorted(Path(backbones.__file__).parent.rglob("*.py")),
    *(Path(str(module.__file__)) for module in (split_prefix, tensor_dataset)),
)


class Prefixes:
    """The states below the lowest adapter of the splits that a model trains and is evaluated on.

    They are computed in this process when a split is first used. Whether they are kept changes no result: without room,
    each batch computes them in the same way.

    Args:
        model: the live model.
        store: keeps the states.
        batch_size: of the forward passes that compute them.
        device: that the model trains on.
    """

    def __init__(self, model: TapModel, store: PrefixStore, batch_size: int, device: torch.device) -> None:
        self._model = model
        self._store = store
        self._batch_size = batch_size
        self._device = device
        self._sound: dict[tuple[str, str], bool] = {}

    def of(self, data: TensorDataset, heads_only: bool = False) -> TensorDataset:
        """Return a split with its prefix, or as it is if an adapter is in the first layers.

        Args:
            data: of one of the model's tasks.
            heads_only: the task's adapters leave the backbone as it is and are not trained.
        """
        cut = self._model.cut(data.task, heads_only)
        if not cut or not self._is_sound(data, cut):
            return data
        prefix = SplitPrefix(cut, data.longest_text)
        states = self._store.get(self._key(data, cut), len(data), self._computed(replace(data, prefix=prefix), cut))
        return replace(data, prefix=replace(prefix, states=states))

    def for_evaluation(self, client: ClientData) -> ClientData:
        """Return a client whose validation and test data have their prefixes."""
        tasks = {
            name: replace(held, validation=self.of(held.validation), test=self.of(held.test))
            for name, held in client.tasks.items()
        }
        return replace(client, tasks=tasks)

    def _computed(self, data: TensorDataset, cut: Cut) -> Iterator[Rows]:
        self._place_model()
        for batch in data.batches(self._batch_size):
            yield self._model.prefix(data.task, _inputs(batch, self._device), cut)

    def _key(self, data: TensorDataset, cut: Cut) -> str:
        modalities = self._model.tasks[data.task].pair.modalities
        parts = [self._backbone_key, data.digest, modalities, sorted(cut.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @cached_property
    def _backbone_key(self) -> str:
        """A hash of all that states depend on beside the inputs and the cut."""
        backbone, model = self._model.backbone, self._model.backbone.model
        family = inspect.getsourcefile(type(backbone))
        code = [*_CODE, *([Path(family)] if family else [])]
        parts = {
            "versions": [importlib.metadata.version(name) for name in ("tap_hf", "torch", "transformers")],
            "code": [sha256_of(path) for path in code],
            "source": [backbone.source, backbone.revision],
            "weights": None if backbone.revision else self._weights(),
            "config": [str(model.dtype), model.config.to_json_string()],
            "attention": sorted({str(getattr(one, "_attn_implementation", "")) for one in _configs(model)}),
            "machine": [self._device.type, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _weights(self) -> str:
        """Return a hash of the frozen weights, which no commit names."""
        digest = hashlib.sha256()
        for name, tensor in self._model.backbone.model.state_dict().items():
            if "lora_" not in name:
                digest.update(f"{name.replace('.base_layer', '')} {tensor.dtype} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _is_sound(self, data: TensorDataset, cut: Cut) -> bool:
        """Return whether a forward pass in two parts equals a whole one, and the lower part always gives the same.

        It does not in a family of the user's own with augmentation, dropout, or states that bypass the towers' layers.
        """
        key = (data.task, json.dumps(dict(cut)))
        if key not in self._sound:
            self._place_model()
            self._sound[key] = _agree(self._model, data, cut, self._device)
            self._model.eval()
            if not self._sound[key]:
                logger.warning(
                    'Task "%s": what is below the adapters is computed in each batch, since the backbone gives other '
                    "states for the same input (augmentation, dropout), or passes them on beside its layers.",
                    data.task,
                )
        return self._sound[key]

    def _place_model(self) -> None:
        """Move the model to where it trains, as `Trainer` will."""
        if (
            getattr(self._model, "hf_device_map", None) is None
            and getattr(self._model, "quantization_method", None) is None
        ):
            self._model.to(self._device)


def _agree(model: TapModel, data: TensorDataset, cut: Cut, device: torch.device) -> bool:
    """Compare one sample's whole forward pass with one in two parts, each with other random numbers."""
    modalities = model.tasks[data.task].pair.modalities
    model.train()
    with seeded(0):
        below = model.prefix(data.task, _inputs(data[0], device), cut)
    with seeded(1), torch.no_grad():
        inputs, prefix = _inputs(data[0], device), Prefix.of(cut, below)
        if Tower.POOLED in cut:  # `prefix` has left no adapter active
            return _close(model.backbone.pooled(inputs, modalities), below[Tower.POOLED][0])
        whole = model.backbone.encode(inputs, modalities)
        left = {name: t for name, t in inputs.items() if name != "pixel_values" or not prefix.covers_images}
        with model.backbone.resumed(prefix, left, modalities) as rest:
            resumed = model.backbone.encode(rest, modalities)
    real = whole.mask.bool()
    return _close(whole.pooled, resumed.pooled) and _close(whole.states[real], resumed.states[real])


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _configs(model: torch.nn.Module) -> list[object]:
    return [module.config for module in model.modules() if hasattr(module, "config")]


def _inputs(batch: tensor_dataset.Batch, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items() if name not in ("task", "labels", "prefix")}
