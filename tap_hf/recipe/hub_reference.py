"""Single files of the Hub by name: `hub://ORG/NAME/path[@REVISION]`, `hub://datasets/ORG/NAME/path[@REVISION]`."""

import codecs
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import RemoteEntryNotFoundError

from tap_hf.errors import HubError
from tap_hf.hub_client import check_repo_id, explained, open_api, with_retries
from tap_hf.limits import HUB_FILE_BYTES
from tap_hf.recipe.yaml_text import MAX_TEXT

_NAME = r"[A-Za-z0-9][\w.-]*"
_FORM = re.compile(
    rf"hub://(?P<data>datasets/)?(?P<repo>{_NAME}/{_NAME})/(?P<path>[^@\\:]+)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?",
    re.ASCII,
)


_RECIPES = (".yaml", ".yml")
_SUFFIXES = (*_RECIPES, ".csv", ".tsv", ".json", ".jsonl", ".parquet")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # texts with null bytes
_HEAD = 4096  # bytes that tell a text from an archive or a program


@dataclass(frozen=True)
class HubReference:
    """A file of a repository.

    Attributes:
        repo_type: whether it is one of datasets.
        revision: branch, tag or commit; the main branch unless given.
    """

    repo_id: str
    repo_type: Literal["model", "dataset"]
    path: str
    revision: str | None


def parse_reference(text: str) -> HubReference:
    """Return what a reference names.

    Raises:
        HubError: if it has another form, or leads out of the repository.

    Examples:
        >>> parse_reference("hub://datasets/org/notes/north.csv@v1").path
        'north.csv'
    """
    match = _FORM.fullmatch(text)
    parts = set(match["path"].split("/")) | set((match["revision"] or "main").split("/")) if match else set()
    if match is None or parts & {"", ".", ".."} or not text.isprintable():
        raise HubError(
            f'"{text}" names no file of the Hub, expected hub://ORG/NAME/path[@REVISION] or, of a dataset, '
            "hub://datasets/ORG/NAME/path[@REVISION]."
        )
    if not match["path"].lower().endswith(_SUFFIXES):
        raise HubError(
            f'"{text}" is neither a table nor a recipe; expected a file that ends in {", ".join(_SUFFIXES)}.'
        )
    check_repo_id(match["repo"])
    return HubReference(match["repo"], "dataset" if match["data"] else "model", match["path"], match["revision"])


@functools.cache  # so that all of a run reads one commit
def fetch(text: str) -> Path:
    """Return where a reference's file lies on this machine, downloaded if need be.

    Raises:
        HubError: if it has another form, cannot be downloaded, or is not what its suffix says.
    """
    reference, api = parse_reference(text), open_api(None)
    repo_id, kind, path, revision = reference.repo_id, reference.repo_type, reference.path, reference.revision
    most = MAX_TEXT if path.lower().endswith(_RECIPES) else int(HUB_FILE_BYTES.value)
    with explained(repo_id, revision, most):
        try:
            file = with_retries(
                lambda: api.hf_hub_download(repo_id, path, repo_type=kind, revision=revision), f"Download {text}"
            )
        except RemoteEntryNotFoundError as error:
            raise HubError(f"{repo_id} has no file {path}. Name one that its page shows.") from error
    _check_content(text, Path(file))
    return Path(file)


def _check_content(text: str, file: Path) -> None:
    """Raise unless a file starts as its suffix says: archives would be unpacked."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if text.partition("@")[0].lower().endswith(".parquet"):
        fits = head.startswith(b"PAR1")
    else:
        fits = head.startswith(_WIDE_MARKS) or not _BINARY.search(head)
    if not fits:
        raise HubError(f'"{text}" is not what its suffix says: it starts with {head[:8]!r}. Do not trust it.')
