"""Text from a model: sampling with a key/value cache."""

from llm_jax.decode.sample import generate

__all__ = ["generate"]
