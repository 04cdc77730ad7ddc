"""Tests of layers against their formulas in NumPy, initialisation and sharding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import config as configs
from llm_jax import models
from llm_jax.attention import Mask
from llm_jax.models.attention import Attention
from llm_jax.models.positions import alibi, rotary_rates, rotate

B, T, D, N, K, H, F, V = 2, 7, 20, 6, 2, 8, 28, 44
SIZES = {"embed_dim": D, "num_heads": N, "num_kv_heads": K, "head_dim": H, "mlp_dim": F}


def resolved(**changes):
    m = configs.base().model
    m.update(SIZES | changes)
    return FrozenConfigDict(configs.resolve(m, V))


# Press 2022, section 3: for 8 heads 1/2 to 1/256. For 12 heads its code takes those of 8, then
# every other one of 16.
SLOPES = {
    8: [2.0**-i for i in range(1, 9)],
    12: [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}


@pytest.mark.parametrize("heads", SLOPES)
def test_alibi_has_the_slopes_of_the_paper(heads):
    bias = alibi(heads, 6).values
    away = np.abs(np.arange(-5, 6))
    np.testing.assert_allclose(bias, -np.outer(SLOPES[heads], away), rtol=1e-6)


@pytest.mark.parametrize("heads", [8, 12])
def test_alibi_has_the_slopes_of_transformers(heads):
    torch = pytest.importorskip("torch")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 6), heads, torch.float32)  # slope times key's place
    ours = alibi(heads, 6).values
    for query in range(6):  # the difference to one's own place is what a softmax sees
        seen = theirs[:, 0, : query + 1] - theirs[:, 0, query : query + 1]
        np.testing.assert_allclose(ours[:, 5 - query : 6], seen, rtol=1e-6)


def turned(x, positions, base):
    """Su 2021, equation 34, of the pairs (i, i + H / 2) as complex numbers."""
    half = x.shape[-1] // 2
    rates = np.array([base ** (-2 * i / x.shape[-1]) for i in range(half)])
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[..., None, None] * rates)
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rotary_positions_are_turns_by_the_base(base):
    x = np.random.default_rng(0).normal(size=(B, T, N, H))
    positions = np.random.default_rng(1).integers(0, 4000, (B, T))
    ours = rotate(resolved(positions="rotary", rotary_base=base), jnp.asarray(x), positions)
    np.testing.assert_allclose(ours, turned(x, positions, base), atol=2e-3)


@pytest.mark.parametrize(
    ("variant", "base"),
    [("1-7b", 1e4), ("8b", 5e5), ("70b", 5e5), ("3-405b", 5e5)],  # Touvron 2023; Dubey 2024, 3.2
)
def test_llamas_rotary_base(variant, base):
    m = configs.resolve(configs.load(f"configs/llama.py:{variant}").model, V)
    rates = rotary_rates(FrozenConfigDict(m))
    assert m.rotary_base == base
    np.testing.assert_allclose(rates[1], base ** (-2 / 128), rtol=1e-5)  # before any stretching


PARTS = {
    "plain": {},
    "cap": {"attention_softcap": 0.7, "attention_scale": 0.9},
    "sinks": {"attention_sinks": True},
    "norm": {"qk_norm": True, "norm": "rmsnorm", "norm_epsilon": 0.3},
    "layer norm": {"qk_norm": True, "norm_epsilon": 0.3},
    "gate": {"output_gate": True, "use_bias": False},
    "all": {"attention_softcap": 2.0, "attention_sinks": True, "qk_norm": True,
            "output_gate": True, "positions": "rotary", "rotary_base": 500.0},
}  # fmt: skip


def by_hand(cfg, p, x, positions):
    """The layer one row, head and query at a time."""
    dense = lambda name, x: np.tensordot(x, p[name]["kernel"], 1) + p[name].get("bias", 0)

    def norm(name, x):
        if not cfg.qk_norm:
            return x
        x = x - (x.mean(-1, keepdims=True) if cfg.norm == "layernorm" else 0)
        root = np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_epsilon)
        return x / root * p[name]["scale"] + p[name].get("bias", 0)

    q, k = (norm(f"{name}_norm", dense(name, x)) for name in ("query", "key"))
    v = dense("value", x)
    if cfg.positions == "rotary":
        q, k = (turned(a, positions, cfg.rotary_base) for a in (q, k))
    heads = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        mine = n // (N // K)
        z = k[b, : t + 1, mine] @ q[b, t, n] * (cfg.attention_scale or H**-0.5)
        if cfg.attention_softcap:
            z = cfg.attention_softcap * np.tanh(z / cfg.attention_softcap)
        total = np.exp(z).sum() + (np.exp(p["sinks"][n]) if cfg.attention_sinks else 0)
        heads[b, t, n] = np.exp(z) / total @ v[b, : t + 1, mine]
    if cfg.output_gate:
        heads /= 1 + np.exp(-dense("gate", x))
    return np.tensordot(heads, p["out"]["kernel"], 2) + p["out"].get("bias", 0)


@pytest.mark.parametrize("case", PARTS)
def test_the_attention_layer_is_its_formula(case):
    cfg = resolved(**({"positions": "none"} | PARTS[case]))
    layer, rng = Attention(cfg), np.random.default_rng(0)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    positions = np.sort(rng.integers(0, 50, (B, T)))
    apply = lambda p: layer.apply({"params": p}, x, Mask(causal=True), positions=positions)
    shapes = jax.eval_shape(
        lambda: layer.init(jax.random.key(0), x, Mask(causal=True), positions=positions)
    )["params"]
    draw = lambda p: rng.normal(scale=0.5, size=p.shape).astype(np.float32)
    params = jax.tree.map(draw, nn.unbox(shapes))
    expected = by_hand(cfg, params, x, positions)
    np.testing.assert_allclose(jax.jit(apply)(params), expected, atol=2e-5 * np.abs(expected).max())


TREES = {
    "decoder": {"positions": "learned", "qk_norm": True, "output_gate": True, "use_bias": True,
                "attention_sinks": True, "tie_embeddings": False, "activation": "swiglu"},
    "experts": {"num_experts": 3, "activation": "swiglu"},
    "both": {"kind": "encoder_decoder", "positions": "relative", "relative_buckets": 34},
    "encoder": {"kind": "encoder", "head": "mlm,sequence", "num_labels": 3, "pooler": True,
                "type_vocab_size": 3, "embedding_dim": 10},
    "latent": {"attention": "latent", "num_kv_heads": N, "positions": "rotary",
               "latent_kv": 5, "latent_query": 9, "latent_rotary": 4},
}  # fmt: skip
MEAN = {"embed": {D, 10}, "heads": {N}, "kv_heads": {K, N}, "mlp": {F}, "vocab": {V}, "layers": {5},
        "experts": {3}, "positions": {33}, "buckets": {34}, "types": {3}}  # fmt: skip


@pytest.mark.parametrize("case", TREES)
def test_an_axis_is_named_for_what_it_holds(case):
    """No two sizes are equal: an axis of another name would have another length."""
    m = resolved(num_layers=5, num_decoder_layers=5, max_length=33, **TREES[case])
    params = models.abstract_params(models.build(m))
    names = set()
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        for name, size in zip(p.axes, p.shape, strict=True):
            if name in MEAN:
                assert size in MEAN[name], (jax.tree_util.keystr(path), p)
                names.add(name)
            if name == "kv" and "latent" not in case:
                assert size == H, (jax.tree_util.keystr(path), p)
        # Of the sizes that say what they are, none goes without its name.
        for name in ("heads", "mlp", "vocab", "layers", "positions"):
            if set(p.shape) & MEAN[name]:
                assert set(p.axes) & ({name} | ({"kv_heads"} if name == "heads" else set())), p
    assert names >= {"embed", "heads", "vocab", "layers"}
