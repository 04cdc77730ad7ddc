"""What is kept for the backward pass, and in how many bits products are: same numbers, or near."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import config, models
from llm_jax.config import ConfigError
from llm_jax.models.layers import Dense
from tests.tiny_models import tiny_model

TOKENS = np.random.default_rng(0).integers(0, 11, (4, 16), np.int32)


@functools.cache
def gradients(**changes):
    """Loss and gradients of one batch; the parameters are the same for all changes."""
    model, params = tiny_model(activation="swiglu", **changes)

    def loss(params):
        logits = models.logits(model.apply({"params": params}, {"tokens": TOKENS}))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], axis=-1)
        return -chosen.mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("remat", ["full", "dots", "offload"])
def test_remat_changes_no_number(remat):
    ours, expected = gradients(remat=remat), gradients()
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, ours, expected)


# The largest error of rounding one operand: of half a step of 127 to the largest, of 3 or 2 bits
# behind the point.
@pytest.mark.parametrize(
    ("quantize", "types", "there", "back"),
    [("int8", ["i8"], 0.02, 0.02), ("fp8", ["f8e4m3fn", "f8e5m2"], 2**-4, 2**-3)],
)
def test_quantized_products_are_near(quantize, types, there, back):
    pytest.importorskip("qwix")
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    x, params, away = draw(0, 4, 128), {"kernel": draw(1, 128, 64)}, draw(2, 4, 64)

    def run(quantize):
        m = config.base().model
        m.update({"quantize": quantize, "use_bias": False})
        dense = Dense(FrozenConfigDict(m), (128,), (64,), ("embed", "mlp"))
        f = jax.jit(lambda p, x: jax.vjp(lambda p, x: dense.apply({"params": p}, x), p, x)[1](away))
        return dense.apply({"params": params}, x), *f(params, x), f.lower(params, x).as_text()

    far = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
    y, dp, dx, text = run(quantize)
    exact, exact_dp, exact_dx, _ = run("none")
    assert all(name in text.lower() for name in types)
    assert 0 < far(y, exact) < there
    assert 0 < far(dp["kernel"], exact_dp["kernel"]) < back
    assert 0 < far(dx, exact_dx) < back


def test_experts_are_not_quantized():
    with pytest.raises(ConfigError, match="model.quantize='int8': not with model.num_experts=4"):
        config.load("", ["model.num_experts=4", "model.quantize=int8"])
