"""Tests of every attention variant against a direct implementation of its definition."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import attention
from llm_jax.attention import Bias, Mask, Scoring, bigbird, delta, landmarks, linear
from tests.slow import every

B, T, N, K, H = 2, 150, 4, 2, 8
READS = {
    "window": 16, "stride": 4, "global_tokens": 2, "block": 16, "random_blocks": 1,
    "max_length": 160, "random_features": 24, "landmarks": 30, "latent_kv": 6, "latent_rotary": 2,
    "selected_blocks": 4, "index_topk": 20, "index_heads": 16, "index_dim": 4, "lsh_chunk": 16,
    "lsh_hashes": 2, "lsh_buckets": (), "value_dim": 12, "num_key_heads": 2, "slots": 6,
    "forget_floor": 0.1, "num_householder": 2, "negative_eigenvalues": True,
    "norm_epsilon": 1e-5, "solver_steps": 30, "ttt_batch": 16,
}  # fmt: skip
PACKED = np.array([[1] * 60 + [2] * 70 + [0] * 20, [1] * 150], np.int32)
PADDED = np.array([[1] * 130 + [0] * 20, [1] * 150], np.int32)
# LSH, whose queries are its keys, has a file of its own.
KINDS = [name for name in attention.VARIANTS if name != "lsh"]
# Without weights of values: held to references of others in test_fla.py.
RECURRENT = [
    n for n in KINDS if attention.get(n).state and "weights" not in attention.get(n).supports
]
NOTHING = Scoring()
slow = pytest.mark.slow


def reads(name):
    return {key: READS[key] for key in attention.get(name).reads}


@functools.cache
def drawn(name, T=T, dtype=jnp.float32):
    """Arguments of attend, by name: random arrays, and what the kind learns."""
    variant = attention.get(name)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    V, shared = (reads(name).get(x) for x in ("value_dim", "num_key_heads"))
    n = variant.writes(**reads(name))
    out = {"query": draw(B, T, shared or N, H), "key": draw(B, T, (shared or K) * n, H)}
    out["value"] = draw(B, T, (N if shared else K) * n, V or H)
    if name == "latent":
        C, R = READS["latent_kv"], READS["latent_rotary"]
        out = {"query": draw(B, T, N, H + R), "key": draw(B, T, 1, C + R), "value": None}
        out |= {"up_key": draw(C, N, H), "up_value": draw(C, N, H)}
    for weight_name, weight in variant.weights(N, K, H, **reads(name)).items():
        start = weight.init(jax.random.key(1), weight.shape, jnp.float32)
        out[weight_name] = start + 0.1 * draw(*weight.shape).astype(jnp.float32)
    for projection, made in variant.projections(N, K, H, **reads(name)).items():
        out[projection] = draw(B, T, *made.shape) + (made.bias or 0)
    return out


def call(name, arguments, mask, scoring=None):
    variant, options = attention.get(name), reads(name)
    if name == "latent":
        options = {}
    if variant.decide:
        query = arguments["query"]
        options["decided"] = variant.decide(query, jax.random.key(2), **options)
    y = variant.attend(**arguments, mask=mask, scoring=scoring or Scoring(), **options)
    return y[0] if variant.loss else y


def near(name, t, s):
    """Whether the kind lets a query at t see a key at s, by their places alone."""
    window, stride, first = READS["window"], READS["stride"], READS["global_tokens"]
    return {
        "local": abs(t - s) < window,
        "chunked": abs(t // window - s // window) <= 1,
        "strided": (t - s) % stride == 0,
        "dilated": (t - s) % stride == 0 and abs(t - s) < window * stride,
        "longformer": abs(t - s) < window or t < first or s < first,
    }.get(name, True)


def seen(name, causal, segments, T=T):
    """bool [B, N or 1, T, T], a pair at a time."""
    places = np.array([[near(name, t, s) and (s <= t or not causal) for s in range(T)]
                       for t in range(T)])  # fmt: skip
    visible = np.broadcast_to(places, (B, 1, T, T))
    if name == "bigbird":
        C = -(-T // READS["block"])
        table = bigbird.choose(N, C, READS["random_blocks"], causal)
        block = np.arange(T) // READS["block"]
        chosen = (table[:, block][..., None] == block).any(2)  # [N, T, T]
        if not causal:
            chosen[:, (block == 0) | (block == C - 1)] = True
        visible = visible & chosen
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None])[:, None]
    return jnp.asarray(visible)


def scored(products, asked, scale=None):
    """Scores [B, N, T, S]: of heads of H scaled, capped, then the bias of each pair's distance."""
    z = products * (scale or H**-0.5)
    if asked.softcap:
        z = asked.softcap * jnp.tanh(z / asked.softcap)
    if asked.bias is not None:
        z = z + asked.bias.values[:, np.arange(T) - np.arange(T)[:, None] + T - 1]
    return z


