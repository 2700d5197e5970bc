"""Task families: one file for each kind of output."""

from tap_hf.backbones.base import Backbone
from tap_hf.pairs import Modality
from tap_hf.tasks.base import Task, TaskHead
from tap_hf.tasks.classification import ClassificationHead
from tap_hf.tasks.image_generation import ImageGenerationHead
from tap_hf.tasks.text_generation import IGNORED, TextGenerationHead

__all__ = ["IGNORED", "Task", "TaskHead", "build_head"]


def build_head(task: Task, backbone: Backbone) -> TaskHead:
    """Return a fresh head for a task; it draws its weights from torch's global generator."""
    if task.pair.output is None:
        return ClassificationHead(backbone.hidden_size, len(task.labels))
    if task.pair.output is Modality.TEXT:
        return TextGenerationHead(backbone, task.max_target_length)
    return ImageGenerationHead(backbone.hidden_size, backbone.num_patches, task.image_size)
