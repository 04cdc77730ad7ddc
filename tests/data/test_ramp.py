"""A growing batch: its sizes, and that it resumes where it stopped."""

import numpy as np
import pytest

from llm_jax import config
from llm_jax.config import ConfigError
from llm_jax.data import pipeline


def settings(**data):
    c = config.base()
    c.tokenizer.name = "bytes"
    c.model.max_length = 16
    c.data.update(batch_size=16, ramp_start=4, ramp_steps=8, **data)
    config.check(c)
    return c


def test_grows_in_stages_and_resumes():
    c = settings()
    docs = [f"hello world, this is document {i}; " * 5 for i in range(60)]
    tokenizer = pipeline.build_tokenizer(c, docs)
    whole, states = pipeline.train_iterator(c, tokenizer, docs), []
    batches = []
    for _ in range(11):
        batches.append(next(whole))
        states.append(whole.get_state())
    sizes = [len(b["tokens"]) for b in batches]
    assert sizes == [4, 4, 4, 8, 8, 8, 12, 12, 16, 16, 16]
    for stopped in (0, 4, 9):
        again = pipeline.train_iterator(c, tokenizer, docs)
        again.set_state(states[stopped])
        for expected in batches[stopped + 1 :]:
            np.testing.assert_equal(next(again), expected)


def test_start_must_divide():
    with pytest.raises(ConfigError, match=r"data\.ramp_start=5.*data\.batch_size=16"):
        c = settings()
        c.data.ramp_start = 5
        config.check(c)
