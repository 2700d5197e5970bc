"""Publish on the Hub: one commit per push, safe to repeat and to interrupt."""

import json
import logging
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from tap_hf.errors import HubError
from tap_hf.hub.layout import RECORD_FILE, is_ours, model_folders
from tap_hf.hub.publication import Publication
from tap_hf.hub_client import Listing, download, explained, list_files, open_api, with_retries

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """A repository as it is before a push.

    Attributes:
        deleted: files of an earlier push that are not part of this one.
        is_public: whether everybody reads it; `None` if it is not there yet.
    """

    deleted: tuple[str, ...]
    is_public: bool | None


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        repo_id: the repository.
        url: its address.
        commit: its head now.
        is_new: whether a commit was made; there is none if all files were there already.
        deleted: files of an earlier push that are not part of this one.
    """

    repo_id: str
    url: str
    commit: str
    is_new: bool
    deleted: tuple[str, ...]


def preview(publication: Publication, token: str | None = None) -> Preview:
    """Return what a push would delete, and for whom; nothing is written.

    Raises:
        HubError: if the Hub refuses, or if the repository holds something else.
    """
    try:
        there = list_files(publication.repo_id, None, token)
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):  # or a private one of others, which a push finds out
            return Preview((), None)
        raise
    return Preview(_outdated(publication, there, token), not there.private)


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
        with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"Push to {repo_id}")
        before = list_files(repo_id, None, token)
        if private and not before.private:
            raise HubError(f"{repo_id} is there and public. Make it private on its page, or leave --private out.")
        deleted = _outdated(publication, before, token)
        commit = with_retries(lambda: _commit(api, publication, token), f"Push to {repo_id}")
    return Pushed(repo_id, f"{api.endpoint}/{repo_id}", commit, commit != before.commit, deleted)


def _commit(api: HfApi, publication: Publication, token: str | None) -> str:
    """Commit what differs, and return the repository's head; nothing differs where only the answer was lost before."""
    there = list_files(publication.repo_id, None, token)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in publication.files.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=path) for path in _outdated(publication, there, token)]
    # `create_commit` drops unchanged files, and makes no empty commit. The parent makes the Hub refuse what was
    # compared with an older state.
    made = api.create_commit(
        publication.repo_id, operations, commit_message="Push personalized adapters", parent_commit=there.commit
    )
    return str(made.oid)


def _outdated(publication: Publication, there: Listing, token: str | None) -> tuple[str, ...]:
    """Return the files of an earlier push that are not part of this one.

    Raises:
        HubError: if the repository holds the model of another client, or of a federation where the publication is one
            client's, or the other way round.
    """
    repo_id, files = publication.repo_id, publication.files
    held, own = model_folders(there.sizes), model_folders(files)
    if held and own:
        if (kind := _kind(held)) != _kind(own):
            raise HubError(
                f"{repo_id} holds {kind}, and this push is of {_kind(own)}, which would delete them. "
                "Choose another --repo-id, or delete these files on its page."
            )
        if "" in own and RECORD_FILE in there.sizes:
            client, other = _client(files[RECORD_FILE]), _client(download(there, RECORD_FILE, token).read_bytes())
            if other != client:
                raise HubError(
                    f'{repo_id} holds the adapters of client "{other}", and this push is of "{client}", which would '
                    "delete them. Choose another --repo-id, such as one with {client} in it."
                )
    return tuple(sorted(path for path in there.sizes if is_ours(path) and path not in files))


def _kind(folders: list[str]) -> str:
    return "the adapters of one client" if "" in folders else "the adapters of a federation"


def _client(record: bytes) -> str:
    try:
        return ", ".join(json.loads(record)["recipe"]["clients"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
