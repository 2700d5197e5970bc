"""Client data: sources, how rows are dealt to clients, and tensors ready for training."""
