"""Heads: one file for each kind of output."""

from collections.abc import Mapping
from dataclasses import replace

from tap_hf.models.backbones import Backbone
from tap_hf.models.heads.base import TaskHead
from tap_hf.models.heads.classification import ClassificationHead
from tap_hf.models.heads.image_generation import ImageGenerationHead
from tap_hf.models.heads.text_generation import DecoderHead, LanguageModelHead
from tap_hf.models.lora import LoraOptions, shared_components
from tap_hf.pairs import Modality
from tap_hf.tasks.task import Task

__all__ = ["Task", "TaskHead", "build_head", "fitted"]


def fitted(task: Task, backbone: Backbone, shared: Mapping[str, LoraOptions]) -> Task:
    """Return a task with its shared adapters on this backbone, and whether it needs a head."""
    has_head = not (backbone.generates_text and task.pair.output is Modality.TEXT)
    adapters = shared_components(task.pair, backbone.towers_of(task.pair.modalities), shared)
    return replace(task, shared=adapters, has_head=has_head)


def build_head(task: Task, backbone: Backbone) -> TaskHead:
    """Return a new head for a task, with weights from torch's global generator."""
    if task.pair.output is None:
        return ClassificationHead(backbone, task.pair, len(task.labels))
    if task.pair.output is Modality.IMAGE:
        return ImageGenerationHead(backbone, task.pair, task.image_size)
    text_head = LanguageModelHead if backbone.generates_text else DecoderHead
    return text_head(backbone, task.pair, task.max_target_length)
