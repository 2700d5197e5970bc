"""The embedded backbone: a tiny FLAVA, for offline use.

Its model card is `checkpoint/README.md`; `scripts/pretrain_tiny` rebuilds it from generated images and WordNet.
"""

from pathlib import Path


def checkpoint_dir() -> Path:
    """Return the folder of the packaged checkpoint, for `AutoModel` and `AutoProcessor`."""
    return Path(__file__).resolve().parent / "checkpoint"
