"""Attention variants by name: the attention function, supported features and costs."""

from llm_jax.attention import (
    bigbird,
    blockwise,
    delta,
    dense,
    differential,
    fitted,
    flash,
    gsa,
    landmarks,
    latent,
    linear,
    local,
    log_linear,
    lsh,
    mamba,
    rwkv,
    scored,
    sparse,
)  # fmt: skip
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import Bias, Scoring
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
    "strided": local.STRIDED,
    "dilated": local.DILATED,
    "longformer": local.LONGFORMER,
    "bigbird": bigbird.VARIANT,
    "moba": sparse.MOBA,
    "nsa": sparse.NSA,
    "dsa": sparse.DSA,
    "talking_heads": scored.TALKING_HEADS,
    "sigmoid": scored.SIGMOID,
    "differential": differential.VARIANT,
    "latent": latent.VARIANT,
    "forgetting": scored.FORGETTING,
    "path": scored.PATH,
    "stick_breaking": scored.STICK_BREAKING,
    "linear": linear.VARIANT,
    "performer": linear.PERFORMER,
    "based": linear.BASED,
    "rebased": linear.REBASED,
    "retnet": linear.RETNET,
    "gated_linear": linear.GATED_LINEAR,
    "gla": linear.GLA,
    "hgrn2": linear.HGRN2,
    "gsa": gsa.VARIANT,
    "rwkv6": rwkv.RWKV6,
    "mamba2": mamba.MAMBA2,
    "mamba3": mamba.MAMBA3,
    "log_linear": log_linear.VARIANT,
    "deltanet": delta.DELTANET,
    "gated_deltanet": delta.GATED_DELTANET,
    "gated_deltaproduct": delta.GATED_DELTAPRODUCT,
    "kda": delta.KDA,
    "rwkv7": rwkv.RWKV7,
    "mesa_net": fitted.MESA_NET,
    "ttt_linear": fitted.TTT_LINEAR,
    "linformer": landmarks.LINFORMER,
    "nystrom": landmarks.NYSTROM,
}


def get(name: str) -> Variant:
    """Returns the variant of that name; ValueError lists the known names."""
    if name not in VARIANTS:
        raise ValueError(f"attention {name!r} is not one of: {', '.join(sorted(VARIANTS))}")
    return VARIANTS[name]
