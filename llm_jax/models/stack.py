"""Transformer blocks and the stack of them: one compiled layer under nn.scan, at any depth."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from ml_collections import FrozenConfigDict

from llm_jax.attention import Bias, Mask
from llm_jax.models import pipeline, reversible
from llm_jax.models.attention import Attention
from llm_jax.models.latent import attention_layer
from llm_jax.models.layers import Mlp, Norm, annotate
from llm_jax.models.moe import MixtureOfExperts


@flax.struct.dataclass
class Context:
    """Inputs that all blocks of a stack share."""

    mask: Mask
    positions: jax.Array  # [B, T]
    bias: Bias | None = None
    encoded: jax.Array | None = None  # [B, S, D], what cross-attention looks at
    cross_mask: Mask | None = None


class Block(nn.Module):
    """Self-attention, cross-attention where `cross`, feed-forward; norms before or after each."""

    cfg: FrozenConfigDict
    kind: str
    experts: bool = False
    cross: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: Any, context: Context, only: int | None = None) -> Any:
        """x [B, T, D] -> [B, T, D], or both streams of a reversible stack, see `reversible`.

        only: index of the sub-layer whose residual branch is to be returned by itself.
        """
        cfg = self.cfg
        self.sow("hidden", "input", x)
        flags = {"deterministic": self.deterministic, "cache_length": self.cache_length}
        attend = attention_layer(self.kind)(cfg, self.kind, **flags, name="attention")
        sublayers = [
            (
                "attention_norm",
                lambda y: attend(y, context.mask, bias=context.bias, positions=context.positions),
            )
        ]
        if self.cross:
            look = Attention(cfg, "dense", cross=True, **flags, name="cross_attention")
            sublayers.append(
                ("cross_norm", lambda y: look(y, context.cross_mask, source=context.encoded))
            )
        if self.experts:
            experts = MixtureOfExperts(cfg, self.deterministic, name="mlp")
            feed_forward = lambda y: experts(y, self._real(context))
        else:
            feed_forward = Mlp(cfg, self.deterministic, name="mlp")
        sublayers.append(("mlp_norm", feed_forward))
        if only is not None:
            return self.branch(x, *sublayers[only])
        for name, sublayer in sublayers:
            if cfg.reversible:
                x = x[1], x[0] + self.branch(x[1], name, sublayer)
            elif cfg.norm_place == "pre":
                x = x + self.branch(x, name, sublayer)
            else:
                x = Norm(cfg, name=name)(x + self.branch(x, None, sublayer))
            x = jax.tree.map(lambda x: annotate(x, "batch", "length", "activation_embed"), x)
        return x

    def _real(self, context: Context) -> jax.Array | None:
        """[B, T], whether a token is none of padding; None: all are real."""
        if self.cache_length:
            return context.positions < self.cache_length
        segments = context.mask.query_segments
        return None if segments is None else segments > 0

    def branch(self, x: jax.Array, norm: str | None, sublayer: Any) -> jax.Array:
        """Residual branch: dropout(f(norm(x))); post-norm norms the sum (Xiong 2020, figure 1)."""
        y = sublayer(x if norm is None else Norm(self.cfg, name=norm)(x))
        return nn.Dropout(self.cfg.dropout, deterministic=self.deterministic)(y)


def _blocks(cfg):
    """Name, kind of attention and whether it has experts, of each block in one period."""
    kinds, every = cfg.attention.split(","), cfg.expert_every if cfg.num_experts else 1
    period = math.lcm(len(kinds), every)
    return [
        (
            "block" if period == 1 else f"block_{i}",
            kinds[i % len(kinds)],
            cfg.num_experts > 0 and (i + 1) % every == 0,
        )
        for i in range(period)
    ]


class _Group(nn.Module):
    """One period of the attention pattern, as the body of the scan."""

    cfg: FrozenConfigDict
    flags: Any

    @nn.compact
    def __call__(self, x, context):
        x = checkpoint_name(x, "layer_input")
        for name, kind, experts in _blocks(self.cfg):
            x = Block(self.cfg, kind, experts, **self.flags, name=name)(x, context)
        return x, None


REMAT = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Stack(nn.Module):
    """num_layers blocks over x [B, T, D], parameters stacked along a leading 'layers' axis.

    A reversible stack starts both streams from x and returns their mean, or with both_streams
    one behind the other [B, T, 2 D].
    """

    cfg: FrozenConfigDict
    num_layers: int
    cross: bool = False
    both_streams: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        cfg, body = self.cfg, _Group
        length = self.num_layers // len(_blocks(cfg))
        flags = {
            "cross": self.cross,
            "deterministic": self.deterministic,
            "cache_length": self.cache_length,
        }
        if cfg.reversible:
            # In bfloat16 the recomputed activations would drift from those of the forward pass.
            x = x.astype(jnp.float32), x.astype(jnp.float32)
            if not (self.is_initializing() or self.cache_length):
                return self._merge(self._reversible(x, context, length, flags))
        elif pipeline.stages() > 1 and not (self.is_initializing() or self.cache_length):
            return self._pipeline(x, context, length, flags)
        if cfg.remat != "none":
            body = nn.remat(body, policy=REMAT[cfg.remat], prevent_cse=not cfg.scan)
        stacked = dict.fromkeys(("cache", "losses", "hidden", "weights"), 0)
        stacked |= {} if cfg.share_layers else {"params": 0}
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
        x, _ = scanned(cfg, flags, name="layers")(x, context)
        return self._merge(x) if cfg.reversible else x

    def _layers(self, length):
        """Parameters and random keys of the layers, stacked."""
        params = nn.unbox(self.variables["params"]["layers"])
        if self.cfg.share_layers:
            params = jax.tree.map(lambda p: jnp.broadcast_to(p, (length, *p.shape)), params)
        key = jax.random.key(0) if self.deterministic else self.make_rng("dropout")
        return params, jax.random.split(key, length)

    def _pipeline(self, x, context, length, flags):
        cfg = self.cfg
        group = _Group(cfg, flags, parent=None)

        def layer(params, key, x, rows):
            inputs = {"params": params}, x, rows.replace(bias=context.bias)
            (x, _), sown = group.apply(*inputs, rngs={"dropout": key}, mutable=["losses"])
            return x, sown

        if cfg.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[cfg.remat], prevent_cse=False)
        pieces = cfg.pipeline_pieces or pipeline.stages()
        rows = context.replace(bias=None)
        x, sown = pipeline.run(layer, *self._layers(length), x, rows, pieces)
        if "losses" in sown and self.is_mutable_collection("losses"):
            self.put_variable("losses", "layers", sown["losses"])
        return x

    def _reversible(self, streams, context, length, flags):
        params, keys = self._layers(length)
        sublayers = []
        for name, kind, _ in _blocks(self.cfg):
            block = Block(self.cfg, kind, **flags, parent=None)
            for i in range(3 if self.cross else 2):
                sublayers.append(partial(_sublayer, block, name, i))
        return reversible.run(sublayers, params, streams, context, keys)

    def _merge(self, streams):
        a, b = (x.astype(self.cfg.dtype) for x in streams)
        return jnp.concatenate([a, b], axis=-1) if self.both_streams else (a + b) / 2


def _sublayer(block, name, only, params, x, context, key, kept):
    """One sub-layer of a block as a pure function, see `reversible.SubLayer`."""
    y, decided = block.apply(
        {"params": params[name], **kept},
        x,
        context,
        only,
        rngs={"dropout": key},
        mutable=["decided"],
    )
    return y.astype(x.dtype), decided
