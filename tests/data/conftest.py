import pytest

from llm_jax.config import base


@pytest.fixture
def config():
    """A tiny run: rows of 16 tokens, 4 to a batch, bytes for tokens."""
    c = base()
    c.model.max_length = 16
    c.data.batch_size = 4
    c.tokenizer.name = "bytes"
    return c
