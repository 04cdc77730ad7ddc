import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import attention
from llm_jax.attention import Bias, Mask, Scoring, blockwise, dense, flash
from tests.slow import every

SEGMENTS = jnp.array([[1] * 100 + [2] * 150 + [0] * 21, [1] * 271])
MASKS = {
    "everything": Mask(),
    "causal": Mask(causal=True),
    "causal window": Mask(causal=True, window=40),
    "window": Mask(window=40),
    "packed": Mask(SEGMENTS, SEGMENTS, causal=True),
    "packed, bidirectional": Mask(SEGMENTS, SEGMENTS),
    "prefix": Mask(prefix=jnp.array([5, 200]), causal=True),
    "packed prefix": Mask(SEGMENTS, SEGMENTS, prefix=jnp.array([5, 200]), causal=True),
}


def arrays(T=271, S=271, N=4, K=2, H=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (2, T, N, H), (2, S, K, H), (2, S, K, H), (N, 2 * max(T, S) - 1)
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def visible(mask, T, S):
    """The mask one pair at a time, as its docstring says it."""
    out = np.ones((2, T, S), bool)
    offset, prefix = (
        np.broadcast_to(0 if x is None else x, (2,)) for x in (mask.query_offset, mask.prefix)
    )
    for b, t, s in np.ndindex(2, T, S):
        q = t + offset[b]
        see = s <= q or s < prefix[b] if mask.causal else True
        if mask.window is not None:
            see = see and abs(q - s) < mask.window
        if mask.query_segments is not None:
            see = see and mask.query_segments[b, t] == mask.key_segments[b, s]
        out[b, t, s] = see
    return out[:, None]


def textbook(query, key, value, seen, bias=None):
    """softmax(Q K^T / sqrt(H) + bias) V, a query head beside its own copy of the key head."""
    repeats = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
    scores = jnp.where(seen, scores if bias is None else scores + bias, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), value)


SMALL = jnp.array([[1, 1, 1, 2, 2, 0, 0]] * 2)


@pytest.mark.parametrize(
    "mask",
    [
        Mask(causal=True),
        Mask(causal=True, window=3),
        Mask(window=3),
        Mask(SMALL, SMALL, causal=True),
        Mask(SMALL[:, :5], SMALL),
        Mask(query_offset=jnp.array(2), causal=True),
        Mask(query_offset=jnp.array([0, 3]), causal=True, window=2),
        Mask(prefix=jnp.array([0, 4]), causal=True),
        Mask(prefix=jnp.array([0, 5]), causal=True, window=2),
    ],
)
def test_dense_mask_is_what_the_docstring_says(mask):
    T = 7 if mask.query_segments is None else mask.query_segments.shape[1]
    expected = visible(mask, T, 7)
    np.testing.assert_array_equal(np.broadcast_to(mask.dense(T, 7), expected.shape), expected)


def test_no_mask_is_none():
    assert Mask().dense(3, 3) is None


def learned(f, *arrays):
    """Of a loss of f, and the gradients of its arrays."""
    loss = lambda *x: jnp.sum(jnp.sin(f(*x)))
    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arrays)


@jax.jit
def expected(seen, *arrays):
    """`learned` of the textbook, one program for all masks."""
    away = np.arange(271) - np.arange(271)[:, None] + 270
    return learned(lambda q, k, v, b: textbook(q, k, v, seen, b[:, away]), *arrays)


# Quick: every mask by the two that the others go through, and one by each of these.
QUICK = {"flash": "packed prefix", "local": "causal window", "chunked": "packed, bidirectional"}
CASES = [*itertools.product(("dense", "blockwise"), MASKS)]
CASES += [
    pytest.param(variant, name, marks=() if name == quick else pytest.mark.slow)
    for variant, quick in QUICK.items() for name in MASKS
]  # fmt: skip


@pytest.mark.parametrize("variant, name", every(2, CASES))
def test_variants_equal_the_textbook(variant, name):
    mask, attend = MASKS[name], attention.get(variant).attend
    seen = True if mask.dense(1, 1) is None else mask.dense(271, 271)
    ours = jax.jit(partial(learned, lambda q, k, v, b: attend(q, k, v, mask, Scoring(Bias(b)))))
    theirs = expected(jnp.broadcast_to(seen, (2, 1, 271, 271)), *arrays())
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
    jax.tree.map(close, ours(*arrays()), theirs)


@pytest.mark.parametrize("name", MASKS)
def test_kernel_arguments_mean_the_same_mask(name):
    query, key, value, bias = arrays(T=271, S=271)
    mask = MASKS[name]
    scoring = Scoring(Bias(bias))
    ours = jax.jit(lambda *x: flash.fused(*x, "xla"))(query, key, value, mask, scoring)
    expected = jax.jit(dense.attend)(query, key, value, mask, scoring)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_blocks_never_compute_hidden_keys():
    query, key, value, _ = arrays(T=512, S=512)

    def flops(mask):
        f = jax.jit(lambda q, k, v: dense.attend(q, k, v, mask, Scoring()))
        return f.lower(query, key, value).compile().cost_analysis()["flops"]

    assert flops(Mask(causal=True)) < 0.65 * flops(Mask())
    assert flops(Mask(causal=True, window=64)) < 0.5 * flops(Mask())


