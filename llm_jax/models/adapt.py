"""Quantised matrix products (int8, fp8), LoRA and QLoRA, applied to a model by qwix."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from llm_jax import config

# Types of weights and activations, and of gradients: int8, or the fp8 formats of Micikevicius 2022
# (https://arxiv.org/abs/2209.05433, section 3).
FORMATS = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}
# Module paths to quantise: projections, feed-forward networks and experts. Attention scores and
# routers are computed by the layer itself and are not quantised.
LAYER = "(.*/)?(attention|cross_attention|mlp(/shared)?)"
BLOCK = 64  # maximum number of inputs that share a scale (Dettmers 2023, section 4)


def adapt(model: nn.Module, cfg: ConfigDict) -> nn.Module:
    """Applies quantisation and LoRA to a model with qwix, as the config requests.

    quantize: rounds the operands and gradients of a stack's matrix products per channel, also in
    training; parameters are unchanged.
    lora_rank r: adds (lora_alpha / r) x A B to the product x W of each module in cfg.lora_targets
    (Hu 2021, https://arxiv.org/abs/2106.09685, section 4.1). A and B are the parameters
    `kernel_lora_a` and `kernel_lora_b`; B starts at 0. `merge` adds them to W. Experts get no
    adapters: qwix 0.1.8 does not support grouped products (jax.lax.ragged_dot).
    lora_quantize: stores the frozen kernels W as int8, int4 or nf4, with a float32 scale per output
    and block of inputs (QLoRA; Dettmers 2023, https://arxiv.org/abs/2305.14314, 3): qwix's record
    of both replaces the array (see `quantized`).
    weights: the same for a model without adapters (post-training quantisation).
    """
    if cfg.quantize == "none" and not cfg.lora_rank and cfg.weights == "float32":
        return model
    import qwix  # an optional dependency

    methods = [name for name in ("__call__", "encode", "step") if hasattr(model, name)]
    if cfg.lora_rank:
        path = f"{LAYER}/({'|'.join(cfg.lora_targets) or '[^/]+'})"
        held = {"weight_qtype": cfg.lora_quantize, "tile_size": _block(cfg)}
        held = {} if cfg.lora_quantize == "none" else held
        rules = [
            qwix.LoraRule(module_path=path, rank=cfg.lora_rank, alpha=cfg.lora_alpha, **held),
            qwix.QuantizationRule(module_path=f"{LAYER}/[^/]+", op_names=("dot_general",), **held),
        ]
        return qwix.apply_lora_to_model(model, qwix.LoraProvider(rules), methods=methods)
    if cfg.weights != "float32":
        held = {"weight_qtype": cfg.weights, "tile_size": _block(cfg)}
        rule = qwix.QuantizationRule(
            module_path=f"{LAYER}/[^/]+", op_names=("dot_general",), **held
        )
        return qwix.quantize_model(model, qwix.PtqProvider([rule]), methods=methods)
    forward, backward = FORMATS[cfg.quantize]
    rule = qwix.QtRule(
        module_path=f"{LAYER}/[^/]+", weight_qtype=forward, act_qtype=forward, bwd_qtype=backward,
    )
    return qwix.quantize_model(model, qwix.QtProvider([rule]), methods=methods)


def _block(cfg: ConfigDict) -> int | None:
    """The largest block size that divides the inputs of each kernel; None: one block per output."""
    layers = [x for depth in config.depths(cfg).values() for x in config.layers(cfg, depth)]
    widths = [n for x in layers for n in (x.head_dim, x.mlp_dim, x.latent_kv, x.latent_query)]
    block = math.gcd(BLOCK, cfg.embed_dim, *widths)
    return block if block >= 16 else None


def quantized(like: Any, x: Any) -> Any:
    """Quantises a parameter to the representation of `like`; see `adapt`."""
    how, was = getattr(like, "how", None), getattr(x, "how", None)
    if how == was:
        return x
    import qwix

    x = dequantized(x)
    if how is None:
        return x
    # For stacked layers, `how` describes a single layer, and the scales have the stacked shape.
    sizes = zip(x.shape, like.array.scale.shape, strict=True)
    blocks = {axis: n // count for axis, (n, count) in enumerate(sizes)}
    return like.replace(array=qwix.quantize(x, how.qtype, tiled_axes=blocks))


def dequantized(x: Any) -> jax.Array:
    """Dequantises a parameter; returns other parameters unchanged."""
    if not hasattr(x, "how"):
        return x
    import qwix

    return qwix.dequantize(x.array)


def merge(cfg: ConfigDict, params: Any) -> tuple[ConfigDict, Any]:
    """Merges LoRA adapters: returns config.model without LoRA, and kernels W + (alpha / r) A B.

    A is [..., inputs, r] and B [..., r, outputs], with a leading layer axis in a stack (Hu 2021,
    4.1).
    """
    scale, cfg = cfg.lora_alpha / max(cfg.lora_rank, 1), ConfigDict(cfg.to_dict())
    cfg.lora_rank, cfg.lora_quantize, cfg.weights = 0, "none", "float32"

    def merged(tree: dict) -> dict:
        out = {k: merged(x) if isinstance(x, dict) else dequantized(x) for k, x in tree.items()}
        for name in [k.removesuffix("_lora_a") for k in tree if k.endswith("_lora_a")]:
            a, b = out.pop(f"{name}_lora_a"), out.pop(f"{name}_lora_b")
            product = jnp.matmul(a, b, precision="highest")
            out[name] = out[name] + scale * product.reshape(out[name].shape)
        return out

    return cfg, merged(params)
