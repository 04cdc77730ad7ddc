"""llm_jax: a Transformer paper is a config, not a code base."""

__version__ = "0.1.0"
