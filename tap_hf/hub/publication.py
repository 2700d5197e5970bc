"""The files of a push, made from a run directory before anything is sent."""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tap_hf.errors import HubError, did_you_mean
from tap_hf.hub.cards.model_card import client_card, federation_card
from tap_hf.hub.layout import CARD_FILE, CLIENTS_FOLDER, GLOBAL_FOLDER, RECORD_FILE, is_ours
from tap_hf.hub.redaction import global_tasks, published_name, published_record, withheld_components
from tap_hf.hub.trainer_publication import trainer_client_files, trainer_server_files
from tap_hf.hub_client import check_repo_id
from tap_hf.models.adapters import pack, select
from tap_hf.models.build import build_model, open_backbone
from tap_hf.models.config import CONFIG_FILE, ROOT, TINY, BackboneReference
from tap_hf.models.peft_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILE, adapter_files
from tap_hf.models.pretrained import (
    HEADS_FILE,
    PROCESSOR_FOLDER,
    adapter_folders,
    read_config,
    read_values,
    tiny_checksum,
)
from tap_hf.models.pretrained_files import open_files
from tap_hf.recipe import parse_recipe
from tap_hf.records.checksums import check_files
from tap_hf.records.directory import RunDirectory
from tap_hf.records.recipe_record import record_recipe
from tap_hf.records.run_record import RUN_FILE, RunRecord, read_finished, record_json
from tap_hf.user_code import names_code

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


@dataclass(frozen=True)
class Publication:
    """The files of one repository, by path; `notes` say which components are withheld, and why."""

    repo_id: str
    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def card(self) -> str:
        """The model card."""
        return self.files[CARD_FILE].decode()


def name_of(run_dir: Path, client: str) -> str:
    """Return a client's published name."""
    return published_name(read_finished(run_dir), client)


def client_publication(
    run_dir: Path, client: str, repo_id: str, pairs: Sequence[str] = (), base_model: str | None = None
) -> Publication:
    """Return a repository with one client's personal adapters.

    Args:
        run_dir: a folder of `tap-hf run`, `pull` or `adopt`.
        client: its id there.
        repo_id: the repository.
        pairs: the client's pairs to publish; by default all. A single one is at the repository's root.
        base_model: the backbone's Hub id, or ID@REVISION, if the run loaded it from a folder.

    Raises:
        HubError: for an unknown client or pair, or a backbone in a local folder.
    """
    check_repo_id(repo_id)
    record, base = _checked(run_dir, base_model)
    clients = record.recipe.clients
    if client not in clients:
        raise HubError(f'The run has no client "{client}"{did_you_mean(client, clients)}')
    name = published_name(record, client)
    check_files(run_dir, record, f"{CLIENTS_FOLDER}/{client}")
    held = sorted({record.tasks[task].pair.name for task in clients[client].tasks})
    if unknown := [pair for pair in pairs if pair not in held]:
        raise HubError(f'Client "{client}" has no pair "{unknown[0]}"{did_you_mean(unknown[0], held)}')
    chosen = sorted(set(pairs)) or held
    tasks = [task for task in clients[client].tasks if record.tasks[task].pair.name in chosen]
    files = _client_files(run_dir, record, base, client, "", tasks)
    files |= _processor_files(run_dir, record)
    shown = published_record(record, client)
    # `pull` makes the folder of a run.
    files[RECORD_FILE] = _with_checksums(shown, files, f"{CLIENTS_FOLDER}/{name}/")
    files[CARD_FILE] = client_card(record, client, repo_id, chosen).encode()
    return Publication(repo_id, files)


def federation_publication(run_dir: Path, repo_id: str, base_model: str | None = None) -> Publication:
    """Return a repository with all clients' personal adapters and the averaged ones; see `client_publication`."""
    check_repo_id(repo_id)
    record, base = _checked(run_dir, base_model)
    if record.half == "server":
        raise HubError(f"{run_dir} has no personal models. Push at each site: `tap-hf push SITE_RUN --client ID ...`.")
    check_files(run_dir, record)
    files: dict[str, bytes] = {}
    for client, held in record.finalized_clients.items():
        place = f"{CLIENTS_FOLDER}/{published_name(record, client)}/"
        files |= _client_files(run_dir, record, base, client, place, held.tasks)
    files |= _global_files(run_dir, record, base) | _processor_files(run_dir, record)
    files[RECORD_FILE] = _with_checksums(published_record(record), files, "")
    files[CARD_FILE] = federation_card(record, repo_id).encode()
    withheld = sorted(withheld_components(record).items())
    notes = tuple(f"{component} of {GLOBAL_FOLDER}/ is withheld: {why}" for component, why in withheld)
    return Publication(repo_id, files, notes)


def _with_checksums(record: RunRecord, files: Mapping[str, bytes], place: str) -> bytes:
    """Return a published record with the checksums of the published files, by their place in a pulled folder."""
    checksums = {f"{place}{path}": hashlib.sha256(content).hexdigest() for path, content in files.items()}
    return record_json(replace(record, files=checksums))


def _checked(run_dir: Path, base_model: str | None) -> tuple[RunRecord, BackboneReference]:
    """Return the record of a finished run with its public backbone."""
    record = read_finished(run_dir)
    base = _base_model(record, base_model)
    backbone = record.recipe.values["backbone"] | {"name": base.name}
    backbone["revision"] = base.revision or record.recipe.backbone.revision
    # Without a commit, cards would take the name for a folder.
    commit = None if base.name == TINY else base.revision or "main"
    recipe = record_recipe({**record.recipe.values, "backbone": backbone})
    return replace(record, recipe=recipe, backbone_commit=commit), base


