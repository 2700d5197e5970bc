"""What is asked of a model, and how it is judged."""

from tap_hf.tasks.task import Task

__all__ = ["Task"]
