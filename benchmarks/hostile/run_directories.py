"""Run directories of others, finished and stopped: every file is damaged, and all commands read them."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.hostile.attempt import Attempt, Command
from benchmarks.hostile.damages import as_something_else, damaged_bytes
from benchmarks.hostile.guards import EVIL
from benchmarks.hostile.originals import ANSWERS, STOPS, Originals, copied
from benchmarks.hostile.seals import seal_run
from benchmarks.hostile.values import edited
from benchmarks.hostile.weights import damaged_weights

Damage = tuple[str, Callable[[Path], None]]
"""What is done, and how, to a file."""

_SEALED = 0.5
"""How many of the damaged files get checksums that fit."""

_READ = (("status", "run"), ("explain", "run"), ("card", "run"), ("report", "run", "--output", "page.html"))
_MORE = (
    ("evaluate", "run", "--json"),
    ("push", "run", "--all", "--repo-id", "org/x", "--dry-run", "--json"),
    ("push", "run", "--client", "clinic", "--repo-id", "org/x", "--dry-run"),
    ("compare", "run", "other"),
    ("card", "run", "--client", "clinic"),
    ("status", "run", "--json"),
    ("explain", "run", "--client", "clinic", "--json"),
    ("run", "--resume", "run", "--json"),
    ("adopt", "--from", "run", "--data", "newcomer.yaml", "--output-dir", "new"),
)


def run_directory_attempts(draw: random.Random, originals: Originals) -> list[Attempt]:
    """Return attempts on the directory of a finished run, and of runs that were stopped in each stage."""
    nothing: Damage = ("undamaged", lambda _: None)
    found = [replace(_attempt(draw, originals, "run", Path("run.json"), nothing, _MORE), is_valid=True)]
    for name, several in (("run", 240), *((name, 36) for name in STOPS)):
        folder = originals.folder / name
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        records = [file for file in files if file.suffix in (".json", ".jsonl") and "processor" not in file.parts]
        damaged = [(file, _any_damage(file, draw)) for file in draw.choices(files, k=several // 2)]
        damaged += [(file, _edit(file, draw)) for file in draw.choices([*records, folder / "run.json"], k=several // 2)]
        for inner in sorted(path for path in folder.rglob("*") if path.is_dir()):
            damaged.append((inner, draw.choice(list(as_something_else().items()))))
        for new in ("clients/clinic/more.json", "progress/round-00009.json", "more", ".run.json.1.tap_hf-tmp"):
            damaged += ((folder / new, damage) for damage in draw.sample(_added(), 3))
        found += [_attempt(draw, originals, name, path.relative_to(folder), damage) for path, damage in damaged]
    return found


def _added() -> list[Damage]:
    """Return what can be added to a folder."""

    def made(put: Callable[[Path], None]) -> Callable[[Path], None]:
        def do(file: Path) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
            put(file)

        return do

    return [(f"added as {what}", made(put)) for what, put in as_something_else().items()]


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


def _attempt(
    draw: random.Random,
    originals: Originals,
    name: str,
    file: Path,
    damage: Damage,
    more: Sequence[tuple[str, ...]] = (),
) -> Attempt:
    what, put = damage
    is_sealed = draw.random() < _SEALED

    def prepare(folder: Path) -> None:
        copied(originals.folder / name, folder / "run")
        for other in ("other", "notes.csv", "newcomer.yaml"):
            copied(originals.folder / other, folder / other)
        (folder / "evil.py").write_text(EVIL)
        put(folder / "run" / file)
        if is_sealed:
            seal_run(folder / "run", folder / "run" / file)

    if name == "run":
        is_record = is_sealed or file.name == "run.json"
        answer = originals.answers["evaluate"]
        commands = (
            *map(Command, _READ),
            Command(ANSWERS["predict"], None if is_sealed else originals.answers["predict"]),
            *(
                Command(one, answer if one[0] == "evaluate" and not is_record else None)
                for one in more or [draw.choice(_MORE)]
            ),
        )
    else:
        resume = Command(("run", "--resume", "run", "--json"), None if is_sealed else originals.answers["evaluate"])
        others = (("predict", "run", "--client", "clinic", "--text", "x"), ("evaluate", "run"), ("card", "run"))
        commands = (*map(Command, (("status", "run"), draw.choice(others))), resume)
    seal = ", with its checksum" if is_sealed else ""
    return Attempt(f"{name}: {file} {what}{seal}", commands, prepare)
