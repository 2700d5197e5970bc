"""One client trains."""
