"""The playground: each set answers with its own values, nothing leaves the machine, and a browser shows it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tap_hf import RunDirectory, TapError, TapModel, read_finished
from tap_hf.hub import client_publication, load_client_model, load_client_sets, record_of
from tap_hf.models import equal
from tap_hf.report.playground import SideBySide, export_space, playground
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli
from tests.hub_server import HubServer
from tests.pages import open_browser

TITLES = ("backbone, heads only", "global", "personal")
TEXT = "Fracture of lower end of left femur"


def test_the_sets_of_a_client_are_its_own(two_pairs_run: Path) -> None:
    held = load_client_sets(two_pairs_run, "clinic")
    saved = RunDirectory(two_pairs_run).sets("clinic")
    assert list(held.sets) == ["backbone", "global", "personal"]
    assert equal(held.sets["personal"], saved["personal"])
    assert equal(held.sets["backbone"], saved["backbone"])
    rounds = read_finished(two_pairs_run).recipe.federation.rounds
    server = RunDirectory(two_pairs_run).server(rounds - 1).components
    assert equal(held.sets["global"], {component: server[component] for component in held.sets["global"]})


def test_each_set_answers_as_predict_does(two_pairs_run: Path) -> None:
    record = record_of(two_pairs_run)
    asked = SideBySide(two_pairs_run, record, None, None)
    found = asked.answers("clinic", record.tasks["chapter"], None, TEXT)
    for name in ("personal", "backbone", "global"):  # another order than that of loading
        alone = load_client_model(two_pairs_run, "clinic", name).model.predict("chapter", text=TEXT)
        assert found[name] == alone
    assert len({max(one.probabilities.values()) for one in found.values() if one.probabilities}) > 1
    with pytest.raises(TapError, match="needs text as input"):
        asked.answers("clinic", record.tasks["chapter"], None, "  ")


def test_a_published_client_has_what_was_published(hub: HubServer, two_pairs_run: Path) -> None:
    hub.put("model org/clinic", client_publication(two_pairs_run, "clinic", "org/clinic").files)
    record = record_of("org/clinic")
    asked = SideBySide("org/clinic", record, None, None)
    assert not asked.has_examples
    (said,) = asked.answers("clinic", record.tasks["chapter"], None, TEXT).items()
    expected = TapModel.from_pretrained(two_pairs_run / "clients/clinic").predict("chapter", text=TEXT)
    assert said == ("personal", expected)


def test_examples_are_kept_test_rows_and_none_are_redacted(all_pairs_run: Path) -> None:
    record = record_of(all_pairs_run)
    asked = SideBySide(all_pairs_run, record, None, None)
    assert asked.has_examples
    rows = [asked.example("clinic", record.tasks["section"]) for _ in range(3)]
    assert all(row is not None and row.text for row in rows)
    assert len({row.row for row in rows if row is not None}) == 3
    record.recipe.privacy.__dict__["redact"] = True
    assert not SideBySide(all_pairs_run, record, None, None).has_examples


def test_a_space_names_its_repository(tmp_path: Path, cli: Cli) -> None:
    done = cli("demo", "org/mine", "--export", tmp_path / "space")
    assert done.code == 0, done.err
    files = {Path(line).name: Path(line).read_text() for line in done.out.splitlines()}
    assert files.keys() == {"app.py", "requirements.txt", "README.md"}
    compile(files["app.py"], "app.py", "exec")
    assert "playground('org/mine').launch()" in files["app.py"]
    assert files["requirements.txt"].startswith("tap_hf[ui]==")
    metadata = yaml.safe_load(files["README.md"].split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("gradio", "app.py", ["org/mine"])
    assert_a_users_mistake(cli("demo", "org/mine", "--export", tmp_path / "space"), "exists. Choose another folder")


def test_mistakes_are_named(two_pairs_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_a_users_mistake(cli("demo", two_pairs_run, "--export", tmp_path / "space"), "is on this machine")
    assert_a_users_mistake(cli("demo", "no repository", "--export", tmp_path / "space"), "no repository")
    assert not (tmp_path / "space").exists()
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_a_users_mistake(cli("demo", two_pairs_run), 'pip install "tap_hf[ui]"')


@pytest.mark.slow
def test_a_browser_shows_the_sets_side_by_side(all_pairs_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install tap_hf[ui]")
    record = record_of(all_pairs_run)
    found = SideBySide(all_pairs_run, record, None, None).answers("clinic", record.tasks["chapter"], None, TEXT)
    share = max((found["personal"].probabilities or {}).values())
    program = [str(Path(sys.executable).parent / "tap-hf"), "demo", str(all_pairs_run)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as served:  # noqa: S603
        try:
            assert served.stdout is not None
            address = served.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            with open_browser() as browser:
                said: list[str] = []
                for width in (1280, 390):
                    tab = browser.new_page(viewport={"width": width, "height": 900})
                    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
                    tab.on("request", lambda one: said.append(one.url) if not one.url.startswith(address) else None)
                    tab.goto(address)
                    tab.get_by_role("button", name="A test row of the client").click()
                    tab.get_by_text("Test row").wait_for()
                    for title in TITLES:
                        tab.get_by_text(title, exact=True).locator("visible=true").first.wait_for()
                    tab.get_by_role("textbox", name="text").fill(TEXT)
                    tab.get_by_role("button", name="Ask", exact=True).click()
                    tab.get_by_text(f"{share:.0%}", exact=True).first.wait_for()
                    assert tab.evaluate("document.documentElement.scrollWidth") == width
                    assert [one for one in said if not one.startswith(("data:", "blob:"))] == []
                    tab.close()
        finally:
            served.terminate()


def test_the_space_file_is_what_is_tested(tmp_path: Path) -> None:
    assert [file.name for file in export_space("org/mine", tmp_path)] == ["app.py", "requirements.txt", "README.md"]
    assert callable(playground)
