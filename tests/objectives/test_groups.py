"""Tests of group DRO, with the weights and gradients of Sagawa 2020, Algorithm 1, in NumPy."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from llm_jax import commands, objectives, sharding
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.objectives import groups
from llm_jax.train.run import Setup
from llm_jax.train.state import init_state, make_train_step
from tests import making

TOKENIZER = tokenizers.Bytes()
DOCS = [{"text": "abcdefgh"[: i + 1], "label": str(i % 2), "group": "ab"[i > 5]} for i in range(8)]


def config(**changes):
    """A config of a tiny classifier; its groups are a and b."""
    keys = {
        "objective.name": "classification", "model.kind": "encoder", "model.head": "sequence",
        "model.max_length": 16, "model.num_layers": 1, "model.embed_dim": 8, "model.num_heads": 2,
        "data.packing": "none", "data.batch_size": 8, "tokenizer.name": "bytes",
        "data.group_column": "group", "optimizer.warmup_steps": 0, "optimizer.clip_norm": 0.0,
    }  # fmt: skip
    c = configs.base()
    c.update_from_flattened_dict(keys | {k.replace("__", "."): v for k, v in changes.items()})
    objectives.get("classification").resolve(c, DOCS)
    c.model = configs.resolve(c.model, TOKENIZER.vocab_size)
    return c


def steps(c, docs=DOCS, count=3):
    """[(parameters before a step, metrics of it)] and the last state, on the same batch."""
    setup = Setup(c, sharding.make_mesh(c.mesh, jax.devices()[:1]))
    (batch,) = making.eval_batches(c, TOKENIZER, docs)
    state = jax.jit(lambda: init_state(setup.model, setup.tx, c))()
    step, found = jax.jit(make_train_step(setup.model, setup.objective, setup.tx, c)), []
    for _ in range(count):
        new, metrics = step(state, batch)
        found.append((state.params, {name: float(x) for name, x in metrics.items()}))
        state = new
    return setup.model, batch, found, state


def test_one_group_is_the_plain_loss_bit_for_bit():
    """And its gradient, with a row of padding."""
    logits = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    batch = {"label": np.arange(8) % 2, "group": np.zeros(8, int), "tokens": np.ones((8, 1), int),
             "segment_ids": (np.arange(8) < 7)[:, None]}  # fmt: skip
    cfg = config(objective__groups=("a",), objective__group_step=0.5).objective

    def loss(logits, more):
        outputs = SimpleNamespace(heads={"sequence": logits})
        return objectives.get("classification").losses(outputs, batch | more, cfg)[0]["rows"]

    found = [jax.value_and_grad(loss)(logits, x) for x in ({}, {groups.LOG_Q: np.zeros(1)})]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
def test_one_group_is_plain_training_up_to_the_compilers_rounding():
    *_, plain = steps(config(data__group_column=""))
    docs = [doc | {"group": "a"} for doc in DOCS]
    *_, one = steps(config(objective__groups=("a",), objective__group_step=0.5), docs)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7)
    jax.tree.map(close, one.params, plain.params)


@pytest.mark.parametrize("rate", [2.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_weights_and_gradients_are_those_of_algorithm_1(rate):
    """With a third group that no row has: its loss is 0. A rate of 0 is reweighting."""
    model, batch, found, state = steps(config(objective__groups=("a", "b", "c"),
                                              objective__group_step=rate))  # fmt: skip
    group = np.array(["abc".index(doc["group"]) for doc in DOCS])
    q = np.ones(3) / 3

    def loss_of(params, weight):
        logits = model.apply({"params": params}, batch).heads["sequence"]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return (weight * each).sum(), each

    gradient = jax.jit(jax.grad(loss_of, has_aux=True))
    for params, metrics in found:
        each = np.asarray(gradient(params, np.zeros(8))[1])
        losses = np.array([each[group == g].mean() if (group == g).any() else 0 for g in range(3)])
        q = q * np.exp(rate * losses)
        q = q / q.sum()
        weight = q[group] / np.bincount(group, minlength=3)[group]
        for i, name in enumerate("abc"):
            assert metrics[f"loss_{name}"] == pytest.approx(losses[i], rel=1e-5)
            assert metrics[f"weight_{name}"] == pytest.approx(q[i], rel=1e-5)
        assert metrics["objective"] == pytest.approx(q @ losses, rel=1e-5)
        norm = optax.global_norm(gradient(params, weight)[0])
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    np.testing.assert_allclose(np.exp(optax.tree.get(state.opt_state, groups.LOG_Q)), q, rtol=1e-5)


OTHERS = {"train.microbatches": 2, "distill.teacher": "runs/a"}


@pytest.mark.parametrize("key", groups.PLAIN)
def test_settings_with_another_loss_are_refused(key):
    c = config()
    c.update_from_flattened_dict({key: OTHERS.get(key, 0.5)})
    with pytest.raises(ConfigError, match=f"{key}=.*: incompatible with data.group_column='group'"):
        objectives.get("classification").check(c)


def test_a_group_that_training_does_not_have_is_refused():
    examples = making.examples(config(), TOKENIZER)
    with pytest.raises(ConfigError, match=r"'z' is not in objective.groups \(a, b\)"):
        examples.example(DOCS[0] | {"group": "z"}, None, None)


def test_the_score_of_the_worst_group():
    examples = making.examples(config(), TOKENIZER)
    answers = [{"label": doc["label"]} for doc in DOCS[:5]] + [{"label": "0"}] * 3
    found = examples.score(DOCS, answers)  # group a: one of six wrong; b: one of two
    assert found["accuracy"] == 6 / 8 and found["worst_group_accuracy"] == 0.5


@pytest.mark.slow
def test_a_run_that_stops_continues_with_its_weights(tmp_path, capsys):
    for name, end in (("a", ""), ("b", "!")):
        lines = [f"{doc['text']}{end}\t{doc['label']}\t{doc['group']}" for doc in DOCS * 4]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel\tgroup", *lines]))
    keys = {
        "data.train": tmp_path / "a.tsv", "data.group_column": "group", "tokenizer.name": "bytes",
        "objective.group_step": 0.3, "model.num_layers": 1, "model.embed_dim": 8,
        "model.num_heads": 2, "model.max_length": 16, "data.batch_size": 8, "checkpoint.every": 2,
        "train.log_every": 1, "data.validation": tmp_path / "b.tsv", "optimizer.schedule":
        "constant", "optimizer.warmup_steps": 0,
    }  # fmt: skip
    keys = [f"--config.{name}={value}" for name, value in keys.items()]

    def run(name, *steps):
        for count in steps:
            folder = tmp_path / name
            assert commands.main(["train", "--config=configs/finetune/classify.py", *keys,
                                  f"--workdir={folder}", f"--config.train.steps={count}"]) == 0
        last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
        return {k: v for k, v in json.loads(last).items()
                if k.startswith(("weight_", "loss_", "eval_"))}  # fmt: skip

    whole = run("whole", 4)
    assert whole["weight_a"] != pytest.approx(whole["weight_b"], abs=1e-3)
    assert "eval_worst_group_accuracy" in whole and run("parts", 2, 4) == whole
