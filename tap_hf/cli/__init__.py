"""The command line: `tap-hf`."""
