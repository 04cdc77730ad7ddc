"""Tests of rematerialisation and of quantised matrix products."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import config, models
from llm_jax.config import ConfigError
from llm_jax.models import abstract_params
from llm_jax.models.adapt import adapt
from llm_jax.models.layers import Mlp
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


class InBlock(nn.Module):
    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x):
        return Mlp(self.cfg, name="mlp")(x)


# The largest error of rounding one operand, twice: of half a step of 127 to the largest, of 3 or 2
# bits behind the point.
@pytest.mark.parametrize(
    ("quantize", "there", "back"), [("int8", 0.04, 0.04), ("fp8", 2**-3, 2**-2)]
)
def test_quantized_products_are_near(quantize, there, back):
    pytest.importorskip("qwix")
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    x, away = draw(0, 4, 3, 128), draw(2, 4, 3, 128)
    params = {"mlp": {"up": {"kernel": draw(1, 128, 64)}, "down": {"kernel": draw(3, 64, 128)}}}

    def run(quantize):
        m = config.base().model
        sizes = {"embed_dim": 128, "mlp_dim": 64, "use_bias": False, "activation": "silu"}
        m.update({"quantize": quantize} | sizes)
        layer = adapt(InBlock(FrozenConfigDict(m)), m)
        f = lambda p, x: layer.apply({"params": p}, x)

        @jax.jit
        def learn(params, x):
            y, pull = jax.vjp(f, params, x)
            return y, pull(away)

        return jax.tree.leaves(learn(params, x))

    far = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
    (y, *grads), (exact, *exact_grads) = run(quantize), run("none")
    assert 0 < far(y, exact) < there
    for g, e in zip(grads, exact_grads, strict=True):
        assert 0 < far(g, e) < back


PRODUCTS = {"int8": "i8", "fp8": "f8e4m3fn"}


@pytest.mark.parametrize(
    ("quantize", "changes"),
    [
        pytest.param("int8", {"num_experts": 4}, marks=pytest.mark.slow),
        ("int8", {"num_experts": 4, "expert_capacity": 2.0}),
        ("int8", {"reversible": True}),
        pytest.param("fp8", {"kind": "encoder_decoder", "scan": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_quantized_models_are_near(quantize, changes):
    """Also with experts, whose router stays in float32."""
    pytest.importorskip("qwix")
    tokens = {"tokens": TOKENS, "encoder_tokens": TOKENS}

    def run(quantize):
        model, params = tiny_model(quantize=quantize, **changes)

        def loss(params):
            y = models.logits(model.apply({"params": params}, tokens))
            return jnp.square(y).mean(), y

        learn = jax.jit(jax.grad(loss, has_aux=True)).lower(params)
        return *learn.compile()(params), learn.as_text().lower()

    grads, y, text = run(quantize)
    exact_grads, exact, plain = run("none")
    far = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
    rounded = lambda text: [
        line for line in text.splitlines() if "dot" in line and f"x{PRODUCTS[quantize]}>" in line
    ]
    assert rounded(text) and not rounded(plain)
    assert 1e-3 < far(y, exact) < 0.3
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))
    norms = dot(grads, grads) * dot(exact_grads, exact_grads)
    assert 0.75 < dot(grads, exact_grads) / jnp.sqrt(norms) < 0.9999


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16", "norm": "rmsnorm"}], ids=str)
def test_lora_adds_a_low_rank_product(changes):
    """Hu 2021, section 4.1: W + (alpha / r) A B, which is W at first."""
    pytest.importorskip("qwix")
    model, params = tiny_model(lora_rank=3, lora_alpha=6.0, lora_targets=("query", "up"), **changes)
    plain, _ = tiny_model(**changes)
    axes = abstract_params(model)["decoder"]["stack"]["layers"]["block"]
    a, b = (axes["attention"]["query"][f"kernel_lora_{name}"] for name in "ab")
    assert (a.shape, b.shape) == ((2, 16, 3), (2, 3, 16))
    assert a.axes[:2] == ("layers", "embed") and b.axes[0] == "layers" and b.axes[2] == "heads"
    assert "kernel_lora_a" in axes["mlp"]["up"] and "kernel_lora_a" not in axes["mlp"]["down"]

    merged = jax.tree.map(lambda x: x, params)
    layers = merged["decoder"]["stack"]["layers"]["block"]
    for part, name in (("attention", "query"), ("mlp", "up")):
        p = layers[part][name]
        product = jnp.einsum("lir,lro->lio", p.pop("kernel_lora_a"), p.pop("kernel_lora_b"))
        p["kernel"] = p["kernel"] + 6 / 3 * product.reshape(p["kernel"].shape)
    run = lambda model, p: models.logits(jax.jit(model.apply)({"params": p}, {"tokens": TOKENS}))
    y, expected = run(model, params), run(plain, merged)
    tolerance = 0.1 if changes else 1e-4
    np.testing.assert_allclose(y, expected, atol=tolerance * np.abs(expected).max())
    start = models.init_params(model, jax.random.key(0))
    start = start["decoder"]["stack"]["layers"]["block"]["mlp"]["up"]
    assert not np.any(start["kernel_lora_b"]) and np.any(start["kernel_lora_a"])


def test_adapters_that_no_projection_has_are_refused():
    with pytest.raises(ConfigError, match="no projection 'querry'; allowed are query, key"):
        config.load("", ["model.lora_rank=4", "model.lora_targets=('querry',)"])
    with pytest.raises(ConfigError, match="'int8': incompatible with model.lora_rank=4"):
        config.load("", ["model.lora_rank=4", "model.quantize=int8"])
