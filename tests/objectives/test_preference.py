"""Tests of DPO against equation 7 of the paper in NumPy; the reference does not change."""

import json

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import models, objectives
from llm_jax.data import pipeline
from llm_jax.data.tokenizers import Bytes
from llm_jax.files import read_json
from llm_jax.train import reference
from llm_jax.train.loop import Reporter, Trainer
from tests.tiny_models import tiny_model

PAIRS = [("Hi", "Hello", "Go away now"), ("Say a", "a", "bb"), ("", "xyz", "q")]
RECORDS = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]


def config(**changes):
    c = configs.base()
    c.objective.name, c.data.packing, c.tokenizer.name = "preference", "none", "bytes"
    c.model.update({"max_length": 48, "num_layers": 1, "embed_dim": 16, "num_heads": 2} | changes)
    return c


def by_itself(model, params, prompt, answer):
    """log p(answer and its end | prompt), of a row of its own."""
    ids = [Bytes().bos_id, *prompt.encode(), *answer.encode(), Bytes().eos_id]
    logits = models.logits(model.apply({"params": params}, {"tokens": np.array([ids[:-1]])}))
    logp = np.asarray(jax.nn.log_softmax(logits, axis=-1))[0]
    return sum(logp[i - 1, ids[i]] for i in range(1 + len(prompt), len(ids)))


def test_the_loss_is_equation_7_of_each_answer_by_itself():
    tokenizer, c = Bytes(), config()
    c.objective.beta, c.data.batch_size = 0.3, 4  # a row of padding, too
    model, params = tiny_model(tokenizer.vocab_size, max_length=48)
    given = np.random.default_rng(0).normal(-30, 3, (3, 2)).tolist()
    records = [r | {"reference": pair} for r, pair in zip(RECORDS, given, strict=True)]
    objective = objectives.get("preference")
    (batch,) = pipeline.eval_batches(objective.examples(tokenizer, c), records)
    outputs = model.apply({"params": params}, batch)
    terms, metrics = objective.losses(outputs, batch, c.objective)
    margins = []
    for (prompt, *answers), pair in zip(PAIRS, given, strict=True):
        chosen, rejected = (by_itself(model, params, prompt, a) for a in answers)
        margins.append(0.3 * ((chosen - pair[0]) - (rejected - pair[1])))
    right = np.log1p(np.exp(-np.array(margins))).sum()
    assert float(terms["rows"]) == pytest.approx(right, rel=1e-4)
    assert float(metrics["margin"][0]) == pytest.approx(sum(margins), rel=1e-4)
    assert float(metrics["accuracy"][0]) == sum(m > 0 for m in margins)
    assert float(objective.weights(batch)["rows"]) == 3


def test_pairs_that_a_row_cannot_hold_are_dropped_and_long_prompts_cut():
    examples = objectives.get("preference").examples(Bytes(), config(max_length=32))
    fields = lambda **record: examples.example(RECORDS[0] | record, None, None)
    assert fields(chosen="a" * 30) is None
    row = fields(prompt="p" * 50)
    learned = row["targets"][row["weights"] > 0]
    eos = Bytes().eos_id
    assert learned.tolist() == [*b"Hello", eos, *b"Go away now", eos]


@pytest.mark.slow
def test_margin_and_accuracy_rise_and_the_reference_stays(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcd"), 4)) for _ in range(48)]
    rows = [{"prompt": w, "chosen": f" {w}!", "rejected": f" {w}?"} for w in words]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    c = config()
    c.data.update({"train": str(tmp_path / "pairs.jsonl"), "validation_fraction": 0.2})
    c.data.batch_size, c.train.steps, c.eval.every = 8, 40, 40
    c.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 5, "schedule": "constant"})
    trainer = Trainer(c, tmp_path / "run", Reporter())
    begun = jax.tree.map(np.asarray, trainer.state.params)
    before = trainer.evaluate().values
    assert before["loss"] == pytest.approx(np.log(2), abs=1e-4)  # the reference is the model
    assert before["margin"] == pytest.approx(0, abs=1e-3)
    after = trainer.run()
    assert after["eval_accuracy"] == 1 and after["eval_margin"] > 0.5
    kept = read_json(tmp_path / "run" / reference.FILE)
    documents = objectives.get("preference").splits(c)["train"]
    first = by_itself(trainer.setup.model, begun, documents[0]["prompt"], documents[0]["chosen"])
    assert kept["train"][0][0] == pytest.approx(first, abs=1e-3)
    # A run that goes on reads what it began with.
    c.train.steps = 41
    again = Trainer(c, tmp_path / "run", Reporter())
    assert again.evaluate().values["margin"] == pytest.approx(after["eval_margin"], rel=1e-4)
    assert read_json(tmp_path / "run" / reference.FILE) == kept
