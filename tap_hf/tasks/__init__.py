"""Tasks of clients, their metrics and their results."""

from tap_hf.tasks.task import Task

__all__ = ["Task"]
