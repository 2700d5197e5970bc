"""A home of its own for each attempt: caches, a token, and the address of its Hub."""

import os
import sys
import tempfile
from pathlib import Path

TOKEN = "hf_secret_of_the_user"  # noqa: S105 - a trap
OTHER_HOST_FILE = "told_to_another_host"
"""What another host than the Hub was told, in the folder of the attempt."""


def at_home(home: Path, endpoint: str | None) -> None:
    """Let this process live in a folder; the libraries have read their settings when they were imported."""
    temporary = home / "tmp"
    temporary.mkdir()
    os.environ.update(HOME=str(home), TMPDIR=str(temporary), HF_TOKEN=TOKEN, COLUMNS="120")
    tempfile.tempdir, sys.dont_write_bytecode = None, True
    import huggingface_hub.constants as hub

    for name, value in list(vars(hub).items()):  # caches, the place of the token, ...
        if name != "HF_HOME" and isinstance(value, str) and value.startswith(hub.HF_HOME):
            setattr(hub, name, str(home / "hf") + value.removeprefix(hub.HF_HOME))
    hub.HF_HOME, hub.HF_HUB_OFFLINE = str(home / "hf"), endpoint is None
    if endpoint is not None:
        hub.ENDPOINT = endpoint
        hub.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    if "datasets" not in sys.modules:  # the attempt needs little
        return
    import datasets
    import evaluate

    datasets.config.HF_DATASETS_CACHE = home / "hf/datasets"
    datasets.config.DOWNLOADED_DATASETS_PATH = home / "hf/datasets/downloads"
    datasets.config.EXTRACTED_DATASETS_PATH = home / "hf/datasets/downloads/extracted"
    datasets.config.HF_HUB_OFFLINE = endpoint is None
    evaluate.config.HF_MODULES_CACHE = str(home / "hf/modules")
    evaluate.config.HF_METRICS_CACHE = str(home / "hf/metrics")
    if endpoint is not None:
        datasets.config.HF_ENDPOINT = endpoint
