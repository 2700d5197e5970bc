"""How the embedded backbone was made: `python -m scripts.pretrain_tiny OUT_DIR`."""
