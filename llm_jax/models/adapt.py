"""Quantised products (int8, fp8), LoRA and QLoRA, applied to a model by qwix."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from llm_jax import config

# Of weights and activations, and of gradients: int8, or Micikevicius 2022's formats of fp8
# (https://arxiv.org/abs/2209.05433, section 3).
FORMATS = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}
# Paths of layers. The modules below them are projections, feed-forward products and experts;
# attention scores and routers are computed by the layer itself and stay as they are.
LAYER = "(.*/)?(attention|cross_attention|mlp(/shared)?)"
BLOCK = 64  # inputs of a kernel that share a scale, at most (Dettmers 2023, section 4)


def adapt(model: nn.Module, cfg: ConfigDict) -> nn.Module:
    """Returns the model as cfg.quantize and cfg.lora_rank ask, or itself; through qwix.

    quantize: in training too, operands and gradients of a stack's matrix products are rounded
    channel by channel; parameters stay as they are.
    lora_rank r: to each product x W of a module named in cfg.lora_targets, (lora_alpha / r) x A B
    is added (Hu 2021, https://arxiv.org/abs/2106.09685, section 4.1). A and B are parameters
    beside W, `kernel_lora_a` and `kernel_lora_b`; B starts at 0. `merge` puts them into W. Experts
    have none: qwix 0.1.8 adapts no product over groups (jax.lax.ragged_dot).
    lora_quantize: the kernels W themselves are held as int8, int4 or nf4, with a float32 scale for
    each output and block of inputs (QLoRA; Dettmers 2023, https://arxiv.org/abs/2305.14314, 3): in
    place of an array, qwix's record of both (`quantized`). Nothing trains them.
    weights: the same of a model without adapters (quantisation after training).
    """
    if cfg.quantize == "none" and not cfg.lora_rank and cfg.weights == "float32":
        return model
    import qwix  # optional: only those who ask for it need it

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
    """The largest block that divides the inputs of each kernel; None, where it is small: all."""
    layers = [x for depth in config.depths(cfg).values() for x in config.layers(cfg, depth)]
    widths = [n for x in layers for n in (x.head_dim, x.mlp_dim, x.latent_kv, x.latent_query)]
    block = math.gcd(BLOCK, cfg.embed_dim, *widths)
    return block if block >= 16 else None


def quantized(like: Any, x: Any) -> Any:
    """Returns a parameter as the model holds it that has `like` in its place: see `adapt`."""
    how, was = getattr(like, "how", None), getattr(x, "how", None)
    if how == was:
        return x
    import qwix

    x = dequantized(x)
    if how is None:
        return x
    # Of a stack of layers `how` is one layer's; the shape of the scales is that of all.
    sizes = zip(x.shape, like.array.scale.shape, strict=True)
    blocks = {axis: n // count for axis, (n, count) in enumerate(sizes)}
    return like.replace(array=qwix.quantize(x, how.qtype, tiled_axes=blocks))


def dequantized(x: Any) -> jax.Array:
    """Returns the array that a quantised parameter stands for; any other as it is."""
    if not hasattr(x, "how"):
        return x
    import qwix

    return qwix.dequantize(x.array)


def merge(cfg: ConfigDict, params: Any) -> tuple[ConfigDict, Any]:
    """Returns config.model without LoRA, and parameters of the same function: W + (alpha / r) A B.

    A is [..., inputs, r] and B [..., r, outputs], in front the layers of a stack (Hu 2021, 4.1:
    no latency of inference).
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
