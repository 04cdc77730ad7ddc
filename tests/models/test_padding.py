"""Tests that outputs do not depend on padding, for every way to mark padding."""

import functools

import jax
import numpy as np
import pytest

from llm_jax import models
from tests.slow import but, every
from tests.tiny_models import tiny_model

LENGTHS = (9, 4, 1)
KINDS = {
    "decoder": {},
    "learned": {"positions": "learned"},
    "alibi": {"positions": "alibi"},
    "encoder": {"kind": "encoder", "head": "mlm,sequence", "num_labels": 3, "pooler": True},
    "unpooled": {"kind": "encoder", "head": "sequence,token,span", "num_labels": 2},
    "relative": {"kind": "encoder", "head": "mlm", "positions": "relative"},
    "encoder_decoder": {"kind": "encoder_decoder", "positions": "learned"},
}


def _padded(rows, left, total=11):
    """(ids, mask) [B, total] of rows, padded with a token that is an ordinary one elsewhere."""
    ids, mask = np.full((len(rows), total), 7), np.zeros((len(rows), total), np.int32)
    for i, row in enumerate(rows):
        place = slice(total - len(row), total) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


@functools.cache
def _applied(name):
    """(a compiled model, random rows of LENGTHS, their sources, outputs of each row alone)."""
    model, params = tiny_model(**KINDS[name])
    rng = np.random.default_rng(0)
    rows, sources = ([rng.integers(0, 11, n) for n in order] for order in (LENGTHS, LENGTHS[::-1]))
    apply = jax.jit(lambda batch: model.apply({"params": params}, batch))
    alone = [{"tokens": row[None]} for row in rows]
    if model.cfg.kind == "encoder_decoder":
        alone = [
            batch | {"encoder_tokens": source[None]}
            for batch, source in zip(alone, sources, strict=True)
        ]
    return apply, rows, sources, [apply(batch) for batch in alone]


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("field", ["attention_mask", "segment_ids"])
@pytest.mark.parametrize("name", every(2, KINDS))
def test_padding_changes_nothing(name, field, left):
    apply, rows, sources, alone = _applied(name)
    ids, mask = _padded(rows, left)
    batch = {"tokens": ids, field: mask}
    if name == "encoder_decoder":
        source, there = _padded(sources, left)
        batch |= {"encoder_tokens": source, f"encoder_{field}": there}
    outputs = apply(batch)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    for i, expected in enumerate(alone):
        real = mask[i] > 0
        close(outputs.features[i][real], expected.features[0])
        if outputs.matrix is not None:
            close(models.logits(outputs)[i][real], models.logits(expected)[0])
        for head, value in outputs.heads.items():
            ours = value[i] if value.ndim == 2 else value[i][real]
            close(ours, expected.heads[head][0])


def test_a_batch_without_types_has_the_first():
    model, params = tiny_model(kind="encoder", head="none", type_vocab_size=3)
    ids = np.random.default_rng(0).integers(0, 11, (2, 8))
    apply = jax.jit(lambda batch: model.apply({"params": params}, batch).features)
    run = lambda **types: apply({"tokens": ids, **types})
    np.testing.assert_allclose(run(), run(types=0 * ids), atol=1e-6)
    assert np.abs(run() - run(types=0 * ids + 1)).max() > 1e-2


def test_a_batch_without_a_mask_is_all_real():
    model, params = tiny_model()
    ids = np.random.default_rng(0).integers(0, 11, (2, 8))
    apply = jax.jit(lambda batch: model.apply({"params": params}, batch).hidden)
    masked = apply({"tokens": ids, "attention_mask": ids >= 0})
    np.testing.assert_allclose(apply({"tokens": ids}), masked, atol=1e-6)
    assert models.real({"tokens": ids}).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "sequences"}, "model.head='sequences': 'sequences' is not one of lm, mlm"),
        ({"head": "sequence"}, "model.num_labels=0: .* 1 for model.head='sequence'"),
        ({"head": "token,mlm"}, "model.num_labels=0: .* 1 for model.head='token,mlm'"),
        ({"head": "lm,mlm"}, "model.head='lm,mlm': .* only one of lm and mlm"),
        ({"head": "span,span"}, "model.head='span,span': names must differ"),
        ({"head": "lm,"}, "model.head='lm,': '' is not one of"),
        ({"head": "none,lm"}, "model.head='none,lm': 'none' is not one of"),
    ],
)
def test_heads_that_there_are_not_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**changes)


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("head", but(
    ["lm", "sequence", "mlm,token,span"],
    ["lm", "mlm", "sequence", "token", "span", "detection", "none", "lm,sequence",
     "mlm,token,span"],
))  # fmt: skip
def test_every_combination_of_heads_builds(kind, pooler, head):
    """By shapes alone: a head can be had with and without a pooler, over any kind of model."""
    model, _ = tiny_model(kind=kind, pooler=pooler, head=head, num_labels=3)
    fields = "tokens", "encoder_tokens"
    batch = {name: jax.ShapeDtypeStruct((2, 5), np.int32) for name in fields}
    tree = models.abstract_params(model)
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), tree)
    outputs = jax.eval_shape(lambda p, b: model.apply({"params": p}, b), params, batch)
    shapes = {"sequence": (2, 3), "token": (2, 5, 3), "span": (2, 5, 2), "detection": (2, 5)}
    expected = {name: shapes[name] for name in head.split(",") if name in shapes}
    expected |= {"pooled": (2, 16)} if pooler else {}
    assert {name: x.shape for name, x in outputs.heads.items()} == expected
    assert (outputs.matrix is not None) == ("lm" in head or "mlm" in head)
