"""What a push publishes: every file of it, made from a run directory before anything is sent."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from tap_hf.errors import HubError, did_you_mean
from tap_hf.hub.cards.model_card import client_card, federation_card
from tap_hf.hub.layout import (
    CARD_FILE,
    CLIENTS_FOLDER,
    GLOBAL_FOLDER,
    PAIR_FILES,
    PROCESSOR_FOLDER,
    RECORD_FILE,
    is_ours,
)
from tap_hf.hub.redaction import (
    global_tasks,
    published_name,
    published_record,
    withheld_components,
)
from tap_hf.models.backbones import TINY
from tap_hf.models.backbones.tiny import checkpoint_dir
from tap_hf.models.build import build_model, open_backbone
from tap_hf.models.peft_export import ADAPTER_FILE, CONFIG_FILE, HEAD_FILE, TASKS_FILE, export_tasks
from tap_hf.recipe import parse_recipe
from tap_hf.records.directory import RunDirectory
from tap_hf.records.recipe_record import recipe_record
from tap_hf.records.run_record import RUN_FILE, Lineage, RunRecord, read_finished, record_json

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


@dataclass(frozen=True)
class BaseModel:
    """The backbone that published adapters are for.

    Attributes:
        name: a Hub id, or `tiny`.
        revision: the commit of a Hub model, if that is known.
        sha256: of the weights of `tiny`, which has no commit.
    """

    name: str
    revision: str | None = None
    sha256: str | None = None

    @property
    def where(self) -> str:
        """The name, with the revision if it has one."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True)
class Publication:
    """What one repository gets.

    Attributes:
        repo_id: its name.
        files: contents by path.
        notes: what is left out, and why.
    """

    repo_id: str
    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def card(self) -> str:
        """The model card."""
        return self.files[CARD_FILE].decode()


def name_of(run_dir: Path, client: str) -> str:
    """Return the name under which a client of a run is published."""
    return published_name(read_finished(run_dir), client)


def client_publication(
    run_dir: Path, client: str, repo_id: str, pairs: Sequence[str] = (), base_model: str | None = None
) -> Publication:
    """Return one client's personal adapters as a repository of their own.

    Args:
        run_dir: a folder of `tap-hf run`, `pull` or `adopt`.
        client: its id there.
        repo_id: the repository.
        pairs: which of the client's pairs; all unless given. A single one lies at the repository's root.
        base_model: the Hub id, or ID@REVISION, under which others find the backbone, if the run had it from a folder.

    Raises:
        HubError: for an unknown client or pair, or a backbone that others could not find.
    """
    record, base = _checked(run_dir, base_model)
    clients = record.recipe.clients
    if client not in clients:
        raise HubError(f'The run has no client "{client}"{did_you_mean(client, clients)}')
    folder = run_dir / CLIENTS_FOLDER / client
    held = _pairs_in(folder)
    if unknown := [pair for pair in pairs if pair not in held]:
        raise HubError(f'Client "{client}" has no pair "{unknown[0]}"{did_you_mean(unknown[0], held)}')
    chosen = sorted(set(pairs)) or held
    name = published_name(record, client)
    files: dict[str, bytes] = {}
    for pair in chosen:
        prefix = "" if len(chosen) == 1 else f"{pair}/"
        files |= _pair_files(record, base, folder / pair, prefix, name)
    files[CARD_FILE] = client_card(record, client, repo_id, chosen).encode()
    files[RECORD_FILE] = record_json(_of_one_client(published_record(record), name))
    return Publication(repo_id, files | _processor_files(base, run_dir))


def federation_publication(run_dir: Path, repo_id: str, base_model: str | None = None) -> Publication:
    """Return all clients' personal adapters, and the federation's own, as one repository.

    Args:
        run_dir: a folder of `tap-hf run` or `pull`.
        repo_id: the repository.
        base_model: as in `client_publication`.

    Raises:
        HubError: for a backbone that others could not find.
    """
    record, base = _checked(run_dir, base_model)
    files: dict[str, bytes] = {}
    for client in record.recipe.clients:
        name = published_name(record, client)
        folder = run_dir / CLIENTS_FOLDER / client
        for pair in _pairs_in(folder):
            files |= _pair_files(record, base, folder / pair, f"{CLIENTS_FOLDER}/{name}/{pair}/", name)
    with tempfile.TemporaryDirectory() as made:
        for shared in _global_pairs(run_dir, Path(made)):
            files |= _pair_files(record, base, shared, f"{GLOBAL_FOLDER}/{shared.name}/", None)
    files[CARD_FILE] = federation_card(record, repo_id).encode()
    files[RECORD_FILE] = record_json(published_record(record))
    withheld = sorted(withheld_components(record).items())
    notes = tuple(f"{component} of {GLOBAL_FOLDER}/ is withheld: {why}" for component, why in withheld)
    return Publication(repo_id, files | _processor_files(base, run_dir), notes)