def _base_model(record: RunRecord, given: str | None) -> BackboneReference:
    name = record.recipe.backbone.name
    if given is not None:
        given, _, revision = given.partition("@")
        if given != TINY and ("/" not in given or Path(given).exists() or not _HUB_ID.fullmatch(given)):
            raise HubError(f'--base-model is "{given}"; expected the Hub id of the backbone (ORG/NAME).')
        return BackboneReference(given, revision or None)
    if name == TINY:
        return BackboneReference(TINY, sha256=tiny_checksum())
    if Path(name).expanduser().exists() or not _HUB_ID.fullmatch(name):
        raise HubError(
            "The run loaded its backbone from a local folder, which others do not have. Give its Hub id: "
            "--base-model ORG/NAME."
        )
    return BackboneReference(name, record.backbone_commit)


def _model_files(
    record: RunRecord, base: BackboneReference, folder: Path, prefix: str, tasks: Sequence[str]
) -> dict[str, bytes]:
    """Return the files of a saved model's tasks, with published names and the public backbone."""
    saved = open_files(folder)
    config = read_config(saved)
    components = frozenset().union(*(record.tasks[name].components for name in tasks))
    values = read_values(saved, config)  # all are finite
    if missing := sorted(components - values.keys()):
        raise HubError(f"{folder} lacks {', '.join(missing)}. Run again, or restore it from a copy.")
    folders = adapter_folders(components & config.adapters.keys())
    files: dict[str, bytes] = {}
    for name, place in folders.items():
        adapter, target = saved.within(config.adapters[name]), prefix + ("" if place == ROOT else f"{place}/")
        tensors = adapter.path(ADAPTER_FILE).read_bytes()
        files |= adapter_files(adapter.json(ADAPTER_CONFIG_FILE), tensors, base, target)
    if heads := select(values, components - config.adapters.keys()):
        files[prefix + HEADS_FILE] = pack(heads)
    shown = tuple(published_record(record).tasks[name] for name in tasks)
    shown_config = replace(
        config,
        backbone=base,
        tasks=shown,
        lora={task.pair.name: config.lora[task.pair.name] for task in shown},
        shared={scope: one for scope, one in config.shared.items() if any(f"__{scope}__" in name for name in folders)},
        adapters=folders,
    )
    return {f"{prefix}{CONFIG_FILE}": shown_config.to_json_string().encode()} | files


def _client_files(
    run_dir: Path, record: RunRecord, base: BackboneReference, client: str, prefix: str, tasks: Sequence[str]
) -> dict[str, bytes]:
    folder = run_dir / CLIENTS_FOLDER / client
    if record.recipe.of_trainers:
        return trainer_client_files(folder, base, prefix)
    return _model_files(record, base, folder, prefix, tasks)


def _global_files(run_dir: Path, record: RunRecord, base: BackboneReference) -> dict[str, bytes]:
    """Return the files of the averaged model, without withheld components."""
    tasks, prefix = global_tasks(record), f"{GLOBAL_FOLDER}/"
    if record.recipe.of_trainers:
        return trainer_server_files(run_dir, record, base, tasks, prefix)
    has_server = (run_dir / "server").is_dir()  # a pulled folder has none, and nothing withheld either
    if not tasks or not (has_server or (run_dir / GLOBAL_FOLDER).is_dir()):
        return {}
    if not has_server:
        return _model_files(record, base, run_dir / GLOBAL_FOLDER, prefix, tasks)
    values = read_finished(run_dir).recipe.values  # with the backbone that the run used
    recipe = parse_recipe(values, str(run_dir / RUN_FILE), run_code=False)
    if names_code(family := recipe.backbone.family or ""):
        raise HubError(
            f"The backbone has a family of its own ({family}), whose code a push does not run, and the averaged "
            "adapters need it. Push the clients with --client."
        )
    model = build_model(recipe, open_backbone(recipe), [record.tasks[name] for name in tasks])
    server = RunDirectory(run_dir).server(recipe.federation.rounds - 1).components
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made, adapters=server)
        return _model_files(record, base, Path(made), prefix, tasks)


def _processor_files(run_dir: Path, record: RunRecord) -> dict[str, bytes]:
    """Return the backbone's tokenizer and image processor, from any client's folder."""
    places = [run_dir, *sorted((run_dir / CLIENTS_FOLDER).iterdir())]
    folder = next((place for place in places if (place / PROCESSOR_FOLDER).is_dir()), run_dir)
    found = {f"{PROCESSOR_FOLDER}/{file.name}": file for file in sorted((folder / PROCESSOR_FOLDER).glob("*"))}
    if found:
        check_files(run_dir, record, (folder / PROCESSOR_FOLDER).relative_to(run_dir).as_posix())
    return {path: _without_places(file) for path, file in found.items() if is_ours(path)}


def _without_places(file: Path) -> bytes:
    """Return a file of the processor; a config without the places on this machine that some checkpoints keep in it."""
    content = file.read_bytes()
    if not file.name.endswith("_config.json"):
        return content
    values = json.loads(content)
    kept = {key: value for key, value in values.items() if not key.endswith(("_file", "_path", "_dir"))}
    return content if kept == values else (json.dumps(kept, indent=2) + "\n").encode()
