"""Compare methods: run them over seeds, and compare their results."""
