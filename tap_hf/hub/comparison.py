"""What a push changes in a repository, and whether the repository is one that it may change."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from tap_hf.errors import HubError
from tap_hf.hub.layout import PairFolder, is_ours, pair_folders
from tap_hf.hub.publication import Publication
from tap_hf.hub.safety import read_json
from tap_hf.hub_client import explained, open_api, with_retries
from tap_hf.models.peft_export import TASKS_FILE


@dataclass(frozen=True)
class Changes:
    """What a push writes and deletes.

    Attributes:
        written: files that are new or changed.
        deleted: files of an earlier push that are no part of this one.
    """

    written: tuple[str, ...]
    deleted: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the repository is as the publication says."""
        return not self.written and not self.deleted


@dataclass(frozen=True)
class Preview:
    """A repository as it is before a push.

    Attributes:
        changes: of the push.
        is_public: whether everybody reads it; `None` if it is not there yet.
    """

    changes: Changes
    is_public: bool | None


def preview(publication: Publication, token: str | None = None) -> Preview:
    """Return what a push would do; nothing is written.

    Raises:
        HubError: if the Hub refuses, or if the repository holds something else.
    """
    api, repo_id = open_api(token), publication.repo_id
    with explained(repo_id):
        try:
            info = with_retries(lambda: api.model_info(repo_id), f"Read {repo_id}")
        except RepositoryNotFoundError:  # or a private one of others, which a push finds out
            return Preview(Changes(tuple(publication.files), ()), None)
        changes = with_retries(lambda: compare(api, publication, str(info.sha)), f"Read {repo_id}")
        return Preview(changes, not info.private)


def compare(api: HfApi, publication: Publication, commit: str) -> Changes:
    """Return what differs between a publication and a repository, by the checksums that the Hub keeps.

    Raises:
        HubError: if the repository holds adapters of another client, or of a federation where the publication is one
            client's, or the other way round.
    """
    repo_id, files = publication.repo_id, publication.files
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    held, own = pair_folders(there), pair_folders(files)
    if held and own:
        if (kind := _kind(held[0])) != _kind(own[0]):
            raise HubError(
                f"{repo_id} holds {kind}, and this push is of {_kind(own[0])}, which would delete them. "
                "Choose another --repo-id, or delete these files on its page."
            )
        if _kind(own[0]) == _ONE:
            path = held[0].file(TASKS_FILE)
            other = read_json(repo_id, path, Path(api.hf_hub_download(repo_id, path, revision=commit))).get("client")
            client = json.loads(files[own[0].file(TASKS_FILE)])["client"]
            if other != client:
                raise HubError(
                    f'{repo_id} holds the adapters of client "{other}", and this push is of "{client}", which would '
                    "delete them. Choose another --repo-id, such as one with {client} in it."
                )
    written = tuple(path for path, content in files.items() if not _is_equal(content, there.get(path)))
    return Changes(written, tuple(sorted(path for path in there if is_ours(path) and path not in files)))


_ONE, _ALL = "the adapters of one client", "the adapters of a federation"


def _kind(folder: PairFolder) -> str:
    return _ALL if folder.is_global or folder.client is not None else _ONE


def _is_equal(content: bytes, remote: RepoFile | None) -> bool:
    if remote is None:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own
