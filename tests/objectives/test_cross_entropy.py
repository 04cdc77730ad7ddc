"""Tests of cross-entropy against all logits at once: values, gradients, memory."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config, sharding
from llm_jax.objectives import cross_entropy as module
from llm_jax.objectives.cross_entropy import cross_entropy, token_losses
from tests.slow import but

B, T, D, V = 4, 7, 8, 11
# All at once; by positions, of which 3 do not divide 7; by words, of which 4 do not divide 11.
LAYOUTS = [{}, {"chunk": 3}, {"pieces": 4}]
MESHES = [None, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 4, "context": 2}]


def arrays(dtype=jnp.float32, B=B, T=T, D=D, V=V):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, matrix = (
        jax.random.normal(k, s, dtype) for k, s in zip(keys, [(B, T, D), (V, D)], strict=False)
    )
    bias = jax.random.normal(keys[2], (V,))
    targets = jax.random.randint(keys[3], (B, T), 0, V)
    weights = jax.random.bernoulli(keys[4], 0.7, (B, T)) * 0.5
    return hidden, matrix, bias, weights, targets


def tokens(hidden, matrix, bias, targets, a=0.0, b=0.0, cap=None):
    """Each token's loss, log-likelihood, z-loss and hit, from the whole logits."""
    logits = jnp.einsum("btd,vd->btv", hidden, matrix).astype(jnp.float32)
    logits = logits if bias is None else logits + bias
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    z = jnp.log(jnp.exp(logits).sum(-1))
    nll = z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    spread = (z[..., None] - logits).mean(-1)
    loss = (1 - a) * nll + a * spread + b * z**2
    return loss, nll, b * z**2, logits.argmax(-1) == targets


def whole(hidden, matrix, bias, weights, targets, a, b, cap=None):
    loss, *parts = tokens(hidden, matrix, bias, targets, a, b, cap)
    names = ("loss", "z_loss", "correct", "weight")
    sums = zip(names, [*parts, jnp.ones_like(loss)], strict=True)
    return (weights * loss).sum(), {name: (weights * x).sum() for name, x in sums}


def on(mesh):
    if mesh is None:
        return nullcontext()
    c = config.base()
    c.mesh.update(mesh)
    return sharding.activate(sharding.make_mesh(c.mesh, jax.devices()[:8]))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ["with_bias", "a", "b", "cap"],
    but([(True, 0.1, 1e-2, 1.5)], [(False, 0.0, 0.0, None), (True, 0.1, 1e-2, 1.5)]),
)
def test_sums_and_all_gradients_equal_the_definition(mesh, layout, with_bias, a, b, cap):
    hidden, matrix, bias, weights, targets = arrays()
    given = hidden, matrix, bias if with_bias else None, weights
    share = {"loss": 0.3, "z_loss": -2.0, "correct": 0.7, "weight": 0.1}

    def ours(hidden, matrix, bias, weights):
        options = {"bias": bias, "label_smoothing": a, "z_loss": b, "softcap": cap} | layout
        return cross_entropy(hidden, matrix, targets, weights, **options)

    theirs = lambda *given: whole(*given, targets, a, b, cap)
    # Of the loss alone, of everything that is returned, and of what is reported alone.
    mixtures = [
        lambda total, sums: 3 * total,
        lambda total, sums: total**2 / 100 + sum(share[name] * x for name, x in sums.items()),
        lambda total, sums: jnp.sin(sums["loss"]),
    ]
    wrt = [i for i, x in enumerate(given) if x is not None]

    def run(f):
        learn = [jax.grad(lambda *given, mix=mix: mix(*f(*given)), wrt)(*given) for mix in mixtures]
        return f(*given), learn

    with on(mesh):
        found = jax.jit(lambda: run(ours))()
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
    jax.tree.map(close, found, jax.jit(lambda: run(theirs))())


@pytest.mark.parametrize("mesh", MESHES[:2], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_token_losses_under_any_function(mesh, layout):
    """Such as the worst group's loss, or weights that are themselves learned."""
    hidden, matrix, bias, weights, targets = arrays()

    def of(losses):
        def f(hidden, matrix, bias, weights):
            x = losses(hidden, matrix, bias)
            return jax.nn.logsumexp((jax.nn.sigmoid(weights) * x).sum(1)) + jnp.tanh(x).mean(), x

        return jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True)

    options = {"label_smoothing": 0.2, "z_loss": 0.1}
    ours = lambda h, m, b: token_losses(h, m, targets, bias=b, **options, **layout)
    theirs = lambda h, m, b: tokens(h, m, b, targets, 0.2, 0.1)[0]
    with on(mesh):
        found = jax.jit(of(ours))(hidden, matrix, bias, weights)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
    jax.tree.map(close, found, of(theirs)(hidden, matrix, bias, weights))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_of_each_example_and_second_derivatives(layout):
    hidden, matrix, _, weights, targets = arrays()
    ours = lambda h, m, w, t: cross_entropy(h[None], m, t[None], w[None], **layout)[0]
    theirs = lambda h, m, w, t: whole(h[None], m, None, w[None], t[None], 0.0, 0.0)[0]

    def run(f):
        each = jax.vmap(jax.grad(f, (0, 1)), (0, None, 0, 0))(hidden, matrix, weights, targets)
        slope = lambda h: jnp.vdot(jax.grad(f)(h, matrix, weights[0], targets[0]), 1 + h)
        return each, jax.grad(slope)(hidden[0])

    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, jax.jit(lambda: run(ours))(), jax.jit(lambda: run(theirs))())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_of_equal_logits_the_first_counts(layout):
    """As argmax has it: a model that says nothing has 1 / V of the words right, not all."""
    targets = jnp.arange(V)[None]
    hits = lambda hidden, matrix: cross_entropy(hidden, matrix, targets, jnp.ones((1, V)), **layout)
    correct = lambda hidden, matrix: hits(hidden, matrix)[1]["correct"]
    assert correct(jnp.zeros((1, V, D)), jnp.zeros((V, D))) == 1
    rng = np.random.default_rng(0)
    for _ in range(5):  # logits among -1, 0 and 1
        hidden, matrix = np.eye(V, D)[rng.integers(0, D, (1, V))], rng.integers(-1, 2, (V, D))
        argmax = (hidden @ matrix.T).argmax(-1)
        expected = (argmax == targets).sum()
        assert correct(jnp.float32(hidden), jnp.float32(matrix)) == expected


