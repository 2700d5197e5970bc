"""Run directories of others, finished and stopped: every file is damaged, and all commands read them."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.hostile.attempt import Attempt, Command
from benchmarks.hostile.damages import as_something_else, damaged_bytes
from benchmarks.hostile.guards import EVIL
from benchmarks.hostile.originals import ANSWERS, STOPS, Originals, copied
from benchmarks.hostile.values import edited
from benchmarks.hostile.weights import damaged_weights

Damage = tuple[str, Callable[[Path], None]]
"""What is done, and how, to a file."""

_READ = (("status", "run"), ("explain", "run"), ("card", "run"))
_MORE = (
    ("evaluate", "run", "--json"),
    ("push", "run", "--all", "--repo-id", "org/x", "--dry-run", "--json"),
    ("push", "run", "--client", "clinic", "--repo-id", "org/x", "--dry-run"),
    ("compare", "run", "other"),
    ("card", "run", "--client", "clinic"),
    ("status", "run", "--json"),
    ("explain", "run", "--client", "clinic", "--json"),
    ("run", "--resume", "run", "--json"),
    ("adopt", "--from", "run", "--data", "recipe.yaml", "clients={new: {tasks: [urgency]}}", "--output-dir", "new"),
)


def run_directory_attempts(draw: random.Random, originals: Originals) -> list[Attempt]:
    """Return attempts on the directory of a finished run, and of runs that were stopped in each stage."""
    found: list[Attempt] = []
    for name, several in (("run", 330), *((name, 75) for name in STOPS)):
        folder = originals.folder / name
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        records = [file for file in files if file.suffix in (".json", ".jsonl") and "processor" not in file.parts]
        for _ in range(several // 2):
            file = draw.choice(files)
            found.append(_attempt(draw, originals, name, file.relative_to(folder), _any_damage(file, draw)))
        for _ in range(several // 2):
            file = draw.choice([*records, folder / "run.json", folder / "run.json"])
            found.append(_attempt(draw, originals, name, file.relative_to(folder), _edit(file, draw)))
        for inner in sorted(path for path in folder.rglob("*") if path.is_dir()):
            for damage in list(as_something_else().items())[::3]:
                found.append(_attempt(draw, originals, name, inner.relative_to(folder), damage))
        found += [
            _attempt(draw, originals, name, Path(path), (f"added as {what}", put))
            for path in ("clients/clinic/more.json", "progress/round-00009.json", "more", ".run.json.1.tap_hf-tmp")
            for what, put in list(_in_a_folder(as_something_else()).items())[1::3]
        ]
    return found


def _in_a_folder(puts: dict[str, Callable[[Path], None]]) -> Iterator[Any] | Any:
    def made(put: Callable[[Path], None]) -> Callable[[Path], None]:
        def do(file: Path) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
            put(file)

        return do

    return {what: made(put) for what, put in puts.items()}


def _any_damage(file: Path, draw: random.Random) -> Damage:
    """Return another thing in the file's place, damaged bytes, or lies in a header."""
    content = file.read_bytes()
    damages: list[Damage] = []
    if draw.random() < 0.3 or not content:
        damages = list(as_something_else().items())
    elif file.suffix == ".safetensors" and draw.random() < 0.6:
        damages = [(what, _writing(new)) for what, new in damaged_weights(content, draw)]
    else:
        damages = [(what, _writing(new)) for what, new in damaged_bytes(content, draw)]
    return draw.choice(damages)


def _edit(file: Path, draw: random.Random) -> Damage:
    """Return an edit of one value in a JSON file, or in a line of one."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    line = draw.randrange(len(lines))
    what, values = edited(json.loads(lines[line]), draw)
    lines[line] = json.dumps(values)
    return what, _writing(("\n".join(lines) + "\n").encode())


def _writing(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None


def _attempt(draw: random.Random, originals: Originals, name: str, file: Path, damage: Damage) -> Attempt:
    what, put = damage

    def prepare(folder: Path) -> None:
        copied(originals.folder / name, folder / "run")
        for other in ("other", "notes.csv", "recipe.yaml"):
            copied(originals.folder / other, folder / other)
        (folder / "evil.py").write_text(EVIL)
        put(folder / "run" / file)

    if name == "run":
        answer = Command(ANSWERS["predict"], originals.answers["predict"])
        more = draw.choice(_MORE)
        is_record = file.name == "run.json"
        expected = originals.answers["evaluate"] if more[0] == "evaluate" and not is_record else None
        commands = (*map(Command, _READ), answer, Command(more, expected))
    else:
        resume = Command(("run", "--resume", "run", "--json"), originals.answers["evaluate"])
        others = (("predict", "run", "--client", "clinic", "--text", "x"), ("evaluate", "run"), ("card", "run"))
        commands = (*map(Command, (("status", "run"), draw.choice(others))), resume)
    return Attempt(f"{name}: {file} {what}", commands, prepare)
