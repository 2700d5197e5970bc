"""What the tests share: one tiny model per kind of federation, and small recipes."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hub import HUB
from tests.hub_server import HubServer

# Read on import. No test waits for a network; those of the Hub have a server of their own, and go online by `hub`.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_ENDPOINT"] = HUB.url
os.environ["HF_HUB_DISABLE_XET"] = "1"

import huggingface_hub
import numpy as np
import pytest
import yaml
from filelock import FileLock
from hypothesis import settings
from PIL import Image

import tap_hf
from tap_hf import algorithms
from tap_hf.cli.app import main
from tap_hf.recipe import AGGREGATION_RULES, METHODS, PARTITIONS, overridden

# Slow libraries are imported by the functions that use them: the process that only starts the workers needs none.
if TYPE_CHECKING:
    from tap_hf import Adapters, Algorithm, Federation, Recipe, TapModel

# The same examples in each session, on machines of any speed.
settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
TAP_SETS = ("backbone", "global", "fine_tuned", "stage1", "personal")
"""What a client of TAP is judged by, in the order in which it is shown."""


BOTH_MODALITIES = ("image_text__classification", "image_text__generation")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Leave bytes out of names: an archive has its time in it, and all workers must collect the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A quick run tries the embedded backbone on every pair, and other families on those of both modalities."""
    kept = tuple(f"{pair}]" for pair in BOTH_MODALITIES)
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "task" in parameters and parameters.get("family", "flava") != "flava" and not item.name.endswith(kept):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers of this session; `made_once` fills it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first worker that needs it makes, while the others wait."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> None:
    """Files that `datasets` converts, and scripts that `evaluate` copies, are kept for the tests only."""
    import datasets
    import evaluate
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    datasets.config.HF_DATASETS_CACHE = shared_folder / "datasets"
    evaluate.config.HF_MODULES_CACHE = str(tmp_path_factory.mktemp("modules"))
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1  # 5 seconds after every shuffled stream


def use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _own_registrations() -> Iterator[None]:
    """What a file registers, as the examples in docstrings do, is in no message that another one compares."""
    from tap_hf.models.backbones import FAMILIES
    from tap_hf.tasks import METRICS

    registries = (METHODS, AGGREGATION_RULES, PARTITIONS, METRICS, FAMILIES)
    before = [dict(registry._registered) for registry in registries]
    yield
    for registry, registered in zip(registries, before, strict=True):
        registry._registered.clear()
        registry._registered.update(registered)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results are bit-equal for one number of threads, and small models are fastest with one."""
    use_one_thread()


ALL_PAIRS_RECIPE: dict[str, Any] = yaml.safe_load((ROOT / "recipes/smoke/all_pairs.yaml").read_text())


@pytest.fixture
def raw() -> dict[str, Any]:
    """The plain values of a recipe with every kind of pair; a test may change its copy."""
    return copy.deepcopy(ALL_PAIRS_RECIPE)


@pytest.fixture
def recipe(raw: dict[str, Any]) -> Recipe:
    return tap_hf.load_recipe(raw)


@pytest.fixture(scope="module", autouse=True)
def _young_garbage_only() -> None:
    """Keep the libraries out of garbage collections: every `Trainer.train` runs a full one, which takes a second.

    For each file anew, since tests import and keep more and more. A collection goes through what came since the last.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A loaded federation with every kind of pair. Its model is shared: a test loads the values it needs."""
    use_one_thread()
    directory = tap_hf.RunDirectory.create(tmp_path_factory.mktemp("federation") / "run")
    return tap_hf.load_federation(tap_hf.load_recipe(ALL_PAIRS_RECIPE), directory)


@pytest.fixture(scope="session")
def all_pairs_run(shared_folder: Path) -> Path:
    """The directory of a finished run with every kind of pair; tests only read it."""
    use_one_thread()
    return made_once(
        shared_folder / "all_pairs_run", lambda folder: tap_hf.run(tap_hf.load_recipe(ALL_PAIRS_RECIPE), folder)
    )


@pytest.fixture
def model(federation: Federation) -> TapModel:
    """The federation's model with its initial values loaded."""
    federation.population.model.load(federation.population.model.initial)
    federation.population.model.set_trainable(federation.population.model.initial)
    federation.population.model.eval()
    return federation.population.model


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Finished]
"""Runs the program with these arguments."""


@pytest.fixture(scope="session")
def shell() -> Cli:
    """Run the installed program."""

    def call(*arguments: str | Path) -> Finished:
        program = Path(sys.executable).parent / "tap-hf"
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)  # noqa: S603
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the program in this process, which spares seconds of imports."""

    def call(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["tap-hf", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Finished(int(exit_.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """An image file of a kind that no recipe's data has: RGBA, and not square."""
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def randomised(adapters: Adapters, seed: int = 0) -> Adapters:
    """Return values of the same names and shapes that no training would give."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        c: {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
        for c, tensors in adapters.items()
    }


def with_method(federation: Federation, name: str, **options: Any) -> Federation:
    """Return the federation with another method."""
    section = METHODS.find(name).options_class(**options)
    recipe = overridden(federation.population.recipe, []).model_copy(update={"algorithm": section})
    algorithm: Algorithm = algorithms.build_algorithm(recipe, list(federation.clients.values()))
    return dataclasses.replace(federation, options=recipe, algorithm=algorithm)


def with_options(algorithm: Algorithm, **changes: Any) -> algorithms.Tap:
    """Return the algorithm with other options."""
    assert isinstance(algorithm, algorithms.Tap)
    return dataclasses.replace(algorithm, options=algorithm.options.model_copy(update=changes))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """An empty Hub that the client of `huggingface_hub` talks to, with the token of alice, who writes to `org`."""
    HUB.reset()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return HUB


@pytest.fixture(scope="session")
def two_pairs_run(shared_folder: Path) -> Path:
    """The directory of a finished run of two clients, a pair each; tests only read it."""
    use_one_thread()
    raw = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
    raw["federation"] = {"rounds": 1, "clients_per_round": 2}
    return made_once(shared_folder / "two_pairs_run", lambda folder: tap_hf.run(tap_hf.load_recipe(raw), folder))
