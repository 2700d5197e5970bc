"""Requests to the Hub, with retries and understandable errors."""

import contextlib
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from tap_hf.errors import HubError, TapError
from tap_hf.hub_guard import bounded, retry_after, usage_so_far

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES = 5
_MAX_FILES = 10_000
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def open_api(token: str | None) -> HfApi:
    """Return a client of the Hub at `HF_ENDPOINT`, with this token or the saved one; use it within `explained`."""
    return HfApi(token=token, library_name="tap_hf")


@dataclass(frozen=True)
class Listing:
    """A repository at one commit, with the sizes of its files in bytes, by path."""

    repo_id: str
    commit: str
    private: bool
    sizes: Mapping[str, int]


def list_files(repo_id: str, revision: str | None, token: str | None) -> Listing:
    """Return the files of a repository at a branch, tag or commit, by default the main branch.

    Raises:
        HubError: if it cannot be read.
    """
    api, what = open_api(token), f"Read {repo_id}"
    with explained(repo_id, revision):
        info = with_retries(lambda: api.model_info(repo_id, revision=revision), what)
        commit = str(info.sha)
        tree = with_retries(lambda: _first(api.list_repo_tree(repo_id, recursive=True, revision=commit)), what)
    if len(tree) > _MAX_FILES:
        raise HubError(f"{repo_id} has more than {_MAX_FILES:,} files, expected fewer. Nothing was loaded.")
    sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    wrong = [(path, size) for path, size in sizes.items() if not _is_a_file(path, size)]
    if wrong or not _COMMIT.fullmatch(commit):
        got = f"a file {str(wrong[0])[:200]}" if wrong else f"the commit {commit[:100]!r}"
        raise HubError(f"{repo_id}: the server's answer is not one of the Hub: it has {got}. Check HF_ENDPOINT.")
    return Listing(repo_id, commit, bool(info.private), sizes)


def _is_a_file(path: object, size: object) -> bool:
    return isinstance(path, str) and isinstance(size, int) and not isinstance(size, bool) and size >= 0


def _first(tree: Iterable[T]) -> list[T]:
    return list(itertools.islice(tree, _MAX_FILES + 1))


def download(listing: Listing, path: str, token: str | None) -> Path:
    """Return the local path of a repository's file, downloaded if it is not in the cache."""
    api, repo_id, commit = open_api(token), listing.repo_id, listing.commit
    with explained(repo_id, commit, listing.sizes[path]):
        return Path(
            with_retries(
                lambda: hf_hub_download(repo_id, path, revision=commit, token=token, endpoint=api.endpoint),
                f"Download {path}",
            )
        )


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    revision: str | None,
    message: str,
    kept: str | None = None,
) -> str:
    """Upload a folder in one commit, and return the commit's URL; the repository is created if missing.

    A file called `kept` is not uploaded if the repository has one already.

    Raises:
        HubError: if the Hub refuses or cannot be reached; the repository is then unchanged.
    """
    api, what = open_api(token), f"Push to {repo_id}"
    upload = partial(api.upload_folder, repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
    with explained(repo_id, revision):
        with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True), what)
        has_one = kept and with_retries(lambda: api.file_exists(repo_id, kept, revision=revision), what)
        return str(with_retries(lambda: upload(ignore_patterns=kept if has_one else None), what).commit_url)


def check_repo_id(text: str) -> None:
    """Raise unless a repository of the Hub may have this name.

    Raises:
        HubError: if it cannot exist.

    Examples:
        >>> check_repo_id("org/clinic_a")
    """
    try:
        if text.count("/") != 1:
            raise HFValidationError("a repository has an owner")
        validate_repo_id(text)
    except HFValidationError as error:
        raise _no_repo_id(text) from error


def _no_repo_id(text: str) -> HubError:
    return HubError(
        f'"{text}" is not the name of a repository; expected ORG/NAME, each of at most 96 letters, digits, "-", "_" or '
        '".", without "--" and "..", not starting or ending with "-" or ".", and not ending in ".git".'
    )


