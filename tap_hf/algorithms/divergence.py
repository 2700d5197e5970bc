"""What happens to sets whose training gave NaN or infinite values."""

from collections.abc import Mapping

from tap_hf.algorithms.base import ClientResult
from tap_hf.errors import UpdateRefusedError
from tap_hf.models.adapters import Adapters, is_finite


def refuse_diverged(**sets: Adapters) -> None:
    """Raise unless all values of the named sets are finite.

    Raises:
        UpdateRefusedError: naming the set.
    """
    for name, adapters in sets.items():
        if not is_finite(adapters):
            raise UpdateRefusedError(
                f"training the {name} set gave NaN or infinite values; is the learning rate too high?"
            )


def result_of(client: str, sets: Mapping[str, Adapters], fallback: Adapters) -> ClientResult:
    """Return a result; the fallback replaces a `personal` set that diverged."""
    diverged = [name for name, adapters in sets.items() if not is_finite(adapters)]
    return ClientResult(client, {**sets, "personal": fallback} if "personal" in diverged else sets, diverged)
