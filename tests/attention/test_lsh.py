from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import attention
from llm_jax.attention import Mask, lsh


def arrays(T, N=2, H=8, B=2):
    keys = jax.random.split(jax.random.key(0), 2)
    return [jax.random.normal(k, (B, T, N, H)) for k in keys]


def shared(query, value, seen):
    """Full attention with unit-length keys, a token seeing itself only if nothing else."""
    T, H = query.shape[1], query.shape[3]
    key = query * jax.lax.rsqrt(jnp.square(query).mean(-1, keepdims=True) + 1e-6)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(H)
    scores = jnp.where(jnp.eye(T, dtype=bool), -1e5, jnp.where(seen, scores, -1e30))
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), value)


def defined(query, value, buckets, chunk, causal):
    """One token, head and round at a time, as section 2 tells it; and which see none but itself.

    What fills the last chunk of a round is last in it, and nobody sees it.
    """
    B, T, N, H = query.shape
    filling = [-1] * (-T % chunk)
    alone = np.zeros((B, T, N), bool)
    key = query / np.sqrt(np.square(query).mean(-1, keepdims=True) + 1e-6) / np.sqrt(H)
    out = np.zeros(query.shape)
    for b, n in np.ndindex(B, N):
        order = [sorted(range(T), key=lambda t: (r[t], t)) for r in buckets[b, n]]  # noqa: B023
        order = np.concatenate([[*r, *filling] for r in order])
        C = len(order) // chunk
        total, value_sum = (
            np.full((T, buckets.shape[2]), -np.inf),
            np.zeros((T, buckets.shape[2], H)),
        )
        for place, t in enumerate(order):
            if t < 0:
                continue
            c = place // chunk
            near = [*order[(c - 1) % C * chunk :][:chunk], *order[c * chunk :][:chunk]]
            near = [s for s in near if s >= 0]
            z = np.array([query[b, t, n] @ key[b, s, n] for s in near])
            z = np.where([s > t and causal for s in near], -1e30, z)
            z = np.where([s == t for s in near], -1e5, z)
            r = place // (T + len(filling))
            total[t, r] = np.logaddexp.reduce(z)
            value_sum[t, r] = np.exp(z - total[t, r]) @ value[b, near, n]
        share = np.exp(total - np.logaddexp.reduce(total, axis=1, keepdims=True))
        out[b, :, n] = np.einsum("tr,trh->th", share, value_sum)
        alone[b, :, n] = (total < -9e4).all(axis=1)
    return out, alone


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T", [24, 21, 13])
def test_equals_its_definition(T, causal):
    query, value = arrays(T)
    buckets = lsh.assign(query, jax.random.key(1), 4, 3, (4,))
    ours = lsh.attend(query, None, value, Mask(causal=causal), decided=buckets, lsh_chunk=4)
    exact = (np.asarray(x, np.float64) for x in (query, value, buckets))
    theirs, alone = defined(*exact, 4, causal)
    np.testing.assert_allclose(ours[~alone], theirs[~alone], atol=1e-5)
    # Scores of -1e5, where float32 has steps of 1/128.
    np.testing.assert_allclose(ours[alone], theirs[alone], rtol=1e-2)
    assert alone.mean() < 0.1


@pytest.mark.parametrize("T", [16, 13, 32])
@pytest.mark.parametrize("causal", [True, False])
def test_one_bucket_that_holds_everything_is_full_attention(T, causal):
    query, value = arrays(T)
    mask = Mask(causal=causal)
    buckets = jnp.zeros((2, 2, 1, T), jnp.uint16)
    seen = mask.dense(T, T) if causal else True

    @partial(jax.jit, static_argnums=0)
    def run(f):
        y, pull = jax.vjp(f, query, value)
        return y, pull(jnp.cos(y))

    ours = run(lambda q, v: lsh.attend(q, None, v, mask, decided=buckets, lsh_chunk=16))
    theirs = run(lambda q, v: shared(q, v, seen))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_more_rounds_come_nearer_to_full_attention():
    query, value = arrays(256, B=1, H=16)
    query = query.at[:, 128:].set(3 * query[:, :128])  # pairs worth finding
    exact = shared(3 * query, value, Mask(causal=True).dense(256, 256))

    def error(rounds):
        attend = partial(lsh.attend, mask=Mask(causal=True), lsh_chunk=16, lsh_hashes=rounds)
        y = jax.jit(attend)(3 * query, None, value)
        return jnp.abs(y - exact).mean()

    assert error(8) < 0.75 * error(1)


