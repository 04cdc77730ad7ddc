import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import attention
from llm_jax.attention import Mask, Scoring, local


def arrays(T, N=4, K=2, H=8, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (2, T, N, H), (2, T, K, H), (2, T, K, H)
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def segments(T):
    return jnp.stack([jnp.where(jnp.arange(T) < T // 3, 1, 2), jnp.arange(T) < T - 5]).astype(int)


def learned(f, *arrays):
    y, pull = jax.vjp(f, *arrays)
    return y, pull(jnp.cos(y))


@jax.jit
def textbook(seen, *arrays):
    """softmax(0.3 Q K^T) V over the pairs seen, a query head beside its own copy of the key's."""

    def f(query, key, value):
        key, value = (jnp.repeat(x, 2, axis=2) for x in (key, value))
        scores = jnp.where(seen, 0.3 * jnp.einsum("btnh,bsnh->bnts", query, key), -1e30)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), value)

    return learned(f, *arrays)


# Rows that fill their blocks, and such as do not; quick: each once with each of the others.
CASES = [
    pytest.param(*case, marks=() if sum(case[1:3]) % 2 == (case[3][0] % 2) else pytest.mark.slow)
    for case in itertools.product(
        ("local", "chunked"), (False, True), (False, True), ((33, 8), (24, 4))
    )
]


@pytest.mark.parametrize("kind, packed, causal, sizes", CASES)
def test_values_and_gradients_equal_the_textbook(kind, packed, causal, sizes):
    T, size = sizes
    known = segments(T) if packed else None
    mask = Mask(known, known, causal=causal)
    full = dataclasses.replace(mask, **{"window" if kind == "local" else "chunk": size})
    attend = partial(attention.get(kind).attend, mask=mask, window=size, scoring=Scoring(scale=0.3))
    ours = jax.jit(partial(learned, attend))(*arrays(T))
    theirs = textbook(jnp.broadcast_to(full.dense(T, T), (2, 1, T, T)), *arrays(T))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_chunks_are_own_and_previous():
    seen = Mask(causal=True, chunk=3).dense(9, 9)[0, 0]
    for t, s in np.ndindex(9, 9):
        assert seen[t, s] == (s <= t and s // 3 >= t // 3 - 1)


@pytest.mark.parametrize("kind", ["local", "chunked"])
def test_one_query_at_a_time_with_a_cache_equals_all_at_once(kind):
    query, key, value = arrays(21)
    attend = attention.get(kind).attend
    whole = jax.jit(partial(attend, mask=Mask(causal=True), window=4))(query, key, value)

    @jax.jit
    def step(t):
        mask = Mask(query_offset=jnp.array([t, t]), causal=True)
        one = jax.lax.dynamic_slice_in_dim(query, t, 1, axis=1)
        return attend(one, key, value, mask, window=4)

    for t in range(21):
        np.testing.assert_allclose(step(t), whole[:, t : t + 1], atol=1e-6)


def test_memory_is_linear_in_length():
    def temporaries(T):
        x = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
        mask = Mask(causal=True, window=32)
        f = jax.grad(lambda q, k, v: local.attend(q, k, v, mask, Scoring()).sum())
        return jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 4.4 * temporaries(1024)


def test_dropout_zeroes_that_share_and_keeps_the_mean():
    query, key, _ = arrays(64, N=1, K=1, H=64)
    value = jnp.broadcast_to(jnp.eye(64)[None, :, None], (2, 64, 1, 64))  # shows the weights
    mask = Mask(causal=True, window=16)
    attend = jax.jit(partial(local.attend, query, key, value, mask))
    plain = attend(Scoring())
    drop = attend(Scoring(dropout_key=jax.random.key(1), dropout_rate=0.25))
    np.testing.assert_allclose((drop[plain > 0] == 0).mean(), 0.25, atol=0.03)
    np.testing.assert_allclose(drop.sum(-1).mean(), 1, atol=0.05)


def test_cost_is_linear():
    variant = attention.get("local")
    assert variant.flops(4096, 4096, 2, 8, window=32) == 4 * 4096 * 64 * 2 * 8
    assert variant.memory(4096, 4096, 2, 8, window=32) == 4096 * 64 * 2
