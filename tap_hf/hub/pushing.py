"""Push to the Hub: one commit per push, safe to repeat and to interrupt."""

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
    """The files of an earlier push that a push would delete; `is_public` is `None` for a new repository."""

    deleted: tuple[str, ...]
    is_public: bool | None


@dataclass(frozen=True)
class Pushed:
    """The repository after a push.

    Attributes:
        commit: its head.
        is_new: whether the push made a commit; it makes none if nothing has changed.
        deleted: files of an earlier push that are not part of this one.
    """

    repo_id: str
    url: str
    commit: str
    is_new: bool
    deleted: tuple[str, ...]


def preview(publication: Publication, token: str | None = None) -> Preview:
    """Return what a push would delete, and who can read the repository, without writing.

    Raises:
        HubError: if the Hub refuses, or the repository has other content.
    """
    try:
        there = list_files(publication.repo_id, None, token)
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):  # or someone else's private one, which `push` refuses
            return Preview((), None)
        raise
    return Preview(_outdated(publication, there, token), not there.private)


def push(publication: Publication, *, private: bool = False, token: str | None = None) -> Pushed:
    """Make a repository equal to a publication, in one commit; the repository is created if missing.

    Args:
        publication: all files.
        private: create a private repository; an existing one must be private.
        token: Hub token; by default the one that `hf auth login` saved.

    Raises:
        HubError: if the Hub refuses or cannot be reached, the repository has other content, or someone else commits at
            the same time. The repository is then unchanged.
    """
    api, repo_id = open_api(token), publication.repo_id
    with explained(repo_id):
        with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"Push to {repo_id}")
        before = list_files(repo_id, None, token)
        if private and not before.private:
            raise HubError(f"{repo_id} exists and is public. Make it private on its page, or omit --private.")
        deleted = _outdated(publication, before, token)
        commit = with_retries(lambda: _commit(api, publication, token), f"Push to {repo_id}")
    return Pushed(repo_id, f"{api.endpoint}/{repo_id}", commit, commit != before.commit, deleted)


def _commit(api: HfApi, publication: Publication, token: str | None) -> str:
    """Commit the differences, and return the repository's head; safe to repeat if only the response was lost."""
    there = list_files(publication.repo_id, None, token)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in publication.files.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=path) for path in _outdated(publication, there, token)]
    # `create_commit` drops unchanged files, and makes no empty commit. With `parent_commit`, the Hub refuses the commit
    # if the repository has changed since `there`.
    made = api.create_commit(
        publication.repo_id, operations, commit_message="Push personalized adapters", parent_commit=there.commit
    )
    return str(made.oid)


def _outdated(publication: Publication, there: Listing, token: str | None) -> tuple[str, ...]:
    """Return the files of an earlier push that are not part of this one.

    Raises:
        HubError: if the repository holds another client's model, or a federation's instead of a client's or vice versa.
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
