"""No secret of a user gets into a file of a run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tap_hf
from tap_hf import RecipeError, load_recipe
from tests.commands import assert_a_users_mistake
from tests.conftest import ROOT, Cli
from tests.trainer_clients import trainer_client

SMOKE = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
SENTINEL = "q7Zw9Kx2Lm4Np6Rs8Tv1Yb3Dc5Fg7Hj9QQ"
NAMES = ("north", "south")


def with_value(path: str, value: Any) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(SMOKE))
    *sections, last = path.split(".")
    section = raw
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return raw


SECRETS = [
    ("training.trainer.hub_token", "x" + SENTINEL),
    ("training.trainer.wandb_api_key", SENTINEL),
    ("training.trainer.accelerator_config.password", SENTINEL),
    ("training.trainer.run_name", f"hf_{SENTINEL}"),
    ("training.trainer.project", f"sk-proj-{SENTINEL}"),
    ("training.trainer.trackio_space_id", f"https://space.example/?token={SENTINEL}"),
    ("lora.default.options.Client_Secret", SENTINEL),
    ("backbone.name", f"https://me:{SENTINEL}@models.example/x"),
    ("backbone.device_map", {"": f"ghp_{SENTINEL}"}),
    ("datasets.digits.path", f"s3://AKIA{SENTINEL[:16].upper()}/x"),
    ("datasets.digits.config", ["a", f"hf_{SENTINEL}"]),
    (f"clients.hf_{SENTINEL}", {"tasks": ["digit"]}),
    ("tasks.digit.labels", [f"-----BEGIN RSA PRIVATE KEY {SENTINEL}"]),
    ("benchmark.variants", {"mine": [f"training.trainer.hub_token={SENTINEL}"]}),
]


@pytest.mark.parametrize(("path", "value"), SECRETS, ids=[path for path, _ in SECRETS])
def test_a_secret_in_a_recipe_is_refused_and_not_shown(tmp_path: Path, cli: Cli, path: str, value: Any) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(with_value(path, value)))
    told = cli("validate", tmp_path / "recipe.yaml")
    assert_a_users_mistake(told, "looks like a secret", "hf auth login")
    assert path.rpartition(".")[0] in told.err
    assert SENTINEL not in told.err + told.out
    assert SENTINEL[:16].upper() not in told.err + told.out


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("tasks.digit.labels", {"0": "token", "secret": "password"}),  # values of the data
        ("training.trainer.run_name", "sk-learn-baseline-of-all-digits"),
        ("training.trainer.include_num_input_tokens_seen", "all"),
        ("training.trainer.run_name", "https://models.example/me:later"),
        ("datasets.digits.revision", "0123456789abcdef0123456789abcdef01234567"),
    ],
)
def test_what_only_looks_alike_is_no_secret(path: str, value: Any) -> None:
    try:
        load_recipe(with_value(path, value))
    except RecipeError as error:
        assert "secret" not in str(error)  # noqa: PT017 - other problems are expected of some


def test_no_secret_of_the_environment_gets_into_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recipe's run that reports to an integration, and of users' Trainers whose arguments have a token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TRACKIO_API_KEY", "COMET_API_KEY"):
        monkeypatch.setenv(name, f"hf_{SENTINEL}")
    monkeypatch.setattr(sys, "argv", ["tap-hf", f"--token={SENTINEL}"])
    small = with_value("training.trainer", {"report_to": "tensorboard"})
    small["training"] |= {"local_steps": 1, "batch_size": 4}
    small["algorithm"] = {"final": {"steps": 1}, "references": []}
    small["examples"] = {"train": 8, "validation": 4, "test": 4}
    small["federation"] = {"rounds": 1, "clients_per_round": 1}
    tap_hf.run(load_recipe(small), tmp_path / "recipe")
    trainers = [trainer_client(tmp_path / "users", name, arguments={"hub_token": f"hf_{SENTINEL}"}) for name in NAMES]
    tap_hf.federate(trainers, rounds=1, output_dir=tmp_path / "trainers", algorithm={"name": "fedavg"})
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("tfevents" in file.name for file in written)
    assert [file for file in written if SENTINEL.encode() in file.read_bytes()] == []
