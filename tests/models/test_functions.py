import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.models import functions

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
    np.testing.assert_allclose(f(x), peer(x), atol=2e-6)
    ours, theirs = (jax.grad(lambda x, f=f: f(x).sum())(x) for f in (f, peer))
    np.testing.assert_allclose(ours, theirs, atol=5e-6)


@pytest.mark.parametrize("name", PEERS)
def test_activations_are_finite_far_out_and_keep_the_dtype(name):
    f = getattr(functions, name)
    x = jnp.array([-3e38, -1e20, -100, 0, 100], jnp.bfloat16)
    loss = lambda x: f(x)[1:].sum().astype(jnp.float32)
    y, grad = jax.jit(jax.value_and_grad(loss))(x)
    assert f(x).dtype == grad.dtype == jnp.bfloat16
    assert jnp.isfinite(y) and jnp.isfinite(grad).all() and f(x)[4] == 100


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


def test_norm_statistics_are_float32():
    x = (1000 + jax.random.normal(jax.random.key(0), (4, 64))).astype(jnp.bfloat16)
    exact = functions.layer_norm(x.astype(jnp.float32), None, None, 1e-5)
    ours = functions.layer_norm(x, None, None, 1e-5)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_only_the_input_is_kept_for_the_backward_pass(name):
    x = jnp.ones((64, 64), jnp.bfloat16)
    _, pullback = jax.vjp(getattr(functions, name), x)
    kept = sum(r.nbytes for r in jax.tree.leaves(pullback))
    assert kept == x.nbytes
