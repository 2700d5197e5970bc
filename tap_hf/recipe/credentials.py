"""Secrets in recipes: a run's record keeps a recipe in clear, and may be published."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

_WORDS = r"(?:token|api_?key|access_?key|private_?key|passw(?:or)?d|secret)"
_KEY = re.compile(rf"(?:.*[_-])?{_WORDS}", re.IGNORECASE)
_OF_TOKENIZERS = re.compile(r"(?:bos|eos|pad|unk|mask|cls|sep|start|end|image)_token", re.IGNORECASE)
_NAMED_BY_USERS = ("labels", "slices")  # their keys are values of the data and names of tasks

_SHAPE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"
    r"|\bsk-(?:[a-z0-9]+-)*[A-Za-z0-9_]{20,}"
    r"|\bA[KS]IA[0-9A-Z]{16}\b"
    r"|\bgh[opsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}"
    r"|\bxox[abp]-[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]*:[^/\s@]+@"
    rf"|(?i:{_WORDS})=[^\s&]{{6,}}"
)
"""Tokens of Hugging Face, OpenAI and others that begin alike, AWS, GitHub and Slack; keys; URLs and texts with one."""


def secret_problems(values: Any, path: str = "") -> Iterator[str]:
    """Yield `path: problem` for each value that looks like a secret, by its key or its shape; no secret is shown."""
    if isinstance(values, Mapping | BaseModel):
        for key, value in dict(values).items():
            place, name = f"{path}.{key}".lstrip("."), str(key)
            if _SHAPE.search(name):
                yield _problem(path or "recipe", "a key")
            elif _is_secret(name, value) and path.rpartition(".")[2] not in _NAMED_BY_USERS:
                yield _problem(place, "its value")
            else:
                yield from secret_problems(value, place)
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from secret_problems(value, f"{path}.{number}")
    elif isinstance(values, str) and _SHAPE.search(values):
        yield _problem(path, "its value")


def _is_secret(key: str, value: Any) -> bool:
    return isinstance(value, str) and value != "" and bool(_KEY.fullmatch(key)) and not _OF_TOKENIZERS.fullmatch(key)


def _problem(path: str, what: str) -> str:
    return (
        f"{path}: {what} looks like a secret, which the records of a run would keep in clear. Log in with "
        "`hf auth login`, or set the environment variable that the library reads, such as HF_TOKEN or WANDB_API_KEY"
    )
