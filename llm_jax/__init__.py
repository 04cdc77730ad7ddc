"""llm_jax: a Transformer paper is a config, not a code base."""

import time

__version__ = "0.2.0"

BEGAN = time.perf_counter()  # about when this process did


def __getattr__(name: str):
    # `llm_jax.load` without the seconds that importing JAX takes for those who need only a config.
    if name in ("load", "Pretrained"):
        from llm_jax import library

        return getattr(library, name)
    raise AttributeError(f"module 'llm_jax' has no attribute {name!r}")
