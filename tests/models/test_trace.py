"""Tests that models.trace returns and replaces the values of a plain forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.models.trace import token_vectors, trace
from tests.tiny_models import tiny_model

KINDS = {
    "decoder": {"num_layers": 3, "layers": "2 dense, 1 local window=4"},
    "encoder": {"kind": "encoder", "head": "sequence", "num_labels": 3, "num_kv_heads": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_looked_into(kind):
    model, params = tiny_model(**KINDS[kind])
    batch = {"tokens": jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 8)))}
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)

    @jax.jit
    def passes(params):
        found = trace(model, params, batch)
        vectors = token_vectors(model, params, batch["tokens"])
        changes = jnp.zeros((len(found.branches), 2, 8, 16)).at[1, 0, 3, 0].set(1.0)
        return (
            model.apply({"params": params}, batch).features, found,
            trace(model, params, batch, vectors=vectors), trace(model, params, batch,
            output=found.hidden[-1]), trace(model, params, batch, changes=changes),
        )  # fmt: skip

    plain, found, given, read, changed = passes(params)
    for same in (found, given, read):
        near(same.outputs.features, plain)
    for i, branches in enumerate(found.branches):
        near(found.hidden[i] + sum(branches), found.hidden[i + 1])
    difference = np.abs(changed.hidden - found.hidden)
    assert not difference[:1].any() and not difference[:, 1].any()  # before it, and the other row
    assert difference[2:, 0, 3].any(-1).all()
    before = difference[2:, 0, :3].any()
    assert before == (kind == "encoder")  # a decoder looks only back
