"""The embedded backbone: a tiny FLAVA shipped inside the package, so that everything runs offline.

Its card is `checkpoint/README.md`; `scripts/pretrain_tiny` rebuilds it from nothing but generated images and WordNet.
"""

from pathlib import Path


def checkpoint_dir() -> Path:
    """Return the folder of the packaged checkpoint, ready for `AutoModel` and `AutoProcessor`.

    Example:
        >>> AutoModel.from_pretrained(checkpoint_dir(), dtype=torch.float32)  # doctest: +SKIP
    """
    return Path(__file__).resolve().parent / "checkpoint"
