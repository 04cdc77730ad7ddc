"""Tests that a dense model learns associative recall with configs/ablations/tasks.py."""

import jax
import pytest

from llm_jax import config
from llm_jax.train.loop import Trainer


@pytest.mark.slow
def test_learns_to_recall(tmp_path, silent):
    c = config.load("configs/ablations/tasks.py:recall", ["eval.every=300"])
    trainer = Trainer(c, tmp_path, silent, devices=jax.devices()[:1])
    trainer.run()
    assert trainer.metrics.last["eval_accuracy"] > 0.9
