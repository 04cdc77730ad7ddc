"""Tests of evaluation batches that do not divide over the mesh, and of reports."""

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import objectives, sharding
from llm_jax.data.tokenizers import Bytes
from llm_jax.train import report
from llm_jax.train.evaluate import Evaluation, filled


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("sizes", [(1, 1), (4, 1), (2, 4)])
def test_a_batch_is_filled_with_rows_of_zeros_until_it_divides(rows, sizes):
    sections = configs.base().mesh
    sections.data, sections.fsdp = sizes
    parts = sizes[0] * sizes[1]
    mesh = sharding.make_mesh(sections, jax.devices()[:parts])
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(1, 9, (rows, 6), np.int32),
        "label": rng.integers(1, 9, rows, np.int32),
        "weights": rng.random((rows, 6), np.float32) + 1,
    }
    whole = filled(batch, mesh)
    for name, x in batch.items():
        assert len(whole[name]) % parts == 0 and len(whole[name]) - rows < parts
        assert whole[name].dtype == x.dtype and whole[name].shape[1:] == x.shape[1:]
        np.testing.assert_array_equal(whole[name][:rows], x)
        assert not whole[name][rows:].any()


ENTITY = {"start": 0, "end": 1, "type": "X", "text": "a", "score": 0.5}
WRONG = {"text": "b", "start": 2, "end": 3, "score": 0.5}
ANSWERS = {
    "classification": ({"text": "a", "label": "O"},
                       {"label": "B-X", "probabilities": {"O": 0.4, "B-X": 0.6}}),
    "regression": ({"text": "a", "label": "1.5"}, {"score": 0.25}),
    "tagging": ({"tokens": ["a"], "tags": ["O"]}, {"tags": ["B-X"], "entities": [ENTITY]}),
    "roles": ({"tokens": ["a"], "predicate": 0, "tags": ["O"]}, {"tags": ["B-X"], "roles": []}),
    "question_answering": (
        {"context": "a b", "question": "c", "answers": [{"text": "a", "answer_start": 0}]},
        {"answer": WRONG, "n_best": [WRONG]},
    ),
    "contrastive": ({"text": "a", "pair": "b"}, {"vector": [1.0, 0.0], "pair_vector": [0.0, 1.0]}),
    "similarity": ({"text": "a", "pair": "b", "label": "1"}, {"score": 0.5}),
    "seq2seq": ({"source": "a", "target": "b"}, {"text": "c", "score": -1.0}),
    "completion": ({"source": "a", "target": "b"}, {"text": "c", "score": -1.0}),
    "chat": ({"messages": [{"role": "assistant", "content": "b"}]}, {"text": "c", "score": -1.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", [x.name for x in objectives.OBJECTIVES.values()
                                  if x.predict or x.writes])  # fmt: skip
def test_a_report_is_written_of_each_kind_of_answer(name, tmp_path):
    config = configs.base()
    labelled = name in ("classification", "tagging", "roles")
    config.data.labels, config.objective.name = ("O", "B-X") if labelled else (), name
    config.eval.scores = ("exact_match",)
    what, (record, answer) = objectives.get(name).examples(Bytes(), config), ANSWERS[name]
    evaluation = Evaluation(what.score([record], [answer]), [record], [answer])
    text = report.write(tmp_path, evaluation, what, "test, step 1").read_text()
    assert ("## The worst errors" in text) == (name not in ("contrastive", "similarity"))
    assert (tmp_path / "confusion.png").exists() == labelled