def shared_out(z, visible, asked):
    """Softmax over the visible keys and the sink, which is a key like any but for its value."""
    z = jnp.where(visible, z, -1e30)
    if asked.sinks is None:
        return jax.nn.softmax(z, axis=-1)
    sink = jnp.broadcast_to(asked.sinks[:, None, None], (*z.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate([z, sink], axis=-1), axis=-1)[..., :-1]


def textbook(query, key, value, visible, asked=NOTHING):
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    z = scored(jnp.einsum("btnh,bsnh->bnts", query, key), asked, query.shape[-1] ** -0.5)
    return jnp.einsum("bnts,bsnh->btnh", shared_out(z, visible, asked), value)


def every_second(i, asked):
    """What is asked of the heads i, i + 2, ..."""
    bias = asked.bias and Bias(asked.bias.values[i::2])
    sinks = None if asked.sinks is None else asked.sinks[i::2]
    return Scoring(bias, sinks, softcap=asked.softcap)


def defined(name, a, visible, segments, asked):
    """What the kind is, from arguments `a` and the pairs that see each other."""
    repeat = lambda x: jnp.repeat(x, N // x.shape[2], axis=2)
    q, k, v = a["query"], a["key"], a["value"]
    if name == "longformer":
        y = textbook(q, k, v, visible, asked)
        g = READS["global_tokens"]
        own = (a[f"global_{x}"] for x in ("query", "key", "value"))
        return y.at[:, :g].set(textbook(*own, visible, asked)[:, :g])
    if name == "talking_heads":
        z = scored(jnp.einsum("btnh,bsnh->bnts", q, repeat(k)), asked)
        z = jnp.einsum("bnts,nm->bmts", z, a["mix_scores"])
        weights = shared_out(z, visible, asked)
        return jnp.einsum("bnts,nm,bsmh->btmh", weights, a["mix_weights"], repeat(v))
    if name == "sigmoid":
        z = scored(jnp.einsum("btnh,bsnh->bnts", q, repeat(k)), asked) - np.log(READS["max_length"])
        return jnp.einsum("bnts,bsnh->btnh", visible / (1 + jnp.exp(-z)), repeat(v))
    if name == "differential":
        value = jnp.concatenate([v[:, :, 0], v[:, :, 1]], axis=-1)[:, :, None]
        one, two = (
            textbook(q[:, :, i::2], k[:, :, i : i + 1], value, visible, every_second(i, asked))
            for i in (0, 1)
        )
        share = jnp.exp(jnp.vdot(a["lambda_q1"], a["lambda_k1"])) + 0.8
        y = one - (share - jnp.exp(jnp.vdot(a["lambda_q2"], a["lambda_k2"]))) * two
        y = 0.2 * y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * a["scale"]
        return y.reshape(B, T, N, H)
    if name == "latent":
        C = READS["latent_kv"]
        shared = jnp.broadcast_to(k[..., C:], (B, T, N, READS["latent_rotary"]))
        key, value = (jnp.einsum("bsoc,cnh->bsnh", k[..., :C], a[f"up_{x}"]) for x in
                      ("key", "value"))  # fmt: skip
        return textbook(q, jnp.concatenate([key, shared], -1), value, visible, asked)
    if name in ("based", "rebased"):
        if name == "rebased":
            centred = lambda x: x - x.mean(-1, keepdims=True)
            norm = lambda x: centred(x) / jnp.sqrt((centred(x) ** 2).mean(-1, keepdims=True) + 1e-5)
            q, k = (norm(x) * a["gamma"] + a["beta"] for x in (q, k))
        z = jnp.einsum("btnh,bsnh->bnts", q, repeat(k)) * H**-0.5
        weights = (1 + z + z**2 / 2 if name == "based" else z**2) * visible
        weights /= weights.sum(-1, keepdims=True) + 1e-6
        return jnp.einsum("bnts,bsnh->btnh", weights, repeat(v))
    if name in ("linear", "performer"):
        f = lambda x: jnp.where(x > 0, x + 1, jnp.exp(x))
        if name == "performer":
            decided = attention.get(name).decide(q, jax.random.key(2), READS["random_features"])
            f = lambda x: jnp.exp(
                x * H**-0.25 @ decided - (x**2).sum(-1, keepdims=True) * H**-0.5 / 2
            )
        weights = jnp.einsum("btnm,bsnm->bnts", f(q), f(repeat(k))) * visible
        weights /= weights.sum(-1, keepdims=True)
        return jnp.einsum("bnts,bsnh->btnh", weights, repeat(v))
    if name == "dsa":
        return textbook(q, k, v, visible & indexed(a, visible)[1], asked)
    if name in ("moba", "nsa"):
        return by_blocks(name, a, visible, segments, asked)
    if name in ("forgetting", "stick_breaking", "path"):
        return from_token_to_token(name, a, visible, asked)
    if name == "nystrom":
        few = lambda x: x.reshape(B, READS["landmarks"], -1, N, H).mean(2)
        weights = lambda q, k: shared_out(
            scored(jnp.einsum("btnh,bsnh->bnts", q, k), asked), True, asked
        )
        k, v = repeat(k), repeat(v)
        y = weights(q, few(k)) @ newton(weights(few(q), few(k))) @ weights(few(q), k)
        shifted = jnp.pad(v, ((0, 0), (16, 16), (0, 0), (0, 0)))
        near = sum(shifted[:, i : i + T] * a["convolution"][i][:, None] for i in range(33))
        return jnp.einsum("bnts,bsnh->btnh", y, v) + near
    if name == "linformer":
        real = (segments > 0)[..., None, None]
        mix = lambda x, by: jnp.einsum("bskh,sl->blkh", x * real, by[:T])
        return textbook(q, mix(k, a["compress_key"]), mix(v, a["compress_value"]), True, asked)
    return textbook(q, k, v, visible, asked)


def from_token_to_token(name, a, visible, asked):
    """Kinds whose weights depend on the tokens in between, which are walked through one by one."""
    q, k, v = (jnp.repeat(a[x], N // a[x].shape[2], axis=2) for x in ("query", "key", "value"))
    if name == "path":
        w, rate = (jnp.repeat(a[x], N // K, axis=2) for x in ("direction", "rate"))
        w /= jnp.sqrt((w**2).sum(-1, keepdims=True))
        w_and_b = w.swapaxes(0, 1), 2 * jax.nn.sigmoid(rate).swapaxes(0, 1)

        def move(k, x):  # all keys before token t, each by t's transform
            t, w, b = x
            met = b[:, None] * jnp.einsum("bsnh,bnh->bsn", k, w)
            moved = k - met[..., None] * w[:, None]
            k = jnp.where((jnp.arange(T) < t)[:, None, None], moved, k)
            return k, k

        moved = jax.lax.scan(move, k, (jnp.arange(T), *w_and_b))[1]
        z = scored(jnp.einsum("btnh,tbsnh->bnts", q, moved), asked)
    else:
        z = scored(jnp.einsum("btnh,bsnh->bnts", q, k), asked)
    if name == "forgetting":
        f = jax.nn.sigmoid(a["forget"]).transpose(2, 0, 1)  # [N, B, T]

        def product(kept, f):  # f_(s+1) ... f_t for each s
            kept = jnp.where(jnp.arange(T) < f[1], kept * f[0][..., None], 1.0)
            return kept, kept

        steps = f.transpose(2, 0, 1), jnp.arange(T)
        kept = jax.lax.scan(product, jnp.ones((N, B, T)), steps)[1]  # [t, N, B, s]
        z += jnp.log(jnp.maximum(kept.transpose(2, 1, 0, 3), 1e-30))
    if name != "stick_breaking":
        return jnp.einsum("bnts,bsnh->btnh", shared_out(z, visible, asked), v)
    share = jnp.where(visible & ~jnp.eye(T, dtype=bool), jax.nn.sigmoid(z), 0)

    def give(left, x):  # from the last key to the first
        share, v = x
        return left * (1 - share), (left * share)[..., None] * v[:, :, None]

    inputs = jnp.moveaxis(share, 3, 0), v.swapaxes(0, 1)
    return jax.lax.scan(give, jnp.ones((B, N, T)), inputs, reverse=True)[1].sum(0).swapaxes(1, 2)


def indexed(a, visible):
    """Of each pair [B, 1, T, T] DSA's index score, and whether it is among the query's best."""
    key = a["index_key"][:, :, 0]
    key = key / jnp.sqrt((key**2).mean(-1, keepdims=True) + 1e-6)
    met = jnp.maximum(jnp.einsum("btid,bsd->bits", a["index_query"], key), 0)
    size = READS["index_heads"] * READS["index_dim"]
    score = jnp.einsum("bits,bti->bts", met, a["index_weight"])[:, None] / size**0.5
    score = jnp.where(visible, score, -jnp.inf)
    rank = (score[..., None, :] > score[..., None]).sum(-1)
    return score, rank < READS["index_topk"]


def by_blocks(name, a, visible, segments, asked):
    """A query ranks the blocks of keys, of each of which it knows what is of its own segment."""
    q, k, v = (jnp.repeat(a[x], N // a[x].shape[2], axis=2) for x in ("query", "key", "value"))
    t, size = jnp.arange(T), READS["block"]
    C = -(-T // size)
    same = segments[:, :, None] == segments[:, None]
    inside = same[:, :, None] & (t // size == jnp.arange(C)[:, None])  # [B, T, C, T]
    over = (jnp.arange(C) + 1) * size - 1 <= t[:, None]
    known = (over & inside.any(-1))[:, None]
    mean = inside / jnp.maximum(inside.sum(-1, keepdims=True), 1)
    products = jnp.einsum("btnh,btcs,bsnh->bntc", q, mean, k)
    own = (t // size)[:, None] == jnp.arange(C)
    score, always = products, own
    if name == "nsa":
        weights = jax.nn.softmax(jnp.where(known, scored(products, asked), -1e30), axis=-1) * known
        compressed = jnp.einsum("bntc,btcs,bsnh->btnh", weights, mean, v)
        of_group = weights.reshape(B, K, N // K, T, C).mean(2)
        score = jnp.repeat(of_group, N // K, axis=1)
        first = inside.any(-1) & (jnp.cumsum(inside.any(-1), axis=-1) == 1)
        before = jnp.roll(own, -1, axis=1) & inside.any(-1)
        always = (own | first | before)[:, None]
    score = jnp.where(always, jnp.inf, jnp.where(known, score, -jnp.inf))
    above = (score[..., None, :] > score[..., None]).sum(-1)
    chosen = (score > -jnp.inf) & (above < READS["selected_blocks"])
    y = textbook(q, k, v, visible & chosen[..., t // size], asked)
    if name == "moba":
        return y
    near = visible & (t[:, None] - t < READS["window"])
    gates = 1 / (1 + jnp.exp(-a["gates"][..., None]))
    branches = compressed, y, textbook(q, k, v, near, asked)
    return sum(gates[..., i, :] * branch for i, branch in enumerate(branches))


def newton(A):
    """Xiong 2021, equation 11 and theorem 2: six steps towards the inverse of A [..., L, L]."""
    eye = jnp.eye(A.shape[-1])
    norms = (jnp.abs(A).sum(axis).max(-1)[..., None, None] for axis in (-2, -1))
    Z = jnp.swapaxes(A, -1, -2) / math.prod(norms)
    for _ in range(6):
        inner = 7 * eye - A @ Z
        inner = 15 * eye - A @ Z @ inner
        Z = 0.25 * Z @ (13 * eye - A @ Z @ inner)
    return Z


def able(*abilities):
    return [n for n in KINDS if set(abilities) <= attention.get(n).supports]


MASKS = {
    "causal": (True, None),
    "causal, packed": (True, PACKED),
    "bidirectional": (False, None),
    "bidirectional, packed": (False, PACKED),
    "bidirectional, padded": (False, PADDED),
}
CASES = [
    (name, which)
    for which, (causal, segments) in MASKS.items()
    for name in able(
        "causal" if causal else "bidirectional", *(["packing"] if segments is PACKED else [])
    )
    if name != "nystrom" or segments is None
]


@functools.cache
def attend(name, which):
    """The kind as a function of its arguments, compiled once for all tests of a mask."""
    causal, segments = MASKS[which]
    mask = Mask(segments, segments, causal=causal)
    return jax.jit(lambda a: call(name, a, mask))


def learning(f):
    """f(arguments, asked, …) where tokens are real, and gradients of all arguments and asked."""

    @jax.jit
    def run(real, a, asked, *more):
        def loss(a, asked):
            y = f(a, asked, *more) * real  # what stands at padding is nobody's business
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(a, asked)

    return run


@functools.cache
def definition(name):
    """Of a kind, a program for all masks; the textbook's for all that only see fewer pairs."""
    return learning(lambda a, asked, *seen: defined(name, a, *seen, asked))


# Of the kinds that are more than the textbook's softmax over fewer pairs.
DEFINED = ("longformer", "talking_heads", "sigmoid", "differential", "latent", "linear",
           "performer", "based", "rebased", "nystrom", "linformer", "forgetting", "path",
           "stick_breaking", "moba", "nsa", "dsa")  # fmt: skip


def both_ways(name, which, asked=NOTHING):
    """Ours and the definition's: output, gradients of all arguments and of what is asked."""
    causal, segments = MASKS[which]
    known = np.ones((B, T), np.int32) if segments is None else segments
    mask, real = Mask(segments, segments, causal=causal), (known > 0)[..., None, None]
    ours = learning(lambda a, asked: call(name, a, mask, asked))(real, drawn(name), asked)
    theirs = definition(name if name in DEFINED else "dense")
    return ours, theirs(real, drawn(name), asked, seen(name, causal, segments), known)


PARTS = {"bias", "softcap", "sinks"}
# Quick: each kind with each mask, here with nothing more asked, there with bias, cap and sinks.
PLAIN = ("causal, packed", "bidirectional", "bidirectional, padded")


def asks(name):
    return PARTS & attention.get(name).supports


FEW = ("dense", "flash", "nsa", "path", "linear", "kda", "mamba2")
few = lambda names: [name if name in FEW else pytest.param(name, marks=slow) for name in names]


def cases(quick):
    """All but recurrent kinds', those that are not quick marked slow."""
    cases = [case for case in CASES if case[0] not in RECURRENT]
    return [case if quick(*case) else pytest.param(*case, marks=slow) for case in cases]


@pytest.mark.parametrize("name, which", every(2, cases(
    # ReBased differs from Based by its features, which test_fla.py holds.
    lambda name, which: (which in PLAIN or not asks(name)) and name != "rebased"
)))
def test_values_and_gradients_equal_the_definition(name, which):
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5 * max(1, np.abs(y).max()))
    jax.tree.map(close, *both_ways(name, which))


# Of recurrent kinds test_fla.py holds both to what reads a token, and a segment, at a time.
held = lambda name, *which: pytest.param(name, *which, marks=[slow] * (name in RECURRENT))


@pytest.mark.parametrize("name", map(held, able("causal")))
def test_a_token_changes_nothing_before_it(name):
    at = 77
    along = lambda x: x is not None and x.ndim > 2 and x.shape[1] == T
    changed = {k: x.at[:, at].add(1.0) if along(x) else x for k, x in drawn(name).items()}
    before, after = (attend(name, "causal")(a) for a in (drawn(name), changed))
    np.testing.assert_array_equal(before[:, :at], after[:, :at])
    assert np.abs(before - after)[:, at:].max() > 1e-3


@pytest.mark.parametrize(
    "name, which", every(2, [held(*case) for case in CASES if "packed" in case[1]])
)
def test_segments_do_not_see_each_other(name, which):
    first = (PACKED == 1)[0]
    along = lambda x: x is not None and x.ndim > 2 and x.shape[1] == T
    changed = {
        k: x.at[0].set(jnp.where(first.reshape(-1, *[1] * (x.ndim - 2)), 3 - x[0], x[0]))
        if along(x) else x for k, x in drawn(name).items()
    }  # fmt: skip
    before, after = (attend(name, which)(a)[0] for a in (drawn(name), changed))
    np.testing.assert_allclose(before[PACKED[0] == 2], after[PACKED[0] == 2], atol=1e-6)
    assert np.abs(before - after)[first].max() > 1e-3


@pytest.mark.parametrize("name", few(KINDS))
def test_bfloat16_stays_near_float32(name):
    which = "causal" if "causal" in attention.get(name).supports else "bidirectional"
    half = {
        k: x.astype(jnp.bfloat16) if x is not None and x.ndim > 2 and x.shape[1] == T else x
        for k, x in drawn(name).items()
    }
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    ours, exact = (attend(name, which)(a) for a in (half, full))
    assert ours.dtype == jnp.bfloat16
    error = jnp.square(ours.astype(jnp.float32) - exact).mean() / jnp.square(exact).mean()
    assert error < 2e-3


# In blocks, one of which is not full; shorter than one; a single token.
@pytest.mark.parametrize("name", able("causal"))
@pytest.mark.parametrize("length", [pytest.param(5, marks=slow), 1])
def test_short_rows(name, length):
    a = drawn(name, length)
    ours = attend(name, "causal")(a)
    assert ours.shape == (B, length, N, reads(name).get("value_dim", H))
    assert np.isfinite(ours).all()
    if length == 1 and name in able("causal", "sinks"):
        if name not in ("latent", "talking_heads", "differential", "longformer"):
            np.testing.assert_allclose(ours, jnp.repeat(a["value"], 2, axis=2), atol=1e-6)


@pytest.mark.parametrize(
    "name, which",
    [
        (name, which) if which == "causal" and i % 2 else pytest.param(name, which, marks=slow)
        for i, (name, which) in enumerate(CASES)
        if asks(name)
    ],
)
def test_bias_cap_and_sinks(name, which):
    rng = np.random.default_rng(3)
    values, sinks = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((N, 2 * T - 1), (N,)))
    parts = {"bias": Bias(values), "sinks": sinks, "softcap": 1.5}
    asked = Scoring(**{x: parts[x] for x in asks(name)})
    # The norm over a difference of two softmaxes magnifies rounding, as it does gradients.
    rtol = 3e-5 if name == "differential" else 1e-5
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5, rtol=rtol)
    jax.tree.map(close, *both_ways(name, which, asked))


@slow
@pytest.mark.parametrize("name", RECURRENT)
def test_extreme_gates_have_finite_values_and_gradients(name):
    gates = attention.get(name).projections(N, K, H, **reads(name))
    a = {k: 1e3 * x if k in gates else x for k, x in drawn(name, 40).items()}

    def loss(a):
        y = call(name, a, Mask(causal=True))
        return jnp.sin(y).sum(), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(a)
    assert all(np.isfinite(x).all() for x in (y, *jax.tree.leaves(gradients)))


def test_performer_is_softmax_on_average():
    rng = np.random.default_rng(4)
    # Scores of ordinary size: the variance grows exponentially with them.
    q, k, v = (jnp.asarray(0.6 * rng.normal(size=(1, 40, 1, 16)), jnp.float32) for _ in range(3))
    exact = textbook(q, k, v, True)

    @functools.partial(jax.jit, static_argnums=1)
    def estimate(key, features):
        decided = linear.directions(q, key, features)
        return linear.attend_performer(q, k, v, Mask(), random_features=features, decided=decided)

    error = {}
    for features in (16, 1024):
        keys = jax.random.split(jax.random.key(0), 32)
        found = jnp.stack([estimate(key, features) for key in keys])
        error[features] = jnp.abs(found - exact).mean()
        assert jnp.abs(found.mean(0) - exact).mean() < error[features]
    assert error[1024] < error[16] / 3  # as 1 / sqrt(features) it would be an eighth


def test_directions_are_orthogonal_and_gaussian_in_length():
    decided = linear.directions(jnp.zeros((1, 1, 1, 32)), jax.random.key(0), 64)
    gram = decided[:, :32].T @ decided[:, :32]
    lengths = jnp.sqrt(jnp.diag(gram))
    np.testing.assert_allclose(gram - jnp.diag(lengths**2), 0, atol=1e-3)
    np.testing.assert_allclose(jnp.square(jnp.linalg.norm(decided, axis=0)).mean(), 32, rtol=0.1)


def test_nystrom_with_a_landmark_for_each_token_is_exact():
    a = drawn("nystrom", 20) | {"convolution": jnp.zeros((33, N))}
    # Queries that find their keys: a matrix that six steps of the iteration can invert.
    a["key"] /= jnp.linalg.norm(a["key"], axis=-1, keepdims=True)
    a["query"] = 100 * jnp.repeat(a["key"], N // K, axis=2)
    y = attention.get("nystrom").attend(**a, mask=Mask(), landmarks=20)
    np.testing.assert_allclose(y, textbook(a["query"], a["key"], a["value"], True), atol=2e-3)


def test_a_last_landmark_of_fewer_tokens_is_their_mean():
    """Of ten tokens three landmarks are of four, four and two; all else as equation 13 has it."""
    a = drawn("nystrom", 10) | {"convolution": jnp.zeros((33, N))}
    q, k, v = (jnp.repeat(a[x], N // a[x].shape[2], axis=2) for x in ("query", "key", "value"))
    few = lambda x: jnp.stack([x[:, i : i + 4].mean(1) for i in (0, 4, 8)], axis=1)
    weights = lambda q, k: jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) * H**-0.5, axis=-1)
    mixed = weights(q, few(k)) @ newton(weights(few(q), few(k))) @ weights(few(q), k)
    y = attention.get("nystrom").attend(**a, mask=Mask(), landmarks=3)
    np.testing.assert_allclose(y, jnp.einsum("bnts,bsnh->btnh", mixed, v), atol=1e-5)


@pytest.mark.parametrize("name", ["nystrom", "linformer"])
def test_padding_is_not_seen(name):
    changed = drawn(name) | {
        x: drawn(name)[x].at[0, 130:].add(1.0) for x in ("query", "key", "value")
    }
    before, after = (attend(name, "bidirectional, padded")(a) for a in (drawn(name), changed))
    np.testing.assert_allclose(before[0, :130], after[0, :130], atol=1e-6)


def test_nystrom_inverts():
    """A stochastic matrix with most weight on its diagonal, as NumPy inverts it."""
    rng = np.random.default_rng(6)
    A = rng.random((3, 12, 12)) / 12 + 2 * np.eye(12)
    A /= A.sum(-1, keepdims=True)
    np.testing.assert_allclose(landmarks.inverse(jnp.asarray(A)), np.linalg.inv(A), atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_bigbird_sees_neighbours_ends_and_others_at_random(causal):
    """Zaheer 2020, figure 1 and appendix D, from a block of keys to those of queries."""
    C, drawn_blocks = 9, 2
    table = bigbird.choose(N, C, drawn_blocks, causal)
    others = []
    for head, i in np.ndindex(N, C):
        row = [int(j) for j in table[head, i] if j >= 0]
        allowed = {j for j in range(C) if j <= i or not causal}
        must = {j for j in allowed if abs(i - j) <= 1 or j in (0, C - 1)}
        assert len(row) == len(set(row)) and must <= set(row) <= allowed
        assert len(row) == min(len(must) + drawn_blocks, len(allowed))
        others.append(tuple(sorted(set(row) - must)))
    assert len(set(others)) > C  # of heads and blocks each its own


def test_bigbird_is_dense_only_where_all_blocks_are_seen():
    """Of four blocks, causal, the last sees the first, the one before and itself."""
    q, k, v = np.random.default_rng(6).normal(size=(3, 1, 8, N, H)).astype(np.float32)
    attend = lambda v: bigbird.attend(q, k, v, Mask(causal=True), block=2, random_blocks=0)
    other = v + np.float32([0, 0, 1, 1, 0, 0, 0, 0])[:, None, None]  # of the second block
    same = (np.asarray(attend(v)) == attend(other)).all((0, 2, 3))
    assert same.tolist() == [True] * 2 + [False] * 4 + [True] * 2


def test_delta_rule_repeats_what_it_was_told():
    """With orthogonal keys, a rate of one and no decay, a key gives the value last bound to it."""
    keys = jnp.tile(jnp.eye(H), (3, 1))[None, :, None]
    values = jnp.asarray(np.random.default_rng(5).normal(size=keys.shape), jnp.float32)
    _, state = delta.delta_rule(keys, keys, keys, values, None, Mask(causal=True))
    np.testing.assert_allclose(state[0, 0], values[0, -H:, 0], atol=1e-5)


@pytest.mark.parametrize("topk", [20, T])
def test_an_indexer_learns_what_the_heads_attend_to_and_nothing_else(topk):
    """DeepSeek-V3.2, section 2.1: KL(p | softmax(I)) over the chosen keys, p the heads' mean."""
    a, options = drawn("dsa"), reads("dsa") | {"index_topk": topk}
    run = lambda a: attention.get("dsa").attend(**a, mask=Mask(causal=True), **options)[1]
    losses, gradients = jax.value_and_grad(lambda a: run(a).sum())(a)
    visible = seen("dsa", True, None)
    score, best = indexed(a, visible)
    visible = np.asarray(visible & (best | (topk == T)))
    key = jnp.repeat(a["key"], N // K, axis=2)
    z = scored(jnp.einsum("btnh,bsnh->bnts", a["query"], key), NOTHING)
    p = np.asarray(shared_out(z, visible, NOTHING), np.float64).mean(1)
    score = np.where(visible, np.asarray(score, np.float64), -np.inf)[:, 0]
    log_q = score - np.log(np.exp(score).sum(-1, keepdims=True))
    kept = visible[:, 0]
    expected = (p[kept] * (np.log(p[kept]) - log_q[kept])).sum()
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert {name for name, x in gradients.items() if np.abs(x).max() > 0} == {
        "index_query", "index_key", "index_weight"
    }  # fmt: skip


LINEAR = ["blockwise", "local", "chunked", "dilated", "longformer", "bigbird", "lsh", "linear",
          "performer", "based", "rebased", *RECURRENT, "linformer", "nystrom", "latent",
          "differential", "sigmoid", "talking_heads", "forgetting", "path", "stick_breaking",
          "moba", "nsa", "dsa"]  # fmt: skip


@slow
@pytest.mark.parametrize("name", LINEAR)
def test_memory_grows_with_the_length_and_not_its_square(name):
    def temporaries(T):
        shaped = lambda x: x if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)
        options = {**READS, "max_length": T, "value_dim": 8, "num_key_heads": 0}
        variant = attention.get(name)
        kept = {key: options[key] for key in variant.reads}
        array = lambda *shape: jax.ShapeDtypeStruct((1, T, *shape), jnp.float32)
        n = variant.writes(**kept)
        a = {"query": array(2, 8), "key": array(2 * n, 8), "value": array(2 * n, 8)}
        if name == "latent":
            kept, up = {}, jax.ShapeDtypeStruct((6, 2, 8), jnp.float32)
            a = {"query": array(2, 10), "key": array(1, 8), "up_key": up, "up_value": up}
        if name == "lsh":
            a.pop("key")
        for key, weight in variant.weights(2, 2, 8, **kept).items():
            a[key] = jax.ShapeDtypeStruct(weight.shape, jnp.float32)
        for key, projection in variant.projections(2, 2, 8, **kept).items():
            a[key] = array(*projection.shape)
        if variant.decide:
            kept["decided"] = variant.decide(jnp.zeros((1, T, 2, 8)), jax.random.key(0), **kept)
        mask = Mask(causal="causal" in variant.supports)
        missing = {key: None for key in ("key", "value") if key not in a}
        total = lambda y: sum(x.sum() for x in jax.tree.leaves(y))
        grad = jax.grad(lambda a: total(variant.attend(**a, **missing, mask=mask, **kept)))
        compiled = jax.jit(grad).lower(jax.tree.map(shaped, a)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert np.log2(temporaries(8192) / temporaries(4096)) < 1.15


def test_each_says_where_it_comes_from():
    for variant in attention.VARIANTS.values():
        assert "arxiv.org" in variant.source


@pytest.mark.parametrize(
    "name", few(n for n in attention.VARIANTS if "weights" in attention.get(n).supports)
)
def test_weights_are_the_output_for_one_hot_values(name):
    given = drawn(name) if name != "lsh" else drawn("dense") | {"key": None}
    which = "causal" if "causal" in attention.get(name).supports else "bidirectional"
    one_hot = jnp.broadcast_to(jnp.eye(T)[:, None], (B, T, K, T))
    weights = attend(name, which)(given | {"value": one_hot})
    value = jnp.repeat(given["value"], N // K, axis=2)
    expected = jnp.einsum("btns,bsnh->btnh", weights, value)
    np.testing.assert_allclose(attend(name, which)(given), expected, atol=2e-4)
