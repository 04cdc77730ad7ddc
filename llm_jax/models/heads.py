"""What stands on top of a stack: masked-LM transform, pooler, classifiers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.models.layers import PLAIN, Dense, Norm


class MaskedLMHead(nn.Module):
    """norm(act(x W)): [..., D] -> [..., E], before the tied output matrix (BERT, appendix A.1)."""

    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        dense = Dense(cfg, (cfg.embed_dim,), (cfg.embedding_dim,), ("embed", "norm"), name="dense")
        return Norm(cfg, name="norm")(PLAIN[cfg.activation](dense(x)))


class Pooler(nn.Module):
    """tanh(x[:, 0] W + b): [B, T, D] -> [B, D] (BERT)."""

    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D = (self.cfg.embed_dim,)
        return jnp.tanh(Dense(self.cfg, D, D, ("embed", "norm"), name="dense")(x[:, 0]))


class DetectionHead(nn.Module):
    """Logit of each token having been replaced: [B, T, D] -> [B, T] float32 (ELECTRA, 2)."""

    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, D = self.cfg, (self.cfg.embed_dim,)
        x = PLAIN[cfg.activation](Dense(cfg, D, D, ("embed", "norm"), name="dense")(x))
        return Dense(cfg, D, (), ("embed",), name="score")(x).astype(jnp.float32)
