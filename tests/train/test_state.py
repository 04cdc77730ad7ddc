"""Tests of the train step: accumulation, averaging, non-finite steps."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import sharding
from llm_jax.train import state as train_state
from llm_jax.train.evaluate import evaluate
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


@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
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


def test_a_part_with_less_than_a_token_counts_in_full():
    """Of a batch with one scored token each of four microbatches has a quarter as its share."""
    term = np.float32(3)
    losses = lambda *_: ({"tokens": term}, {"loss": (term, "tokens")})
    objective = SimpleNamespace(losses=losses, classes=False)
    model = SimpleNamespace(apply=lambda *_, **__: (None, {}))
    weights = {"tokens": np.float32(0.25)}
    total, metrics = train_state.loss(model, objective, configs.base(), None, {}, None, weights)
    assert total == metrics["loss"] == 12


def by_hand(config, batch):
    """Returns (setup, state, loss): loss(rows, key, weights) as `make_train_step` gives it."""
    config.model = configs.resolve(config.model, 259)
    setup = Setup(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    state = setup.draw_state(jax.tree.map(lambda x: x.sharding, setup.abstract_state()))
    loss = partial(train_state.loss, setup.model, setup.objective, config, state.params)
    return setup, state, jax.jit(loss)


def test_each_microbatch_draws_its_own_dropout(tiny, batch):
    """From seed, step and its number: fold_in(fold_in(key(seed), step), i)."""
    config = tiny({"model.dropout": 0.5, "train.microbatches": 2, "seed": 5})
    rows = {name: np.repeat(x[:4], 2, axis=0) for name, x in batch(config).items()}  # equal halves
    setup, state, loss = by_hand(config, batch)
    step = jax.jit(make_train_step(setup.model, setup.objective, setup.tx, config))
    half = {name: x[::2] for name, x in rows.items()}
    key = jax.random.fold_in(jax.random.key(5), 3)
    parts = [float(loss(half, jax.random.fold_in(key, i))[0]) for i in range(2)]
    assert abs(parts[0] - parts[1]) > 1e-4
    _, metrics = step(state.replace(step=np.int32(3)), rows)
    np.testing.assert_allclose(metrics["objective"], np.mean(parts), rtol=1e-6)
    _, other = step(state.replace(step=np.int32(4)), rows)
    assert abs(metrics["objective"] - other["objective"]) > 1e-4


def test_auxiliary_losses_are_of_each_microbatch(tiny, batch):
    """A product of two means: the mean of the parts' own, which is not the large batch's."""
    config = tiny({"model.num_experts": 4, "model.router_balance": 10.0})
    rows, key = batch(config), jax.random.key(0)  # nothing is dropped
    setup, state, loss = by_hand(config, batch)
    one = partial(train_state.loss, setup.model, setup.objective, config)
    weights = setup.objective.weights(rows)
    accumulate = lambda params: train_state.gradients(one, params, rows, key, weights, 4)[0]
    balance = lambda total, metrics: float(total - metrics["loss"])
    parts = [balance(*loss({name: x[i::4] for name, x in rows.items()}, key)) for i in range(4)]
    found = balance(*jax.jit(accumulate)(state.params))
    np.testing.assert_allclose(found, np.mean(parts), rtol=1e-5)
    assert abs(found - balance(*loss(rows, key))) > 1e-3 * found


def test_gradients_may_be_another_function(large_batch, tiny, batch):
    """Each row's by itself, as DP-SGD needs them; divided by the batch's weights they add up."""
    config = tiny({"optimizer.clip_norm": 0.0})
    config.model = configs.resolve(config.model, 259)
    setup = Setup(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    state, whole = large_batch
    rows, seen = batch(config), []

    def each(loss, params, batch, key, weights, microbatches):
        one = lambda row: jax.value_and_grad(loss, has_aux=True)(
            params, jax.tree.map(lambda x: x[None], row), key, weights
        )
        each_row = jax.vmap(one)(batch)
        seen.append(jax.tree.leaves(each_row[1])[0].shape[0])
        return jax.tree.map(lambda x: x.sum(0), each_row)

    step = make_train_step(setup.model, setup.objective, setup.tx, config, each)
    found, expected = jax.jit(step)(state, rows), whole(state, rows)
    assert seen == [8]
    np.testing.assert_allclose(found[1]["objective"], expected[1]["objective"], rtol=1e-6)
    for got, want in zip(momentum(found[0]), momentum(expected[0]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * abs(want).max())


def test_parameters_are_of_the_seed(tiny, batch):
    """Another seed is another draw of every matrix."""
    states = [by_hand(tiny({"seed": seed}), batch)[1].params for seed in (1, 1, 2)]
    jax.tree.map(np.testing.assert_array_equal, *states[:2])
    for path, x in jax.tree.leaves_with_path(states[0]):
        other = dict(jax.tree.leaves_with_path(states[2]))[path]
        assert np.array_equal(x, other) == ("scale" in str(path)), path


def test_seeds_and_rates_share_a_program(tiny, batch):
    """So that a sweep compiles once for all of them; dropout is then of the seed all the same."""
    texts, rates = set(), (1e-3, 1e-2)
    for seed, rate in zip((1, 2), rates, strict=True):
        keys = {"seed": seed, "model.dropout": 0.5, "optimizer.learning_rate": rate}
        config = tiny(keys)
        state, step = prepared(config)
        numbers = np.uint32(seed), np.float32(rate)
        texts.add(step.lower(state, batch(config), *numbers).as_text())
    taken = [step(state, batch(config), np.uint32(2), rate)[1]["learning_rate"] for rate in rates]
    assert float(taken[1]) == pytest.approx(10 * float(taken[0]))
    losses = [float(step(state, batch(config), np.uint32(seed))[1]["loss"]) for seed in (1, 2, 2)]
    assert len(texts) == 1
    assert losses[0] != losses[1] == losses[2]


def test_the_average_follows_the_parameters(tiny, batch):
    """Two steps by hand, and one that is not finite, which leaves it alone."""
    config = tiny({"train.ema_decay": 0.75})
    first, step = prepared(config)
    jax.tree.map(np.testing.assert_array_equal, first.ema, first.params)
    second, _ = step(first, batch(config, 0))
    bad = batch(config, 1)
    bad["weights"][0, 0] = np.nan
    skipped, _ = step(second, bad)
    jax.tree.map(np.testing.assert_array_equal, skipped.ema, second.ema)
    third, _ = step(skipped, batch(config, 2))

    def average(a, b, c):
        return 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c

    expected = jax.tree.map(average, first.params, second.params, third.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, third.ema, expected)


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


def test_evaluation_weighs_tokens_not_batches(tiny, batch):
    config = tiny()
    config.model = configs.resolve(config.model, 259)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    setup = Setup(config, mesh)
    params = setup.draw_state(jax.tree.map(lambda x: x.sharding, setup.abstract_state())).params
    step = jax.jit(make_eval_step(setup.model, setup.objective, config))
    batches = [batch(config, seed) for seed in range(3)]
    batches[1]["weights"][1:] = 0
    found = evaluate(step, params, batches, mesh).values
    one = [evaluate(step, params, [rows], mesh).values for rows in batches]
    tokens = [int(rows["weights"].sum()) for rows in batches]
    assert [result["tokens"] for result in one] == tokens
    assert found["tokens"] == sum(tokens)
    for name in ("loss", "accuracy"):
        mean = np.average([result[name] for result in one], weights=tokens)
        np.testing.assert_allclose(found[name], mean, rtol=1e-6)
    assert evaluate(step, params, batches, mesh, max_batches=1).values == one[0]


def test_sums_over_a_set_keep_its_smallest_batches():
    """In float64: of a sum of 2^24, float32 has no room for another 1."""
    mesh = sharding.make_mesh(configs.base().mesh, jax.devices()[:1])
    batches = [{"x": np.full(1, x, np.float32)} for x in [2.0**24] + 128 * [1.0]]
    step = lambda params, batch: ({"loss": batch["x"][0]}, {"loss": np.float32(1)}, {})
    found = evaluate(step, None, batches, mesh).values
    assert found == {"loss": (2**24 + 128) / 129, "tokens": 129}


def test_bits_per_byte_are_the_loss_over_the_bytes_of_the_targets(tiny, batch):
    config = tiny()
    config.model = configs.resolve(config.model, 259)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    setup = Setup(config, mesh)
    params = setup.draw_state(jax.tree.map(lambda x: x.sharding, setup.abstract_state())).params
    table = np.arange(259, dtype=np.int32) % 5  # bytes of each token; some have none
    step = jax.jit(make_eval_step(setup.model, setup.objective, config, table))
    batches = [batch(config, seed) for seed in range(2)]
    found = evaluate(step, params, batches, mesh).values
    written = sum(table[t] for rows in batches for t in rows["targets"][rows["weights"] > 0])
    bits = found["loss"] * found["tokens"] / np.log(2)
    np.testing.assert_allclose(found["bits_per_byte"], bits / written, rtol=1e-5)
