"""Repositories of others on the Hub: pulled, predicted from, evaluated, carded, pushed on and adopted."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.hostile.attempt import Attempt, Command
from benchmarks.hostile.damages import damaged_bytes
from benchmarks.hostile.guards import EVIL
from benchmarks.hostile.originals import Originals, copied
from benchmarks.hostile.seals import sealed
from benchmarks.hostile.values import edited
from benchmarks.hostile.weights import damaged_weights
from tests.hub_server import HubServer

_SEALED = 0.6
"""How many of the damaged files get checksums that fit."""

_PULL = Command(("pull", "org/x", "--output-dir", "pulled"))
_PREDICT = Command(("predict", "--repo", "org/x", "--client", "clinic", "--text", "urgent case", "--json"))
_ADOPT = Command(("adopt", "--from", "org/x", "--data", "newcomer.yaml", "--output-dir", "new", "--json"))
_PULLED = (
    ("card", "pulled"),
    ("card", "pulled", "--client", "clinic"),
    ("predict", "pulled", "--client", "clinic", "--text", "urgent case"),
    ("push", "pulled", "--all", "--repo-id", "org/y", "--dry-run"),
    ("explain", "pulled"),
    ("report", "pulled", "--output", "page.html"),
    ("evaluate", "pulled"),
    ("run", "--resume", "pulled"),
)
_READABLE = 4  # of these work with a repository whose data are private

EXTRA_FILES: Mapping[str, bytes] = {
    "weights.pkl": b"cos\nsystem\n(S'touch $HOME/code_ran'\ntR.",
    "pytorch_model.bin": b"x",
    "evil.py": EVIL.encode(),
    "conftest.py": EVIL.encode(),
    "sitecustomize.py": EVIL.encode(),
    "../../outside/new.json": b"{}",
    "/etc/new.json": b"{}",
    "a/../../b.json": b"{}",
    "clients/../../outside/config.json": b"{}",
    "clients/\x1b[2J/config.json": b"{}",
    "clients/" + "a" * 5000 + "/config.json": b"{}",
    "clients/ /config.json": b"{}",
    "clients/clinic/config.json/x": b"{}",
    "clients/other/config.json": b"[]",
    "global/config.json": b"null",
    "processor/evil.jinja": b"{% for x in range(10**9) %}{% endfor %}",
    "C:\\x.json": b"{}",
    "a\\b.json": b"{}",
    ".git/hooks/post-checkout": b"#!/bin/sh\ntouch $HOME/code_ran",
    "templates/federation.md.j2": b"{{ ''.__class__ }}",
    "events.jsonl": b"null\n" * 100,
    "progress/round-00001.json": b"{}",
    "lock": b"x",
    "a" * 300: b"x",
}
ETAGS = ("../../../outside/new", "/tmp/hostile-new", "..", "", "a" * 5000, "a\\b", "\x1b[2J", 'W/"x"', "a b")  # noqa: S108


def repository_attempts(draw: random.Random, originals: Originals) -> list[Attempt]:
    """Return attempts on repositories of one client and of a federation."""
    found: list[Attempt] = []
    for name, files in originals.publications.items():
        valid = (_PULL, *map(Command, _PULLED[:_READABLE]), _PREDICT, _ADOPT)
        found.append(replace(_attempt(draw, originals, name, "undamaged", {}), commands=valid, is_valid=True))
        records = [path for path in files if path.endswith(".json") and "processor" not in path]
        for _ in range(65):
            path = draw.choice([*records, "run.json"])
            what, values = edited(json.loads(files[path]), draw)
            content = json.dumps(values).encode()
            found.append(_attempt(draw, originals, name, f"{path}: {what}", {path: content}))
        weights = [path for path in files if path.endswith(".safetensors")]
        for _ in range(24):
            path = draw.choice(weights)
            what, content = draw.choice(list(damaged_weights(files[path], draw)))
            found.append(_attempt(draw, originals, name, f"{path} {what}", {path: content}))
        for _ in range(18):
            path = draw.choice(list(files))
            what, content = draw.choice(list(damaged_bytes(files[path], draw)))
            found.append(_attempt(draw, originals, name, f"{path} {what}", {path: content}))
        for path in draw.sample(list(files), min(8, len(files))):
            found.append(_attempt(draw, originals, name, f"{path} missing", {path: None}))
        for path, content in EXTRA_FILES.items():
            found.append(_attempt(draw, originals, name, f"with the file {path[:80]!r}", {path: content}))
        for etag in ETAGS:
            etags = dict.fromkeys(files, etag)
            found.append(_attempt(draw, originals, name, f"with the ETag {etag[:40]!r}", {}, etags=etags))
        for size in (0, -1, 10**6, 10**12):
            path = draw.choice(weights)
            sizes = {path: size}
            found.append(_attempt(draw, originals, name, f"{path} said to have {size} bytes", {}, sizes=sizes))
    return found


def _attempt(
    draw: random.Random,
    originals: Originals,
    name: str,
    what: str,
    changes: Mapping[str, bytes | None],
    *,
    sizes: Mapping[str, int] | None = None,
    etags: Mapping[str, str] | None = None,
) -> Attempt:
    files, is_sealed = dict(originals.publications[name]), draw.random() < _SEALED
    for path, content in changes.items():
        if content is None:
            del files[path]
        else:
            files[path] = content
            if is_sealed:
                files = sealed(files, path)

    def prepare(folder: Path) -> None:
        for other in ("notes.csv", "newcomer.yaml"):
            copied(originals.folder / other, folder / other)

    pulled = tuple(map(Command, draw.sample(_PULLED, 2)))
    commands = draw.choice([(_PULL, *pulled), (_PULL, *pulled), (_PREDICT,), (_ADOPT,)])
    seal = ", with its checksum" if is_sealed and changes else ""
    return Attempt(f"{name}: {what}{seal}", commands, prepare, serving(files, sizes, etags))


def serving(
    files: Mapping[str, bytes],
    sizes: Mapping[str, int] | None = None,
    etags: Mapping[str, str] | None = None,
    kind: str = "model",
) -> Callable[[Path], HubServer]:
    """Return what starts a Hub with one repository."""

    def serve(folder: Path) -> HubServer:
        server = HubServer()
        server.tokens = {}
        server.any_token = True
        server.put(f"{kind} org/x", files, sizes)
        server.etags = dict(etags or {})
        return server

    return serve
