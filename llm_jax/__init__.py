"""llm_jax: a Transformer paper is a config, not a code base."""

import time

__version__ = "0.1.0"

BEGAN = time.perf_counter()  # about when this process did
