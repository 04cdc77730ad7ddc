"""Transformer blocks, and the stack of blocks under nn.scan: one compiled layer at any depth."""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from ml_collections import FrozenConfigDict

from llm_jax import config as configs
from llm_jax.attention import Bias, Mask
from llm_jax.models import pipeline, reversible
from llm_jax.models.attention import Attention
from llm_jax.models.latent import attention_layer
from llm_jax.models.layers import Mlp, Norm, annotate
from llm_jax.models.moe import MixtureOfExperts


@flax.struct.dataclass
class Context:
    """Inputs shared by all blocks of a stack."""

    mask: Mask
    positions: jax.Array  # [B, T]
    bias: Bias | None = None
    encoded: jax.Array | None = None  # [B, S, D], encoder output for cross-attention
    cross_mask: Mask | None = None


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention if `cross`, feed-forward network."""

    cfg: FrozenConfigDict
    cross: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: Any, context: Context, only: int | None = None) -> Any:
        """x [B, T, D] -> [B, T, D], or a pair of streams in a reversible stack, see `reversible`.

        only: index of a sublayer; returns its residual branch alone.
        """
        cfg = self.cfg
        self.sow("hidden", "input", x)
        flags = {"deterministic": self.deterministic, "cache_length": self.cache_length}
        attend = attention_layer(cfg.attention)(cfg, cfg.attention, **flags, name="attention")
        sublayers = [
            (
                "attention_norm" if cfg.attention_norm or cfg.norm_place != "pre" else None,
                lambda y: attend(y, context.mask, bias=context.bias, positions=context.positions),
            )
        ]
        if self.cross:
            look = Attention(cfg, "dense", cross=True, **flags, name="cross_attention")
            sublayers.append(
                ("cross_norm", lambda y: look(y, context.cross_mask, source=context.encoded))
            )
        if cfg.num_experts:
            experts = MixtureOfExperts(cfg, self.deterministic, name="mlp")
            sublayers.append(("mlp_norm", lambda y: experts(y, self._real(context))))
        elif cfg.feed_forward:
            sublayers.append(("mlp_norm", Mlp(cfg, self.deterministic, name="mlp")))
        if only is not None:
            return self.branch(x, *sublayers[only])
        for name, sublayer in sublayers:
            if cfg.reversible:
                x = x[1], x[0] + self.branch(x[1], name, sublayer)
            elif cfg.norm_place == "post":
                x = Norm(cfg, name=name)(x + self.branch(x, None, sublayer))
            else:
                x = x + self.branch(x, name, sublayer)
            x = jax.tree.map(lambda x: annotate(x, "batch", "length", "activation_embed"), x)
        return x

    def _real(self, context: Context) -> jax.Array | None:
        """Mask [B, T] of real tokens; None: no padding."""
        if self.cache_length:
            return context.positions < self.cache_length
        segments = context.mask.query_segments
        return None if segments is None else segments > 0

    def branch(self, x: jax.Array, norm: str | None, sublayer: Any) -> jax.Array:
        """Residual branch f(norm(x)) with dropout; post-norm is applied to the sum (Xiong 2020).

        sandwich: norm(f(norm(x))) (Ding 2021, 2.4); reordered: norm(f(x)) (OLMo 2, 2025, 3.2).
        """
        place = self.cfg.norm_place
        before = norm if place in ("pre", "sandwich") else None
        after = {"sandwich": f"{norm}_out", "reordered": norm}.get(place)
        y = sublayer(x if before is None else Norm(self.cfg, name=before)(x))
        y = y if after is None else Norm(self.cfg, name=after)(y)
        return nn.Dropout(self.cfg.dropout, deterministic=self.deterministic)(y)


class _Group(nn.Module):
    """The scan body: the blocks of one period, by name."""

    layers: dict[str, FrozenConfigDict]
    flags: dict[str, Any]

    @nn.compact
    def __call__(self, x, context):
        x = checkpoint_name(x, "layer_input")
        for name, cfg in self.layers.items():
            x = Block(cfg, **self.flags, name=name)(x, context)
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
    """num_layers blocks over x [B, T, D], with parameters stacked along a leading 'layers' axis.

    If layers differ, each repeated pattern is one scan, see llm_jax.pattern.scans.

    A reversible stack starts both streams from x and returns their mean or, with both_streams,
    their concatenation [B, T, 2 D].
    """

    cfg: FrozenConfigDict
    num_layers: int
    cross: bool = False
    both_streams: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        cfg = self.cfg
        layers = configs.layers(cfg, self.num_layers)
        whole = not (self.is_initializing() or self.cache_length)
        if cfg.reversible:
            # In bfloat16 the recomputed activations would drift from those of the forward pass.
            x = x.astype(jnp.float32), x.astype(jnp.float32)
        for scan in configs.scans(cfg, self.num_layers):
            period = layers[scan.start : scan.start + scan.period]
            group = dict(zip(scan.blocks(), period, strict=True))
            if self.cache_length:  # with parameters that are `models.unstacked`
                for name in scan.names():
                    x, _ = _Group(group, self._flags, name=name)(x, context)
            elif cfg.reversible and whole:
                x = self._reversible(x, context, scan, group)
            elif pipeline.stages() > 1 and whole:
                x = self._pipeline(x, context, scan, group)
            else:
                x = self._repeat(x, context, scan, group)
        return self._merge(x) if cfg.reversible else x

    @property
    def _flags(self):
        flags = "cross", "deterministic", "cache_length"
        return {name: getattr(self, name) for name in flags}

    def _repeat(self, x, context, scan, group):
        cfg, body = self.cfg, _Group
        if cfg.remat != "none" and not cfg.reversible:
            body = nn.remat(body, policy=REMAT[cfg.remat], prevent_cse=not cfg.scan)
        kept = "cache", "losses", "hidden", "weights", "intermediates", "perturbations"
        stacked = dict.fromkeys(kept, 0)
        stacked |= {} if cfg.share_layers else {"params": 0}
        scanned = nn.scan(
            body,
            variable_axes=stacked,
            variable_broadcast="params" if cfg.share_layers else (),
            split_rngs={"params": not cfg.share_layers, "dropout": True},
            in_axes=nn.broadcast,
            length=scan.count,
            unroll=1 if cfg.scan else scan.count,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(group, self._flags, name=scan.name)(x, context)[0]

    def _layers(self, scan):
        """Returns the stacked parameters and random keys of a scan's layers."""
        params, n = nn.unbox(self.variables["params"][scan.name]), scan.count
        if self.cfg.share_layers:
            params = jax.tree.map(lambda p: jnp.broadcast_to(p, (n, *p.shape)), params)
        key = jax.random.key(0) if self.deterministic else self.make_rng("dropout")
        return params, jax.random.split(key, n)

    def _pipeline(self, x, context, scan, group):
        cfg = self.cfg
        body = _Group(group, self._flags, parent=None)

        def layer(params, key, x, rows):
            inputs = {"params": params}, x, rows.replace(bias=context.bias)
            (x, _), sown = body.apply(*inputs, rngs={"dropout": key}, mutable=["losses"])
            return x, sown

        if cfg.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[cfg.remat], prevent_cse=False)
        pieces = cfg.pipeline_pieces or pipeline.stages()
        rows = context.replace(bias=None)
        x, sown = pipeline.run(layer, *self._layers(scan), x, rows, pieces)
        if "losses" in sown and self.is_mutable_collection("losses"):
            self.put_variable("losses", scan.name, sown["losses"])
        return x

    def _reversible(self, streams, context, scan, group):
        sublayers = []
        for name, cfg in group.items():
            block = Block(cfg, **self._flags, parent=None)
            for i in range(3 if self.cross else 2):
                sublayers.append(partial(_sublayer, block, name, i))
        params, keys = self._layers(scan)
        return reversible.run(sublayers, params, streams, context, keys)

    def _merge(self, streams):
        a, b = (x.astype(self.cfg.dtype) for x in streams)
        return jnp.concatenate([a, b], axis=-1) if self.both_streams else (a + b) / 2


def _sublayer(block, name, only, params, x, context, key, kept):
    """One sublayer of a block as a pure function, see `reversible.SubLayer`."""
    y, decided = block.apply(
        {"params": params[name], **kept},
        x,
        context,
        only,
        rngs={"dropout": key},
        mutable=["decided"],
    )
    return y.astype(x.dtype), decided
