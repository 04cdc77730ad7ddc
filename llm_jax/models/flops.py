"""Parameter and FLOP counts of a model, from its config (XLA counts a loop body only once)."""

import math
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from llm_jax import attention
from llm_jax import config as configs
from llm_jax.models import Param, abstract_params, heads
from llm_jax.models.electra import generator_config


def count_params(cfg: ConfigDict) -> int:
    """Returns the number of parameters, computed from shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(cfg)))


def train_flops(
    cfg: ConfigDict, batch: int, length: int, source_length: int = 0, predicted: int = 0,
    trained: Callable[[str], bool] = lambda path: True,
) -> float:
    """Returns the FLOPs of a forward and backward pass over [batch, length] tokens.

    PaLM's convention (appendix B): 6 FLOPs per weight and token, plus attention scores without the
    causal discount, excluding rematerialisation. Per weight and token, 2 are for the forward pass,
    2 for the activation gradient (counted if a trained weight precedes) and 2 for the weight
    gradient (counted if `trained(path)`). `predicted`: positions per row that pass through the
    output matrix; 0: all.
    """
    T, S, P = length, source_length or length, predicted or length
    scores = dict.fromkeys(STAGES, 0.0) | _scores(cfg, T, S)
    products = {stage: [] for stage in STAGES}  # (path, forward FLOPs)
    learns = dict.fromkeys(STAGES, False)
    last = "encoder" if cfg.kind == "encoder" else "decoder"
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(cfg))
    params = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    for name, x in params.items():
        if not name.startswith("generator/"):
            stage = next((s for s in STAGES if name.startswith(f"{s}/")), "head")
            stage = "head" if name.startswith(f"{last}/final_norm") else stage
            learns[stage] |= trained(name)
            products[stage].append((name, 2 * _tokens(cfg, name, x.axes, T, S, P) * _size(x)))
    total, behind = 0.0, False
    for stage in STAGES:
        behind |= learns[stage]
        passes = 1 + behind
        total += scores[stage] * (1 + 2 * behind)
        total += sum(flops * (passes + trained(name)) for name, flops in products[stage])
    if cfg.generator_fraction:
        own = lambda path: f"generator/{path}" if f"generator/{path}" in params else path
        inside = lambda path: trained(own(path))  # it shares the discriminator's embeddings
        total += train_flops(generator_config(cfg), 1, T, predicted=predicted, trained=inside)
    return batch * total


STAGES = ("embed", "encoder", "decoder", "head")  # in forward order


def _scores(cfg: ConfigDict, T: int, S: int) -> dict[str, float]:
    """Returns the forward FLOPs of attention without its projections, for each stack."""

    def of(layer, kind, queries, keys):
        variant = attention.get(kind)
        sizes = queries, keys, layer.num_heads, layer.head_dim
        return variant.flops(*sizes, **variant.settings(layer))

    scores = {}
    for stack, depth in configs.depths(cfg).items():
        length, across = (S if stack == "encoder" else T), 0
        for layer in configs.layers(cfg, depth):
            if stack == "decoder" and cfg.kind == "encoder_decoder":
                across = of(layer, "dense", T, S)
            own = of(layer, layer.attention, length, length)
            scores[stack] = scores.get(stack, 0) + own + across
    return scores


def _size(x: Param) -> int:
    return math.prod(x.shape)


def _tokens(
    cfg: ConfigDict, path: str, axes: tuple[str | None, ...], T: int, S: int, P: int
) -> float:
    """Returns how many tokens of a row are multiplied by a parameter; 0 if it is not a matrix.

    Matrices are kernels with a residual-stream or latent axis, their LoRA matrices, and the taps of
    convolutions. An embedding table counts only as a tied output matrix: a lookup is not a product.
    """
    *rooms, last = path.removesuffix("/array/qvalue").split("/")  # the suffix of QLoRA kernels
    ours = S if rooms[:1] == ["encoder"] else T
    if path in ("embed/embedding", "output"):
        return P * (heads.speaks(cfg) and cfg.tie_embeddings == (path != "output"))
    spaces = [a for a in axes if a not in ("layers", "experts")]
    if last in ("embedding", "scale") or len(spaces) < 2:
        return 0
    if "stack" not in rooms:
        head = heads.HEADS.get(rooms[0])
        pooled = rooms[0] == "pooler" or (head is not None and head.pooled)
        return 1 if pooled else P if rooms[0] == "transform" else ours
    if not (last.endswith(("_lora_a", "_lora_b")) or {"embed", "latent", "taps"} & set(axes)):
        return 0
    if rooms[-2:-1] == ["cross_attention"] and rooms[-1] in ("key", "value"):
        ours = S
    if "experts" in axes:
        ours *= cfg.experts_per_token / cfg.num_experts
    if "layers" not in axes:  # shared by all layers
        ours *= len(configs.numbers(cfg, path))
    return ours
