"""The live model: backbone, adapters and heads."""