def test_cross_attention_has_its_own_length():
    query, key, value, _ = arrays(T=5, S=9)
    ours = jax.jit(dense.attend)(query, key, value, Mask())
    np.testing.assert_allclose(ours, textbook(query, key, value, True), atol=1e-6)


def test_one_query_at_a_time_with_a_cache_equals_all_at_once():
    query, key, value, _ = arrays(T=9, S=9)
    attend = jax.jit(dense.attend)
    whole = attend(query, key, value, Mask(causal=True), Scoring())
    for t in range(9):
        mask = Mask(query_offset=jnp.array([t, t]), causal=True)
        one = attend(query[:, t : t + 1], key, value, mask, Scoring())
        np.testing.assert_allclose(one, whole[:, t : t + 1], atol=1e-6)


def test_a_query_that_sees_nothing_gives_finite_values_and_gradients():
    query, key, value, _ = arrays(T=4, S=4)
    mask = Mask(jnp.full((2, 4), 7), jnp.zeros((2, 4), int), causal=True)
    loss = lambda q, k, v: dense.attend(q, k, v, mask, Scoring()).sum()
    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(query, key, value)
    assert all(jnp.isfinite(g).all() for g in grads)


def test_bfloat16_softmax_is_float32():
    query, key, value, _ = arrays()
    # Scores of some 30, where bfloat16 has steps of 1/8.
    half = [x.astype(jnp.bfloat16) for x in (10 * query, key, value)]
    attend = jax.jit(dense.attend)
    exact = attend(*(x.astype(jnp.float32) for x in half), Mask(causal=True), Scoring())
    ours = attend(*half, Mask(causal=True), Scoring())
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.parametrize("causal", [True, False])
def test_blockwise_gradients_of_bfloat16_add_up_in_float32(causal, monkeypatch):
    """Over 64 blocks a sum in bfloat16 would be off by several times what rounding it once is."""
    monkeypatch.setattr(blockwise, "LARGEST", {"cpu": (2**12, 64)})
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, dy = (jax.random.normal(key, (1, 2048, 1, 16), jnp.bfloat16) for key in keys)

    def gradients(dtype):
        attend = lambda *x: blockwise.attend(*x, Mask(causal=causal))
        _, pull = jax.vjp(attend, *(x.astype(dtype) for x in (q, k, v)))
        return pull(dy.astype(dtype))

    ours, exact = jax.jit(gradients, static_argnums=0)(jnp.bfloat16), gradients(jnp.float32)
    for a, b in zip(ours, exact, strict=True):
        error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
        assert error < 0.003


def test_dropout_zeroes_that_share_of_weights_and_keeps_the_mean():
    query, key, _, _ = arrays(T=64, S=64, K=4, H=64)
    value = jnp.broadcast_to(jnp.eye(64)[None, :, None], (2, 64, 4, 64))  # shows the weights
    weights = dense.attend(
        query, key, value, Mask(), Scoring(dropout_key=jax.random.key(1), dropout_rate=0.25)
    )
    np.testing.assert_allclose((weights == 0).mean(), 0.25, atol=0.02)
    np.testing.assert_allclose(weights.sum(-1).mean(), 1, atol=0.02)


def test_works_under_vmap_scan_and_remat():
    query, key, value, _ = arrays(T=6, S=6)
    f = jax.jit(lambda q: dense.attend(q, key, value, Mask(causal=True), Scoring()))
    queries = jnp.stack([query, 2 * query])
    expected = jnp.stack([f(q) for q in queries])
    np.testing.assert_allclose(jax.vmap(f)(queries), expected, atol=1e-6)
    scanned = jax.lax.scan(lambda c, q: (c, jax.checkpoint(f)(q)), 0, queries)[1]
    np.testing.assert_allclose(scanned, expected, atol=1e-6)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="dense.*flash"):
        attention.get("sparkling")


@pytest.mark.parametrize("name", ["local", "chunked", "dilated"])
def test_products_of_blocks_are_those_that_xla_counts(name):
    """Where causal: a block's queries meet its own keys and those of the block before."""
    T, N, H, variant = 512, 2, 64, attention.get(name)
    reads = {key: {"window": 32, "stride": 4}[key] for key in variant.reads}
    x = jax.ShapeDtypeStruct((1, T, N, H), jnp.float32)
    attend = lambda q, k, v: variant.attend(q, k, v, Mask(causal=True), **reads)
    counted = jax.jit(attend).lower(x, x, x).cost_analysis()["flops"]
    assert 0.9 < variant.flops(T, T, N, H, **reads) / counted < 1.1


def test_variants_state_their_cost():
    assert attention.get("dense").flops(8, 8, 2, 4) == 4 * 8 * 8 * 2 * 4
    assert attention.get("dense").memory(8, 8, 2, 4) == 8 * 8 * 2
    assert attention.get("flash").memory(8, 8, 2, 4) == 8 * 2
