"""What docs/trainer.md says works: every snippet runs, section by section."""

import contextlib
from pathlib import Path

import pytest

from tests.commands import tap_hf
from tests.conftest import ROOT
from tests.documents import blocks

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/trainer.md").read_text()
PREAMBLE, *SECTIONS = GUIDE.split("\n## ")
WITH_CODE = [section for section in SECTIONS if "```python" in section]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


# peft 0.21 asks transformers 5 for a name that it has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("section", WITH_CODE, ids=[section.splitlines()[0] for section in WITH_CODE])
def test_every_snippet_of_the_guide_runs(folder: Path, section: str) -> None:
    """In order: a section may use what the sections before it wrote."""
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        for code in blocks("python", PREAMBLE) + blocks("python", section):
            exec(compile(code, "docs/trainer.md", "exec"), names)  # noqa: S102 - our own document


def test_the_command_of_the_guide_runs(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    (command,) = blocks("bash", GUIDE)
    tap_hf(command.strip(), folder)
    assert list((folder / "runs/curves/trainer/smoke-two-pairs").glob("events.out.tfevents.*"))


def test_every_public_trainer_name_is_in_the_guide() -> None:
    for name in (
        "AdapterReplacementCallback",
        "DistillationTrainer",
        "TapTrainer",
        "TrainerClient.from_trainer",
        "federate",
    ):
        assert f"`{name}`" in GUIDE
