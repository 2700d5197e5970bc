"""The files of a published repository.

```
README.md            the model card
run.json             the record that the card is made from
clients/<name>/      each client's personal `TapModel`; see `models/pretrained.py`
global/              the averaged `TapModel`
processor/           the backbone's tokenizer and image processor
```

A repository of one client has that client's `TapModel` at its root.
"""

import re
from collections.abc import Iterable

from tap_hf.models.config import CONFIG_FILE
from tap_hf.models.peft_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tap_hf.models.pretrained import HEADS_FILE
from tap_hf.pairs import ALL_PAIRS, NAME_PATTERN, SHARED_SCOPES

CARD_FILE = "README.md"
RECORD_FILE = "run.json"
CLIENTS_FOLDER = "clients"
GLOBAL_FOLDER = "global"

_PAIR = "|".join(pair.name for pair in ALL_PAIRS)
_ADAPTER = rf"(?:{_PAIR}|shared__(?:{'|'.join(SHARED_SCOPES)})__[a-z]+)"
_MODEL = rf"(?:{CLIENTS_FOLDER}/{NAME_PATTERN.pattern}|{GLOBAL_FOLDER})"
_FILES = "|".join(
    [
        re.escape(CONFIG_FILE),
        re.escape(HEADS_FILE),
        rf"(?:{_ADAPTER}/)?(?:{re.escape(ADAPTER_CONFIG_FILE)}|{re.escape(ADAPTER_FILE)})",
        r"processor/[A-Za-z0-9_]+\.(?:json|txt|jinja|model)",
    ]
)
_OURS = re.compile(rf"(?:{_MODEL}/)?(?:{_FILES})|{re.escape(CARD_FILE)}|{re.escape(RECORD_FILE)}")
_CONFIG = re.compile(rf"(?:({_MODEL})/)?{re.escape(CONFIG_FILE)}")


def model_folders(files: Iterable[str]) -> list[str]:
    """Return the folders of a repository with a `TapModel`; the root is an empty text."""
    return [match[1] or "" for path in sorted(files) if (match := _CONFIG.fullmatch(path)) is not None]


def is_ours(path: str) -> bool:
    """Return whether a file belongs to the layout; others are neither read nor deleted."""
    return _OURS.fullmatch(path) is not None
