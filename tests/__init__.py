"""The tests: `pytest` runs them all, with no network and no GPU."""
