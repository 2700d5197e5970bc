"""Adapters as they were published: found, checked and read, from a repository or from a folder."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tap_hf.errors import AdapterError, HubError, did_you_mean
from tap_hf.hub.layout import PairFolder, pair_folders
from tap_hf.hub.publication import BaseModel
from tap_hf.hub.safety import check_names, check_weights, is_inside, read_json
from tap_hf.hub_client import explained, open_api, with_retries
from tap_hf.models.adapters import Adapters, is_finite, load_adapters
from tap_hf.models.peft_export import ADAPTER_FILE, CONFIG_FILE, HEAD_FILE, TASKS_FILE
from tap_hf.pairs import NAME_PATTERN, head_component
from tap_hf.tasks import Task

_MAX_SIDE = 4096  # pixels of a generated image
_MAX_TOKENS = 65_536  # of a generated text


@dataclass(frozen=True)
class PublishedFiles:
    """The files of a repository at one commit, or of a folder; each is fetched when it is asked for.

    Attributes:
        source: the repository with its commit, or the folder, for messages.
        sizes: in bytes, by path.
        fetch: returns where a file lies on this machine.
    """

    source: str
    sizes: Mapping[str, int]
    fetch: Callable[[str], Path]

    def path(self, name: str) -> Path:
        """Return where a file lies on this machine.

        Raises:
            HubError: if there is none of that name, or if it is not what its name says.
        """
        if name not in self.sizes:
            raise HubError(f"{self.source} lacks {name}. Ask its owner to push again.")
        file = self.fetch(name)
        if name.endswith(".safetensors"):
            check_weights(self.source, name, file)
        return file

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file."""
        return read_json(self.source, name, self.path(name))


def repo_files(repo_id: str, revision: str | None, token: str | None) -> PublishedFiles:
    """Return the files of a repository.

    Raises:
        HubError: if it cannot be read, or if its file names are not those of adapters.
    """
    api = open_api(token)
    with explained(repo_id, revision):
        what = f"Read {repo_id}"
        commit = str(with_retries(lambda: api.model_info(repo_id, revision=revision), what).sha)
        tree = with_retries(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)), what)
    sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    check_names(repo_id, sizes)
    return PublishedFiles(f"{repo_id}@{commit[:12]}", sizes, lambda path: _download(api, repo_id, commit, path))


def folder_files(folder: Path) -> PublishedFiles:
    """Return the files of a folder that `tap-hf pull` wrote.

    Raises:
        HubError: if its file names are not those of adapters.
    """
    found = [file for file in folder.rglob("*") if file.is_file() and is_inside(folder, str(file.relative_to(folder)))]
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in found}
    check_names(str(folder), sizes)
    return PublishedFiles(str(folder), sizes, lambda path: folder / path)


def _download(api: HfApi, repo_id: str, commit: str, path: str) -> Path:
    with explained(repo_id, commit):
        return Path(
            with_retries(
                lambda: hf_hub_download(repo_id, path, revision=commit, token=api.token, endpoint=api.endpoint),
                f"Download {path}",
            )
        )


@dataclass(frozen=True)
class PublishedPair:
    """The adapter of one pair, of one client or of the federation; weights are read when they are asked for.

    Attributes:
        files: where it comes from.
        folder: its place there.
        client: whose it is; `None` for the federation's own.
        pair: the pair's name.
        base: the backbone that it is for.
        tasks: those that it was trained for.
        config: PEFT's configuration.
    """

    files: PublishedFiles
    folder: PairFolder
    client: str | None
    pair: str
    base: BaseModel
    tasks: tuple[Task, ...]
    config: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"{self.files.source}: {self.folder.path or 'its root'}"

    def adapter(self) -> Mapping[str, Tensor]:
        """Return the tensors of the adapter.

        Raises:
            HubError: if the file is damaged, or holds values that are not finite.
        """
        name = self.folder.file(ADAPTER_FILE)
        try:
            tensors = load_file(self.files.path(name))
        except SafetensorError as error:
            raise HubError(f"{self.files.source}: {name} is damaged ({error}). Ask its owner to push again.") from error
        if not tensors or not is_finite({self.pair: tensors}):
            raise HubError(f"{self.files.source}: {name} holds no tensors, or values that are not finite.")
        return tensors

    def heads(self) -> Adapters:
        """Return the heads of its tasks.

        Raises:
            HubError: if one is missing, or if the file is damaged.
        """
        if not (wanted := {head_component(task.name) for task in self.tasks if task.has_head}):
            return {}
        name = self.folder.file(HEAD_FILE)
        try:
            heads, _ = load_adapters(self.files.path(name))
        except (AdapterError, ValueError, TypeError) as error:
            raise HubError(f"{self.files.source}: {name} is damaged ({error}). Ask its owner to push again.") from error
        if missing := sorted(wanted - heads.keys()):
            raise HubError(f"{self.files.source}: {name} lacks {', '.join(missing)}, so its tasks cannot be answered.")
        if not is_finite(heads):
            raise HubError(f"{self.files.source}: {name} holds values that are not finite.")
        return {component: heads[component] for component in sorted(wanted)}


