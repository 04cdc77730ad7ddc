"""Tests of where and how often dropout is applied, against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from llm_jax import hub, models  # noqa: E402
from tests import parity as measure  # noqa: E402

RATES = {"gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.2}}
RATES |= {"t5": {"dropout_rate": 0.3}, "llama": {"attention_dropout": 0.2}}
RATES |= {"marian": {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}}
BERT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
CASES = ["gpt2-a", "llama-a", "bert-a", "roberta-a", "electra-a", "t5-v1.0-a", "t5-v1.1-a"]


@pytest.mark.parametrize("name", [*CASES, "marian-a"])
def test_dropout_stands_where_transformers_has_it(name, tmp_path, monkeypatch):
    """With nothing drawn to be zero, what is left of dropout scales up each place by its rate."""
    case = measure.CASES[name]
    case = case._replace(config=case.config | RATES.get(name.split("-")[0], BERT))
    theirs = measure.reference(case)
    theirs.save_pretrained(tmp_path)
    keep = lambda x, p=0.5, training=True, inplace=False: x / (1 - p) if training else x
    monkeypatch.setattr(torch.nn.functional, "dropout", keep)
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.ones(shape, bool))
    config, params, _ = hub.load(tmp_path)
    inputs, ours = measure.batch(case, config)
    model, key = models.build(config), {"dropout": jax.random.key(0)}

    def run(deterministic):
        return model.apply({"params": params}, ours, deterministic=deterministic, rngs=key)

    found = jax.jit(run, static_argnums=0)(False)
    expected = measure.run_reference(theirs.train(), inputs)[1]
    real = ours["segment_ids"] > 0
    pairs = [(found.features[real], expected["features"].detach().numpy()[real])]
    if found.encoded is not None:
        there = ours["encoder_segment_ids"] > 0
        pairs.append((found.encoded[there], expected["encoded"].detach().numpy()[there]))
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    without = jax.jit(run, static_argnums=0)(True).features[real]
    assert np.abs(without - pairs[0][0]).max() > 0.01 * np.abs(without).max()
