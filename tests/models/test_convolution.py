"""Tests of short convolutions against PyTorch; test_cache.py tests decoding with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.models.convolution import convolve
from tests.tiny_models import tiny_model

B, T, N, H = 2, 11, 2, 3
SEGMENTS = np.array([[1] * 4 + [2] + [3] * 4 + [0] * 2, [1] * T], np.int32)


@pytest.mark.parametrize(
    "width, activate, packed",
    [(4, True, False), (4, True, True), (3, False, True), (1, False, False)],
)
def test_it_is_pytorchs_depthwise_convolution_of_each_segment(width, activate, packed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(B, T, N, H)), rng.normal(size=(width, N, H))
    segments = SEGMENTS if packed else np.ones((B, T), np.int32)

    def ours(x, kernel):
        x = jnp.pad(x, ((0, 0), (width - 1, 0), (0, 0), (0, 0)))
        y = convolve(x, kernel, jnp.asarray(segments) if packed else None, activate)
        return jnp.sin(y).sum(), y

    def theirs(x, kernel):
        weight = kernel.reshape(width, 1, -1).permute(2, 1, 0)
        rows = []
        for row, numbers in zip(x, segments, strict=True):
            starts = np.flatnonzero(np.diff(numbers, prepend=-1))
            for piece in torch.tensor_split(row, starts[1:].tolist()):
                piece = torch.nn.functional.pad(piece.flatten(1).T, (width - 1, 0))
                rows.append(torch.nn.functional.conv1d(piece, weight, groups=N * H).T)
        y = torch.cat(rows).reshape(B, T, N, H)
        return torch.nn.functional.silu(y) if activate else y

    arrays = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (x, kernel)]
    right = theirs(*arrays)
    right.sin().sum().backward()
    arguments = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    gradients, y = jax.grad(ours, argnums=(0, 1), has_aux=True)(*arguments)
    np.testing.assert_allclose(y, right.detach(), atol=1e-5)
    for found, array in zip(gradients, arrays, strict=True):
        np.testing.assert_allclose(found, array.grad, atol=1e-5)


def test_packed_documents_are_as_apart():
    """The whole model, whose attention and convolutions both end with a segment."""
    model, params = tiny_model(layers="dense short_conv=3, kda short_conv=4")
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 11, (2, 1, 6))
    apply = jax.jit(lambda batch: model.apply({"params": params}, batch).hidden)
    segments = np.repeat([[1, 2]], 6, axis=1)
    positions = np.tile(np.arange(6), 2)[None]
    packed = {"tokens": np.concatenate([first, second], axis=1), "segment_ids": segments}
    y = apply(packed | {"positions": positions})
    np.testing.assert_allclose(y[:, 6:], apply({"tokens": second}), atol=1e-5)
    assert np.abs(y[:, 6:] - apply(packed | {"segment_ids": segments * 0 + 1})[:, 6:]).max() > 1e-2


@pytest.mark.parametrize("changes, message", [
    ({"kind": "encoder"}, "model.short_conv=4: requires model.kind='decoder'.*'encoder'"),
    ({"kind": "encoder_decoder"}, "model.short_conv=4: requires model.kind='decoder'"),
    ({"attention": "dense,latent"}, "model.short_conv=4: .* incompatible with attention='latent'"),
    ({"short_conv": 0, "layers": "latent short_conv=4, dense"}, "model.short_conv=4"),
])  # fmt: skip
def test_where_it_makes_no_sense_it_is_refused(changes, message):
    cfg = config.base()
    cfg.model.update({"short_conv": 4} | changes)
    with pytest.raises(config.ConfigError, match=message):
        config.check(cfg)
