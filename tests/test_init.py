"""`init`: what a folder of one's own may be, guessed or asked, and a recipe for it that is valid."""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Image as ImageFeature
from PIL import Image

from tap_hf import Recipe, load_recipe
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli, Finished

DRAW = np.random.default_rng(0)
SITES = ["North Clinic"] * 30 + ["south"] * 25 + ["St. Mary"] * 20 + ["tiny"] * 2


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(file: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        csv.writer(out, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def picture(file: str) -> str:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(DRAW.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path.name


def scans() -> Path:
    """Pictures and a table of notes, findings and sites, with a column that has no role."""
    rows = [(n, picture(f"scans/{n}.png"), f"note {n} here", ("even", "odd")[n % 2], SITES[n]) for n in range(77)]
    return table("scans/scans.csv", ("id", "file", "remark", "finding", "site"), rows).parent


def pets() -> Path:
    for n in range(60):
        picture(f"pets/{('cat', 'dog', 'bird')[n % 3]}/{n}.png")
    return Path("pets")


def questions() -> Path:
    rows = [(f"what is {n} plus one?", f"it is {n + 1}") for n in range(60)]
    return table("qa.csv", ("question", "answer"), rows)


def tickets() -> Path:
    rows = [(f"ticket number {n} of many", ("low", "high")[n % 2]) for n in range(60)]
    return table("tickets.tsv", ("words", "urgency"), rows)


def stored() -> Path:
    rows = {"picture": [picture(f"raw/{n}.png") and f"raw/{n}.png" for n in range(60)], "kind": ["a", "b", "c"] * 20}
    Dataset.from_dict(rows).cast_column("picture", ImageFeature()).to_parquet("stored.parquet")
    return Path("stored.parquet")


def only_task(recipe: Recipe) -> Any:
    (task,) = recipe.tasks.values()
    return task


@pytest.mark.parametrize(
    ("make", "pair", "columns", "clients"),
    [
        (scans, "image_text__classification", ("file", "remark", "finding"), ["north_clinic", "south", "st_mary"]),
        (pets, "image__classification", ("image", None, "label"), ["first", "second", "third"]),
        (questions, "text__generation", (None, "question", "answer"), ["first", "second", "third"]),
        (stored, "image__classification", ("picture", None, "kind"), ["first", "second", "third"]),
    ],
)
def test_a_folder_gets_a_recipe_that_is_valid(
    cli: Cli, make: Callable[[], Path], pair: str, columns: tuple[str | None, ...], clients: list[str]
) -> None:
    done = cli("init", make(), "-o", "made/first.yaml")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "made/first.yaml"
    assert "Rows that each client holds" in done.out
    assert "next: tap-hf run made/first.yaml" in done.err
    recipe = load_recipe("made/first.yaml")
    task = only_task(recipe)
    assert task.pair == pair
    assert task.columns == {role: one for role, one in zip(("image", "text", "target"), columns, strict=True) if one}
    assert list(recipe.clients) == clients
    for client in clients:
        assert client in done.out
    if make is scans:
        assert recipe.clients["north_clinic"].values == ("North Clinic",)
        assert "# left out, with fewer than 10 rows: tiny" in Path("made/first.yaml").read_text()


def test_flags_decide(cli: Cli) -> None:
    done = cli("init", scans() / "scans.csv", "--target", "site", "--text", "remark", "-o", "a.yaml")
    assert done.code == 0, done.err
    assert only_task(load_recipe("a.yaml")).columns["target"] == "site"
    assert_a_users_mistake(cli("init", "scans", "--target", "findin", "-o", "b.yaml"), 'did you mean "finding"')
    assert not Path("b.yaml").exists()


def answered(monkeypatch: pytest.MonkeyPatch, cli: Cli, answers: Sequence[str], *arguments: str) -> Finished:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{one}\n" for one in answers)))
    return cli("init", *arguments)


def test_in_a_terminal_it_asks_what_flags_do_not_say(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    scans()
    done = answered(monkeypatch, cli, ["-", "", "-"], "scans", "--target", "finding")
    assert done.code == 0, done.err
    assert "column of pictures (- for none) [file]" in done.out + done.err
    task = only_task(load_recipe("scans.yaml"))
    assert (task.pair, task.partition.by) == ("text__classification", "dirichlet")
    assert task.columns == {"text": "remark", "target": "finding"}
    assert answered(monkeypatch, cli, [], "scans", "--yes", "-o", "guessed.yaml").code == 0
    assert_a_users_mistake(answered(monkeypatch, cli, ["remrk"], "scans", "-o", "c.yaml"), 'did you mean "remark"')


def test_mistakes_are_named(cli: Cli) -> None:
    assert_a_users_mistake(cli("init", "absent"), "There is no absent")
    tickets()
    assert cli("init", "tickets.tsv").code == 0
    before = Path("tickets.yaml").read_text()
    assert_a_users_mistake(cli("init", "tickets.tsv"), "tickets.yaml exists")
    assert Path("tickets.yaml").read_text() == before
    rows = [(f"text {n} of many", f"other {n}") for n in range(40)]
    unclear = table("unclear.csv", ("one", "other"), rows)
    assert_a_users_mistake(cli("init", unclear), "--target COLUMN")
    table("two/a.csv", ("one",), rows)
    table("two/b.csv", ("one",), rows)
    assert_a_users_mistake(cli("init", "two"), "has 2 tables (a.csv, b.csv)")
    Path("notes.txt").write_text("text")
    assert_a_users_mistake(cli("init", "notes.txt"), "is not a table")


def test_names_from_data_are_data(cli: Cli) -> None:
    """What looks like YAML in a table does not become keys of the recipe."""
    sites = ["a: {tasks: []}", "b\nprivacy: {redact: true}", "#c"]
    rows = [(f"text {n} of many", ("x", "y")[n % 2], sites[n % 3]) for n in range(60)]
    done = cli("init", table("odd.csv", ("words", "label: no", "site"), rows), "--target", "label: no")
    assert done.code == 0, done.err
    recipe = load_recipe("odd.yaml")
    assert not recipe.privacy.redact
    assert [one.values for one in recipe.clients.values()] == [(site,) for site in sites]


@pytest.mark.slow
def test_an_afternoon_from_a_folder_to_an_adapter_and_a_page(cli: Cli) -> None:
    assert cli("init", scans()).code == 0
    small = ["federation.rounds=1", "training.local_steps=2", "algorithm.final.steps=2"]
    run = cli("run", "scans.yaml", *small)
    assert run.code == 0, run.err
    assert Path("runs/scans/report.html").read_text().count('class="example"') > 5
    push = cli("push", "runs/scans", "--repo-id", "org/mine", "--client", "south", "--dry-run")
    assert push.code == 0, push.err
    assert "adapter_model.safetensors" in push.out
