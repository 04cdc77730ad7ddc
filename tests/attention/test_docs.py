"""Tests that docs/attention.md lists all variants correctly and that its example works."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import attention, models
from tests.tiny_models import tiny_model

TEXT = (Path(__file__).parent.parent.parent / "docs" / "attention.md").read_text()


def test_the_table_lists_every_kind_and_what_it_lacks():
    rows = re.findall(r"^\| (\w+) \|.*\| ([\w, ]*)\|$", TEXT, re.MULTILINE)
    listed = {name: set(filter(None, lacks.strip().split(", "))) for name, lacks in rows}
    listed.pop("variant")
    assert listed == {
        name: attention.ABILITIES.keys() - variant.supports
        for name, variant in attention.VARIANTS.items()
    }


def test_the_readme_counts_them():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"| {len(attention.VARIANTS)} variants, " in readme


def test_the_kind_it_adds_works(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    added = {}
    exec(compile(code, "docs/attention.md", "exec"), added)
    monkeypatch.setitem(attention.VARIANTS, "squared_relu", added["VARIANT"])
    model, params = tiny_model(attention="squared_relu", positions="alibi")
    assert params["decoder"]["stack"]["layers"]["block"]["attention"]["strength"].shape == (2, 4)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 12)))

    def loss(params, tokens):
        return models.logits(model.apply({"params": params}, {"tokens": tokens})).sum()

    grads = jax.jit(jax.grad(loss))(params, tokens)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    logits = jax.jit(lambda t: models.logits(model.apply({"params": params}, {"tokens": t})))
    changed = tokens.at[:, 7].set((tokens[:, 7] + 1) % 11)
    np.testing.assert_array_equal(logits(tokens)[:, :7], logits(changed)[:, :7])
