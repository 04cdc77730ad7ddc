"""Tests of the TPU kernel in interpret mode against dense attention, and of kernel selection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.attention import Bias, Mask, Scoring, dense, platform, splash
from tests.slow import every

B, N, K, H = 2, 4, 2, 32
SEGMENTS = jnp.array([[1] * 100 + [2] * 130 + [0] * 26, [1] * 256])
CASES = {
    "causal": (Mask(causal=True), Scoring(), 256, 256),
    "all": (Mask(), Scoring(), 256, 256),
    "cross": (Mask(SEGMENTS[:, :128], SEGMENTS), Scoring(), 128, 256),
    "packed": (Mask(SEGMENTS, SEGMENTS, causal=True), Scoring(scale=0.3), 256, 256),
    "window back": (Mask(causal=True, window=37), Scoring(), 256, 256),
    "window around": (Mask(window=37), Scoring(), 256, 256),
    "capped": (Mask(causal=True), Scoring(softcap=2.0), 256, 256),
    "sinks": (Mask(causal=True), Scoring(sinks=jnp.arange(4.0)), 256, 256),
}


@pytest.mark.parametrize("name", every(3, CASES))
def test_kernel_equals_dense(name):
    mask, scoring, T, S = CASES[name]
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    arrays = draw(0, B, T, N, H), draw(1, B, S, K, H), draw(2, B, S, K, H), scoring.sinks
    assert splash.fits(*arrays[:2], mask, scoring)
    away = draw(3, B, T, N, H)

    def run(attend, **options):
        def loss(query, key, value, sinks):
            how = Scoring(sinks=sinks, scale=scoring.scale, softcap=scoring.softcap)
            return jnp.sum(away * attend(query, key, value, mask, how, **options))

        wanted = (0, 1, 2) if scoring.sinks is None else (0, 1, 2, 3)
        return jax.jit(jax.value_and_grad(loss, wanted))(*arrays)

    ours, expected = run(splash.attend, interpret=True), run(dense.attend)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, ours, expected)


@pytest.mark.parametrize(
    ("mask", "scoring", "T"),
    [
        (Mask(causal=True), Scoring(), 200),
        (Mask(causal=True, query_offset=jnp.array(3)), Scoring(), 256),
        (Mask(causal=True, chunk=16), Scoring(), 256),
        (Mask(causal=True), Scoring(Bias(jnp.zeros((4, 511)))), 256),
    ],
)
def test_what_the_kernel_cannot_do(mask, scoring, T):
    query, key = jnp.zeros((B, T, N, H)), jnp.zeros((B, T, K, H))
    assert not splash.fits(query, key, mask, scoring)


def test_a_device_knows_that_it_is_alone():
    assert platform.name() == "cpu" and platform.alone()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        found = {}

        def inside(x):
            found["inside"] = platform.alone()
            return x

        def outside(x):
            found["outside"] = platform.alone()
            return jax.shard_map(inside, out_specs=jax.P("data"), in_specs=jax.P("data"))(x)

        jax.jit(outside).trace(jax.ShapeDtypeStruct((8,), jnp.float32))
    assert found == {"outside": False, "inside": True}


@pytest.mark.parametrize(
    ("causal", "window"), [(True, None), (True, 700), (False, 300), (False, 4096)]
)
def test_blocks_that_a_mask_leaves(causal, window):
    mask = Mask(causal=causal, window=window)
    dense = jnp.broadcast_to(mask.dense(2048, 2048), (1, 1, 2048, 2048))
    seen = dense.reshape(4, 512, 4, 512).any((1, 3))
    assert splash.visited(mask, 2048, 2048) == (seen.sum(), 16)
    assert splash.visited(Mask(), 2048, 1024) == (8, 8)