def _checked(run_dir: Path, base_model: str | None) -> tuple[RunRecord, BaseModel]:
    """Return the record of a finished run, in it the backbone as others find it."""
    record = read_finished(run_dir)
    base = _base_model(record, base_model)
    backbone = record.recipe.values["backbone"] | {"name": base.name}
    backbone["revision"] = base.revision or record.recipe.backbone.revision
    # Without a commit, cards would take the name for that of a folder.
    commit = None if base.name == TINY else base.revision or "main"
    recipe = recipe_record({**record.recipe.values, "backbone": backbone})
    return replace(record, recipe=recipe, backbone_commit=commit), base


def _base_model(record: RunRecord, given: str | None) -> BaseModel:
    name = record.recipe.backbone.name
    if given is not None:
        given, _, revision = given.partition("@")
        if given != TINY and ("/" not in given or Path(given).exists() or not _HUB_ID.fullmatch(given)):
            raise HubError(f'--base-model is "{given}", needed the Hub id (ORG/NAME) under which others find it.')
        return BaseModel(given, revision or None)
    if name == TINY:
        return BaseModel(TINY, sha256=tiny_checksum())
    if Path(name).expanduser().exists() or not _HUB_ID.fullmatch(name):
        raise HubError(
            "The run had its backbone from a folder of this machine, where nobody else finds it. Say where they do: "
            "--base-model ORG/NAME."
        )
    return BaseModel(name, record.backbone_commit)


def tiny_checksum() -> str:
    """Return the checksum of the weights that this version of tap_hf ships."""
    with (checkpoint_dir() / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pairs_in(folder: Path) -> list[str]:
    return sorted(file.parent.name for file in folder.glob(f"*/{TASKS_FILE}"))


def _pair_files(record: RunRecord, base: BaseModel, folder: Path, prefix: str, client: str | None) -> dict[str, bytes]:
    """Return the files of one pair: configuration and tasks as others may read them, weights as they are."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base.name, "revision": base.revision}
    names = [task["name"] for task in json.loads((folder / TASKS_FILE).read_text(encoding="utf-8"))["tasks"]]
    # What a pair shares with others is a part of its own adapter by now.
    published = published_record(record).tasks
    tasks = [published[name].record() | {"shared": []} for name in names]
    described = {"client": client, "pair": folder.name, "base_model": asdict(base), "tasks": tasks}
    files = {CONFIG_FILE: _json(config), TASKS_FILE: _json(described)}
    files |= {name: (folder / name).read_bytes() for name in (ADAPTER_FILE, HEAD_FILE) if (folder / name).is_file()}
    return {f"{prefix}{name}": files[name] for name in PAIR_FILES if name in files}


def _global_pairs(run_dir: Path, made: Path) -> Iterator[Path]:
    """Yield a folder for each pair of the server set, of what is averaged and not withheld."""
    if not (run_dir / "server").is_dir():  # it was pulled, so that nothing is in it that was withheld
        yield from sorted(file.parent for file in (run_dir / GLOBAL_FOLDER).glob(f"*/{TASKS_FILE}"))
        return
    directory, record = RunDirectory(run_dir), read_finished(run_dir)
    recipe = parse_recipe(record.recipe.values, str(run_dir / RUN_FILE), run_code=False)
    model = build_model(recipe, open_backbone(recipe), list(record.tasks.values()))
    kept = [model.tasks[name] for name in global_tasks(record)]
    export_tasks(model, kept, directory.server(recipe.federation.rounds - 1).components, made)
    yield from sorted(made.iterdir())


def _processor_files(base: BaseModel, run_dir: Path) -> dict[str, bytes]:
    """Return the configuration of the base model's tokenizer and image processor."""
    used = read_finished(run_dir).recipe.backbone
    source = str(checkpoint_dir()) if used.name == TINY else used.name
    try:
        processor = AutoProcessor.from_pretrained(source, revision=used.revision)
    except (OSError, ValueError) as error:
        raise HubError(
            f'The processor of "{base.name}" does not load ({str(error).splitlines()[0]}), and a push takes it '
            "along. Make the base model reachable."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        found = {f"{PROCESSOR_FOLDER}/{file.name}": file for file in sorted(Path(folder).iterdir())}
        return {path: file.read_bytes() for path, file in found.items() if is_ours(path)}


def _of_one_client(record: RunRecord, name: str) -> RunRecord:
    """Return a record without what is about other clients alone; who else shaped a component stays, as on the card."""
    values, lineage = record.recipe.values, record.lineage
    tasks = {task: record.tasks[task] for task in record.recipe.clients[name].tasks}
    components = {component for task in tasks.values() for component in task.components}
    return replace(
        record,
        recipe=recipe_record({**values, "clients": {name: values["clients"][name]}}),
        tasks=tasks,
        results=[row for row in record.results or () if row.client == name],
        lineage=Lineage(
            history={client: rounds for client, rounds in lineage.history.items() if client == name},
            contributors={c: who for c, who in lineage.contributors.items() if c in components},
            diverged={client: sets for client, sets in lineage.diverged.items() if client == name},
        ),
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
