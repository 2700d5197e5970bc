"""Which files a repository of adapters holds.

```
README.md                     the model card
run.json                      what the card is made from
processor/                    the base model's tokenizer and image processor
clients/<name>/<pair>/        one client's personal adapter, as plain PEFT loads it, with heads and tasks
global/<pair>/                the federation's own, likewise
```

A repository of one client has `<pair>/` at its root, and one of a single pair has that pair's files there, which is
where `AutoPeftModel` looks.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tap_hf.models.peft_export import ADAPTER_FILE, CONFIG_FILE, HEAD_FILE, TASKS_FILE
from tap_hf.pairs import ALL_PAIRS, NAME_PATTERN

CARD_FILE = "README.md"
RECORD_FILE = "run.json"
PROCESSOR_FOLDER = "processor"
CLIENTS_FOLDER = "clients"
GLOBAL_FOLDER = "global"
PAIR_FILES = (CONFIG_FILE, ADAPTER_FILE, HEAD_FILE, TASKS_FILE)

_PAIR = "|".join(pair.name for pair in ALL_PAIRS)
_FOLDER = re.compile(
    rf"(?:clients/(?P<client>{NAME_PATTERN.pattern})/(?P<of_client>{_PAIR})|global/(?P<of_all>{_PAIR})|(?P<alone>{_PAIR}))?"
)
_PROCESSOR_FILE = re.compile(r"processor/[A-Za-z0-9_]+\.(?:json|txt|jinja|model)")


@dataclass(frozen=True)
class PairFolder:
    """A folder with the adapter of one pair.

    Attributes:
        path: in the repository; empty for its root.
        client: whose it is, as far as the path says; `None` also for what all clients share.
        is_global: whether all clients share it.
    """

    path: str
    client: str | None
    is_global: bool

    def file(self, name: str) -> str:
        """Return the path of one of its files."""
        return f"{self.path}/{name}" if self.path else name


def pair_folders(files: Iterable[str]) -> list[PairFolder]:
    """Return the folders that hold an adapter's tasks, among the files of a repository."""
    found = []
    for path in sorted(files):
        folder, _, name = path.rpartition("/")
        if name == TASKS_FILE and (match := _FOLDER.fullmatch(folder)) is not None:
            found.append(PairFolder(folder, match["client"], match["of_all"] is not None))
    return found


def is_ours(path: str) -> bool:
    """Say whether a file of a repository has a place in the layout; others are neither read nor deleted."""
    folder, _, name = path.rpartition("/")
    if path in (CARD_FILE, RECORD_FILE) or _PROCESSOR_FILE.fullmatch(path):
        return True
    return name in PAIR_FILES and _FOLDER.fullmatch(folder) is not None
