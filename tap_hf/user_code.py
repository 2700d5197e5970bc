"""Load and call code from outside the package: `file.py:name`, `package.module:name`, or an entry point.

Such code runs because a recipe or an installed package names it: read it before you run the recipe.
"""

import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tap_hf.errors import TapError, UserCodeError, did_you_mean

Result = TypeVar("Result")


def names_code(name: str) -> bool:
    """Say whether a name is `file.py:name` or `package.module:name`."""
    module, colon, attribute = name.rpartition(":")
    return bool(colon and module and attribute) and "//" not in name


def load_code(target: str) -> Any:
    """Return the object that `file.py:name` or `package.module:name` names; a file runs once per version.

    Args:
        target: a relative path starts at the working directory.

    Raises:
        UserCodeError: if the file, module or name does not exist, or if importing it raises.
    """
    module, _, attribute = target.rpartition(":")
    if not names_code(target):
        raise UserCodeError(f"{target!r} does not name code; expected file.py:name or package.module:name.")
    with calling(target):
        if module.endswith(".py"):
            path = Path(module).expanduser()
            loaded = _executed(path.resolve(), str(path), hashlib.sha256(_content(target, path)).hexdigest())
        else:
            loaded = importlib.import_module(module)
    if not hasattr(loaded, attribute):
        own = [key for key, value in vars(loaded).items() if callable(value) and not key.startswith("_")]
        raise UserCodeError(f"{target}: {module} has no {attribute}{did_you_mean(attribute, own)}")
    return getattr(loaded, attribute)


def code_checksum(target: str) -> str:
    """Return the SHA-256 of the file that holds `file.py:name` or `package.module:name`.

    Raises:
        UserCodeError: if there is no such file.
    """
    module = target.rpartition(":")[0]
    with calling(target):
        specification = None if module.endswith(".py") else importlib.util.find_spec(module)
    path = Path(module).expanduser() if specification is None else Path(specification.origin or "")
    return hashlib.sha256(_content(target, path)).hexdigest()


@contextmanager
def calling(where: str) -> Iterator[None]:
    """Turn exceptions of user code, `sys.exit` included, into an error that names the file and line.

    Raises:
        UserCodeError: for any exception that is not a `TapError`.
    """
    try:
        yield
    except TapError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[::-1]
        file = where.rpartition(":")[0] if names_code(where) else where
        at = next((frame for frame in frames if frame.filename.endswith(file)), frames[0])
        said = " ".join(str(error).split())[:300]
        line = f"{Path(at.filename).name}, line {at.lineno}"
        raise UserCodeError(f"{where}: raised {type(error).__name__}: {said} ({line})") from error


def guarded(where: str, function: Callable[..., Result]) -> Callable[..., Result]:
    """Return a user's function, called within `calling`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Result:
        with calling(where):
            return function(*args, **kwargs)

    return call


def _content(target: str, path: Path) -> bytes:
    if not path.is_file():
        raise UserCodeError(
            f"{target}: there is no file {path}. Relative paths start at the working directory or the recipe's folder."
        )
    return path.read_bytes()


@functools.cache
def _executed(path: Path, shown: str, checksum: str) -> ModuleType:
    # Dataclasses and pydantic look annotations up in `sys.modules`.
    name = f"{path.stem}_{checksum[:12]}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise UserCodeError(f"{shown} is not a Python file.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
