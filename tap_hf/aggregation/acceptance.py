"""Checks of an update before the server averages it."""

from collections.abc import Mapping

from tap_hf.aggregation.clipping import update_norm
from tap_hf.errors import AdapterError, UpdateRefusedError
from tap_hf.models.adapters import Adapters, check_matches, is_finite, select, zeros_like
from tap_hf.pairs import Component


def check_update(
    regular: Adapters,
    num_examples: Mapping[Component, int],
    extra: Mapping[str, Adapters],
    sent: Adapters,
    max_norm: float,
) -> None:
    """Check an update.

    Args:
        regular: the client's regular set: those of the components that it trained.
        num_examples: training examples by component.
        extra: what the client sends beside its set, by name.
        sent: the components that the server sent to the client.
        max_norm: the largest Euclidean distance of `regular` from `sent`, and of each of `extra` from zero, over all
            tensors.

    Raises:
        UpdateRefusedError: for other components, keys, shapes or dtypes, values that are not finite, counts that are
            not positive, and an update that is too large.
    """
    _check_set(regular, select(sent, frozenset(regular)), sent, "the update", max_norm)
    if regular.keys() != num_examples.keys():
        raise UpdateRefusedError(
            f"expected the numbers of examples of {', '.join(sorted(regular)) or 'nothing'}, got those of "
            f"{', '.join(sorted(num_examples)) or 'nothing'}"
        )
    if bad := sorted(c for c, count in num_examples.items() if not isinstance(count, int) or count <= 0):
        raise UpdateRefusedError(
            f"the number of examples of {bad[0]} is {num_examples[bad[0]]!r}, expected a positive one"
        )
    for name, change in extra.items():
        _check_set(change, None, sent, f'"{name}" beside the update', max_norm)


def _check_set(given: Adapters, start: Adapters | None, template: Adapters, what: str, max_norm: float) -> None:
    """Check components, tensors, values, and the distance from the start, which is zero unless given."""
    try:
        check_matches(given, template, what)
    except AdapterError as error:
        raise UpdateRefusedError(str(error)) from error
    if not is_finite(given):
        raise UpdateRefusedError(f"{what} has NaN or infinite values; is the learning rate too high?")
    if (norm := update_norm(given, zeros_like(given) if start is None else start)) > max_norm:
        raise UpdateRefusedError(
            f"the norm of {what} is {norm:.4g}, expected at most {max_norm:.4g} (federation.max_update_norm)"
        )
