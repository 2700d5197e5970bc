"""The examples in docstrings run."""

import doctest
import importlib
import os

import pytest

from tests.conftest import ROOT

WITH_EXAMPLES = [path for path in sorted((ROOT / "tap_hf").rglob("*.py")) if ">>>" in path.read_text()]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in WITH_EXAMPLES]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        result = doctest.testmod(importlib.import_module(module))
    finally:
        os.chdir(before)
    assert result.failed == 0
