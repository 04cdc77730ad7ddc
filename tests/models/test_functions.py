import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import models
from llm_jax.models import functions
from tests.tiny_models import tiny_model

PEERS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@pytest.mark.parametrize("name", PEERS)
def test_activations_and_their_gradients_equal_jax_nn(name):
    f, peer = getattr(functions, name), PEERS[name]
    x = jnp.linspace(-12, 12, 4000)  # has no exact 0, where relu has no derivative
    learned = lambda f, x: jax.vmap(jax.value_and_grad(f))(x)
    with jax.enable_x64(True):  # in float32 theirs is the less exact
        theirs, slopes = learned(peer, np.asarray(x, np.float64))
    ours, ours_slopes = learned(f, x)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    np.testing.assert_allclose(ours_slopes, slopes, atol=5e-6)


@pytest.mark.parametrize("name", PEERS)
def test_activations_are_finite_far_out_and_keep_the_dtype(name):
    f = getattr(functions, name)
    x = jnp.array([-3e38, -1e20, -100, 0, 100], jnp.bfloat16)
    loss = lambda x: f(x)[1:].sum().astype(jnp.float32)
    y, grad = jax.jit(jax.value_and_grad(loss))(x)
    assert f(x).dtype == grad.dtype == jnp.bfloat16
    assert jnp.isfinite(y) and jnp.isfinite(grad).all() and f(x)[4] == 100


@pytest.mark.parametrize("name", PEERS)
def test_of_an_activation_the_result_alone_is_rounded(name):
    f, x = getattr(functions, name), jnp.linspace(-6, 6, 1000).astype(jnp.bfloat16)
    exact = f(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(f(x), exact)


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_and_their_gradients_equal_flax(kind, with_scale):
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 * jax.random.normal(keys[0], (2, 5, 16)) + 1
    sizes = [(16,), (16,), x.shape]
    scale, bias, g = (jax.random.normal(k, s) for k, s in zip(keys[1:], sizes, strict=True))
    args = (x, scale, bias) if with_scale else (x, None, None)

    def ours(x, scale, bias):
        if kind == "rms":
            return functions.rms_norm(x, scale, 1e-5)
        return functions.layer_norm(x, scale, bias, 1e-5)

    def theirs(x, scale, bias):
        use = scale is not None
        params = {"scale": scale} | ({"bias": bias} if kind == "layer" else {}) if use else {}
        flags = {"use_bias": use} if kind == "layer" else {}
        module = nn.LayerNorm if kind == "layer" else nn.RMSNorm
        norm = module(epsilon=1e-5, use_scale=use, use_fast_variance=False, **flags)
        return norm.apply({"params": params}, x)

    wrt = (0, 1, 2) if with_scale else 0
    loss = lambda f: lambda *x: ((f(*x) * g).sum(), f(*x))
    a, b = (jax.jit(jax.grad(loss(f), wrt, has_aux=True))(*args) for f in (ours, theirs))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_statistics_are_float32(kind):
    """And so is what is scaled: all that is rounded is the result."""
    x = 1000 * (kind == "layer") + jax.random.normal(jax.random.key(0), (4, 64))
    x = x.astype(jnp.bfloat16)
    norm = {
        "layer": lambda x: functions.layer_norm(x, None, None, 1e-5),
        "rms": lambda x: functions.rms_norm(x, None, 1e-5),
    }[kind]
    ours, exact = norm(x), norm(x.astype(jnp.float32))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


# Each activation once, each norm twice; the other pairs are slow.
PAIRS = [("layernorm", "gelu"), ("rmsnorm", "swiglu"), ("layernorm", "relu"),
         ("rmsnorm", "gelu_tanh")]  # fmt: skip
PAIRS += [pytest.param("rmsnorm" if norm == "layernorm" else "layernorm", activation,
                       marks=pytest.mark.slow) for norm, activation in PAIRS]  # fmt: skip


@pytest.mark.parametrize("norm, activation", PAIRS)
def test_a_model_has_forward_derivatives(norm, activation):
    """jax.jvp through embeddings, blocks and logits, against the backward pass."""
    model, params = tiny_model(norm=norm, activation=activation, scan=norm == "rmsnorm")
    tokens = np.random.default_rng(0).integers(0, 11, (2, 9))
    f = lambda params: models.logits(model.apply({"params": params}, {"tokens": tokens}))
    rng = np.random.default_rng(1)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
    along, weights = jax.tree.map(draw, params), draw(np.zeros((2, 9, 11)))
    loss = lambda p: jnp.vdot(weights, f(p))
    run = jax.jit(lambda p, t: (jax.jvp(f, (p,), (t,))[1], jax.grad(loss)(p)))
    slope, grads = run(params, along)
    expected = sum(
        jnp.vdot(g, t) for g, t in zip(*map(jax.tree.leaves, (grads, along)), strict=True)
    )
    assert abs(expected) > 1
    np.testing.assert_allclose(jnp.vdot(weights, slope), expected, rtol=1e-4)


def test_epsilon_stands_inside_the_root():
    """Beside the variance (Ba 2016) or the mean square, not the root: 0.01 is as large here."""
    x, eps = np.array([[0.1, -0.1, 0.1, -0.1]], np.float32), 0.01
    np.testing.assert_allclose(functions.rms_norm(x, None, eps), x / np.sqrt(0.02), rtol=1e-5)
    np.testing.assert_allclose(
        functions.layer_norm(x, None, None, eps), x / np.sqrt(0.02), rtol=1e-5
    )


def test_gradients_of_a_norm_add_up_in_float32():
    """Of 4,096 rows each adding 1, a sum in bfloat16 stops at 256."""
    x = jnp.tile(jnp.array([[1.0, -1.0]], jnp.bfloat16), (4096, 1))
    scale, bias = jnp.ones(2), jnp.zeros(2)
    f = lambda s, b: functions.layer_norm(x, s, b, 1e-6)[:, 0].astype(jnp.float32).sum()
    d_scale, d_bias = jax.grad(f, (0, 1))(scale, bias)
    np.testing.assert_allclose([d_scale[0], d_bias[0]], 4096, rtol=1e-3)
    f = lambda s: functions.rms_norm(x, s, 1e-6)[:, 0].astype(jnp.float32).sum()
    np.testing.assert_allclose(jax.grad(f)(scale)[0], 4096, rtol=1e-3)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_only_the_input_is_kept_for_the_backward_pass(name):
    x = jnp.ones((64, 64), jnp.bfloat16)
    _, pullback = jax.vjp(getattr(functions, name), x)
    kept = sum(r.nbytes for r in jax.tree.leaves(pullback))
    assert kept == x.nbytes
