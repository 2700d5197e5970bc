"""Publish on the Hub: one commit per push, safe to repeat and to interrupt."""

import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from tap_hf.errors import HubError
from tap_hf.hub.comparison import Changes, compare
from tap_hf.hub.publication import Publication, client_publication
from tap_hf.hub_client import explained, open_api, with_retries

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        repo_id: the repository.
        url: its address.
        commit: its head now.
        written: files that are new or changed.
        deleted: files of an earlier push that are no part of this one.
        unchanged: how many files were there already; if all were, no commit was made.
    """

    repo_id: str
    url: str
    commit: str
    written: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: int


def push_client(
    run_dir: Path,
    client: str,
    repo_id: str,
    *,
    pairs: tuple[str, ...] = (),
    private: bool = False,
    base_model: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Publish one client's personal adapters; see `client_publication` and `push`."""
    return push(client_publication(run_dir, client, repo_id, pairs, base_model), private=private, token=token)


def push(publication: Publication, *, private: bool = False, token: str | None = None) -> Pushed:
    """Bring a repository to what a publication says, in one commit; a repository that is not there is made.

    Args:
        publication: all files.
        private: make the repository private; one that exists must be private then.
        token: of the Hub; the one that `hf auth login` saved unless given.

    Raises:
        HubError: if the Hub refuses, if it stays out of reach, if the repository holds something else, or if somebody
            else commits at the same time. The repository is as it was before, then.
    """
    api, repo_id = open_api(token), publication.repo_id
    with explained(repo_id):
        what = f"Push to {repo_id}"
        with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True), what)
        if private and not with_retries(lambda: api.model_info(repo_id), what).private:
            raise HubError(f"{repo_id} is there and public. Make it private on its page, or leave --private out.")
        return with_retries(_Attempt(api, publication), what)


class _Attempt:
    """One try of a push; where it is repeated, it knows whether an answer was lost on the way."""

    def __init__(self, api: HfApi, publication: Publication) -> None:
        self._api = api
        self._publication = publication
        self._before: tuple[str, Changes] | None = None

    def __call__(self) -> Pushed:
        repo_id, files = self._publication.repo_id, self._publication.files
        head = str(self._api.model_info(repo_id).sha)
        changes = compare(self._api, self._publication, head)
        if self._before is not None and self._before[0] != head:
            if not changes.is_empty:
                raise HubError(f"Somebody else committed to {repo_id} meanwhile. Run the command again.")
            changes = self._before[1]  # the commit was made, and only the answer was lost
        elif not changes.is_empty:
            self._before = (head, changes)
            head = self._commit(head, changes)
        unchanged = len(files) - len(changes.written)
        return Pushed(repo_id, f"{self._api.endpoint}/{repo_id}", head, changes.written, changes.deleted, unchanged)

    def _commit(self, head: str, changes: Changes) -> str:
        repo_id, files = self._publication.repo_id, self._publication.files
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=files[path]) for path in changes.written
        ]
        operations += [CommitOperationDelete(path_in_repo=path) for path in changes.deleted]
        # The parent makes the Hub refuse what was compared with an older state.
        made = self._api.create_commit(
            repo_id, operations, commit_message="Push personalized adapters", parent_commit=head
        )
        return made.oid
