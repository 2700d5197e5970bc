"""A frozen backbone with LoRA adapters, per pair or shared, and a head per task: the base of `TapModel`."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from tap_hf.errors import BackboneError, DataError, did_you_mean
from tap_hf.models.adapters import Adapters, cut_to, dump_from, held_in, load_into, padded_to, rank_dimension
from tap_hf.models.backbones import ABOVE_ALL, Backbone, Cut, Encoding, Prefix, Tower
from tap_hf.models.heads import TaskHead, build_head, fitted
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component, has_scope, head_component, shared_component
from tap_hf.seeds import seed_for, seeded
from tap_hf.tasks import Task


@dataclass
class TaskOutput(ModelOutput):
    """Output of `TapModel.forward`; `loss` is a scalar, only with labels."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class AdaptedBackbone(nn.Module):
    """Backbone, adapters and heads, with one set of values loaded at a time.

    `load` copies a set (`Adapters`) into the live parameters, `dump` copies it out. The live parameters exist once,
    however many clients there are.

    Args:
        backbone: the frozen backbone; LoRA layers are injected into its model.
        tasks: all tasks of the federation.
        lora: options for the pair of each task.
        seed: of the initial values; two models with the same seed are bit-equal.
        shared: options of adapters that pairs share, by scope: `all`, a modality or a task type.
        frozen_a: whether only LoRA's B is trained.
    """

    accepts_loss_kwargs = False  # for `Trainer`: losses are means over a batch, not sums

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[Task],
        lora: Mapping[Component, LoraOptions],
        seed: int,
        shared: Mapping[str, LoraOptions] | None = None,
        frozen_a: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen_a = frozen_a
        self.shared = dict(shared or {})
        self.tasks = {task.name: fitted(task, backbone, self.shared) for task in tasks}
        self.lora = self._place_adapters(lora)
        frozen = {id(parameter) for parameter in backbone.model.parameters()}
        self.peft_model = self._inject_adapters(seed)
        self.heads = nn.ModuleDict()
        for task in self.tasks.values():
            with seeded(seed_for(seed, -1, "", f"init {head_component(task.name)}")):
                self.heads[head_component(task.name)] = build_head(task, backbone)
        self.heads.to(backbone.model.device)  # where a `device_map` has already placed the backbone
        for name in ("hf_device_map", "quantization_method"):  # `Trainer` reads these to know what it must not move
            if (value := getattr(backbone.model, name, None)) is not None:
                setattr(self, name, value)
        self._live = self._find_live_parameters(frozen)
        self._lora_layers = [m for m in self.peft_model.modules() if isinstance(m, LoraLayer)]
        self._lowest = self._find_lowest_layers()
        self._trained_modules = [m for layer in self._lora_layers for m in (layer, *layer.lora_dropout.modules())]
        self._trained_modules += self.heads.modules()
        super().train(False)
        backbone.freeze()
        self.initial: Adapters = self.dump()

    def _place_adapters(self, lora: Mapping[Component, LoraOptions]) -> dict[Component, LoraOptions]:
        """Return the options of every adapter that a task uses, with the towers it adapts."""
        placed: dict[Component, LoraOptions] = {}
        for task in self.tasks.values():
            name, used = task.pair.name, self.backbone.towers_of(task.pair.modalities)
            wanted = lora[name].towers or used
            if not (towers := tuple(tower for tower in used if tower in wanted)):
                raise BackboneError(
                    f"LoRA of {name} adapts {', '.join(wanted)}, but the pair passes through {', '.join(used)}. "
                    f"Name one of these in lora.pairs.{name}.towers."
                )
            placed[name] = replace(lora[name], towers=towers)
            for scope, options in self.shared.items():
                for tower in used if has_scope(task.pair, scope) else ():
                    if (component := shared_component(scope, tower)) in task.shared:
                        placed[component] = replace(options, towers=(tower,))
        return placed

    def _inject_adapters(self, seed: int) -> PeftModel:
        peft_model: PeftModel | None = None
        for name, options in self.lora.items():
            config = LoraConfig(
                r=options.rank,
                lora_alpha=options.alpha,
                lora_dropout=options.dropout,
                target_modules=self.backbone.lora_targets(
                    [Tower(t) for t in options.towers or ()], options.layers, options.last
                ),
                base_model_name_or_path=self.backbone.source,
                revision=self.backbone.revision,
                inference_mode=False,
                **options.options,
            )
            with seeded(seed_for(seed, -1, "", f"init {name}")), warnings.catch_warnings():
                # peft 0.21 uses a name that transformers 5 has renamed.
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
                if peft_model is None:
                    peft_model = PeftModel(self.backbone.model, config, adapter_name=name)
                else:
                    peft_model.add_adapter(name, config)
        if peft_model is None:
            raise ValueError("a TapModel needs at least one task")
        return peft_model

    def _find_live_parameters(self, frozen: set[int]) -> dict[Component, dict[str, nn.Parameter]]:
        """Return each component's parameters under the names that PEFT and `nn.Module` save."""
        live: dict[Component, dict[str, nn.Parameter]] = {}
        state = self.peft_model.state_dict(keep_vars=True)
        for name in self.lora:
            live[name] = get_peft_model_state_dict(
                self.peft_model, state_dict=state, adapter_name=name, save_embedding_layers=False
            )
        for component, head in self.heads.items():
            if parameters := {name: p for name, p in head.named_parameters() if id(p) not in frozen}:
                live[component] = parameters
        return live

    def _find_lowest_layers(self) -> dict[Component, dict[Tower, int]]:
        """Return the lowest adapted layer of each tower that a component adapts."""
        lowest: dict[Component, dict[Tower, int]] = {name: {} for name in self.lora}
        for path, module in self.backbone.model.named_modules():
            if isinstance(module, LoraLayer) and (place := self.backbone.layer_of(path)) is not None:
                tower, number = place
                for own in (lowest[name] for name in module.lora_A if name in lowest):
                    own[tower] = min(number, own.get(tower, number))
        return lowest

    def train(self, mode: bool = True) -> Self:
        """Switch dropout of adapters and heads; the frozen backbone stays in evaluation mode."""
        if self.training != mode:  # `Trainer` calls this before every batch
            self.training = mode
            for module in self._trained_modules:
                module.training = mode
        return self

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the backbone's layers in the backward pass, to save memory; `Trainer` may call this."""
        self.backbone.model.activation_checkpointing_enable(**options)
        # transformers does so only in training mode, which changes nothing else in these layers.
        layers = [m for m in self.backbone.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self._trained_modules += [layer for layer in layers if layer not in self._trained_modules]

    @property
    def device(self) -> torch.device:
        """The device of the live parameters."""
        return next(iter(next(iter(self._live.values())).values())).device

    def components_of(self, tasks: Iterable[str]) -> frozenset[Component]:
        """Return all components that any of the tasks uses."""
        return frozenset().union(*(self._task(task).components for task in tasks))

    def live(self, components: Iterable[Component]) -> dict[Component, Mapping[str, nn.Parameter]]:
        """Return the live parameters of some components."""
        return {component: self._live[component] for component in sorted(components)}

    def load(self, adapters: Adapters) -> None:
        """Copy a set into the live parameters; components outside it keep their values.

        Adapters of a lower rank than the model's are padded with zeros, which training leaves at zero: a zero row of A
        gets its gradient through a zero column of B, and vice versa.

        Raises:
            AdapterError: if a component does not have exactly the model's tensors.
        """
        load_into(self._live, padded_to(adapters, self._live))

    def dump(self, components: Iterable[Component] | None = None) -> Adapters:
        """Return copies of the live values on the CPU, by default of all components."""
        return dump_from(self._live, self._live.keys() if components is None else sorted(components))

    def dump_like(self, adapters: Adapters) -> Adapters:
        """Return copies of the live values of a set's components on the CPU, at the set's ranks."""
        return cut_to(self.dump(adapters), adapters)

    def loaded(self, adapters: Adapters) -> AbstractContextManager[None]:
        """Load a set for the duration of a `with` block, then restore the previous values."""
        return held_in(self._live, padded_to(adapters, self._live))

    def set_trainable(self, components: Iterable[Component]) -> None:
        """Make only these components trainable, without a frozen A."""
        chosen = frozenset(components)
        for component, parameters in self._live.items():
            for name, parameter in parameters.items():
                frozen = self.frozen_a and rank_dimension(name) == 0
                parameter.requires_grad_(component in chosen and not frozen)
                parameter.grad = None

    def trainable(self) -> list[nn.Parameter]:
        """Return the trainable parameters."""
        return [p for parameters in self._live.values() for p in parameters.values() if p.requires_grad]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the trainable parameters; no others have any."""
        for parameter in self.trainable():
            parameter.grad = None

    def encode(self, task: str, inputs: Mapping[str, Tensor], prefix: Prefix | None = None) -> Encoding:
        """Encode a batch through the backbone with the task's adapters active."""
        with self._activated(task, inputs, prefix) as tensors:
            return self.head(task).encode(tensors)

    def leaves_backbone(self, adapters: Adapters) -> bool:
        """Return whether adapters change nothing: their B are zero, and they do not change norms, as DoRA does."""
        return not any(self.lora[name].options.get("use_dora") for name in adapters) and not any(
            tensor.any() for tensors in adapters.values() for name, tensor in tensors.items() if "lora_B" in name
        )

    def cut(self, task: str, heads_only: bool = False) -> Cut:
        """Return how much of the backbone does not depend on a task's adapters, or on none, if only its head counts."""
        spec, lowest = self._task(task), dict[Tower, int]()
        if heads_only and not self.head(task).reads_states:
            return ABOVE_ALL
        for own in (self._lowest[name] for name in (() if heads_only else spec.adapters)):
            lowest |= {tower: min(number, lowest.get(tower, number)) for tower, number in own.items()}
        return self.backbone.cut(spec.pair.modalities, lowest)

    def prefix(self, task: str, inputs: Mapping[str, Tensor], cut: Cut) -> dict[Tower, list[Tensor]]:
        """Return each sample's states below a cut, as the untouched backbone computes them, without autocast."""
        self._activate(())
        modalities = self._task(task).pair.modalities
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            if Tower.POOLED in cut:
                return {Tower.POOLED: list(self.backbone.pooled(inputs, modalities)[:, None])}
            return self.backbone.prefix(inputs, modalities, cut)

    def _task(self, name: str) -> Task:
        if name not in self.tasks:
            raise DataError(f'The model has no task "{name}"{did_you_mean(name, self.tasks)}')
        return self.tasks[name]

    def _activate(self, adapters: Iterable[Component]) -> None:
        """Activate these adapters, and no others."""
        active = list(adapters)
        for layer in self._lora_layers:
            # `set_adapter` would also change `requires_grad`, and takes 24 ms with FLAVA.
            layer._active_adapter = active

    @contextmanager
    def _activated(
        self, task: str, inputs: Mapping[str, Tensor], prefix: Prefix | None
    ) -> Iterator[Mapping[str, Tensor]]:
        """Activate a task's adapters and let the backbone go on from a prefix in a block, which gets the inputs."""
        adapters = self._task(task).adapters
        if prefix is None:
            self._activate(adapters)
            yield inputs
            return
        if prefix.states is None:
            prefix = Prefix.of(prefix.cut, self.prefix(task, inputs, prefix.cut))
        self._activate(adapters)
        if prefix.states is not None and Tower.POOLED in prefix.states:
            yield {"pooled": prefix.states[Tower.POOLED][:, 0]}
            return
        with self.backbone.resumed(prefix, inputs, self._task(task).pair.modalities) as tensors:
            yield tensors

    def forward(
        self,
        task: str | None = None,
        labels: Tensor | list[Any] | None = None,
        prefix: Prefix | None = None,
        **inputs: Tensor | list[Any],
    ) -> TaskOutput:
        """Return loss and logits of one task on a batch of its examples; lists become tensors.

        Args:
            task: the task of every example in the batch; optional if the model has only one.
            labels: (B,) class indices, (B, T) token ids with -100 as padding, or (B, 3, side, side) images in [0, 1].
            prefix: of the batch, to go on from; see `Backbone.resumed`.
            **inputs: `pixel_values`, `input_ids` and `attention_mask`, as the pair needs them.
        """
        if task is None:
            if len(self.tasks) > 1:
                raise DataError(f"got no task; the model has several, expected one of {', '.join(self.tasks)}")
            (task,) = self.tasks
        head = self.head(task)
        tensors = {name: self._as_tensor(value) for name, value in inputs.items()}
        wanted = None if labels is None else self._as_tensor(labels)
        with self._activated(task, tensors, prefix) as resumed:
            logits = head(resumed, wanted)
        return TaskOutput(loss=None if wanted is None else head.loss(logits, wanted), logits=logits)

    def _as_tensor(self, value: Tensor | list[Any]) -> Tensor:
        return value if isinstance(value, Tensor) else torch.as_tensor(value, device=self.device)

    def head(self, task: str) -> TaskHead:
        """Return the live head of a task."""
        return cast(TaskHead, self.heads[head_component(self._task(task).name)])  # `ModuleDict` forgets the type

    @torch.inference_mode()
    def predict_batch(self, task: str, prefix: Prefix | None = None, **inputs: Tensor) -> list[Any]:
        """Return one prediction per sample: a class index, a text, or an image as a flat list of numbers."""
        self.eval()
        with self._activated(task, inputs, prefix) as tensors:
            return self.head(task).predict(tensors)

    @torch.inference_mode()
    def logits_batch(self, task: str, prefix: Prefix | None = None, **inputs: Tensor) -> Tensor:
        """Return the logits (B, C) of the classes that `predict_batch` chooses from."""
        self.eval()
        with self._activated(task, inputs, prefix) as tensors:
            return cast(Tensor, self.head(task)(tensors, None))
