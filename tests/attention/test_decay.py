"""Tests of decays within a chunk, against float64 products of gates for each pair of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.attention.decay import decays

B, N, C, H = 2, 2, 16, 3
SEGMENTS = np.array([[1] * 5 + [2] * 11, [3] * 16])
BEFORE = np.array([1, 3])
EXTREME = np.array([0, 1e-6, 0.1, 3, 80, 1e4, 1e30])  # from no decay to none left


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("M", [1, H])
def test_every_pair_of_tokens(M, strict):
    rng = np.random.default_rng(M)
    log_decay = -rng.choice(EXTREME, size=(B, N, C, M))
    q, k, v = rng.normal(size=(3, B, N, C, H))
    weights = rng.normal(size=(B, N, C, C))

    @jax.jit
    def ours(log_decay, q, k, v, weights):
        d = decays(log_decay, SEGMENTS, BEFORE, strict)
        mixed = d.mix(weights, v[..., :M])
        return d.scores(q, k), mixed, d.arriving, d.leaving, d.through

    expected = [np.zeros(x) for x in ((B, N, C, C), (B, N, C, M), (B, N, C, M), (B, N, C, M))]
    scores, mixed, arriving, leaving = expected
    gate = np.broadcast_to(np.exp(log_decay), (B, N, C, M))
    for b, n, i in np.ndindex(B, N, C):
        until = i if strict else i + 1
        for j in range(until):
            if SEGMENTS[b, i] == SEGMENTS[b, j]:
                between = gate[b, n, j + 1 : until].prod(axis=0)
                scores[b, n, i, j] = (q[b, n, i] * k[b, n, j] * between).sum()
                mixed[b, n, i] += weights[b, n, i, j] * between * v[b, n, j, :M]
        if SEGMENTS[b, i] == BEFORE[b]:
            arriving[b, n, i] = gate[b, n, :until].prod(axis=0)
        if SEGMENTS[b, i] == SEGMENTS[b, -1]:
            leaving[b, n, i] = gate[b, n, i + 1 :].prod(axis=0)
    through = gate.prod(axis=2)[..., None] * (SEGMENTS[:, -1] == BEFORE)[:, None, None, None]
    arrays = [jnp.asarray(x, jnp.float32) for x in (log_decay, q, k, v, weights)]
    for found, wanted in zip(ours(*arrays), (*expected, through), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    loss = lambda *x: sum(jnp.sin(y).sum() for y in ours(*x))
    gradients = jax.grad(loss, argnums=range(5))(*arrays)
    assert all(np.isfinite(g).all() for g in gradients)
