"""The interface of a backbone, and what all families share."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tap_hf.errors import BackboneError
from tap_hf.models.backbones.prefix import Cut, Prefix, only_layers, packed, replaced_output, unpacked
from tap_hf.models.backbones.towers import Tower
from tap_hf.pairs import Modality

IGNORED = -100  # label of padding, as everywhere in transformers


@dataclass(frozen=True)
class Encoding:
    """A batch of encoded inputs, in float32.

    Attributes:
        states: hidden states (B, S, D); for images only the patches, row by row, so S is a square number.
        mask: 1 for real states, 0 for padding (B, S).
        pooled: one vector per sample (B, P).
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of each text, and the original lengths of the truncated ones."""

    ids: list[list[int]]
    cut: list[int]

    @classmethod
    def limited(cls, ids: Sequence[list[int]], limit: int) -> "TokenizedTexts":
        """Truncate sequences to `limit` tokens, keeping their end token."""
        short = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in ids]
        return cls(short, [len(row) for row in ids if len(row) > limit])


class Backbone(ABC):
    """One frozen pretrained model with its processor, loaded once per process.

    Args:
        model: the transformers model; LoRA layers are injected into it, nothing else changes it.
        processor: its processor, with an image processor and a tokenizer.
        source: `tiny`, a Hub id or a folder.
        revision: the commit of a Hub model.

    Attributes:
        word_embeddings: the frozen token embeddings, which text decoders share.
        num_patches: S of an image's `Encoding`, a square number.
        max_text_length: the longest input in tokens, special tokens included.
        squared_to: side in pixels that images are resized to before the processor; `None` if the processor gives all
            images one size.
    """

    word_embeddings: nn.Embedding
    num_patches: int
    max_text_length: int
    squared_to: int | None = None
    generates_text = False
    """Whether the model generates text itself (`next_token_logits`, `generate`), without a decoder head."""

    model_class: ClassVar[Any]
    """The transformers class that loads its checkpoints."""

    _image_shape: Sequence[int] | None = None

    def __init__(self, model: Any, processor: Any, source: str, revision: str | None = None) -> None:
        self.model: Any = model.requires_grad_(False)
        self.freeze()
        self.source = source
        self.revision = revision
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.start_token_id = self._special_token("cls", "bos", "eos")
        self.end_token_id = self._special_token("sep", "eos")
        self.pad_token_id = self._special_token("pad", "eos")
        self._image_processor = processor.image_processor
        scale = 1 / getattr(self._image_processor, "rescale_factor", 1 / 255)
        mean, std = [0.0] * 3, [1.0] * 3
        if getattr(self._image_processor, "do_normalize", True):
            mean, std = self._image_processor.image_mean, self._image_processor.image_std
        self._mean = torch.tensor(mean).view(3, 1, 1) * scale
        self._std = torch.tensor(std).view(3, 1, 1) * scale
        self._stacks = {tower: layer_stack(self.model, path) for tower, path in self._tower_paths().items()}
        # Before LoRA is injected, which adds linear layers of its own.
        self._linear_layers = {tower: _linear_layers(self.model, stack) for tower, stack in self._stacks.items()}
        self._in_tuple: dict[int, bool] = {}  # see `replaced_output`

    def freeze(self) -> None:
        """Put the model into evaluation mode."""
        self.model.eval()
        for module in self.model.modules():
            # In evaluation mode bitsandbytes repacks 4-bit weights on a CPU at the first input, and can then no longer
            # pass gradients through them. The mode changes nothing else for a linear layer.
            if hasattr(module, "quant_state"):
                module.training = True

    @abstractmethod
    def _tower_paths(self) -> Mapping[Tower, str]:
        """Return the name of the module that holds each tower's layers."""

    @abstractmethod
    def towers_of(self, modalities: Sequence[Modality]) -> tuple[Tower, ...]:
        """Return the towers that a pair with these modalities passes through."""

    @abstractmethod
    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        """Encode the `pixel_values`, `input_ids` and `attention_mask` that the modalities need."""

    def pooled(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Tensor:
        """Return the pooled states (B, P) of an `Encoding`, which may take less than all of it."""
        return self.encode(inputs, modalities).pooled

    @abstractmethod
    def state_size(self, modalities: Sequence[Modality]) -> int:
        """Return D of these modalities' `Encoding`."""

    def pooled_size(self, modalities: Sequence[Modality]) -> int:
        """Return P of these modalities' `Encoding`."""
        return self.state_size(modalities)

    def next_token_logits(self, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Return the model's own logits (B, T, V) for labels (B, T) after the inputs, if it `generates_text`."""
        raise BackboneError(f'"{self.source}" does not generate text.')

    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> list[str]:
        """Return the model's own greedily decoded text for each input, if it `generates_text`."""
        raise BackboneError(f'"{self.source}" does not generate text.')

    def cut(self, modalities: Sequence[Modality], lowest: Mapping[Tower, int]) -> Cut:
        """Return how much of the towers of a pair no adapter changes; empty if an adapter is in the first layers.

        Args:
            modalities: the pair's.
            lowest: the lowest adapted layer of each tower that has adapters.
        """
        free = {tower: lowest.get(tower, self._num_layers(tower)) for tower in self.towers_of(modalities)}
        fused, below = free.pop(Tower.FUSION, 0), {tower: count for tower, count in free.items() if count}
        if fused and not any(tower in lowest for tower in free):
            return {Tower.FUSION: fused}
        return below

    @torch.no_grad()
    def prefix(
        self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality], cut: Cut
    ) -> dict[Tower, list[Tensor]]:
        """Return the states below the cut of each sample (L, D), without padding; nothing above it is computed."""
        found: dict[Tower, Tensor] = {}

        def keep(tower: Tower, output: Any) -> None:
            found[tower] = output[0] if isinstance(output, tuple) else output

        with ExitStack() as held:
            for tower in self.towers_of(modalities):
                if tower in cut:
                    layer = self._layers(tower)[cut[tower] - 1]
                    hook = layer.register_forward_hook(lambda _, __, output, tower=tower: keep(tower, output))
                    held.callback(hook.remove)
                if tower in cut or Tower.FUSION not in cut:
                    held.enter_context(only_layers(self._layers(tower), 0, cut.get(tower, 0)))
            self.encode(inputs, modalities)
        return {tower: packed(found[tower], self._places(tower, inputs, found[tower].shape[1])) for tower in cut}

    @contextmanager
    def resumed(
        self, prefix: Prefix, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]
    ) -> Iterator[dict[str, Tensor]]:
        """Let the model go on from a batch's prefix within a block, which gets the inputs for it.

        `encode`, `next_token_logits` and `generate` then compute only what is above the cut. `inputs` need no
        `pixel_values` if the prefix covers images.
        """
        inputs = _without_padding(inputs)
        with ExitStack() as held:
            for tower in self.towers_of(modalities):
                if prefix.states is not None and tower in prefix.cut:
                    states, first = prefix.states[tower], prefix.cut[tower] - 1
                    layers = self._layers(tower)
                    states = unpacked(states, self._places(tower, inputs, states.shape[1]))
                    held.enter_context(replaced_output(layers[first], states, self._in_tuple))
                    held.enter_context(only_layers(layers, first, len(layers)))
                elif Tower.FUSION in prefix.cut:
                    held.enter_context(only_layers(self._layers(tower), 0, 0))
            if Modality.IMAGE in modalities and "pixel_values" not in inputs:
                yield {**inputs, "pixel_values": self._no_pixels(next(iter((prefix.states or {}).values())))}
            else:
                yield dict(inputs)

    def _layers(self, tower: Tower) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.get_submodule(self._stacks[tower]))

    def _num_layers(self, tower: Tower) -> int:
        return len(self._layers(tower))

    def _places(self, tower: Tower, inputs: Mapping[str, Tensor], length: int) -> Tensor | None:
        """Return which of a tower's `length` places are no padding (B, L); `None` for all."""
        mask = inputs.get("attention_mask")
        if mask is None or tower is Tower.IMAGE:
            return None
        return mask if tower is Tower.TEXT else torch.cat([mask.new_ones(len(mask), length - mask.shape[1]), mask], 1)

    def _no_pixels(self, states: Tensor) -> Tensor:
        """Return `pixel_values` that nothing will depend on, for as many samples as have states."""
        if self._image_shape is None:
            self._image_shape = self.prepare_images([Image.new("RGB", (32, 32))]).shape[1:]
        return torch.zeros(len(states), *self._image_shape, device=states.device)

    def layer_of(self, name: str) -> tuple[Tower, int] | None:
        """Return the tower and the number of the layer that a module of the model is in."""
        for tower, stack in self._stacks.items():
            if (found := re.match(rf"{re.escape(stack)}\.(\d+)\.", name)) is not None:
                return tower, int(found[1])
        return None

    def lora_targets(self, towers: Sequence[Tower], layers: Sequence[str] | None, last: int | None = None) -> str:
        """Return PEFT's `target_modules`, as a regular expression.

        Args:
            towers: the towers to adapt.
            layers: short names of linear layers, such as `query` or `q_proj`; `None` for all.
            last: how many of each tower's layers to adapt, from the last one down; `None` for all.

        Raises:
            BackboneError: for a name that the towers lack, or for more layers than any of them has.
        """
        counts = {tower: len(self._used_layers(tower)) for tower in towers}
        if last is not None and last > max(counts.values()):
            listed = ", ".join(f"{tower} {count}" for tower, count in counts.items())
            raise BackboneError(
                f'`last` is {last}, but "{self.source}" has fewer layers ({listed}). Lower it, or leave it out to '
                "adapt all layers; `layers` names linear layers within each."
            )
        found = {tower: self._linear_layers[tower] for tower in towers}
        known = list(dict.fromkeys(name for paths in found.values() for name in paths))
        if unknown := [name for name in layers or () if name not in known]:
            raise BackboneError(
                f'The {" and ".join(towers)} layers of "{self.source}" have no layers called {", ".join(unknown)}; '
                f"expected some of {', '.join(known)}."
            )
        wanted = known if layers is None else layers
        alternatives = []
        for tower, paths in found.items():
            if ends := [re.escape(path) for name in wanted for path in paths.get(name, ())]:
                used = self._used_layers(tower)[-(last or 0) :]
                numbers = r"\d+" if len(used) == self._num_layers(tower) else f"(?:{'|'.join(map(str, used))})"
                alternatives.append(rf"{re.escape(self._stacks[tower])}\.{numbers}\.({'|'.join(ends)})")
        return "|".join(alternatives)

    def _used_layers(self, tower: Tower) -> range:
        """Return the numbers of a tower's layers that affect its output."""
        return range(self._num_layers(tower))

    def tokenize(self, texts: Sequence[str], modalities: Sequence[Modality]) -> TokenizedTexts:
        """Return input texts as token ids, special tokens included."""
        return TokenizedTexts.limited(self.token_ids(texts), self.max_text_length)

    def tokenize_targets(self, texts: Sequence[str], limit: int) -> TokenizedTexts:
        """Return target texts as at most `limit` token ids, end token included."""
        ids = self.token_ids(texts, add_special_tokens=False)
        return TokenizedTexts.limited([[*row, self.end_token_id] for row in ids], limit)

    def token_ids(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Return the tokenizer's ids of texts.

        Raises:
            BackboneError: if the tokenizer fails, or has tokens for which the model has no embedding.
        """
        try:
            encoded = self.tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)
            ids: list[list[int]] = encoded["input_ids"]
            largest = max((max(row) for row in ids if row), default=0)
        except BaseException as error:
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # of compiled code
                reason = str(error)[:500] or type(error).__name__
                raise BackboneError(f'The tokenizer of "{self.source}" fails: {reason}') from error
            raise
        if largest >= (known := self.word_embeddings.num_embeddings):
            raise BackboneError(
                f'The tokenizer of "{self.source}" gives the token {largest:,}, but the model has {known:,}. Is it '
                "another model's?"
            )
        return ids

    def prepare_images(self, images: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Resize and crop RGB images for the model: uint8 (N, ..., 3, H, W), not yet normalised."""
        if (side := self.squared_to) is not None:
            images = [image.resize((side, side), Image.Resampling.BICUBIC) for image in images]
        batch = self._image_processor(
            images=self._nested(images), do_rescale=False, do_normalize=False, return_tensors="pt"
        )
        return np.asarray(np.clip(np.rint(batch["pixel_values"].numpy()), 0, 255), dtype=np.uint8)

    def normalise_images(self, images: Tensor) -> Tensor:
        """Return `pixel_values` for a batch of prepared uint8 images."""
        return (images - self._mean.to(images.device)) / self._std.to(images.device)

    def _nested(self, images: Sequence[Image.Image]) -> list[Any]:
        """Return images in the nesting that the image processor expects."""
        return list(images)

    def _special_token(self, *kinds: str) -> int:
        found = [getattr(self.tokenizer, f"{kind}_token_id", None) for kind in kinds]
        if (token := next((token for token in found if token is not None), None)) is None:
            raise BackboneError(
                f'The tokenizer of "{self.source}" has no {" or ".join(kinds)} token. Add one to its '
                "tokenizer_config.json."
            )
        return int(token)


def _without_padding(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a batch with its texts padded to the longest of them only."""
    if (mask := inputs.get("attention_mask")) is None:
        return inputs
    longest = int(mask.sum(dim=1).max())
    return {**inputs, "input_ids": inputs["input_ids"][:, :longest], "attention_mask": mask[:, :longest]}


def layer_stack(model: nn.Module, path: str) -> str:
    """Return the name of a tower's repeated layers: the module list below `path` with the most linear layers."""
    tower = model.get_submodule(path)
    lists = {name: m for name, m in tower.named_modules() if isinstance(m, nn.ModuleList)}
    counts = {name: sum(isinstance(part, nn.Linear) for part in m.modules()) for name, m in lists.items()}
    if not counts:
        raise BackboneError(f"{type(model).__name__}.{path} has no list of layers for LoRA.")
    # Of nested lists with the same layers, the outer one comes first.
    return f"{path}.{max(counts, key=lambda name: counts[name])}"


def _linear_layers(model: nn.Module, stack: str) -> dict[str, list[str]]:
    """Return the paths of a stack's linear layers within one layer, by short name."""
    below = re.compile(rf"{re.escape(stack)}\.\d+\.(.+)")
    paths: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if (match := below.fullmatch(name)) is None or not isinstance(module, nn.Linear):
            continue
        same_name = paths.setdefault(short_name(match[1]), [])
        if match[1] not in same_name:
            same_name.append(match[1])
    return paths


def short_name(path: str) -> str:
    """Return a linear layer's name in recipes: the last meaningful part of its path."""
    parts = path.removesuffix(".dense").split(".")
    return "attention_output" if parts[-1] == "output" and "attention" in parts[:-1] else parts[-1]
