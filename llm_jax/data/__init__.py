"""Data pipeline: sources, tokenizers, examples, batches. NumPy and Grain only."""