@contextlib.contextmanager
def explained(repo_id: str, revision: str | None = None, expected_size: int | None = None) -> Iterator[None]:
    """Bound requests about a repository, and turn their errors into a `HubError` that says what to do.

    A file that is downloaded may have at most `expected_size` bytes.
    """
    with bounded(expected_size), _explained(repo_id, revision):
        yield


@contextlib.contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except TapError:
        raise
    except HFValidationError as error:
        raise _no_repo_id(repo_id) from error
    except GatedRepoError as error:
        raise HubError(f"{repo_id} is gated: ask for access on its page, then log in with `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"There is no repository {repo_id}, or it is private and the token cannot read it. Check the name; log in "
            "with `hf auth login`, or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo_id} has no revision {revision}. Name a branch, tag or commit that it has.") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id} cannot be reached: HF_HUB_OFFLINE is set. Unset it to use the Hub.") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"{repo_id} needs a token: log in with `hf auth login`, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise HubError(_http_message(repo_id, error)) from error
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # of a download without a connection
            raise HubError(f"{repo_id} cannot be downloaded: {_first_line(error.__cause__ or error)}") from error
        raise HubError(f"{repo_id} lacks a file: {_first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise HubError(f"{repo_id}: {_first_line(error.__cause__ or error)}. Try again.") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # of `huggingface_hub`, which expects others
        raise _not_of_the_hub(repo_id, error) from error
    except Exception as error:
        if _is_bad_answer(error):
            raise _not_of_the_hub(repo_id, error) from error
        if not is_connection_lost(error):
            raise
        raise HubError(
            f"Lost the connection to the Hub ({_first_line(error)}); {usage_so_far()}. No partial commit was made."
        ) from error


def _not_of_the_hub(repo_id: str, error: BaseException) -> HubError:
    return HubError(
        f"{repo_id}: the server's answer is not one of the Hub ({type(error).__name__}: {_first_line(error)}). "
        "Check HF_ENDPOINT."
    )


def _is_bad_answer(error: BaseException) -> bool:
    """Return whether httpx cannot read or follow an answer: redirects in circles, wrong addresses and encodings."""
    return any(kind.__name__ in ("TooManyRedirects", "DecodingError", "InvalidURL") for kind in type(error).__mro__)


def is_transient(error: BaseException) -> bool:
    """Return whether an error is temporary: too many requests, a server error, a lost connection."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # from one of several uploads
        return is_transient(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (429, 500, 502, 503, 504)
    return is_connection_lost(error) and not _is_timeout(error)  # `huggingface_hub` has tried again after these


def _is_timeout(error: BaseException) -> bool:
    return any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__)


def is_connection_lost(error: BaseException) -> bool:
    """Return whether an error is a connection error of httpx or requests."""
    return any(kind.__name__ in ("TransportError", "ConnectionError") for kind in type(error).__mro__)


def with_retries(action: Callable[[], T], what: str, sleep: Callable[[float], None] = time.sleep) -> T:
    """Return the result of a repeatable action, with retries after temporary errors; `what` names it in the log."""
    for attempt in range(1, _TRIES):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            asked = retry_after(error.response) if isinstance(error, HfHubHTTPError) else None
            wait = 2.0 ** (attempt - 1) if asked is None else asked
            logger.warning("%s: %s. Try %d of %d in %.0f s.", what, _first_line(error), attempt + 1, _TRIES, wait)
            sleep(wait)
    return action()


def _http_message(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    reason = error.server_message or _first_line(error)
    if status == 401:
        return f"The Hub refuses the token ({reason}). Log in with `hf auth login`, or set HF_TOKEN to a valid one."
    if status == 403:
        return f"The token has no permission for this on {repo_id} ({reason}). Use one with write access."
    if status == 412:
        return f"Someone else committed to {repo_id} in the meantime; nothing was written. Run the command again."
    if status == 429:
        return f"Too many requests to the Hub ({reason}). Wait a while, then run the command again."
    return f"The Hub answered {status} for {repo_id}: {reason}. No partial commit was made; try again later."


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