def test_no_token_sees_later_ones_padding_or_another_segment():
    query, _ = arrays(40, H=40)
    segments = jnp.array([[1] * 15 + [2] * 20 + [0] * 5] * 2)
    mask = Mask(segments, segments, causal=True)

    outputs = jax.jit(lambda v: lsh.attend(query, None, v, mask, lsh_chunk=8, lsh_hashes=2))

    value = jnp.broadcast_to(jnp.eye(40)[None, :, None], (2, 40, 2, 40))  # shows the weights
    reach = np.asarray(outputs(value)[0, :, 0] != 0)
    allowed = np.asarray(mask.dense(40, 40)[0, 0])
    assert not (reach & ~allowed)[:35].any() and reach.any(axis=1)[:35].all()


def moved(tokens, mask, changed):
    """[T], whether a token's output moves with these tokens' content, in any row and head."""
    attend = jax.jit(lambda q, v: lsh.attend(q, None, v, mask, lsh_chunk=8, lsh_hashes=2))
    query, value = arrays(64, B=8)
    others = [jax.random.normal(jax.random.key(i), query.shape) for i in (8, 9)]
    swap = lambda x, y: jnp.where(changed[:, None, None], y, x)
    before, after = attend(query, value), attend(*map(swap, (query, value), others))
    return np.abs(before - after).max(axis=(2, 3))[:, tokens] > 1e-3


def test_what_later_tokens_move_is_said():
    """The ends of chunks follow from how many tokens fall into which bucket, later ones too."""
    later = jnp.arange(64) >= 32
    share = moved(~later, Mask(causal=True), later).mean()
    assert 0.1 < share < 0.9  # of the earlier tokens' outputs: a leak, and not all of them
    assert "later" in attention.get("lsh").leaks


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("other", [1, 2, 3, 0])
def test_documents_of_a_row_do_not_move_each_other(other, causal):
    segments = jnp.array([[1] * 13 + [2] * 30 + [3] * 17 + [0] * 4])
    mask = Mask(jnp.tile(segments, (8, 1)), jnp.tile(segments, (8, 1)), causal=causal)
    rest = np.asarray((segments[0] != other) & (segments[0] > 0))
    assert not moved(rest, mask, segments[0] == other).any()
    if other:
        assert moved(~rest & np.asarray(segments[0] > 0), mask, segments[0] == other).any()


@pytest.mark.parametrize("T", [40, 37])
def test_padding_changes_no_real_token(T):
    """Rows padded to a multiple of the chunk are what an odd length becomes."""
    query, value = arrays(40)
    real = jnp.broadcast_to(jnp.arange(40) < T, (2, 40)).astype(int)
    buckets = lsh.assign(query, jax.random.key(1), 8, 2, (4,))
    options = {"lsh_chunk": 8}
    padded = lsh.attend(
        query, None, value, Mask(real, real, causal=True), decided=buckets, **options
    )
    alone = lsh.attend(
        query[:, :T], None, value[:, :T], Mask(causal=True), decided=buckets[..., :T], **options
    )
    np.testing.assert_allclose(padded[:, :T], alone, atol=1e-6)


def test_buckets_are_nearest_directions():
    query, _ = arrays(32, H=4)
    rotations = jnp.broadcast_to(jnp.eye(4)[None, :, None], (2, 4, 1, 4))
    buckets = lsh.assign(query, rotations, 4, 1, (8,))
    both = jnp.concatenate([query, -query], axis=-1)
    np.testing.assert_array_equal(buckets[:, :, 0], both.argmax(-1).swapaxes(1, 2))
    split = lsh.assign(query, rotations, 4, 1, (4, 4))
    halves = [jnp.concatenate([x, -x], -1).argmax(-1) for x in jnp.split(query, 2, axis=-1)]
    np.testing.assert_array_equal(split[:, :, 0], (halves[0] + 4 * halves[1]).swapaxes(1, 2))


def test_number_of_buckets_follows_the_length():
    assert lsh.factors(128, 64) == (4,)
    assert lsh.factors(1000, 64) == (32,)
    assert lsh.factors(65536, 64) == (32, 64)


def test_memory_is_linear_in_length():
    def temporaries(T):
        x = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
        options = {"lsh_chunk": 32, "lsh_hashes": 2, "lsh_buckets": (16,)}
        f = jax.grad(lambda q, v: lsh.attend(q, None, v, Mask(causal=True), **options).sum())
        return jax.jit(f).lower(x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 4.4 * temporaries(1024)


def test_what_it_lacks_it_refuses():
    query, value = arrays(8)
    with pytest.raises(ValueError, match="bias, prefix or cache"):
        lsh.attend(query, None, value, Mask(query_offset=jnp.array(3), causal=True))


def test_cost():
    variant = attention.get("lsh")
    options = {"lsh_chunk": 64, "lsh_hashes": 4, "lsh_buckets": ()}
    assert variant.flops(4096, 4096, 2, 8, **options) == 4 * 4 * 4096 * 128 * 2 * 8
    assert variant.shared_qk and "cache" not in variant.supports
