"""Which rows each client gets."""
