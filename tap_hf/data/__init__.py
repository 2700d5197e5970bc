"""Client data: sources, how rows are allocated to clients, and tensors ready for training."""
