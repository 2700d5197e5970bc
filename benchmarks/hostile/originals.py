"""The valid inputs that attempts damage, made once for all of them."""

import contextlib
import io
import os
import random
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "cpu_threads": 1,
    "backbone": {"name": "tiny"},
    "lora": {"default": {"rank": 2, "alpha": 4, "layers": ["query", "value"]}},
    "datasets": {"notes": {"source": "csv", "path": "notes.csv"}, "digits": {"source": "digits"}},
    "tasks": {
        "urgency": {
            "pair": "text__classification",
            "dataset": "notes",
            "columns": {"text": "note", "target": "urgency"},
            "metric": ["accuracy", "macro_f1"],
        },
        "digit": {
            "pair": "image__classification",
            "dataset": "digits",
            "columns": {"image": "image", "target": "digit"},
            "metric": "accuracy",
        },
    },
    "examples": {"train": 8, "validation": 4, "test": 4},
    "clients": {"clinic": {"tasks": ["urgency"]}, "scanner": {"tasks": ["digit"]}},
    "federation": {"rounds": 2, "clients_per_round": 2},
    "training": {
        "local_steps": 1,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": {"start": 1.0e-3, "end": 1.0e-3, "rounds": 0},
    },
    "algorithm": {"final": {"steps": 2}},
}
"""A recipe that trains in a second."""

NEWCOMER = RECIPE | {
    "name": "newcomer",
    "datasets": {"notes": RECIPE["datasets"]["notes"]},
    "tasks": {"urgency": RECIPE["tasks"]["urgency"]},
    "clients": {"new": {"tasks": ["urgency"]}},
    "federation": {"rounds": 1, "clients_per_round": 1},
}
"""The recipe of a client that adopts published adapters."""

FULL: dict[str, Any] = RECIPE | {
    "seed": 41,
    "cache": True,
    "lora": {
        "default": {"rank": 2, "alpha": 4, "dropout": 0.1, "layers": ["query"], "towers": ["text"]},
        "pairs": {
            "text__classification": {
                "rank": 4,
                "options": {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3.0}},
            }
        },
        "shared": {"text": {"rank": 2}},
    },
    "datasets": {
        "notes": {
            "source": "csv",
            "path": "notes.csv",
            "encoding": "utf-8",
            "splits": {"train": "train[:80%]", "test": "train[80%:]"},
            "shuffle": 42,
        },
        "digits": {"source": "digits"},
    },
    "tasks": {
        "urgency": RECIPE["tasks"]["urgency"]
        | {
            "columns": {"text": "ward {ward}: {note}", "target": "urgency"},
            "labels": ["urgent", "calm"],
            "missing_target": "leave_out",
            "partition": {"by": "column", "column": "ward"},
        },
        "digit": RECIPE["tasks"]["digit"] | {"partition": {"by": "dirichlet", "column": "digit", "alpha": 0.5}},
    },
    "clients": {
        "clinic": {"tasks": ["urgency"], "values": {"urgency": ["a", "b"]}, "rank": 1},
        "scanner": {"tasks": ["digit"], "examples": {"train": 0.01, "validation": {"at_most": 4}, "test": 4}},
        "late": {"tasks": ["digit"]},
    },
    "federation": {
        "rounds": 2,
        "clients_per_round": 2,
        "held_out": ["late"],
        "keep_best": True,
        "max_update_norm": 10.0,
        "save_total_limit": 2,
        "aggregation": {"robust": "median", "lora": "factors", "clip_norm": 1.0},
        "server_optimizer": {"name": "fedadam", "learning_rate": 0.1},
    },
    "algorithm": {
        "name": "tap",
        "replacement": {"margin": 0.01, "relative": True, "margins": {"digit": 0.005}, "first": "keep"},
        "distillation": {"weight": 0.5, "weights": {"digit": 1.0}, "temperature": 2.0, "teacher_steps": 1},
        "references": ["backbone"],
        "personal_steps": 1,
        "final": {"steps": 2, "steps_per_round": 1, "learning_rate": 1.0e-3},
    },
    "privacy": {"redact": True, "min_contributors": 2},
    "card": {"license": "mit", "language": ["en"]},
    "engine": {"name": "in_process"},
}
"""A recipe with nearly every field, which need not be valid as a whole."""


