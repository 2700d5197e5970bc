"""Generative vision-language models: a language model that reads image states among its text tokens.

Any `AutoModelForImageTextToText` whose processor turns an image into a fixed number of tokens, such as LLaVA
(https://arxiv.org/abs/2304.08485), Idefics3 and SmolVLM (https://arxiv.org/abs/2408.12637).
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tap_hf.errors import BackboneError
from tap_hf.limits import TEMPLATE_SECONDS, OutOfTimeError, ends_within
from tap_hf.models.backbones.base import IGNORED, Backbone, Encoding, TokenizedTexts
from tap_hf.models.backbones.prefix import Cut, Prefix
from tap_hf.models.backbones.towers import Tower
from tap_hf.pairs import Modality

_VISION_NAMES = ("vision_tower", "vision_model", "visual")
_LANGUAGE_NAMES = ("language_model", "text_model")
_INPUTS = {Modality.IMAGE: ("pixel_values", "image_states"), Modality.TEXT: ("input_ids", "attention_mask")}
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class VisionLanguageBackbone(Backbone):
    """A frozen vision-language model that generates text itself; other heads read its language model's states.

    Images are resized to a square and not tiled. Texts become turns of the model's chat template, if it has one.
    """

    model_class = AutoModelForImageTextToText
    generates_text = True

    def __init__(self, model: Any, processor: Any, source: str, revision: str | None = None) -> None:
        super().__init__(model, processor, source, revision)
        self.end_token_id = _first(getattr(model.generation_config, "eos_token_id", None), self.end_token_id)
        self.word_embeddings = model.get_input_embeddings()
        self.squared_to = side = int(model.config.vision_config.image_size)
        if hasattr(self._image_processor, "do_image_splitting"):
            self._image_processor.do_image_splitting = False
        self._image_token_id: int = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        self._picture, self._constants = self._probe(Image.new("RGB", (side, side), "grey"))
        self.num_patches = self._picture.count(self._image_token_id)
        # Half of the context for the input; the rest is for the template and the answer.
        self.max_text_length = (model.config.text_config.max_position_embeddings - len(self._picture)) // 2

    def _probe(self, blank: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
        """Return the tokens of an image, and the processor's other outputs, which are the same for all images."""
        made = self.processor(
            text=[self.processor.image_token], images=[[blank]], return_tensors="pt", add_special_tokens=False
        )
        pixels = made["pixel_values"]
        if pixels.dim() < 4 or pixels.shape[0] != 1 or pixels.shape[-3] != 3:
            raise BackboneError(
                f'The processor of "{self.source}" packs an image into {tuple(pixels.shape)}; expected (1, ..., 3, '
                "height, width). Use a model whose processor keeps images apart, such as LLaVA, Idefics3 or SmolVLM."
            )
        constants = {name: t[0] for name, t in made.items() if name not in (*_TEXT_INPUTS, "pixel_values")}
        return made["input_ids"][0].tolist(), constants

    def _tower_paths(self) -> Mapping[Tower, str]:
        names = [name for name, _ in self.model.named_modules()]

        def shortest(wanted: Sequence[str]) -> str:
            if found := [name for name in names if name.rpartition(".")[2] in wanted]:
                return min(found, key=lambda name: name.count("."))
            raise BackboneError(f'{type(self.model).__name__} of "{self.source}" has no part called {wanted[0]}.')

        return {Tower.IMAGE: shortest(_VISION_NAMES), Tower.TEXT: shortest(_LANGUAGE_NAMES)}

    def _used_layers(self, tower: Tower) -> range:
        """Leave out layers above the one whose states the language model reads (LLaVA: the last one)."""
        count, read = self._num_layers(tower), getattr(self.model.config, "vision_feature_layer", -1)
        deepest = max(read) if isinstance(read, list | tuple) else read
        if tower is not Tower.IMAGE or not isinstance(deepest, int) or deepest == -1:
            return range(count)
        return range(deepest if deepest >= 0 else count + 1 + deepest)  # hidden state 0 comes before the first layer

    def towers_of(self, modalities: Sequence[Modality]) -> tuple[Tower, ...]:
        """Return the language model, after the image tower if there are images."""
        return (Tower.IMAGE, Tower.TEXT) if Modality.IMAGE in modalities else (Tower.TEXT,)

    def state_size(self, modalities: Sequence[Modality]) -> int:
        """Return the language model's hidden size."""
        return int(self.model.config.text_config.hidden_size)

    def tokenize(self, texts: Sequence[str], modalities: Sequence[Modality]) -> TokenizedTexts:
        """Return prompts, with image tokens if the modalities include images."""
        with_image = Modality.IMAGE in modalities
        prompts, cut = [], []
        for text in texts:
            words = self.token_ids([text], add_special_tokens=False)[0]
            if len(words) > self.max_text_length:
                cut.append(len(words))
                text = self.tokenizer.decode(words[: self.max_text_length])
            prompts.append(self._prompt_ids(text, with_image))
        return TokenizedTexts(prompts, cut)

    def tokenize_targets(self, texts: Sequence[str], limit: int) -> TokenizedTexts:
        """Return answers as the chat template formats them after a prompt."""
        answers = [self._answer(text) for text in texts]
        ids = self.token_ids(answers, add_special_tokens=False)
        ended = [row if row and row[-1] == self.end_token_id else [*row, self.end_token_id] for row in ids]
        return TokenizedTexts.limited(ended, limit)

    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        """See `Backbone.encode`; pooled is the state of the last token, which attends to all others.

        Without text, the states are those of the image tokens.
        """
        inputs = {name: inputs[name] for modality in modalities for name in _INPUTS[modality] if name in inputs}
        rows = self._prompts(inputs)
        words, mask = self._padded(rows, left=False)
        if "input_ids" in inputs:  # as long as the caller's: the last bits of states may depend on padding
            more = inputs["input_ids"].shape[1] - words.shape[1]
            words, mask = F.pad(words, (0, more), value=self.pad_token_id), F.pad(mask, (0, more))
        output = self.model.base_model(
            input_ids=words, attention_mask=mask, use_cache=False, **self._image_inputs(inputs)
        )
        hidden = output.last_hidden_state.float()
        pooled = hidden[torch.arange(len(rows), device=hidden.device), mask.sum(dim=1) - 1]
        if Modality.TEXT in modalities:
            return Encoding(hidden, mask, pooled)
        states = hidden[words == self._image_token_id].view(len(rows), self.num_patches, -1)
        return Encoding(states, mask.new_ones(states.shape[:2]), pooled)

    def cut(self, modalities: Sequence[Modality], lowest: Mapping[Tower, int]) -> Cut:
        """Return the image tower, whose tokens are the prefix, if no adapter is in it."""
        if Modality.IMAGE not in modalities or Tower.IMAGE in lowest or not self._takes_image_states:
            return {}
        return {Tower.IMAGE: self._num_layers(Tower.IMAGE)}

    @torch.no_grad()
    def prefix(
        self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality], cut: Cut
    ) -> dict[Tower, list[Tensor]]:
        """Return the states of each image's tokens, as the language model gets them."""
        made = self.model.base_model.get_image_features(**self._image_inputs(inputs), return_dict=True)
        return {Tower.IMAGE: list(made.pooler_output)}

    @contextmanager
    def resumed(
        self, prefix: Prefix, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]
    ) -> Iterator[dict[str, Tensor]]:
        """See `Backbone.resumed`."""
        yield {**inputs, "image_states": (prefix.states or {})[Tower.IMAGE]}

    @property
    def _takes_image_states(self) -> bool:
        return "mm_encoder_outputs" in inspect.signature(self.model.base_model.forward).parameters

    def next_token_logits(self, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """See `Backbone.next_token_logits`."""
        prompts = self._prompts(inputs)
        answers = [row[row != IGNORED] for row in labels]
        joined = [torch.cat([prompt, answer]) for prompt, answer in zip(prompts, answers, strict=True)]
        words, mask = self._padded(joined, left=False)
        starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=words.device)
        first, count = int(starts.min()), labels.shape[1]
        # Logits are large: only those from the first answer on are computed.
        kept = torch.arange(first, min(int(starts.max()) + count, words.shape[1]), device=words.device)
        logits: Tensor = self.model(
            input_ids=words, attention_mask=mask, logits_to_keep=kept, use_cache=False, **self._image_inputs(inputs)
        ).logits
        places = (starts - first)[:, None] + torch.arange(count, device=words.device)
        places = places.clamp(max=logits.shape[1] - 1)  # beyond the end of a sequence labels are padding
        return logits[torch.arange(len(places), device=words.device)[:, None], places]

    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> list[str]:
        """See `Backbone.generate`."""
        words, mask = self._padded(self._prompts(inputs), left=True)
        tokens = self.model.generate(
            input_ids=words,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.end_token_id,
            **self._image_inputs(inputs),
        )
        answers = self.tokenizer.batch_decode(tokens[:, words.shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def _nested(self, images: Sequence[Image.Image]) -> list[Any]:
        return [[image] for image in images]

    def _prompts(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        if "input_ids" in inputs:
            return [row[mask.bool()] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        images = inputs["image_states" if "image_states" in inputs else "pixel_values"]
        return [torch.tensor(self._prompt_ids("", with_image=True), device=images.device)] * len(images)

    def _image_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        if (states := inputs.get("image_states")) is not None:
            return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(states))}}
        if (pixels := inputs.get("pixel_values")) is None:
            return {}
        constants = {
            name: tensor.to(pixels.device).expand(len(pixels), *tensor.shape)
            for name, tensor in self._constants.items()
        }
        return {"pixel_values": pixels.to(self.model.dtype), **constants}

    def _padded(self, rows: Sequence[Tensor], left: bool) -> tuple[Tensor, Tensor]:
        side = "left" if left else "right"
        words = pad_sequence(list(rows), batch_first=True, padding_value=self.pad_token_id, padding_side=side)
        real = [torch.ones_like(row) for row in rows]
        return words, pad_sequence(real, batch_first=True, padding_side=side)

    def _prompt_ids(self, text: str, with_image: bool) -> list[int]:
        prompt, bos = self._prompt(text, with_image), self.tokenizer.bos_token
        special = not (bos and prompt.startswith(bos))
        ids = self.token_ids([prompt], add_special_tokens=special)[0]
        picture = {self._image_token_id: self._picture}
        return [token for word in ids for token in picture.get(word, [word])]

    def _prompt(self, text: str, with_image: bool) -> str:
        token = self.processor.image_token
        text = text.replace(token, " ")  # a text must not insert an image
        if self.processor.chat_template is None:
            return f"{token}\n{text}" if with_image else text
        return self._rendered(_turn(text, with_image), add_generation_prompt=True)

    def _answer(self, text: str) -> str:
        """Return an answer as the chat template formats it, without the prompt."""
        if self.processor.chat_template is None:
            return f" {text}"
        turns = _turn("?", with_image=False)
        prompt = self._rendered(turns, add_generation_prompt=True)
        answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        whole = self._rendered([*turns, answer])
        return whole.removeprefix(prompt).rstrip() if whole.startswith(prompt) else f" {text}"

    def _rendered(self, turns: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """Return what the chat template, which is code of the checkpoint in a sandbox, makes of a conversation."""
        try:
            with ends_within(TEMPLATE_SECONDS):
                made: str = self.processor.apply_chat_template(turns, add_generation_prompt=add_generation_prompt)
        except OutOfTimeError:
            raise BackboneError(
                f'The chat template of "{self.source}" had not ended after {TEMPLATE_SECONDS.value:,.0f} s. '
                f"{TEMPLATE_SECONDS.hint}"
            ) from None
        except Exception as error:
            raise BackboneError(f'The chat template of "{self.source}" fails: {str(error)[:500]}') from error
        return made


def _turn(text: str, with_image: bool) -> list[dict[str, Any]]:
    content = ([{"type": "image"}] if with_image else []) + ([{"type": "text", "text": text}] if text else [])
    return [{"role": "user", "content": content}]


def _first(value: Any, default: int) -> int:
    """Return the first token id of a generation config's value."""
    first = value[0] if isinstance(value, list | tuple) else value
    return default if first is None else int(first)
