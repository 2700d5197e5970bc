"""Checks of an update before the server averages it."""

from collections.abc import Mapping

from tap_hf.aggregation.clipping import update_norm
from tap_hf.errors import AdapterError, UpdateRefusedError
from tap_hf.models.adapters import Adapters, check_matches, is_finite
from tap_hf.pairs import Component


def check_update(regular: Adapters, num_examples: Mapping[Component, int], sent: Adapters, max_norm: float) -> None:
    """Check an update.

    Args:
        regular: the client's regular set.
        num_examples: training examples by component.
        sent: the components that the server sent to the client.
        max_norm: the largest Euclidean distance from `sent`, over all tensors.

    Raises:
        UpdateRefusedError: for other components, keys, shapes or dtypes, values that are not finite, counts that are
            not positive, and an update that is too large.
    """
    try:
        check_matches(regular, sent, "the update")
    except AdapterError as error:
        raise UpdateRefusedError(str(error)) from error
    if regular.keys() != sent.keys() or num_examples.keys() != sent.keys():
        raise UpdateRefusedError(
            f"expected the components {', '.join(sorted(sent))} with their counts, got {', '.join(sorted(regular))}"
        )
    if bad := sorted(c for c, count in num_examples.items() if not isinstance(count, int) or count <= 0):
        raise UpdateRefusedError(
            f"the number of examples of {bad[0]} is {num_examples[bad[0]]!r}, expected a positive one"
        )
    if not is_finite(regular):
        raise UpdateRefusedError("it holds NaN or infinite values; is the learning rate too high?")
    if (norm := update_norm(regular, sent)) > max_norm:
        raise UpdateRefusedError(
            f"its norm is {norm:.4g}, expected at most {max_norm:.4g} (federation.max_update_norm)"
        )
