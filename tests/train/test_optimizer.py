"""Schedules at points worked out by hand, the weight-decay mask, and every optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import config as configs
from llm_jax import sharding
from llm_jax.train import optimizer
from llm_jax.train.run import Setup
from llm_jax.train.state import make_train_step


def rates(steps, **changes):
    """The learning rate at given steps, in thousandths: 100 steps, peak 1, warm-up 10."""
    config = configs.base()
    config.train.steps = 100
    config.optimizer.update({"learning_rate": 1.0, "warmup_steps": 10} | changes)
    return [round(1000 * float(optimizer.schedule(config)(step))) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        ("constant", (0, 4, 9, 10, 99), (100, 500, 1000, 1000, 1000)),
        # Half-way, at 10 + 45, cosine and line stand between 1 and the last 0.1.
        ("cosine", (0, 9, 10, 55, 100, 150), (100, 1000, 1000, 550, 100, 100)),
        ("linear", (0, 9, 10, 55, 100, 150), (100, 1000, 1000, 550, 100, 100)),
        # peak * sqrt(warmup / step), 40 being four warm-ups.
        ("inverse_sqrt", (0, 9, 10, 40, 90), (100, 1000, 1000, 500, 333)),
        # Constant until the last fifth, 80 to 100.
        ("wsd", (0, 9, 10, 80, 90, 100), (100, 1000, 1000, 1000, 550, 100)),
    ],
)
def test_schedule(schedule, steps, expected):
    assert rates(steps, schedule=schedule) == list(expected)


def test_schedule_edges():
    assert rates((0, 1), schedule="constant", warmup_steps=0) == [1000, 1000]
    assert rates((0, 50), schedule="cosine", warmup_steps=0) == [1000, 550]
    assert rates((0, 1), schedule="constant", warmup_steps=1) == [1000, 1000]
    assert rates((50, 75, 100), schedule="wsd", decay_steps=50, final_fraction=0.0) == [
        1000, 500, 0,
    ]  # fmt: skip


def test_decay_is_for_matrices_and_embeddings():
    names = ("kernel", "embedding", "output", "bias", "scale")
    params = {"block": {name: jnp.ones((2, 2)) for name in names}}
    mask = optimizer.decayed(params)
    assert mask == {"block": dict(zip(names, (True, True, True, False, False), strict=True))}

    config = configs.base()
    config.optimizer.update({"warmup_steps": 0, "learning_rate": 0.1, "weight_decay": 0.5})
    tx = optimizer.build(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for name in names:  # without a gradient, only the decay of 0.1 * 0.5 is left
        expected = -0.05 if mask["block"][name] else 0.0
        np.testing.assert_allclose(updates["block"][name], expected, rtol=1e-6)


@pytest.mark.parametrize(("clip", "factor"), [(1.0, 1 / 5), (10.0, 1.0), (0.0, 1.0)])
def test_clipping_is_by_the_global_norm(clip, factor):
    config = configs.base()
    config.optimizer.clip_norm = clip
    tx = optimizer.build(config)
    grads = {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}
    assert optax.global_norm(grads) == 5
    _, state = tx.update(grads, tx.init(grads), grads)
    (adam,) = (s for s in state if isinstance(s, optax.ScaleByAdamState))
    np.testing.assert_allclose(adam.mu["bias"], (1 - config.optimizer.b1) * 4 * factor, rtol=1e-6)


RATES = {"adamw": 1e-2, "adafactor": 1e-1, "lion": 3e-3, "muon": 1e-2}


@pytest.mark.parametrize("name", RATES)
def test_lowers_the_loss_and_lies_like_its_parameters(name, tiny, batch):
    changes = {"optimizer.name": name, "optimizer.learning_rate": RATES[name]}
    changes |= {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "optimizer.warmup_steps": 2}
    config = tiny(changes)
    config.model = configs.resolve(config.model, 260)
    setup = Setup(config, sharding.make_mesh(config.mesh))
    like = setup.abstract_state()
    where = jax.tree.map(lambda x: x.sharding, like)
    lies = {x.shape: x.sharding.spec for x in jax.tree.leaves(like.params)}
    moments = [x for x in jax.tree.leaves(like.opt_state) if x.shape in lies]
    assert len(moments) >= len(jax.tree.leaves(like.params)) * (2 if name == "adamw" else 1)
    assert all(x.sharding.spec == lies[x.shape] for x in moments)
    assert sum(not x.sharding.is_fully_replicated for x in moments) >= len(moments) // 2

    state = setup.draw_state(where)
    step = jax.jit(
        make_train_step(setup.model, setup.objective, setup.tx, config),
        out_shardings=(where, None),
    )
    with sharding.activate(setup.mesh):
        rows = sharding.put(batch(config), setup.mesh)
        losses = []
        for _ in range(8):
            state, metrics = step(state, rows)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3, losses
    assert int(state.skipped) == 0
    kernel = state.params["decoder"]["stack"]["layers"]["block"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8, 32)  # [2, 16, 64] over fsdp, tensor
