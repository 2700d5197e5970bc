"""The examples in docstrings run."""

import doctest
import importlib
import os
from pathlib import Path

import pytest

from tests.test_fences import MODULES


@pytest.mark.parametrize("module", sorted(m for m, path in MODULES.items() if ">>>" in path.read_text()))
def test_examples_run(module: str) -> None:
    before = os.getcwd()
    os.chdir(Path(__file__).resolve().parent.parent)
    try:
        result = doctest.testmod(importlib.import_module(module))
    finally:
        os.chdir(before)
    assert result.failed == 0
