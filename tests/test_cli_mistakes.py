"""The command line: a user's mistake gives one clear message and exit code 2, and loses nothing."""

import json
from pathlib import Path

import pytest

from tests.commands import assert_a_users_mistake
from tests.conftest import ROOT, Cli

TWO_PAIRS = ROOT / "recipes/smoke/two_pairs.yaml"


def test_a_mistake_in_the_shell_gives_one_message_and_exit_code_2(shell: Cli, tmp_path: Path) -> None:
    finished = shell("explain", tmp_path / "absent")
    assert_a_users_mistake(finished, "absent is not a run directory; expected one that `tap-hf run` made.")
    assert finished.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--client", "clinc", "--task", "chapter", "--text", "x"], 'no client "clinc", did you mean "clinic"?'),
        (["--client", "clinic", "--task", "chaptr", "--text", "x"], 'no task "chaptr", did you mean "chapter"?'),
        (["--client", "clinic", "--task", "digit", "--text", "x"], 'The model has no task "digit"'),
        (
            ["--client", "clinic", "--task", "chapter", "--set", "stage2", "--text", "x"],
            'has no set "stage2", did you mean "stage1"?',
        ),
        (["--client", "clinic", "--task", "chapter"], "(text__classification) needs text as input"),
        (["--client", "clinic", "--task", "chapter", "--text", " "], "needs text as input, got an empty text"),
        (["--client", "kiosk", "--task", "vqa", "--text", "x"], "(image_text__generation) needs image as input"),
        (
            ["--client", "scanner", "--task", "digit", "--image", "{image}", "--text", "x"],
            "does not take text as input",
        ),
        (["--client", "scanner", "--task", "digit", "--image", "absent.png"], "absent.png is not a readable image"),
        (
            ["--client", "scanner", "--task", "digit", "--image", __file__],
            "is not a readable image (cannot identify image file",
        ),
        (["--client", "scanner", "--task", "digit", "--image", "."], ". is not a readable image"),
        (["--client", "scanner", "--task", "sketch", "--image", "{image}"], "generates an image: add --output"),
        (["--client", "scanner", "--task", "digit", "--image", "{image}", "--output", "x.png"], "generates no image"),
        (
            ["--client", "scanner", "--task", "sketch", "--image", "{image}", "--output", "absent/x.png"],
            "absent/x.png cannot be written",
        ),
        (
            ["--client", "scanner", "--task", "sketch", "--image", "{image}", "--output", "x.nope"],
            "x.nope cannot be written",
        ),
        (["--client", "clinic"], "No task takes nothing as input. Name the task; the model has chapter"),
        (["--text", "x"], "holds the models of clinic, kiosk, scanner. Choose one"),
    ],
)
def test_mistakes_in_predict(
    all_pairs_run: Path, cli: Cli, picture: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(picture.parent)
    filled = [argument.replace("{image}", picture.name) for argument in arguments]
    assert_a_users_mistake(cli("predict", all_pairs_run, *filled), said)


@pytest.mark.parametrize("command", ["evaluate", "explain", "predict"])
def test_a_folder_that_is_no_finished_run(all_pairs_run: Path, cli: Cli, tmp_path: Path, command: str) -> None:
    options = ["--client", "clinic", "--task", "chapter", "--text", "x"] if command == "predict" else []
    for absent in (tmp_path / "absent", tmp_path, Path(__file__)):
        assert_a_users_mistake(cli(command, absent, *options), f"{absent} is not a run directory")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    record = json.loads((all_pairs_run / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(record | {"results": None}))
    assert_a_users_mistake(cli(command, unfinished, *options), "did not finish: its run.json has no results")


def test_explain_of_an_unknown_client(all_pairs_run: Path, cli: Cli) -> None:
    assert_a_users_mistake(cli("explain", all_pairs_run, "--client", "scaner"), 'did you mean "scanner"?')
    assert_a_users_mistake(cli("explain", all_pairs_run, "--task", "digits"), 'no task "digits", did you mean "digit"?')
    finished = cli("explain", all_pairs_run, "--client", "scanner", "--task", "vqa")
    assert_a_users_mistake(finished, 'Client "scanner" has no task "vqa", expected one of digit, sketch')


def test_run_never_writes_into_a_folder_that_holds_anything(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    finished = cli("run", TWO_PAIRS, "--output-dir", tmp_path)
    assert_a_users_mistake(finished, f"{tmp_path} exists and is not empty. Choose another --output-dir, or delete it.")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_run_into_a_folder_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "run"):
        assert_a_users_mistake(cli("run", TWO_PAIRS, "--output-dir", target), f"{target} cannot be written (")


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_broken_recipe_is_refused_with_all_its_problems(cli: Cli, tmp_path: Path, command: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TWO_PAIRS.read_text().replace("rounds: 2", "round: 2"))
    finished = cli(command, path, "tasks.digit.pair=image", "training.local_steps=0")
    assert_a_users_mistake(
        finished, 'federation.round: unknown key, did you mean "rounds"?', "federation.rounds: missing"
    )
    assert_a_users_mistake(
        finished, "tasks.digit.pair: unknown pair", "training.local_steps: expected a number greater than 0"
    )


def test_a_name_between_colons_is_no_emoji(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("raise Exception('at import')")
    finished = cli("validate", TWO_PAIRS, f"algorithm={{name: '{own}:X'}}")
    assert_a_users_mistake(finished, f"{own}:X: raised Exception: at import")


def test_an_unknown_method_of_a_benchmark_is_refused_before_any_of_its_runs(cli: Cli) -> None:
    finished = cli("validate", TWO_PAIRS, "benchmark={methods: [tap, lokal]}")
    assert_a_users_mistake(finished, 'benchmark.methods: unknown "lokal", did you mean "local"?')


def test_recipes_that_do_not_exist(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()  # a folder is no recipe
    for name in ("nowhere.yaml", "smoke"):
        for command in ("run", "validate", "recipes"):
            assert_a_users_mistake(
                cli(command, name), "not a file or recipe of tap_hf; expected a file or one of benchmark/"
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("backbone.name=nobody/nothing", 'Cannot load a backbone from "nobody/nothing": expected "tiny", a folder'),
        ("datasets.digits.source=nobody/nothing", 'Dataset "digits": "nobody/nothing" is neither shipped'),
        ("tasks.digit.columns.image=picture", 'has no column "picture" for the image, it has image, digit'),
        ("lora.default.layers=[qurey]", "no layers called qurey"),
        ("examples.train=1790", "Lower `examples` or use fewer clients."),
        ("datasets.digits={source: python, path: 'absent.py:rows'}", "absent.py:rows: there is no file absent.py."),
        ("datasets.digits={source: idx, path: absent}", 'Dataset "digits": there is no absent (datasets.digits.path).'),
        ("tasks.digit.shared_test=true", 'has shared_test, but dataset "digits" has no test split. Cut one in'),
        ("clients.scanner.slices={digit: '[2000:]'}", "had 0 left of the 0 that it may hold"),
    ],
)
def test_what_only_a_run_can_find_is_a_users_mistake_too(cli: Cli, tmp_path: Path, override: str, said: str) -> None:
    alone = tmp_path / "alone.yaml"
    alone.write_text(
        "\n".join(line for line in TWO_PAIRS.read_text().splitlines() if not line.startswith("  chapter:"))
    )
    one_client = ("clients={scanner: {tasks: [digit]}}", "federation.clients_per_round=1")
    finished = cli("run", alone, *one_client, override, "--output-dir", tmp_path / "run")
    assert_a_users_mistake(finished, said)


def test_export_never_writes_into_a_folder_that_holds_anything(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert_a_users_mistake(cli("backbone", "export", tmp_path), "exists and is not empty. Choose another folder.")
    assert_a_users_mistake(cli("backbone", "export", tmp_path / "mine.txt" / "x"), "cannot be written (")


@pytest.mark.parametrize("arguments", [["evaluate"], ["run"], ["nonsense"], ["explain", "x", "--nonsense"]])
def test_wrong_usage_is_a_users_mistake(cli: Cli, arguments: list[str]) -> None:
    assert_a_users_mistake(cli(*arguments), "Usage: tap-hf")
