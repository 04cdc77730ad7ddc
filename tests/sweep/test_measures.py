"""Tests of cost by length and loss by position, with tiny models."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.sweep import context, cost
from llm_jax.train.loop import Trainer

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("attention", "positions"),
    [
        ("dense,local", "learned"),
        ("lsh", "rotary"),
        slow("dense", "relative"),
        slow("local", "alibi"),
    ],
)
def test_cost_by_length(attention, positions, tiny):
    config = tiny({"model.attention": attention, "model.positions": positions, "model.window": 8})
    rows = cost.measure(configs.resolve(config.model, 259), [32, 64])
    assert [row["length"] for row in rows] == [32, 64]
    for row in rows:
        assert row["seconds"] > 0 and row["bytes"] > 0 and row["reason"] == ""


def test_cost_says_what_it_leaves_out(tiny, monkeypatch):
    model = configs.resolve(tiny().model, 259)
    monkeypatch.setattr(cost, "BYTES", 1)
    (row,) = cost.measure(model, [16])
    assert row["seconds"] is None and row["bytes"] > 1 and "needs more than" in row["reason"]
    monkeypatch.setattr(cost, "COMPILING", 0.0)
    last = cost.measure(model, [16, 32])[1]
    assert last["bytes"] is None and "compilation would take" in last["reason"]


def test_cost_is_the_median_of_calls_and_the_mean_of_layers(tiny, monkeypatch):
    """Of six calls without the first, which warms up; kinds that alternate share what they take."""
    now, lengths = [0.0], iter([100.0, 3.0, 1.0, 2.0, 9.0, 2.5])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cost, "SECONDS", 1000.0)
    program = lambda: now.append(now.pop() + next(lengths))
    program.memory_analysis = lambda: SimpleNamespace(temp_size_in_bytes=300)
    monkeypatch.setattr(cost, "_compiled", lambda model, length: (program, ()))
    (row,) = cost.measure(tiny({"model.attention": "dense,local"}).model, [16])
    assert row["seconds"] == 2.5 / 2 and row["bytes"] == 300 / 2


@pytest.mark.slow
def test_loss_by_position(tiny, tmp_path, silent):
    """At the length of training it is the loss that training found; beyond, where that can be."""
    config = tiny({"train.steps": 2, "eval.max_batches": 0})
    summary = Trainer(config, tmp_path, silent).run()
    found = context.measure(tmp_path, [1, 2])
    one, two = found["reaches"]["1"], found["reaches"]["2"]
    assert one["loss"] == pytest.approx(summary["eval_loss"], abs=1e-5)
    assert one["tokens"] == two["tokens"] == summary["eval_tokens"]
    assert len(one["bins"]) == 8 and len(two["bins"]) == 16 and found["bin"] == 2
    # Each bin's is a mean over its own tokens: after two steps near that of all.
    np.testing.assert_allclose(one["bins"], one["loss"], rtol=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.positions": "learned"}, "positions/embedding depends on model.max_length"),
        (
            {
                "model.positions": "axial",
                "model.axial_shape": "(4, 4)",
                "model.axial_dims": "(8, 8)",
            },
            "model.axial_shape",
        ),
        ({"model.kind": "encoder", "model.head": "mlm"}, "only decoders"),
    ],
)
def test_what_cannot_reach_further(changes, message, tiny):
    from llm_jax import models, sharding
    from llm_jax.train.run import Setup

    config = tiny(changes)
    config.model = configs.resolve(config.model, 259)
    setup = Setup(config, sharding.make_mesh(config.mesh))
    params = jax.eval_shape(lambda: models.init_params(setup.model, jax.random.key(0)))
    import flax.linen as nn

    with pytest.raises(ConfigError, match=message):
        context.stretched(setup, nn.unbox(params), 2)
