"""Cost by length and loss by position, on models of no size."""

import functools

import jax
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
    assert last["bytes"] is None and "compiling would take" in last["reason"]


def test_loss_by_position(tiny, tmp_path, silent):
    """At the length of training it is the loss that training found; beyond, where that can be."""
    config = tiny({"train.steps": 2, "eval.max_batches": 0})
    summary = Trainer(config, tmp_path, silent).run()
    found = context.measure(tmp_path, [1, 2])
    one, two = found["reaches"]["1"], found["reaches"]["2"]
    assert one["loss"] == pytest.approx(summary["eval_loss"], abs=1e-5)
    assert one["tokens"] == two["tokens"] == summary["eval_tokens"]
    assert len(one["bins"]) == 8 and len(two["bins"]) == 16 and found["bin"] == 2


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
        ({"model.kind": "encoder", "model.head": "mlm"}, "only a decoder"),
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