def published_pairs(files: PublishedFiles) -> list[PublishedPair]:
    """Return all adapters that were published, with their tasks read and checked.

    Raises:
        HubError: if there are none, or if one is not what `tap-hf push` writes.
    """
    if not (found := list(_read_pairs(files))):
        raise HubError(f"{files.source} holds no adapters of `tap-hf push`: it lacks {TASKS_FILE}.")
    return found


def _read_pairs(files: PublishedFiles) -> Iterator[PublishedPair]:
    for folder in pair_folders(files.sizes):
        name = folder.file(TASKS_FILE)
        described = files.json(name)
        try:
            tasks = tuple(Task.from_record(task) for task in described["tasks"])
            pair, base = str(described["pair"]), BaseModel(**described["base_model"])
            client = None if folder.is_global else str(folder.client or described["client"])
            if problem := _problem(folder, pair, tasks, client, base):
                raise ValueError(problem)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HubError(f"{files.source}: {name} is not what `tap-hf push` writes ({error!r}).") from error
        yield PublishedPair(files, folder, client, pair, base, tasks, files.json(folder.file(CONFIG_FILE)))


def _problem(folder: PairFolder, pair: str, tasks: tuple[Task, ...], client: str | None, base: BaseModel) -> str | None:
    """Return what is wrong with a description that has the right form."""
    if client is not None and not NAME_PATTERN.fullmatch(client):
        return f"{client!r} is no name of a client"
    if not all(isinstance(value, str | None) for value in (base.revision, base.sha256)) or not base.name:
        return "the base model has no name"
    if folder.path and folder.path.rpartition("/")[2] != pair:
        return f"it describes {pair}"
    for task in tasks:
        if not NAME_PATTERN.fullmatch(task.name) or task.pair.name != pair:
            return f"task {task.name!r} ({task.pair}) has no place in it"
        if not 0 < task.image_size <= _MAX_SIDE or not 0 < task.max_target_length <= _MAX_TOKENS:
            return f"task {task.name!r} generates {task.image_size} pixels or {task.max_target_length} tokens"
        if not all(isinstance(label, str) for label in task.labels):
            return f"task {task.name!r} has labels that are no texts"
    return None if tasks else "it has no tasks"


def of_client(pairs: list[PublishedPair], client: str | None, set_name: str, source: str) -> list[PublishedPair]:
    """Return the pairs of one client, or what the federation has for them.

    Raises:
        HubError: if there is no such client or set, or if several clients are there and none is named.
    """
    clients = sorted({pair.client for pair in pairs if pair.client is not None})
    if client is None and len(clients) > 1:
        raise HubError(f"{source} holds the adapters of {', '.join(clients)}: say whose with `client`.")
    if client is not None and client not in clients:
        raise HubError(f'{source} has no client "{client}"{did_you_mean(client, clients)}')
    own = [pair for pair in pairs if pair.client is not None and client in (None, pair.client)]
    if set_name == "personal":
        return own
    if set_name != "global" or not (shared := [pair for pair in pairs if pair.client is None]):
        known = "personal, global" if any(pair.client is None for pair in pairs) else "personal"
        raise HubError(f'{source} has no set "{set_name}", needed one of {known}.')
    held = {pair.pair for pair in own}
    return [pair for pair in shared if pair.pair in held or not own]
