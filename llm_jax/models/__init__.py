"""Model construction: `build(cfg)` turns config.model into a Linen module, batch -> Outputs.

Other packages import models only from here, so that they do not depend on Linen.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax import config
from llm_jax.models.adapt import adapt, merge, quantized
from llm_jax.models.electra import Electra
from llm_jax.models.model import Model, Outputs, logits, real
from llm_jax.models.moe import auxiliary_loss

__all__ = [
    "Model", "Outputs", "Param", "abstract_params", "auxiliary_loss", "build", "init_params",
    "logits", "merge", "quantized", "real", "unstacked",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Param:
    """The shape, dtype and logical axis names of a parameter."""

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str | None, ...]


def build(cfg: ConfigDict) -> Model:
    """Builds the module of a resolved config.model (see llm_jax.config.resolve)."""
    return adapt((Electra if cfg.generator_fraction else Model)(FrozenConfigDict(cfg)), cfg)


def init_params(model: Model, key: jax.Array) -> dict:
    """Initialises the parameters; their shapes do not depend on the batch size."""
    return nn.unbox(_boxed(model, key))


def abstract_params(model: Model | ConfigDict) -> dict:
    """Returns the parameter tree with a Param for each array, without computing it."""
    model = model if isinstance(model, nn.Module) else build(model)
    boxed = jax.eval_shape(lambda: _boxed(model, jax.random.key(0)))
    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)
    axes = lambda x: tuple(x.names) if is_box(x) else (None,) * x.ndim

    def param(x):
        value = x.value if is_box(x) else x
        return Param(value.shape, value.dtype, axes(x))

    return jax.tree.map(param, boxed, is_leaf=is_box)


def unstacked(model: Model, params: dict) -> dict:
    """Returns parameters as `Model.step` takes them: each layer of the decoder by itself.

    In a loop over stacked layers each token would copy every layer's part of weights and cache.
    """
    decoder, cfg = params["decoder"], model.cfg
    stack = dict(decoder["stack"])
    for scan in config.scans(cfg, config.depths(cfg)["decoder"]):
        layers = stack.pop(scan.name)
        for i, name in enumerate(scan.names()):
            stack[name] = layers if cfg.share_layers else jax.tree.map(lambda p: p[i], layers)  # noqa: B023
    return params | {"decoder": decoder | {"stack": stack}}


def _boxed(model: Model, key: jax.Array) -> dict:
    tokens = jnp.zeros((1, 1), jnp.int32)
    fields = "tokens encoder_tokens masked_positions masked_targets masked_weights".split()
    # qwix 0.1.8 gives a new adapter the axes of its kernel; its sharding is set later.
    with nn.logical_axis_rules(() if model.cfg.lora_rank else nn.get_logical_axis_rules()):
        return model.init(key, dict.fromkeys(fields, tokens))["params"]
