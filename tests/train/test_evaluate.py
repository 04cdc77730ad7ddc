"""Batches that do not divide over the mesh: filled up, and of no weight."""

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import sharding
from llm_jax.train.evaluate import filled


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
