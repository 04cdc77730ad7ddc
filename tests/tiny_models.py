"""Models small enough to compile in a second or two."""

import functools

import flax.linen as nn
import jax
import numpy as np

from llm_jax import config, models


def tiny_model(vocab_size=11, **changes):
    """Keys of config.model -> (model, random parameters, biases included)."""
    return _tiny(vocab_size, tuple(changes.items()))


@functools.cache
def _tiny(vocab_size, changes):
    cfg = config.base().model
    cfg.update(
        {"num_layers": 2, "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "max_length": 16}
        | {"positions": "rotary", "relative_buckets": 8, "relative_max_distance": 10}
        | dict(changes)
    )
    model = models.build(config.resolve(cfg, vocab_size))
    shapes = nn.unbox(jax.eval_shape(lambda: models.init_params(model, jax.random.key(0))))
    rng = np.random.default_rng(1)

    def draw(path, x):
        # Large enough that the next token depends on all before it.
        small = path[-1].key in ("scale", "bias")
        x = rng.normal(scale=0.1 if small else 0.6, size=x.shape).astype(x.dtype)
        return x + (path[-1].key == "scale")

    return model, jax.tree_util.tree_map_with_path(draw, shapes)
