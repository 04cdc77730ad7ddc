"""Attention variants by name: the function, what it supports, and what it costs."""

from llm_jax.attention import (
    bigbird,
    blockwise,
    delta,
    dense,
    differential,
    dsa,
    flash,
    forgetting,
    gated_linear,
    gsa,
    latent,
    linear,
    linformer,
    local,
    log_linear,
    longformer,
    lsh,
    mamba2,
    mamba3,
    mesa_net,
    moba,
    nsa,
    nystrom,
    path,
    rwkv6,
    rwkv7,
    sigmoid,
    stick_breaking,
    strided,
    talking_heads,
    ttt_linear,
)  # fmt: skip
from llm_jax.attention.bias import Bias
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import Scoring
from llm_jax.attention.variant import ABILITIES, Projection, Variant, Weight

__all__ = [
    "ABILITIES", "VARIANTS", "Bias", "Mask", "Projection", "Scoring", "Variant", "Weight", "get",
]  # fmt: skip

VARIANTS: dict[str, Variant] = {
    "dense": dense.VARIANT,
    "flash": flash.VARIANT,
    "blockwise": blockwise.VARIANT,
    "local": local.VARIANT,
    "chunked": local.CHUNKED,
    "lsh": lsh.VARIANT,
    "strided": strided.VARIANT,
    "dilated": strided.DILATED,
    "longformer": longformer.VARIANT,
    "bigbird": bigbird.VARIANT,
    "moba": moba.VARIANT,
    "nsa": nsa.VARIANT,
    "dsa": dsa.VARIANT,
    "talking_heads": talking_heads.VARIANT,
    "sigmoid": sigmoid.VARIANT,
    "differential": differential.VARIANT,
    "latent": latent.VARIANT,
    "forgetting": forgetting.VARIANT,
    "path": path.VARIANT,
    "stick_breaking": stick_breaking.VARIANT,
    "linear": linear.VARIANT,
    "performer": linear.PERFORMER,
    "based": linear.BASED,
    "rebased": linear.REBASED,
    "retnet": gated_linear.RETNET,
    "gated_linear": gated_linear.VARIANT,
    "gla": gated_linear.GLA,
    "hgrn2": gated_linear.HGRN2,
    "gsa": gsa.VARIANT,
    "rwkv6": rwkv6.VARIANT,
    "mamba2": mamba2.VARIANT,
    "mamba3": mamba3.VARIANT,
    "log_linear": log_linear.VARIANT,
    "deltanet": delta.DELTANET,
    "gated_deltanet": delta.GATED_DELTANET,
    "gated_deltaproduct": delta.GATED_DELTAPRODUCT,
    "kda": delta.KDA,
    "rwkv7": rwkv7.VARIANT,
    "mesa_net": mesa_net.VARIANT,
    "ttt_linear": ttt_linear.VARIANT,
    "linformer": linformer.VARIANT,
    "nystrom": nystrom.VARIANT,
}


def get(name: str) -> Variant:
    """Returns the variant of that name; ValueError lists the names there are."""
    if name not in VARIANTS:
        raise ValueError(f"attention {name!r} is not one of: {', '.join(sorted(VARIANTS))}")
    return VARIANTS[name]
