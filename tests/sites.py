"""Federations of several parties for tests: recipes whose clients have files of their own, and two small transports."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import easy_vqa
import yaml
from datasets import Dataset

from tap_hf import Recipe, load_recipe
from tap_hf.data import load_source
from tap_hf.federation import Failure, Handler, open_site
from tap_hf.recipe import DatasetSection, load_site

DIGITS = [str(digit) for digit in range(10)]
TASKS: dict[str, dict[str, Any]] = {
    "digit": {
        "pair": "image__classification",
        "dataset": "digits",
        "columns": {"image": "image", "target": "digit"},
        "metric": "accuracy",
        "labels": DIGITS,
    },
    "chapter": {
        "pair": "text__classification",
        "dataset": "icd10cm",
        "columns": {"text": "description", "target": "chapter"},
        "metric": "accuracy",
    },
    "section": {
        "pair": "text__generation",
        "dataset": "icd10cm",
        "columns": {"text": "description", "target": "section"},
        "metric": "rouge_l",
        "max_target_length": 8,
    },
    "vqa": {
        "pair": "image_text__generation",
        "dataset": "easy_vqa",
        "columns": {"image": "image", "text": "question", "target": "answer"},
        "metric": "exact_match",
        "max_target_length": 4,
    },
}


def rows_of(source: str) -> Dataset:
    return load_source(source, DatasetSection(source=source))["train"]


def federation_of(
    folder: Path, clients: Mapping[str, Sequence[str]], rows: int = 48, **changes: Any
) -> tuple[Path, dict[str, Path]]:
    """Write files for each client, a recipe that all hold, in which each client has its own files, and site.yamls.

    Returns:
        The recipe, and the site.yaml of each client.
    """
    sources = {TASKS[task]["dataset"] for tasks in clients.values() for task in tasks}
    whole = {source: rows_of(source).shuffle(seed=1) for source in sorted(sources)}
    tasks = {name: dict(TASKS[name]) for name in TASKS if any(name in held for held in clients.values())}
    if "chapter" in tasks:
        tasks["chapter"]["labels"] = sorted(set(whole["icd10cm"]["chapter"]))
    sections, sites = {}, {}
    for place, (client, held) in enumerate(clients.items()):
        own = {}
        for source in sorted({TASKS[task]["dataset"] for task in held}):
            file = folder / f"{client}_{source}.parquet"
            whole[source].select(range(place * rows, (place + 1) * rows)).to_parquet(file)
            own[source] = {"source": "parquet", "path": str(file)}
            if source == "easy_vqa":  # its rows name files of the package
                own[source]["image_folder"] = str(Path(easy_vqa.__file__).parent)
        sections[client] = {"tasks": list(held), "datasets": own}
        sites[client] = folder / f"{client}.yaml"
        sites[client].write_text(yaml.safe_dump({"datasets": own, "device": "cpu"}))
    recipe = {
        "name": "sites",
        "cpu_threads": 1,
        "backbone": {"name": "tiny"},
        "lora": {"default": {"rank": 2, "alpha": 4, "dropout": 0.1}},
        "datasets": {source: {"source": source} for source in sorted(sources)},
        "tasks": tasks,
        "examples": {"train": 16, "validation": 8, "test": 8},
        "clients": sections,
        "federation": {"rounds": 2, "clients_per_round": len(clients)},
        "training": {
            "local_steps": 1,
            "batch_size": 8,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1.0e-3,
            "trainer": {"use_cpu": True},
        },
        "algorithm": {"final": {"steps": 1}},
        "report": False,
    }
    for name, value in changes.items():
        recipe[name] = {**recipe[name], **value} if isinstance(recipe.get(name), dict) else value
    file = folder / "federation.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file, sites


class Direct:
    """A transport that calls the sites' handlers in this process; what crosses is bytes all the same.

    Attributes:
        crossed: each request and its reply, by site, in order.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = dict(handlers)
        self.crossed: list[tuple[str, bytes, bytes]] = []

    def sites(self) -> set[str]:
        return set(self.handlers)

    def exchange(self, requests: Mapping[str, bytes], timeout: float | None) -> Iterator[tuple[str, bytes | Failure]]:
        for site, blob in requests.items():
            reply = self.handlers[site](blob)
            self.crossed.append((site, blob, reply))
            yield site, reply


class Sockets:
    """A transport over Unix sockets, one per site with a key of its own; only bytes cross, nothing is unpickled."""

    def __init__(self, folder: Path, keys: Mapping[str, bytes]) -> None:
        self._connections: dict[str, Connection] = {}
        self._numbers = itertools.count()
        self._listeners = {site: Listener(str(folder / site), authkey=key) for site, key in keys.items()}
        for site in keys:
            threading.Thread(target=self._accept, args=(site,), daemon=True).start()

    def close(self) -> None:
        for end in (*self._listeners.values(), *self._connections.values()):
            end.close()

    def _accept(self, site: str) -> None:
        while True:
            try:
                self._connections[site] = self._listeners[site].accept()
            except OSError:
                return

    def sites(self) -> set[str]:
        return set(self._connections)

    def exchange(self, requests: Mapping[str, bytes], timeout: float | None) -> Iterator[tuple[str, bytes | Failure]]:
        found: Queue[tuple[str, bytes | Failure]] = Queue()
        end = None if timeout is None else time.monotonic() + timeout
        waiting = set(requests)
        for site, blob in requests.items():
            threading.Thread(target=self._ask, args=(site, blob, found), daemon=True).start()
        while waiting:
            try:
                site, answer = found.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except Empty:
                yield from ((site, Failure("late")) for site in waiting)
                return
            waiting.discard(site)
            yield site, answer

    def _ask(self, site: str, blob: bytes, found: "Queue[tuple[str, bytes | Failure]]") -> None:
        if (connection := self._connections.get(site)) is None:
            found.put((site, Failure("gone")))
            return
        number = next(self._numbers).to_bytes(8, "big")
        try:
            connection.send_bytes(number + blob)
            while (reply := connection.recv_bytes())[:8] != number:  # of an earlier request
                pass
        except (OSError, EOFError):
            self._connections.pop(site, None)
            found.put((site, Failure("gone")))
            return
        found.put((site, reply[8:]))


def serve_socket(address: str, key: bytes, handler: Handler, patience: float = 60) -> None:
    """Answer the server until it has been away for so many seconds."""
    last = time.monotonic()
    while time.monotonic() - last < patience:
        try:
            with Client(address, authkey=key) as connection:
                while True:
                    blob = connection.recv_bytes()
                    connection.send_bytes(blob[:8] + handler(blob[8:]))
                    last = time.monotonic()
        except (OSError, EOFError):
            time.sleep(0.1)


def main(recipe: str, client: str, site: str, output_dir: str, address: str, key: str, patience: str) -> None:
    """Be one site in a process of its own."""
    loaded: Recipe = load_recipe(recipe)
    with open_site(loaded, client, load_site(Path(site)), Path(output_dir), resume=True) as run:
        serve_socket(address, key.encode(), run.answer, float(patience))


if __name__ == "__main__":
    main(*sys.argv[1:])
