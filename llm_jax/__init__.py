"""llm_jax: a Transformer paper is a config, not a code base."""

import time

__version__ = "0.2.0"

BEGAN = time.perf_counter()  # approximate start time of the process


def __getattr__(name: str):
    # Lazy, so that users who need only a config do not import JAX, which takes seconds.
    if name in ("load", "Pretrained"):
        from llm_jax import library

        return getattr(library, name)
    raise AttributeError(f"module 'llm_jax' has no attribute {name!r}")
