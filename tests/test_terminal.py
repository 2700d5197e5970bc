"""Whatever others wrote, a terminal shows it and obeys nothing of it."""

import copy
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, strategies as st
from pydantic import TypeAdapter

from tap_hf import TapError
from tap_hf.card_templates import escape_markdown, render_card
from tap_hf.cli.terminal import Terminal
from tap_hf.errors import printable
from tap_hf.hub import client_publication, federation_card
from tap_hf.records import LoggedEvent, parse_json, parse_record
from tap_hf.report.svg import confusion_matrix
from tests.conftest import ROOT, Cli
from tests.hub_server import HubServer

HOSTILE = (
    "\x1b]0;owned\x07\x9b2J\x1b[8m\r\x08\u202e\u2066\u200f\u061c\u2028\U000e0041[/x][link=http://x.example]y\n\x1b[A"
)
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
SMOKE = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
Place = tuple[str | int, ...]
_EVENTS: TypeAdapter[Any] = TypeAdapter(LoggedEvent)


def texts(value: Any, path: Place = ()) -> Iterator[Place]:
    """Yield the path of each text and each key inside plain values."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, str):
            yield (*path, key)
        yield from texts(inner, (*path, key))


def kinds_of(values: Any) -> dict[Place, Place]:
    """Return one place of each kind: the first of several that differ in ids, tasks or numbers only."""
    names = {"clinic", "scanner", "digit", "chapter", "digits", "icd10cm"}
    kinds: dict[Place, Place] = {}
    for place in texts(values):
        kinds.setdefault(tuple("*" if isinstance(key, int) or key in names else key for key in place), place)
    return kinds


def with_text(values: Any, place: Place, text: str) -> Any:
    changed = copy.deepcopy(values)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = text
    return changed


def assert_obeyed_nothing(cli: Cli, *command: str | Path) -> None:
    done = cli(*command)
    assert done.code in (0, 2), (command, done)
    for shown in (done.out, done.err):
        assert not (found := OBEYED.search(shown)), (command, found, shown)


def accepted(values: Any, parse: Callable[[str], object]) -> tuple[Any, list[Any]]:
    """Return the values with a hostile text wherever one is read, and those with one that is refused."""
    everywhere, refused = values, []
    for place in kinds_of(values).values():
        try:
            parse(json.dumps(with_text(values, place, HOSTILE)))
            everywhere = with_text(everywhere, place, HOSTILE)
        except TapError:
            refused.append(with_text(values, place, HOSTILE))
    return everywhere, refused


def test_a_terminal_obeys_nothing_of_a_run_directory(two_pairs_run: Path, tmp_path: Path, cli: Cli) -> None:
    """Each kind of text in its record and its events."""
    run = Path(shutil.copytree(two_pairs_run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    everywhere, refused = accepted(record, lambda text: federation_card(parse_record(text, "run.json")))
    assert len(kinds_of(record)) - len(refused) > 20
    for values in refused:
        (run / "run.json").write_text(json.dumps(values))
        assert_obeyed_nothing(cli, "card", run)
    (run / "run.json").write_text(json.dumps(everywhere))
    lines = {json.loads(line)["event"]: line for line in (run / "events.jsonl").read_text().splitlines()}
    (run / "events.jsonl").write_text("\n".join(lines.values()) + "\n")
    event, damaged = accepted(json.loads(lines["decision"]), lambda text: parse_json(_EVENTS, text, "events.jsonl"))
    for values in (event, *damaged):
        (run / "events.jsonl").write_text(json.dumps(values) + "\n")
        for command in ("status", "explain"):
            assert_obeyed_nothing(cli, command, run)
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert [cli(command, run).code for command in ("status", "explain", "card")] == [0, 0, 0]
    push = ("push", run, "--all", "--repo-id", "org/fed", "--dry-run")
    for line in (("card", run), ("run", "--resume", run), ("evaluate", run), push, ("compare", run, two_pairs_run)):
        assert_obeyed_nothing(cli, *line)
    assert_obeyed_nothing(cli, "compare", run, two_pairs_run, "--markdown")


def test_a_terminal_obeys_nothing_of_a_recipe(tmp_path: Path, cli: Cli) -> None:
    """Each kind of text, and each kind of key."""
    recipe = tmp_path / "recipe.yaml"
    for place in kinds_of(SMOKE).values():
        recipe.write_text(yaml.safe_dump(with_text(SMOKE, place, HOSTILE)))
        assert_obeyed_nothing(cli, "validate", recipe)
    for section in ("clients", "tasks", "datasets", "training", "algorithm", "federation", "backbone"):
        recipe.write_text(yaml.safe_dump({**SMOKE, section: {**SMOKE[section], HOSTILE: {HOSTILE: HOSTILE}}}))
        assert_obeyed_nothing(cli, "validate", recipe)
    recipe.write_text(f"# {HOSTILE.replace(chr(10), ' ')}\n" + yaml.safe_dump(SMOKE))
    assert_obeyed_nothing(cli, "recipes", recipe)


def test_a_terminal_obeys_nothing_of_a_table(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells, names of columns and of files: in the tables of `data`, and in messages about them."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{n} {HOSTILE}", f"x{HOSTILE}": f"{n % 3}{HOSTILE}"} for n in range(60)]
    name = "a\x1b]0;\u202e\n.jsonl"
    Path(name).write_text("\n".join(map(json.dumps, rows)))
    recipe = copy.deepcopy(SMOKE)
    recipe["datasets"] = {"rows": {"source": "json", "path": name}}
    columns = {"text": "text", "target": f"x{HOSTILE}"}
    task = {"pair": "text__classification", "dataset": "rows", "columns": columns, "metric": "accuracy"}
    recipe["tasks"], recipe["clients"] = {"digit": task}, {"clinic": {"tasks": ["digit"]}}
    recipe["federation"]["clients_per_round"] = 1
    recipe["examples"] = {"train": 8, "validation": 4, "test": 4}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli("data", "recipe.yaml").code == 0
    assert_obeyed_nothing(cli, "data", "recipe.yaml")
    task["columns"] = {"text": "absent", "target": "absent"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert_obeyed_nothing(cli, "data", "recipe.yaml")


def test_a_terminal_obeys_nothing_of_a_server(two_pairs_run: Path, hub: HubServer, cli: Cli, tmp_path: Path) -> None:
    files = client_publication(two_pairs_run, "clinic", "org/clinic").files
    for name, content in {"run.json": b"[]", "config.json": HOSTILE.encode(), f"clients/{HOSTILE}/a.json": b""}.items():
        hub.put("model org/clinic", {**files, name: content})
        for command in (
            ("pull", "org/clinic", "--output-dir", tmp_path / "pulled"),
            ("predict", "--repo", "org/clinic", "--text", "x"),
            ("push", two_pairs_run, "--client", "clinic", "--repo-id", "org/clinic", "--yes"),
        ):
            assert_obeyed_nothing(cli, *command)
            shutil.rmtree(tmp_path / "pulled", ignore_errors=True)


CHARACTERS = st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "L", "S"])


@given(st.text(CHARACTERS))
def test_no_text_is_obeyed_or_lost(text: str) -> None:
    shown = printable(text)
    assert not OBEYED.search(shown)
    assert printable(shown) == shown
    assert OBEYED.search(text) or shown == text


@given(st.text(CHARACTERS), st.booleans())
def test_neither_a_console_nor_a_card_passes_controls_on(text: str, is_table: bool) -> None:
    from rich.table import Table

    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    console = Terminal(width=60)
    console.file = StringIO()
    console.print(table if is_table else text)
    assert not OBEYED.search(console.file.getvalue())
    assert not OBEYED.search(str(escape_markdown(text)))


def test_a_card_and_its_front_matter_hold_no_controls(tmp_path: Path) -> None:
    ways = ("value", "value|code", "value|plain", "value|padded", "value|py")
    (tmp_path / "own.md.j2").write_text(" ".join(f"{{{{ {way} }}}}" for way in ways))
    card = render_card("own.md.j2", {"value": HOSTILE}, {"tags": [HOSTILE], "base_model": HOSTILE}, tmp_path)
    assert not OBEYED.search(card)
    assert yaml.safe_load(card.split("---\n")[1]).keys() == {"tags", "base_model"}


def test_a_warning_of_a_library_goes_through_the_terminal(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Python would write it as it is, with what others wrote in it."""

    def warn(path: Path) -> Path:
        warnings.warn("Glyph 27 (\x1b[2J) missing", UserWarning, stacklevel=1)
        return path

    monkeypatch.setattr("tap_hf.cli.recipe_commands.find_recipe", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # an earlier command of this process may have begun it, with another hook
        done = cli("validate", tmp_path / "absent.yaml")
        logging.captureWarnings(False)
    assert "missing" in caplog.text
    assert "\x1b" not in done.err + done.out


@pytest.mark.parametrize("label", ["\x1b[2J", "$x_{$", "$\\frac$", "\U0001f600", "\u202eabc"])
def test_a_figure_of_labels_of_others_is_drawn(label: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = str(confusion_matrix("urgency", [label, "calm"], np.ones((2, 2), np.int64)))
    assert not OBEYED.search(figure)
    assert printable(label) in figure
