"""Tests of InfoNCE and CoSENT against their formulas, and of retrieval metrics."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

import llm_jax
from llm_jax import config as configs
from llm_jax import objectives, sharding
from llm_jax.config import ConfigError
from llm_jax.data import pipeline
from llm_jax.data.tokenizers import Bytes
from llm_jax.objectives import scores
from llm_jax.train.loop import Reporter, Trainer
from tests.tiny_models import tiny_model

TEXTS = [("a cat", "one cat", "no dog"), ("rain", "it rains all day", "sun"), ("x", "y", "z"),
         ("who", "someone", "nobody at all")]  # fmt: skip
SIZES = {"kind": "encoder", "head": "none", "max_length": 72, "num_kv_heads": 4, "num_layers": 1,
         "norm_place": "post"}  # fmt: skip


def config(name, **keys):
    c = configs.base()
    c.objective.name, c.data.packing, c.tokenizer.name = name, "none", "bytes"
    c.data.pair_column, c.objective.temperature, c.data.batch_size = "pair", 0.2, 8
    c.model.update(SIZES)
    c.update_from_flattened_dict(keys)
    return c


def read(c, records, mesh=None):
    """(sum of the loss, metrics, pairs) of one batch, half of it padding."""
    model, params = tiny_model(Bytes().vocab_size, **SIZES)
    objective = objectives.get(c.objective.name)
    (batch,) = pipeline.eval_batches(objective.examples(Bytes(), c), records)
    batch = {k: np.pad(x, [(0, 8 - len(x))] + [(0, 0)] * (x.ndim - 1)) for k, x in batch.items()}
    batch = batch if mesh is None else sharding.put(batch, mesh)

    @jax.jit
    def run(params, batch):
        outputs = model.apply({"params": params}, batch)
        terms, metrics = objective.losses(outputs, batch, c.objective)
        sums = {name: total for name, (total, _) in metrics.items()}
        return terms["rows"], sums, objective.weights(batch)["rows"]

    return run(params, batch)


@functools.cache
def features():
    """{text: its tokens' vectors}, each read in a row of its own."""
    model, params = tiny_model(Bytes().vocab_size, **SIZES)
    texts = [*itertools.chain(*TEXTS)]
    rows = [[Bytes().bos_id, *text.encode(), Bytes().eos_id] for text in texts]
    tokens = np.array([row + [0] * (24 - len(row)) for row in rows])
    real = np.array([[1] * len(row) + [0] * (24 - len(row)) for row in rows])
    batch = {"tokens": tokens, "attention_mask": real}
    found = np.asarray(jax.jit(model.apply)({"params": params}, batch).features, np.float64)
    return {text: x[: len(row)] for text, x, row in zip(texts, found, rows, strict=True)}


def alone(text, pooling):
    x = features()[text]
    x = x[0] if pooling == "cls" else x.mean(0)
    return x / np.linalg.norm(x)


def records(names):
    return [dict(zip(names, row, strict=False)) for row in TEXTS]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("hard", [False, True])
def test_infonce_over_all_pairs_and_negatives_of_a_batch(pooling, hard):
    more = {"data.negative_column": "negative"} if hard else {}
    c = config("contrastive", **{"objective.pooling": pooling} | more)
    names = ("text", "pair", "negative")[: 2 + hard]
    total, metrics, count = read(c, records(names))
    sides = [np.stack([alone(text, pooling) for text in side]) for side in zip(*TEXTS, strict=True)]
    near = sides[0] @ np.concatenate(sides[1 : 2 + hard]).T / 0.2
    nll = np.log(np.exp(near).sum(1)) - np.diag(near)
    assert count == len(TEXTS)
    np.testing.assert_allclose(total, nll.sum(), rtol=1e-4)
    assert metrics["accuracy"] == (near.argmax(1) == np.arange(len(TEXTS))).sum()


def test_a_mesh_has_the_negatives_of_the_whole_batch():
    c = config("contrastive")
    mesh = sharding.make_mesh(c.mesh)
    assert mesh.size == 8
    with sharding.activate(mesh):
        many = read(c, records(("text", "pair")) * 2, mesh)
    one = read(c, records(("text", "pair")) * 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), many, one)


def test_cosent_of_all_pairs_whose_scores_differ():
    labels = ["3", "0.5", "3", "1"]
    rows = [r | {"label": x} for r, x in zip(records(("text", "pair")), labels, strict=True)]
    total, _, count = read(config("similarity"), rows)
    cosines = [alone(a, "mean") @ alone(b, "mean") for a, b, _ in TEXTS]
    scored = list(zip(map(float, labels), cosines, strict=True))
    terms = [np.exp((low - high) / 0.2) for (a, high), (b, low) in itertools.product(scored, scored)
             if a > b]  # fmt: skip
    assert len(terms) == 5
    np.testing.assert_allclose(total / count, np.log1p(sum(terms)), rtol=1e-4)


@pytest.mark.parametrize("count", [1, 15, 1500])
def test_ranks_of_retrieval(count):
    rng = np.random.default_rng(count)
    a = rng.normal(size=(count, 4)).astype("f")
    b = a + rng.normal(size=(count, 4)).astype("f")
    b[-1] = b[0]  # of equal documents none comes before the other
    found = scores.retrieval(a.tolist(), b.tolist())
    ranks = [1 + int((b @ x > b[i] @ x + 1e-6).sum()) for i, x in enumerate(a)]
    assert found["recall_at_1"] == np.mean([rank == 1 for rank in ranks])
    assert found["recall_at_10"] == np.mean([rank <= 10 for rank in ranks])
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_there_must_be_pairs():
    with pytest.raises(ConfigError, match=r"data\.pair_column"):
        objectives.get("contrastive").check(config("contrastive", **{"data.pair_column": ""}))


@pytest.mark.slow
def test_pairs_are_found_after_training(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), 4)) for _ in range(120)]
    rows = [{"text": f"{w}?", "pair": f"is {w}"} for w in words]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    c = config("contrastive", **{"data.train": str(tmp_path / "pairs.jsonl")})
    c.data.update({"validation_fraction": 0.2, "batch_size": 32})
    c.model.update({"max_length": 24, "embed_dim": 32, "num_heads": 2, "num_kv_heads": 2})
    c.train.steps = c.eval.every = 60
    c.eval.metric, c.optimizer.learning_rate, c.optimizer.warmup_steps = "mrr", 5e-3, 5
    last = Trainer(c, tmp_path / "run", Reporter()).run()
    assert last["eval_mrr"] > 0.6
    run = llm_jax.load(tmp_path / "run")
    found = run.embed(["abcd?", "is abcd", "is feef", "a text longer than a row" * 3])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2]
    assert run.predict(["abcd?"])[0]["vector"] == pytest.approx(found[0].tolist(), abs=1e-5)
