"""What a model costs, counted from its config (a compiled loop's own count sees one turn)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax import attention
from llm_jax.attention import Mask
from llm_jax.models import abstract_params, heads
from llm_jax.models.electra import generator_config
from llm_jax.models.latent import attention_layer
from llm_jax.models.layers import both_streams


def count_params(cfg: ConfigDict) -> int:
    """Number of parameters, by shapes alone."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(cfg)))


def train_flops(
    cfg: ConfigDict, batch: int, length: int, source_length: int = 0, predicted: int = 0
) -> float:
    """FLOPs of forward and backward over [batch, length] tokens: 6 a weight and token.

    The convention of PaLM's appendix B, attention counted whole, recomputation not counted.
    `predicted` positions a row go through the output matrix; 0: all.
    """
    D, N, H, S = cfg.embed_dim, cfg.num_heads, cfg.head_dim, source_length or length
    ways = 3 if cfg.activation.endswith("glu") or "glu_" in cfg.activation else 2
    mlp = ways * D * cfg.mlp_dim
    if cfg.num_experts:
        routed = mlp * cfg.experts_per_token + D * cfg.num_experts
        mlp += (routed - mlp) / cfg.expert_every
    kinds = cfg.attention.split(",")

    def attend(kind, T):
        variant = attention.get(kind)
        scores = variant.flops(T, T, N, H, **{key: cfg[key] for key in variant.reads})
        return 2 * T * _projections(cfg, kind)[0] + scores

    layer = lambda T: sum(attend(kind, T) for kind in kinds) / len(kinds) + 2 * T * mlp
    forward = 0.0
    if cfg.kind != "decoder":
        forward += cfg.num_layers * layer(S)
    if cfg.kind != "encoder":
        forward += cfg.num_decoder_layers * layer(length)
    if cfg.kind == "encoder_decoder":
        ours, theirs = _projections(cfg, "dense", cross=True)
        across = attention.get("dense").flops(length, S, N, H)
        forward += cfg.num_decoder_layers * (2 * (ours * length + theirs * S) + across)
    if heads.speaks(cfg):
        width = 2 * D if both_streams(cfg) else cfg.embedding_dim
        forward += 2 * (predicted or length) * width * cfg.vocab_size
    forward *= 3 * batch
    if cfg.generator_fraction:
        forward += train_flops(generator_config(cfg), batch, length, predicted=predicted)
    return forward


def _projections(cfg: ConfigDict, kind: str, cross: bool = False) -> tuple[int, int]:
    """Weights of an attention layer that a token meets, and one that is only looked across at.

    They are the layer's own matrices: what contracts the width of the stream or of a latent.
    """
    layer = attention_layer(kind)(FrozenConfigDict(cfg), kind, cross=cross)
    x, positions = jnp.zeros((1, 1, cfg.embed_dim)), jnp.zeros((1, 1), jnp.int32)
    source, mask = x if cross else None, Mask(causal=cfg.kind == "decoder")
    init = lambda: layer.init(jax.random.key(0), x, mask, source=source, positions=positions)
    counts = {}
    for name, part in jax.eval_shape(init)["params"].items():
        boxes = jax.tree.leaves(part, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
        matrices = [b.value for b in boxes if b.value.ndim > 1 and {"embed", "latent"} & {*b.names}]
        counts[name] = sum(matrix.size for matrix in matrices)
    theirs = counts.pop("key") + counts.pop("value") if cross else 0
    return sum(counts.values()), theirs
