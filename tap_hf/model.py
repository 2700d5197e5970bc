"""The one live model of a process: a frozen backbone, a LoRA adapter per pair and a head per task."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tap_hf.adapters import Adapters, check_matches
from tap_hf.backbones import Backbone
from tap_hf.backbones.base import Encoding
from tap_hf.pairs import Component, head_component
from tap_hf.seeds import seed_for, seeded
from tap_hf.tasks import Task, TaskHead, build_head


@dataclass(frozen=True)
class LoraOptions:
    """The LoRA adapter of one pair (https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input, while training.
        layers: last parts of the names of the linear layers to adapt; `None` for all in the towers that the pair uses.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    layers: tuple[str, ...] | None = None


@dataclass
class TaskOutput(ModelOutput):
    """What `TapModel.forward` returns: `loss` (scalar, only with labels) and `logits`."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class TapModel(nn.Module):
    """Backbone, adapters and heads, of which one set of values is loaded at a time.

    Sets are values (`Adapters`): `load` copies one into the live parameters and `dump` copies it out again. The live
    parameters of all components exist once, however many clients there are.

    Args:
        backbone: the frozen backbone; LoRA layers are injected into its model.
        tasks: all tasks of the federation.
        lora: options for each pair that a task has.
        seed: seed of the initial values; two models built with one seed are bit-equal.

    Example:
        >>> from tap_hf.backbones import load_backbone
        >>> from tap_hf.pairs import ModalityTaskPair
        >>> pair = ModalityTaskPair.parse("text__classification")
        >>> task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
        >>> model = TapModel(load_backbone("tiny"), [task], {pair.name: LoraOptions(rank=2)}, seed=41)
        >>> sorted(model.initial)
        ['head__urgency', 'text__classification']
    """

    accepts_loss_kwargs = False  # `Trainer`: losses are means of a batch, not sums to be divided by a count

    def __init__(
        self, backbone: Backbone, tasks: Sequence[Task], lora: Mapping[Component, LoraOptions], seed: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tasks = {task.name: task for task in tasks}
        self.lora = {task.pair.name: lora[task.pair.name] for task in tasks}
        shared = {id(parameter) for parameter in backbone.model.parameters()}
        self.peft_model = self._inject_adapters(seed)
        self.heads = nn.ModuleDict()
        for task in tasks:
            with seeded(seed_for(seed, -1, "", f"init {head_component(task.name)}")):
                self.heads[head_component(task.name)] = build_head(task, backbone)
        self._live = self._find_live_parameters(shared)
        self._lora_layers = [m for m in self.peft_model.modules() if isinstance(m, LoraLayer)]
        self._trained_modules = [m for layer in self._lora_layers for m in (layer, *layer.lora_dropout.modules())]
        self._trained_modules += self.heads.modules()
        super().train(False)
        self.initial: Adapters = self.dump()

    def _inject_adapters(self, seed: int) -> PeftModel:
        peft_model: PeftModel | None = None
        pairs = {task.pair.name: task.pair for task in self.tasks.values()}
        for name, pair in pairs.items():
            options = self.lora[name]
            config = LoraConfig(
                r=options.rank,
                lora_alpha=options.alpha,
                lora_dropout=options.dropout,
                target_modules=self.backbone.lora_targets(pair.modalities, options.layers),
                base_model_name_or_path=self.backbone.source,
                revision=self.backbone.revision,
                inference_mode=False,
            )
            with seeded(seed_for(seed, -1, "", f"init {name}")), warnings.catch_warnings():
                # peft 0.21 asks transformers 5 for a name that it has renamed.
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
                if peft_model is None:
                    peft_model = PeftModel(self.backbone.model, config, adapter_name=name)
                else:
                    peft_model.add_adapter(name, config)
        if peft_model is None:
            raise ValueError("a TapModel needs at least one task")
        return peft_model

    def _find_live_parameters(self, shared: set[int]) -> dict[Component, dict[str, nn.Parameter]]:
        """Return each component's parameters under the names that PEFT and `nn.Module` save them by."""
        live: dict[Component, dict[str, nn.Parameter]] = {}
        state = self.peft_model.state_dict(keep_vars=True)
        for name in self.lora:
            live[name] = get_peft_model_state_dict(
                self.peft_model, state_dict=state, adapter_name=name, save_embedding_layers=False
            )
        for component, head in self.heads.items():
            parameters = head.named_parameters()
            live[component] = {name: p for name, p in parameters if id(p) not in shared}
        return live

    def train(self, mode: bool = True) -> "TapModel":
        """Switch dropout of adapters and heads; the frozen backbone stays in evaluation mode for good."""
        if self.training != mode:  # `Trainer` calls this before every batch
            self.training = mode
            for module in self._trained_modules:
                module.training = mode
        return self

    @property
    def device(self) -> torch.device:
        """The device of the live parameters."""
        return next(iter(next(iter(self._live.values())).values())).device

    def components_of(self, tasks: Iterable[str]) -> frozenset[Component]:
        """Return all components that any of the tasks uses."""
        return frozenset().union(*(self.tasks[task].components for task in tasks))

    def load(self, adapters: Adapters) -> None:
        """Copy values into the live parameters of their components; other components keep theirs.

        Raises:
            AdapterError: unless every component has exactly the tensors that the model has for it.
        """
        check_matches(adapters, self._live, "The set to load")
        targets: list[Tensor] = [self._live[c][n] for c, tensors in adapters.items() for n in tensors]
        values = [t for tensors in adapters.values() for t in tensors.values()]
        with torch.no_grad():
            torch._foreach_copy_(targets, values)

    def dump(self, components: Iterable[Component] | None = None) -> Adapters:
        """Return copies of the live values on the CPU, of all components unless some are named."""
        names = self._live.keys() if components is None else sorted(components)
        return {c: {n: p.detach().to("cpu", copy=True) for n, p in self._live[c].items()} for c in names}

    @contextlib.contextmanager
    def loaded(self, adapters: Adapters) -> Iterator[None]:
        """Hold other values in the live parameters for the length of a block, then put the former ones back."""
        kept = {c: {n: self._live[c][n].detach().clone() for n in tensors} for c, tensors in adapters.items()}
        self.load(adapters)
        try:
            yield
        finally:
            self.load(kept)

    def set_trainable(self, components: Iterable[Component]) -> None:
        """Let gradients flow to these components and to no others."""
        chosen = frozenset(components)
        for component, parameters in self._live.items():
            for parameter in parameters.values():
                parameter.requires_grad_(component in chosen)
                parameter.grad = None

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that gradients flow to."""
        return [p for parameters in self._live.values() for p in parameters.values() if p.requires_grad]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the live parameters; nothing else ever has any."""
        for parameter in self.trainable():
            parameter.grad = None

    def encode(self, task: str, inputs: Mapping[str, Tensor]) -> Encoding:
        """Encode a batch through the backbone with the adapter of the task's pair, and no other, active."""
        pair = self.tasks[task].pair
        for layer in self._lora_layers:
            # `set_adapter` would also flip `requires_grad`, and takes 24 ms at FLAVA's size.
            layer._active_adapter = [pair.name]
        return self.backbone.encode(inputs, pair.modalities)

    def forward(self, task: str, labels: Tensor | None = None, **inputs: Tensor) -> TaskOutput:
        """Return loss and logits of one task on a batch of its own samples.

        Args:
            task: the task of every sample in the batch.
            labels: (B,) class indices, (B, T) token ids with -100 as padding, or (B, 3, side, side) images in [0, 1].
            **inputs: `pixel_values`, `input_ids` and `attention_mask`, as the pair needs them.
        """
        head = self.head(task)
        logits = head(self.encode(task, inputs), labels)
        return TaskOutput(loss=None if labels is None else head.loss(logits, labels), logits=logits)

    def head(self, task: str) -> TaskHead:
        """Return the live head of a task."""
        return cast(TaskHead, self.heads[head_component(task)])  # `ModuleDict` forgets the type

    @torch.inference_mode()
    def predict(self, task: str, **inputs: Tensor) -> list[Any]:
        """Return one prediction per sample: a class index, a text, or an image as a flat list of numbers."""
        self.eval()
        return self.head(task).predict(self.encode(task, inputs))
