"""Tests of DP-SGD: clipping per document, Poisson sampling, noise, accounting."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from llm_jax import config as configs
from llm_jax import privacy, sharding
from llm_jax.commands import main
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.train import state as train_state
from llm_jax.train.run import Setup
from tests import making

dp_accounting = pytest.importorskip("dp_accounting")
DP = {"privacy.clip": 1.0, "privacy.noise": 1.0, "data.packing": "none"}


@pytest.fixture(scope="module")
def prepared(tiny, batch):
    """Parameters, a batch of eight rows, and the loss of either, (params, batch, key, weights)."""
    config = tiny({"data.packing": "none"})
    config.model = configs.resolve(config.model, 259)
    setup = Setup(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    state = setup.draw_state(jax.tree.map(lambda x: x.sharding, setup.abstract_state()))

    def loss(params, batch, key, weights=None):
        return train_state.loss(setup.model, setup.objective, config, params, batch, key, weights)

    rows = batch(config)
    rows["weights"] = np.ones_like(rows["weights"])  # equally many targets: a mean of rows' means
    rows["segment_ids"] = np.ones_like(rows["segment_ids"])
    return jax.tree.map(np.asarray, state.params), rows, setup.objective.weights(rows), loss


def private(prepared, clip, noise=0.0, parts=1, rows=None, key=0):
    params, full, weights, loss = prepared
    made = jax.jit(privacy.gradients(clip, noise, 8), static_argnums=(0, 5))
    return made(loss, params, rows or full, jax.random.key(key), weights, parts)


def same(got, wanted, tolerance=2e-6):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance * max(abs(b).max(), 1e-3))

    jax.tree.map(close, jax.device_get(got), jax.device_get(wanted))


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_without_noise_and_clipping_it_is_the_ordinary_gradient(prepared, parts):
    """Up to rounding: rows are added in another order."""
    params, rows, weights, loss = prepared
    ordinary = jax.jit(train_state.gradients, static_argnums=(0, 5))
    (total, metrics), grads = ordinary(loss, params, rows, jax.random.key(0), weights, 1)
    (got, found), got_grads = private(prepared, np.inf, parts=parts)
    same(got_grads, grads)
    same((got, {k: found[k] for k in metrics}), (total, metrics))
    assert found["clipped"] == 0


def test_clipping_equals_a_loop_over_documents(prepared):
    params, full, _, loss = prepared
    rows = {name: x.copy() for name, x in full.items()}
    for x in rows.values():
        x[6:] = 0  # fill up the batch, a whole part of it
    grad = jax.jit(jax.grad(lambda p, row: loss(p, row, jax.random.key(0))[0]))
    total, clip = jax.tree.map(np.zeros_like, params), 0.5
    norms = []
    for i in range(6):
        one = grad(params, {name: x[i : i + 1] for name, x in rows.items()})
        norms.append(float(np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(one)))))
        total = jax.tree.map(lambda a, b: a + b * min(1, clip / norms[-1]), total, one)
    (_, metrics), got = private(prepared, clip, parts=4, rows=rows)
    assert min(norms) > clip and metrics["clipped"] == 1
    same(got, jax.tree.map(lambda x: x / 8, total))


def test_a_row_that_is_not_finite_counts_as_nothing():
    loss = lambda w, row, key, weights=None: ((row["x"][0] * w).sum(), {})
    rows = {"x": jnp.array([[3.0, 4.0], [jnp.inf, 1.0]]), "tokens": jnp.zeros((2, 1), int)}
    made = privacy.gradients(1.0, 0.0, 1)
    (total, _), grads = made(loss, jnp.ones(2), rows, jax.random.key(0), None, 1)
    np.testing.assert_allclose(grads, [0.6, 0.8], rtol=1e-6)
    assert total == 7


def test_noise_is_that_of_the_mechanism_and_of_the_step(prepared):
    clip, noise = 0.25, 3.0
    plain, noisy, again, other = (
        private(prepared, clip, sigma, key=key)[1]
        for sigma, key in ((0, 0), (noise, 0), (noise, 0), (noise, 1))
    )
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    drawn = (flat(noisy) - flat(plain)) * 8 / (clip * noise)
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert (flat(noisy) == flat(again)).all() and (flat(noisy) != flat(other)).any()


@pytest.mark.slow
def test_a_mesh_gives_the_same(prepared):
    params, rows, _, _ = prepared
    wanted = private(prepared, 0.5, 1.0, parts=2)
    sizes = configs.base().mesh
    sizes.update(data=2, fsdp=2)
    mesh = sharding.make_mesh(sizes, jax.devices()[:4])
    with sharding.activate(mesh):
        same(private(prepared, 0.5, 1.0, parts=2, rows=sharding.put(rows, mesh)), wanted)


@pytest.mark.parametrize(("steps", "noise"), [(1, 2.0), (50, 20.0)])
def test_epsilon_bounds_that_of_the_gaussian_mechanism(tiny, steps, noise):
    """Of a set that is always drawn whole; its exact epsilon: Balle 2018, arXiv:1805.06530."""
    config, size = tiny(DP | {"data.batch_size": 64}), noise / steps**0.5

    def delta(epsilon):
        a, b = 0.5 / size, epsilon * size
        return stats.norm.cdf(a - b) - np.exp(epsilon) * stats.norm.cdf(-a - b)

    exact = optimize.brentq(lambda epsilon: delta(epsilon) - 1e-5, 0, 50)
    assert exact < privacy.spent(config, 1, noise, steps) < 1.2 * exact


@pytest.mark.parametrize("epsilon", [1.0, pytest.param(8.0, marks=pytest.mark.slow)])
def test_the_noise_is_the_least_for_an_epsilon(tiny, epsilon):
    config = tiny(DP | {"privacy.noise": 0, "privacy.epsilon": epsilon, "train.steps": 100,
                          "data.batch_size": 64})  # fmt: skip
    noise = privacy.noise_of(config, 500)
    assert 0.98 * epsilon < privacy.spent(config, 500, noise, 100) <= epsilon
    assert privacy.spent(config, 500, 0.9 * noise, 100) > epsilon


@pytest.mark.slow
def test_epsilon_is_a_little_above_that_of_privacy_loss_distributions(tiny):
    config = tiny(DP | {"data.batch_size": 256})
    accountant = dp_accounting.pld.PLDAccountant()
    gaussian = dp_accounting.GaussianDpEvent(1.0)
    q = privacy.rate(config, 6920)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, gaussian), 500)
    exact = accountant.get_epsilon(1e-5)
    assert exact < privacy.spent(config, 6920, 1.0, 500) < 1.25 * exact


def test_batches_are_poisson_samples_of_documents(tiny):
    config = tiny(DP | {"data.batch_size": 32, "model.max_length": 8})
    docs = [chr(97 + i) * (40 if i % 2 else 4) for i in range(26)]  # every other gives windows
    tokenizer = tokenizers.Bytes(())
    batches = making.train_iterator(config, tokenizer, docs)
    q, steps = privacy.rate(config, 26), 200
    counts = np.zeros((steps, 26))
    for step in range(steps):
        batch = next(batches)
        real = batch["segment_ids"].any(1)
        assert (np.sort(~real) == ~real).all()  # padding comes last
        for row in np.concatenate([batch["tokens"], batch["targets"]], axis=1)[real]:
            counts[step, row[row < 256].max() - 97] += 1
        if step == 99:
            state = json.loads(json.dumps(batches.get_state()))
    assert counts.max() == 1 and 0 < q < 0.5
    assert stats.binomtest(int(counts.sum()), counts.size, q).pvalue > 1e-4
    together = (counts[:, ::2] * counts[:, 1::2]).sum()
    assert stats.binomtest(int(together), counts.size // 2, q * q).pvalue > 1e-4
    resumed = making.train_iterator(config, tokenizer, docs)
    resumed.set_state(state)
    again = next(resumed)["tokens"]
    first = making.train_iterator(config, tokenizer, docs)
    wanted = [next(first)["tokens"] for _ in range(101)][-1]
    assert (again == wanted).all()


@pytest.mark.slow
def test_a_run_is_resumed_with_its_account(overrides, tmp_path, capsys):
    options = [f"--config.{x}" for x in overrides(
        DP | {"privacy.noise": 0, "privacy.epsilon": 5.0, "train.steps": 4, "eval.every": 100,
              "train.microbatches": 2, "data.batch_size": 16, "checkpoint.every": 2,
              "model.num_layers": 1})]  # fmt: skip
    rows = {}
    for name in ("whole", "resumed"):
        run = [f"--workdir={tmp_path / name}"]
        assert main(["train", *run, *options]) == 0
        if name == "resumed":  # as if it had ended after step 2
            for step in (tmp_path / name / "checkpoints").glob("4"):
                step.rename(tmp_path / "gone")
            assert main(["train", *run, *options]) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [json.loads(line) for line in lines]
    keys = "step", "loss", "grad_norm", "epsilon", "noise", "clipped"
    for a, b in zip(rows["whole"], rows["resumed"], strict=True):
        assert [a[key] for key in keys] == [b[key] for key in keys]
    spent = [row["epsilon"] for row in rows["whole"]]
    assert spent == sorted(spent) and 4.9 < spent[-1] <= 5
    assert main(["train", *run, *options, "--config.train.steps=6"]) == 2
    assert "meets privacy.epsilon=5; keep it" in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "told"), [
    ({"data.packing": "first_fit"}, "data.packing='first_fit': incompatible with privacy.clip=1"),
    ({"model.num_experts": 2}, "model.router_balance=0.01: .* set model.router_balance=0"),
    ({"model.num_experts": 2, "model.router_balance": 0}, "expert_capacity=0: incompatible with"),
    ({"data.shards": 2}, "data.shards=2"), ({"mesh.pipeline": 2}, "mesh.pipeline=2"),
    ({"data.ramp_steps": 4, "data.ramp_start": 4}, "data.ramp_steps=4"),
    ({"objective.name": "contrastive"}, "its loss combines several documents"),
    ({"objective.name": "similarity"}, "its loss combines several documents"),
    ({"data.train": "a.txt,b.txt"}, "samples the documents of one source"),
    ({"privacy.noise": 0.0}, "without noise is not private; set privacy.epsilon"),
])  # fmt: skip
def test_what_cannot_be_private_is_refused(tiny, changes, told):
    with pytest.raises(ConfigError, match=told):
        privacy.check(tiny(DP | changes))


def test_a_delta_at_which_a_document_may_be_published_is_refused(tiny):
    account = privacy.Account(tiny(DP | {"privacy.delta": 0.01}))
    folder = SimpleNamespace(old=None)
    with pytest.raises(ConfigError, match="privacy.delta=0.01: must be below 1 / documents"):
        account.make_step(SimpleNamespace(folder=folder, documents=100))
