"""What methods are compared with: the backbone as it is, under heads that are trained on a client's own data."""

from tap_hf.adapters import Adapters
from tap_hf.algorithms.base import Work
from tap_hf.pairs import head_component


def trained_heads(work: Work, steps: int) -> Adapters:
    """Return the client's components as they start, with trained heads; adapters add nothing to the backbone then."""
    heads = work.client.components & {head_component(task) for task in work.client.tasks}
    return work.train(work.initial, "backbone", steps=steps if heads else 0, components=heads).adapters
