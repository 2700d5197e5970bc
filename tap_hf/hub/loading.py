"""A live model from adapters that were published, or from a run directory."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tap_hf.errors import AdapterError, BackboneError, HubError, RunDirectoryError
from tap_hf.hub.client_model import load_client_model
from tap_hf.hub.publication import tiny_checksum
from tap_hf.hub.published import PublishedFiles, PublishedPair, folder_files, of_client, published_pairs, repo_files
from tap_hf.models.adapters import rank_dimension
from tap_hf.models.backbones import TINY, Backbone, Tower, load_backbone
from tap_hf.models.backbones.base import short_name
from tap_hf.models.lora import LoraOptions
from tap_hf.models.peft_export import PREFIX
from tap_hf.models.tap_model import TapModel
from tap_hf.recipe.lora_checks import lora_option_problems
from tap_hf.records.run_record import read_finished

_SHAPE_OPTIONS = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora")


def load_pretrained(
    source: str | Path,
    client: str | None,
    set_name: str,
    revision: str | None,
    token: str | None,
    base_model: str | None,
    backbone_options: Mapping[str, Any],
) -> TapModel:
    """See `TapModel.from_pretrained`."""
    if (folder := Path(source)).is_dir():
        return load_folder(folder, client, set_name, base_model, backbone_options)
    files = repo_files(str(source), revision, token)
    return _load_published(files, client, set_name, base_model, backbone_options)


def load_folder(
    folder: Path,
    client: str | None,
    set_name: str = "personal",
    base_model: str | None = None,
    backbone_options: Mapping[str, Any] | None = None,
) -> TapModel:
    """Return a client's model from a folder of `tap-hf run`, `pull` or `adopt`."""
    read_finished(folder)
    held = [path.parent.name for path in sorted(folder.glob("clients/*/sets"))]
    if not held:
        return _load_published(folder_files(folder), client, set_name, base_model, backbone_options or {})
    if client is None and len(held) > 1:
        raise RunDirectoryError(f"{folder} holds the adapters of {', '.join(held)}: say whose with `client`.")
    return load_client_model(folder, client or held[0], set_name)


def _load_published(
    files: PublishedFiles,
    client: str | None,
    set_name: str,
    base_model: str | None,
    backbone_options: Mapping[str, Any],
) -> TapModel:
    pairs = of_client(published_pairs(files), client, set_name, files.source)
    backbone = open_base(pairs, base_model, backbone_options)
    adapters = {pair.pair: pair.adapter() for pair in pairs}
    lora = {pair.pair: lora_options(backbone, pair, adapters[pair.pair]) for pair in pairs}
    model = TapModel(backbone, [task for pair in pairs for task in pair.tasks], lora, seed=0)
    for pair in pairs:
        try:
            model.load({pair.pair: adapters[pair.pair], **pair.heads()})
        except AdapterError as error:
            raise HubError(f"{pair.where} does not fit {pair.base.where}: {error}") from error
    return model


def open_base(pairs: Iterable[PublishedPair], base_model: str | None, options: Mapping[str, Any]) -> Backbone:
    """Load the backbone that published adapters are for.

    Args:
        pairs: adapters of one source.
        base_model: where it is, if not where they say.
        options: of `load_backbone`.

    Raises:
        HubError: if they are for several backbones, or if the one they are for is not there any more.
    """
    bases = {pair.base: pair for pair in pairs}
    if len(bases) != 1:
        raise HubError(f"The adapters are for several base models: {', '.join(sorted(b.where for b in bases))}.")
    [(base, pair)] = bases.items()
    if base_model is None and base.name == TINY and base.sha256 not in (None, tiny_checksum()):
        raise HubError(
            f'{pair.files.source} is for the "{TINY}" backbone of another version of tap_hf, whose weights differ. '
            "Install that version, or name a copy of its backbone as the base model."
        )
    if base_model is None and Path(base.name).exists() and base.name != TINY:
        raise HubError(f"{pair.files.source} names {base.name} as its base model, and a folder here has that name.")
    try:
        revision = base.revision if base_model is None else None
        return load_backbone(base_model or base.name, revision=revision, **options)
    except BackboneError as error:
        raise HubError(f"{pair.files.source} is for {base.where}, which does not load: {error}") from error


def lora_options(backbone: Backbone, pair: PublishedPair, tensors: Mapping[str, Tensor]) -> LoraOptions:
    """Return the options by which a model gets the very layers that an adapter has tensors for.

    Raises:
        HubError: if the backbone lacks one of these layers, or if the configuration does not fit the tensors.
    """
    modules = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}
    if not any(rank_dimension(name) is not None and t.dim() == 2 for name, t in tensors.items()):
        raise HubError(f"{pair.where} has no LoRA tensors.")
    towers, layers = _places(backbone, pair, modules)
    config = pair.config
    options = {name: config[name] for name in _SHAPE_OPTIONS if config.get(name)}
    largest = max(t.shape[d] for n, t in tensors.items() if (d := rank_dimension(n)) is not None and t.dim() == 2)
    problems = [*lora_option_problems(options), *_number_problems(config, options, largest)]
    if problems:
        raise HubError(f"{pair.where}: its adapter_config.json does not fit its tensors: {'; '.join(problems)}.")
    return LoraOptions(config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0), layers, towers, options)


def _number_problems(config: Mapping[str, Any], options: Mapping[str, Any], largest: int) -> Iterator[str]:
    """Yield what is wrong with the numbers of a configuration, of which a wrong one could fill the memory."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type: needed LORA, got {config.get('peft_type')!r}"
    pattern = options.get("rank_pattern", {})
    for rank in (config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())):
        if not isinstance(rank, int) or not 0 < rank <= largest:
            yield f"r: needed {largest} at most, got {rank!r}"
    for name, value in (("lora_alpha", config.get("lora_alpha")), ("lora_dropout", config.get("lora_dropout", 0.0))):
        if not isinstance(value, int | float) or not 0 <= value < (math.inf if name == "lora_alpha" else 1):
            yield f"{name}: needed a number, got {value!r}"


def _places(backbone: Backbone, pair: PublishedPair, modules: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return towers and short names of layers that stand for exactly these layers of the backbone."""
    linear = [name for name, module in backbone.model.named_modules() if isinstance(module, nn.Linear)]
    if unknown := sorted(modules - set(linear)):
        raise HubError(
            f"{pair.where} has tensors for {len(unknown)} layers that {backbone.source} lacks (first: {unknown[0]}). "
            f"It is for {pair.base.where}: use that as the base model."
        )
    own = backbone.towers_of(pair.tasks[0].pair.modalities)
    towers = tuple(t for t in own if any(re.fullmatch(backbone.lora_targets([t], None), name) for name in modules))
    layers = tuple(sorted({short_name(name) for name in modules}))
    if not towers or modules != _targets(backbone, towers, layers, linear):
        raise HubError(f"{pair.where} has tensors for other layers than a recipe can name; it loads with plain PEFT.")
    return towers, layers


def _targets(backbone: Backbone, towers: Iterable[Tower], layers: Iterable[str], linear: Iterable[str]) -> set[str]:
    try:
        pattern = re.compile(backbone.lora_targets(list(towers), list(layers)))
    except BackboneError:
        return set()
    return {name for name in linear if pattern.fullmatch(name)}
