"""The live model (backbone, adapters and heads), adapters as values, and inputs ready for it."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.models.adapters import (
        Adapters,
        LiveParameters,
        combined,
        equal,
        is_finite,
        load_adapters,
        padded_to,
        rank_dimension,
        save_adapters,
        select,
        with_rank,
        zeros_like,
    )
    from tap_hf.models.backbones import Cut, Prefix, Tower, load_backbone
    from tap_hf.models.backbones.base import IGNORED, Backbone, Encoding
    from tap_hf.models.backbones.tiny import checkpoint_dir
    from tap_hf.models.build import build_model, open_backbone
    from tap_hf.models.config import BackboneReference
    from tap_hf.models.encoding import ExampleEncoder
    from tap_hf.models.heads.distillation_loss import softened_kl
    from tap_hf.models.inputs import Example, as_rgb
    from tap_hf.models.lora import LoraOptions, scaling_of
    from tap_hf.models.peft_folder import adapter_files
    from tap_hf.models.pretrained_files import open_files
    from tap_hf.models.tap_model import TapModel
    from tap_hf.models.tensor_dataset import Batch, TensorDataset, TokenSequences, joined, selected
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
