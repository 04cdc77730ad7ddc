"""The train step: accumulation, averaging, and what a step that is not finite leaves alone."""

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import sharding
from llm_jax.train.run import Setup
from llm_jax.train.state import make_eval_step, make_train_step


def prepared(config):
    """Returns (state, step) on one device."""
    config.model = configs.resolve(config.model, 259)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    setup = Setup(config, mesh)
    place = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    step = jax.jit(make_train_step(setup.model, setup.objective, setup.tx, config))
    return setup.draw_state(place), step


def momentum(state):
    """Adam's first moment: after one step a fixed multiple of the gradient."""
    return [x for path, x in jax.tree.leaves_with_path(state.opt_state) if ".mu" in str(path)]


@pytest.fixture(scope="module")
def large_batch(tiny):
    return prepared(tiny({"optimizer.clip_norm": 0.0}))


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_large_batch(parts, large_batch, tiny, batch):
    config = tiny({"optimizer.clip_norm": 0.0, "train.microbatches": parts})
    rows = batch(config)
    assert len(set(rows["weights"].sum(1))) > 4  # parts of very different weight
    state, step = prepared(config)
    whole_state, whole_step = large_batch
    whole, expected = whole_step(whole_state, rows)
    state, metrics = step(state, rows)
    for name in ("loss", "grad_norm", "accuracy", "objective"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
    for got, want in zip(momentum(state), momentum(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * abs(want).max())


def test_the_average_follows_the_parameters(tiny, batch):
    config = tiny({"train.ema_decay": 0.75})
    before, step = prepared(config)
    jax.tree.map(np.testing.assert_array_equal, before.ema, before.params)
    for seed in range(2):
        after, _ = step(before, batch(config, seed))
        expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before.ema, after.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.ema, expected)
        before = after


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(value, large_batch, tiny, batch):
    config = tiny()
    state, step = large_batch
    state, _ = step(state, batch(config))
    bad = batch(config, 1)
    bad["weights"][0, 0] = value
    first, metrics = step(state, bad)
    second, _ = step(first, bad)
    jax.tree.map(np.testing.assert_array_equal, second.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, second.opt_state, state.opt_state)
    assert [int(first.skipped), int(second.skipped)] == [1, 2]
    assert [int(first.step), int(second.step), int(second.skipped_in_a_row)] == [2, 3, 2]
    third, metrics = step(second, batch(config, 1))
    assert [int(third.skipped), int(third.skipped_in_a_row)] == [2, 0]
    # The schedule goes on where the optimizer does.
    assert metrics["learning_rate"] == step(state, batch(config, 1))[1]["learning_rate"]
    assert np.isfinite(metrics["loss"])


def test_randomness_is_of_the_seed_and_the_step(tiny, batch):
    config = tiny({"model.dropout": 0.5})
    state, step = prepared(config)
    rows = batch(config)
    loss = lambda number: float(step(state.replace(step=np.int32(number)), rows)[1]["loss"])
    assert loss(3) == loss(3) != loss(4)


def test_evaluation_weighs_tokens_not_batches(tiny, batch):
    from llm_jax.train.evaluate import evaluate

    config = tiny()
    config.model = configs.resolve(config.model, 259)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    setup = Setup(config, mesh)
    params = setup.draw_state(jax.tree.map(lambda x: x.sharding, setup.abstract_state())).params
    step = jax.jit(make_eval_step(setup.model, setup.objective, config))
    batches = [batch(config, seed) for seed in range(3)]
    batches[1]["weights"][1:] = 0
    found = evaluate(step, params, batches, mesh)
    one = [evaluate(step, params, [rows], mesh) for rows in batches]
    tokens = [int(rows["weights"].sum()) for rows in batches]
    assert [result["tokens"] for result in one] == tokens
    assert found["tokens"] == sum(tokens)
    for name in ("loss", "accuracy"):
        mean = np.average([result[name] for result in one], weights=tokens)
        np.testing.assert_allclose(found[name], mean, rtol=1e-6)
    assert evaluate(step, params, batches, mesh, max_batches=1) == one[0]


def test_bits_per_byte_are_the_loss_over_the_bytes_of_the_targets(tiny, batch):
    from llm_jax.train.evaluate import evaluate

    config = tiny()
    config.model = configs.resolve(config.model, 259)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    setup = Setup(config, mesh)
    params = setup.draw_state(jax.tree.map(lambda x: x.sharding, setup.abstract_state())).params
    table = np.arange(259, dtype=np.int32) % 5  # bytes of each token; some have none
    step = jax.jit(make_eval_step(setup.model, setup.objective, config, table))
    batches = [batch(config, seed) for seed in range(2)]
    found = evaluate(step, params, batches, mesh)
    written = sum(table[t] for rows in batches for t in rows["targets"][rows["weights"] > 0])
    bits = found["loss"] * found["tokens"] / np.log(2)
    np.testing.assert_allclose(found["bits_per_byte"], bits / written, rtol=1e-5)
