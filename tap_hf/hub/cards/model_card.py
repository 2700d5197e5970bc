"""Model cards of a run, from its `run.json` and the templates in `model_cards/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tap_hf.card_templates import render_card
from tap_hf.errors import CardError
from tap_hf.hub.cards.facts import card_facts
from tap_hf.hub.cards.metadata import card_metadata
from tap_hf.hub.redaction import published_name, published_record
from tap_hf.records.run_record import RunRecord


def client_card(
    record: RunRecord,
    client: str,
    repo_id: str | None = None,
    pairs: Sequence[str] | None = None,
    templates: Path | None = None,
) -> str:
    """Return the README.md of one client's adapters.

    Args:
        record: of a finished run.
        client: its id.
        repo_id: the repository; by default `ORG/NAME`.
        pairs: the client's published pairs; by default all.
        templates: a folder with templates that override those of tap_hf.

    Raises:
        RunDirectoryError: if the run has no such client.
        CardError: if there are no tasks to show, or a template cannot be rendered.

    Examples:
        >>> from tap_hf.records.run_record import read_record
        >>> record = read_record(Path("model_cards/examples"))
        >>> client_card(record, "kiosk").splitlines()[1]
        'library_name: peft'
    """
    name, shown = published_name(record, client), published_record(record, client)
    tasks = [t for t in shown.recipe.clients[name].tasks if pairs is None or shown.tasks[t].pair.name in pairs]
    if not tasks:
        raise CardError(f'Client "{client}" has no task of the pairs {", ".join(pairs or ())}. Choose others.')
    more = {"client": name, "repo_id": repo_id or "ORG/NAME", "adapter_folder": _adapter_folder(shown, tasks)}
    return _card("client.md.j2", shown, {name: tasks}, templates, more)


def federation_card(record: RunRecord, repo_id: str | None = None, templates: Path | None = None) -> str:
    """Return the README.md of all clients' adapters; see `client_card`."""
    shown = published_record(record)
    clients = shown.recipe.clients if shown.half == "server" else shown.finalized_clients
    held = {name: client.tasks for name, client in clients.items()}
    more: dict[str, Any] = {"at_sites": shown.half == "server"}
    more |= {"repo_id": repo_id or "ORG/NAME", "adapter_folder": _adapter_folder(shown, next(iter(held.values())))}
    return _card("federation.md.j2", shown, held, templates, more)


def _adapter_folder(record: RunRecord, tasks: Sequence[str]) -> str:
    """Return the folder of a model's first adapter; an only adapter has no folder."""
    held = [record.tasks[name] for name in tasks]
    return held[0].pair.name if len({adapter for task in held for adapter in task.adapters}) > 1 else ""


def _card(
    template: str,
    record: RunRecord,
    held: Mapping[str, Sequence[str]],
    templates: Path | None,
    more: Mapping[str, Any],
) -> str:
    return render_card(template, card_facts(record, held) | dict(more), card_metadata(record, held), templates)
