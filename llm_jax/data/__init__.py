"""Text to batches: sources, tokenizers, examples, pipelines. NumPy and Grain only."""
