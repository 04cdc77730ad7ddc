"""Blocks and their repetition: one compiled layer, looped, whatever the depth."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
from ml_collections import FrozenConfigDict

from llm_jax.attention.mask import Mask
from llm_jax.models.attention import Attention
from llm_jax.models.layers import Mlp, Norm, annotate


@flax.struct.dataclass
class Context:
    """What every block of a stack sees beside its input."""

    mask: Mask
    positions: jax.Array  # [B, T]
    bias: jax.Array | None = None  # [1 or B, N, T, S]
    encoded: jax.Array | None = None  # [B, S, D], what cross-attention looks at
    cross_mask: Mask | None = None


class Block(nn.Module):
    """Self-attention, cross-attention where `cross`, feed-forward; norms before or after each."""

    cfg: FrozenConfigDict
    kind: str
    cross: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        cfg = self.cfg
        flags = {"deterministic": self.deterministic, "cache_length": self.cache_length}
        attend = Attention(cfg, self.kind, **flags, name="attention")
        x = self.residual(
            "attention_norm",
            x,
            lambda y: attend(y, context.mask, bias=context.bias, positions=context.positions),
        )
        if self.cross:
            look = Attention(cfg, "dense", cross=True, **flags, name="cross_attention")
            x = self.residual(
                "cross_norm", x, lambda y: look(y, context.cross_mask, source=context.encoded)
            )
        return self.residual("mlp_norm", x, Mlp(cfg, name="mlp"))

    def residual(self, name: str, x: jax.Array, sublayer: Any) -> jax.Array:
        """Pre: x + f(norm(x)); post: norm(x + f(x)) (Xiong 2020, figure 1)."""
        norm = Norm(self.cfg, name=name)
        y = sublayer(norm(x) if self.cfg.norm_place == "pre" else x)
        y = nn.Dropout(self.cfg.dropout, deterministic=self.deterministic)(y)
        x = x + y if self.cfg.norm_place == "pre" else norm(x + y)
        return annotate(x, "batch", "length", "activation_embed")


class _Group(nn.Module):
    """One period of the attention pattern, as the body of the scan."""

    cfg: FrozenConfigDict
    flags: Any

    @nn.compact
    def __call__(self, x, context):
        kinds = self.cfg.attention.split(",")
        for i, kind in enumerate(kinds):
            name = "block" if len(kinds) == 1 else f"block_{i}"
            x = Block(self.cfg, kind, **self.flags, name=name)(x, context)
        return x, None


REMAT = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nn.Module):
    """num_layers blocks over x [B, T, D], parameters stacked along a leading 'layers' axis."""

    cfg: FrozenConfigDict
    num_layers: int
    cross: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        cfg, body = self.cfg, _Group
        length = self.num_layers // len(cfg.attention.split(","))
        if cfg.remat != "none":
            body = nn.remat(body, policy=REMAT[cfg.remat], prevent_cse=not cfg.scan)
        stacked = {"cache": 0} if cfg.share_layers else {"params": 0, "cache": 0}
        scanned = nn.scan(
            body,
            variable_axes=stacked,
            variable_broadcast="params" if cfg.share_layers else (),
            split_rngs={"params": not cfg.share_layers, "dropout": True},
            in_axes=nn.broadcast,
            length=length,
            unroll=1 if cfg.scan else length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        flags = {
            "cross": self.cross,
            "deterministic": self.deterministic,
            "cache_length": self.cache_length,
        }
        x, _ = scanned(cfg, flags, name="layers")(x, context)
        return x
