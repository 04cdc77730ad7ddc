"""Whole models: `build(cfg)` turns config.model into a Linen module, batch -> Outputs."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax.models.electra import Electra
from llm_jax.models.model import Model, Outputs, logits

__all__ = ["Model", "Outputs", "build", "init_params", "logits"]


def build(cfg: ConfigDict) -> Model:
    """Returns the module for a resolved config.model (see llm_jax.config.resolve)."""
    return (Electra if cfg.generator_fraction else Model)(FrozenConfigDict(cfg))


def init_params(model: Model, key: jax.Array) -> dict:
    """Returns parameters boxed with their logical axis names; sizes do not depend on T."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    fields = "tokens encoder_tokens masked_positions masked_targets masked_weights".split()
    return model.init(key, dict.fromkeys(fields, tokens))["params"]
