"""Quantised matrix products (int8, fp8) and LoRA adapters, applied to a model by qwix."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

# Of weights and activations, and of gradients: int8, or Micikevicius 2022's formats of fp8
# (https://arxiv.org/abs/2209.05433, section 3).
FORMATS = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}
# Paths of layers. The modules below them are projections, feed-forward products and experts;
# attention scores and routers are computed by the layer itself and stay as they are.
LAYER = "(.*/)?(attention|cross_attention|mlp)"


def adapt(model: nn.Module, cfg: ConfigDict) -> nn.Module:
    """Returns the model as cfg.quantize and cfg.lora_rank ask, or itself; through qwix.

    quantize: in training too, operands and gradients of a stack's matrix products are rounded
    channel by channel; parameters stay as they are.
    lora_rank r: to each product x W of a module named in cfg.lora_targets, (lora_alpha / r) x A B
    is added (Hu 2021, https://arxiv.org/abs/2106.09685, section 4.1). A and B are parameters
    beside W, `kernel_lora_a` and `kernel_lora_b`; B starts at 0. `merge` puts them into W. Experts
    have none: qwix 0.1.8 adapts no product over groups (jax.lax.ragged_dot).
    """
    if cfg.quantize == "none" and not cfg.lora_rank:
        return model
    import qwix  # optional: only those who ask for it need it

    methods = [name for name in ("__call__", "encode", "step") if hasattr(model, name)]
    if cfg.lora_rank:
        path = f"{LAYER}/({'|'.join(cfg.lora_targets) or '[^/]+'})"
        rule = qwix.LoraRule(module_path=path, rank=cfg.lora_rank, alpha=cfg.lora_alpha)
        return qwix.apply_lora_to_model(model, qwix.LoraProvider([rule]), methods=methods)
    forward, backward = FORMATS[cfg.quantize]
    rule = qwix.QtRule(
        module_path=f"{LAYER}/[^/]+", weight_qtype=forward, act_qtype=forward, bwd_qtype=backward,
    )
    return qwix.quantize_model(model, qwix.QtProvider([rule]), methods=methods)


def merge(cfg: ConfigDict, params: Any) -> tuple[ConfigDict, Any]:
    """Returns config.model without LoRA, and parameters of the same function: W + (alpha / r) A B.

    A is [..., inputs, r] and B [..., r, outputs], in front the layers of a stack (Hu 2021, 4.1:
    no latency of inference).
    """
    scale, cfg = cfg.lora_alpha / max(cfg.lora_rank, 1), ConfigDict(cfg.to_dict())
    cfg.lora_rank = 0

    def merged(tree: dict) -> dict:
        out = {k: merged(x) if isinstance(x, dict) else x for k, x in tree.items()}
        for name in [k.removesuffix("_lora_a") for k in tree if k.endswith("_lora_a")]:
            a, b = out.pop(f"{name}_lora_a"), out.pop(f"{name}_lora_b")
            product = jnp.matmul(a, b, precision="highest")
            out[name] = out[name] + scale * product.reshape(out[name].shape)
        return out

    return cfg, merged(params)