@pytest.mark.parametrize("layout", [{}, {"pieces": 2}], ids=str)
def test_logits_of_bfloat16_are_float32(layout):
    """256 and 257 are one number in bfloat16; the second is the likelier by a factor of e."""
    hidden, matrix = jnp.ones((1, 1, 2), jnp.bfloat16), jnp.array([[256.0, 0.0], [256.0, 1.0]])
    target, weight = jnp.ones((1, 1), jnp.int32), jnp.ones((1, 1))
    loss, _ = cross_entropy(hidden, matrix, target, weight, **layout)
    np.testing.assert_allclose(loss, np.log(1 + np.exp(-1.0)), rtol=1e-4)


def test_bfloat16_is_near_keeps_the_dtypes_and_adds_up_in_float32():
    """Of 4,096 equal terms 1, a sum in bfloat16 stops at 256."""
    hidden, matrix, _, weights, targets = arrays(jnp.bfloat16)
    matrix = matrix.astype(jnp.float32)

    def total(f, dtype):
        grad = jax.jit(jax.value_and_grad(lambda h, m: f(h, m)[0], (0, 1)))
        return grad(hidden.astype(dtype), matrix)

    loss, grads = total(lambda h, m: cross_entropy(h, m, targets, weights), jnp.bfloat16)
    exact, wanted = total(lambda h, m: whole(h, m, None, weights, targets, 0.0, 0.0), jnp.float32)
    assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, exact, rtol=1e-3)
    for g, w in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(g.astype(jnp.float32), w, atol=0.02)

    hidden, targets = jnp.ones((1, 4096, D), jnp.bfloat16), jnp.zeros((1, 4096), jnp.int32)
    for layout in ({"chunk": 64}, {"pieces": 4}):
        for f in (
            lambda m, x=layout: cross_entropy(hidden, m, targets, jnp.ones((1, 4096)), **x)[0],
            lambda m, x=layout: token_losses(hidden, m, targets, **x).sum(),
        ):
            slope = jax.jit(jax.grad(f))(jnp.zeros((V, D)))
            np.testing.assert_allclose(slope[1], 4096 / V, rtol=5e-3)
            np.testing.assert_allclose(slope[0], 4096 / V - 4096, rtol=5e-3)


def test_no_weight_at_all_is_zero_everywhere():
    hidden, matrix, _, weights, targets = arrays()
    f = lambda h, m: cross_entropy(h, m, targets, 0 * weights, chunk=2)
    (loss, sums), grads = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(hidden, matrix)
    for x in jax.tree.leaves((loss, sums, grads)):
        np.testing.assert_array_equal(x, 0)


def test_never_holds_all_logits():
    hidden, matrix, _, weights, targets = arrays(B=4, T=512, D=8, V=50_000)
    for f in (
        lambda h, m: cross_entropy(h, m, targets, weights, chunk=32)[0],
        lambda h, m: token_losses(h, m, targets, chunk=32).sum(),
        lambda h, m: token_losses(h, m, targets, pieces=16).sum(),
    ):
        compiled = jax.jit(jax.grad(f, (0, 1))).lower(hidden, matrix).compile()
        logits = 4 * 512 * 50_000 * 4
        assert compiled.memory_analysis().temp_size_in_bytes < logits / 4


def test_the_fused_sum_multiplies_by_the_matrix_once_for_loss_and_gradients():
    """Also where sums are reported beside it: 3 products; one more for any function of losses."""
    hidden, matrix, _, weights, targets = arrays(D=64, V=512)
    fused = lambda h, m: cross_entropy(h, m, targets, weights)
    each = lambda h, m: (jnp.vdot(weights, token_losses(h, m, targets)), {})
    products = 2 * hidden.size * len(matrix)
    for f, count in ((fused, 3), (each, 4)):
        learn = jax.value_and_grad(f, (0, 1), has_aux=True)
        text = jax.jit(learn).lower(hidden, matrix).compile().as_text()
        found = sum(" dot(" in line or "__onednn$matmul" in line for line in text.splitlines())
        cost = jax.jit(learn).lower(hidden, matrix).compile().cost_analysis()["flops"]
        assert found <= count and cost < (count + 0.5) * products


def test_chunks_are_chosen_by_what_fits():
    assert module.chunk_length(16, 256, 65) == 256
    assert module.chunk_length(16, 1024, 50_257) == module.TOKENS // 16
    assert module.chunk_length(4096, 256, 128_256) == 1