@dataclass(frozen=True)
class Originals:
    """Valid inputs.

    Attributes:
        folder: has `notes.csv` and folders of runs: `finished`, and `stopped-*` at several places.
        recipes: plain values, by name.
        publications: files of repositories, by what they hold.
        answers: what commands on the finished run print, by command.
    """

    folder: Path
    recipes: Mapping[str, Any]
    publications: Mapping[str, Mapping[str, bytes]]
    answers: Mapping[str, str]


def notes(rows: int = 40) -> str:
    """Return a table of notes whose words tell the urgency."""
    draw = random.Random(1)  # noqa: S311 - no secret
    lines = ["note,urgency,ward"]
    for number in range(rows):
        urgency = ("urgent", "calm")[number % 2]
        lines.append(f"{urgency} case {number} in room {draw.randrange(90)},{urgency},{'ab'[number % 2]}")
    return "\n".join(lines) + "\n"


def shipped() -> dict[str, Any]:
    """Return the plain values of recipes with all kinds of fields."""
    names = ("quickstart", "smoke/all_pairs", "vlm/idefics3_qlora", "benchmark/ablations", "own_data/images_and_csv")
    read = {name: yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text()) for name in names}
    return {"tiny": RECIPE, "full": FULL} | read


def write_recipe(folder: Path, recipe: Any) -> None:
    """Write a recipe with its table into a folder."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "notes.csv").write_text(notes())
    (folder / "newcomer.yaml").write_text(yaml.safe_dump(NEWCOMER, sort_keys=False))


ANSWERS: Mapping[str, tuple[str, ...]] = {
    "predict": ("predict", "run", "--client", "clinic", "--text", "urgent case in room 7", "--json"),
    "evaluate": ("evaluate", "run", "--json"),
}
"""Commands on the finished run that have only one right answer."""

STOPS: Mapping[str, tuple[str, int]] = {
    "stopped in stage 1": ("client_updated", 3),
    "stopped in stage 2": ("client_finalized", 1),
    "stopped in evaluation": ("client_evaluated", 1),
}
"""At which event of its kind a run is stopped."""


def make_originals(folder: Path) -> Originals:
    """Make all valid inputs in a folder, in a process of its own: this one must start no threads."""
    process = os.fork()
    if not process:
        code = 1
        try:
            os.chdir(folder)
            _make(folder)
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("the valid inputs could not be made")
    publications = {
        one.name: {
            file.relative_to(one).as_posix(): file.read_bytes() for file in sorted(one.rglob("*")) if file.is_file()
        }
        for one in (folder / "publications").iterdir()
    }
    answers = {name: (folder / f"{name}.json").read_text() for name in ANSWERS}
    return Originals(folder, shipped(), publications, answers)


def _make(folder: Path) -> None:
    import tap_hf
    from benchmarks.hostile.home import at_home
    from tap_hf.cli import app
    from tap_hf.cli.terminal import quiet_libraries
    from tap_hf.hub import client_publication, federation_publication

    (folder / "home").mkdir()
    at_home(folder / "home", None)
    quiet_libraries()
    write_recipe(folder, RECIPE)
    recipe = tap_hf.load_recipe("recipe.yaml")
    tap_hf.run(recipe, "run")
    tap_hf.run(tap_hf.load_recipe("recipe.yaml", ["algorithm.name=fedavg"]), "other")
    for name, (event, number) in STOPS.items():
        with contextlib.suppress(InterruptedError):
            tap_hf.run(recipe, name, _stopping_at(event, number))
    publications = {
        "client": client_publication(Path("run"), "clinic", "org/client"),
        "federation": federation_publication(Path("run"), "org/federation"),
    }
    for name, publication in publications.items():
        for path, content in publication.files.items():
            file = folder / "publications" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    for name, arguments in ANSWERS.items():
        sys.argv = ["tap-hf", *arguments]
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
            app.main()
        (folder / f"{name}.json").write_text(output.getvalue())


def _stopping_at(kind: str, number: int) -> Any:
    seen = 0

    def observe(event: Any) -> None:
        nonlocal seen
        seen += event.event == kind
        if seen == number:
            raise InterruptedError

    return observe


def copied(source: Path, target: Path) -> None:
    """Copy a folder, or a file, of the originals."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copyfile(source, target)
