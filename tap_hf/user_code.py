"""Load and call code from outside the package: `file.py:name`, `package.module:name`, or an entry point.

Such code runs because the user's recipe or an installed package names it, never because a record or a repository does.
"""

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CodeFile:
    """The file of some user code, its SHA-256, and its size in bytes."""

    path: Path
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.path} (sha256 {self.sha256}, {self.size:,} bytes)"


def code_file(target: str) -> CodeFile:
    """Return the file that holds `file.py:name`, `package.module:name`, or all of `file.py`; nothing is imported.

    Raises:
        UserCodeError: if there is no such file.
    """
    module = target.rpartition(":")[0] if names_code(target) else target
    path = Path(module).expanduser() if module.endswith(".py") else _module_file(target, module)
    content = _content(target, path)
    return CodeFile(path, hashlib.sha256(content).hexdigest(), len(content))


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
        raise UserCodeError(f"{where}: raised {raised(error, where)}") from error


@contextmanager
def never_exits() -> Iterator[None]:
    """Turn a `sys.exit` of any code that is called into an error: it would end the program as if all were done.

    Raises:
        UserCodeError: naming the file and line.
    """
    try:
        yield
    except SystemExit as error:
        raise UserCodeError(f"Code of the run raised {raised(error, '')}; expected it to return.") from error


def raised(error: BaseException, where: str) -> str:
    """Return an exception's type, text, file and line for a message.

    Args:
        error: the exception.
        where: `file.py:name` or a file, whose innermost line is named; that of the exception if there is none.
    """
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(error, SyntaxError):  # has its own line
        return said
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    file = Path(where.rpartition(":")[0] if names_code(where) else where).name
    at = next((frame for frame in frames if file and Path(frame.filename).name == file), frames[0])
    return f"{said} ({Path(at.filename).name}, line {at.lineno})"


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
    if is_downloaded(path):
        raise UserCodeError(
            f"{target}: {path} is in the cache of downloads, from which no code runs. Read it, and copy it beside your "
            "recipe."
        )
    return path.read_bytes()


def is_downloaded(path: Path) -> bool:
    """Say whether a path is in a cache of `huggingface_hub` or `datasets`."""
    return any(path.resolve().is_relative_to(cache.resolve()) for cache in download_caches())


def download_caches() -> tuple[Path, ...]:
    """Return the folders of the caches of `huggingface_hub` and `datasets`."""
    from huggingface_hub import constants  # late: only where a file is named

    caches = (constants.HF_HOME, constants.HF_HUB_CACHE, os.environ.get("HF_DATASETS_CACHE"))
    return tuple(Path(cache) for cache in caches if cache)


def _module_file(target: str, module: str) -> Path:
    top, *inner = module.split(".")
    found = importlib.util.find_spec(top) if top else None
    for name in inner:  # `find_spec("package.module")` would run the package
        places = found.submodule_search_locations if found is not None else None
        found = importlib.machinery.PathFinder.find_spec(name, list(places or ()))
    if found is None:
        raise UserCodeError(f"{target}: there is no module {module}.")
    return Path(found.origin or "")


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
