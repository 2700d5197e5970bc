"""A client of a finished run, for what its user does next."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tap_hf.models.tap_model import TapModel

if TYPE_CHECKING:
    from tap_hf.hub.push import Pushed


@dataclass(frozen=True)
class RunClient:
    """A client of a finished run.

    Attributes:
        directory: the run directory.
        id: the client's name there.
    """

    directory: Path
    id: str

    def load(self, set_name: str = "personal") -> TapModel:
        """Return the live model with one of the client's sets; see `TapModel.from_pretrained`."""
        return TapModel.from_pretrained(self.directory, self.id, set_name=set_name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        pairs: Sequence[str] = (),
        private: bool = False,
        base_model: str | None = None,
        token: str | None = None,
    ) -> "Pushed":
        """Publish the client's personal adapters on the Hub, in one commit; safe to repeat.

        Args:
            repo_id: the repository, `ORG/NAME`; it is made if it is not there.
            pairs: which of the client's pairs; all unless given.
            private: make the repository private.
            base_model: the Hub id under which others find the backbone, if the run had it from a folder.
            token: of the Hub; the one that `hf auth login` saved unless given.

        Raises:
            HubError: if the Hub refuses, or stays out of reach.

        Example:
            >>> result.clients["clinic_a"].push_to_hub("org/clinic_a", private=True)  # doctest: +SKIP
        """
        # Late, so that who publishes nothing imports nothing of the Hub.
        from tap_hf.hub.push import push_client

        return push_client(
            self.directory, self.id, repo_id, pairs=tuple(pairs), private=private, base_model=base_model, token=token
        )
