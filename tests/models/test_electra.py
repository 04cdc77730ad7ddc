"""Tests of ELECTRA: shared parameters, and which tokens count as replaced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import electra
from llm_jax import config, models
from llm_jax.models.flops import count_params
from tests.tiny_models import tiny_model

SIZES = {"kind": "encoder", "head": "detection", "positions": "learned", "type_vocab_size": 2}
SIZES |= {"generator_fraction": 0.5, "embed_norm": True, "norm_place": "post", "embedding_dim": 6}
PLACES = np.array([[1, 4, 0], [0, 7, 3]])
BATCH = {
    "tokens": np.random.default_rng(0).integers(0, 11, (2, 8)),
    "masked_positions": PLACES,
    "masked_weights": np.array([[1, 1, 0], [1, 1, 1.0]]),
    "masked_targets": np.full((2, 3), 5),
}
BATCH = {name: jnp.asarray(x) for name, x in BATCH.items()}


@pytest.mark.parametrize(("variant", "millions"), [("small", 14), ("base", 110), ("large", 335)])
def test_the_discriminator_has_the_published_count(variant, millions):
    c = electra.get_config(variant)
    whole = count_params(config.resolve(c.model, 0))
    c.model.generator_fraction = 0.0
    count = count_params(config.resolve(c.model, 0))
    assert abs(count / 1e6 / millions - 1) < 0.04
    assert 1.01 < whole / count < 1.4  # the generator


def test_all_embeddings_are_shared_but_the_projection():
    """Section 3.2, and the scope "electra/embeddings" of the authors' code: the norm too."""
    model, params = tiny_model(**SIZES)
    assert params["generator"]["encoder"].keys() == {"embeddings", "stack"}
    assert params["generator"]["encoder"]["embeddings"].keys() == {"projection"}
    assert params["generator"].keys() == {"encoder", "output_bias", "transform"}

    def loss_of_the_generator(params):
        return jnp.square(models.logits(model.apply({"params": params}, BATCH))).sum()

    grads = jax.jit(jax.grad(loss_of_the_generator))(params)
    shared = grads["encoder"]["embeddings"]
    assert shared.keys() == {"positions", "types", "norm", "projection"}
    reached = {name: any(np.any(x) for x in jax.tree.leaves(g)) for name, g in shared.items()}
    assert reached == {"positions": True, "types": True, "norm": True, "projection": False}
    assert np.any(grads["embed"]["embedding"]) and not np.any(grads["detection"]["score"]["kernel"])


@pytest.mark.parametrize("token", [5, 6])
def test_a_sample_that_is_right_is_not_replaced(token):
    model, params = tiny_model(**SIZES)
    bias = jnp.where(jnp.arange(11) == token, 1e4, 0)  # no other token is ever drawn
    params = params | {"generator": params["generator"] | {"output_bias": bias}}
    outputs = model.apply({"params": params}, BATCH)
    drawn = np.zeros((2, 8), bool)
    for row, places, used in zip(drawn, PLACES, BATCH["masked_weights"], strict=True):
        row[places[used > 0]] = True
    np.testing.assert_array_equal(outputs.heads["replaced"], drawn & (token != 5))
    filled = {"tokens": np.where(drawn, token, BATCH["tokens"])}
    judged = model.apply({"params": params}, filled)
    np.testing.assert_allclose(outputs.features, judged.features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        outputs.heads["detection"], judged.heads["detection"], rtol=1e-5, atol=1e-5
    )
