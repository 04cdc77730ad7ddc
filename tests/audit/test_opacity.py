"""Tests of attribution, logit lens, direct logit attribution and patching by their properties."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm_jax import audit
from llm_jax.audit import attribution, opacity
from tests.tiny_models import tiny_model


@pytest.fixture(
    scope="module", params=["gpt", pytest.param("classifier", marks=pytest.mark.slow)]
)
def read(request):
    subject = audit.Subject(request.getfixturevalue(request.param))
    reader = attribution.Reader(subject)
    return reader, reader.texts(subject.texts())[:3]


def everything(reader):
    return np.ones((1, reader.length), bool)


def test_the_reader_answers_as_the_model_does(read):
    reader, texts = read
    for text in texts:
        outputs = reader.lm.outputs(text.batch)
        there = reader.answer_logits(outputs, text.batch)
        np.testing.assert_allclose(reader.logits(text, everything(reader)), there, atol=1e-5)
        assert text.target == there.argmax()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("words", {}), ("classes", {"kind": "encoder", "head": "sequence", "num_labels": 3,
                                 "positions": "learned", "num_kv_heads": 4})],
)  # fmt: skip
def test_integrated_gradients_sum_to_the_difference_of_the_scores(kind, changes, monkeypatch):
    monkeypatch.setattr(attribution, "STEPS", 1024)  # random weights make sharp functions
    model, params = tiny_model(40, **changes)
    lm = SimpleNamespace(model=model, params=params)
    reader = attribution.Reader(SimpleNamespace(lm=lm, kind=kind))
    tokens = np.random.default_rng(0).integers(0, 40, (1, reader.length))
    free = np.arange(reader.length) > 0
    text = attribution.Text({"tokens": tokens, "segment_ids": np.ones_like(tokens)}, free, [])
    likeliest = int(reader.logits(text, everything(reader)).argmax())
    text = dataclasses.replace(text, target=likeliest)
    found = attribution.METHODS["integrated gradients"](reader, text, params)
    whole, nothing = reader.score(text, np.stack([everything(reader)[0], ~free]))
    assert abs(whole - nothing) > 0.1
    assert abs(found.sum() - (whole - nothing)) < 0.02 * abs(whole - nothing)
    assert found[0] == 0


def test_curves_remove_and_add_the_most_important_tokens_first():
    """Petsiuk 2018: of ten tokens one at each tenth; the answer is the weight that is seen."""
    weight = np.array([0.0, 5, 1, 4, 2, 3, 10, 9, 8, 7, 6])  # the first is always seen
    probability = lambda text, seen: (seen * weight).sum(1)
    reader = SimpleNamespace(length=len(weight), probability=probability)
    text = attribution.Text({}, np.arange(len(weight)) > 0, [])
    deleted, inserted = opacity.faithfulness(reader, text, weight)
    expected = np.cumsum([0, *range(10, 0, -1)])
    np.testing.assert_array_equal(inserted, expected)
    np.testing.assert_array_equal(deleted, expected[-1] - expected)
    assert np.flatnonzero(opacity.HALF).tolist() == [1, 2, 3, 4, 5]


def test_rollout_is_a_distribution_over_the_tokens_that_are_seen(read):
    reader, texts = read
    for text in texts:
        found = attribution.rollout(reader, text, reader.params)
        assert found.sum() == pytest.approx(1, abs=1e-4)
        assert not found[text.batch["segment_ids"][0] == 0].any()


def test_the_lens_at_the_last_layer_is_the_logits(read):
    reader, (text, *_) = read
    found = opacity.logit_lens(reader, reader.params, text.batch)
    assert len(found) == reader.model.cfg.num_layers + 1
    np.testing.assert_allclose(found[-1], reader.logits(text, everything(reader)), atol=1e-4)


def test_patching_below_the_first_layer_gives_all_back_where_the_token_was_and_nothing_elsewhere(
    read,
):
    reader, (text, *_) = read
    places = np.flatnonzero(text.free)
    gone = int(places[places != text.read][0])
    without = np.arange(reader.length) != gone
    odds = opacity.patch(reader, reader.params, text.batch, gone, text.read, text.target)
    whole, left = reader.score(text, np.stack([everything(reader)[0], without]))
    np.testing.assert_allclose(odds[0], [whole, left], atol=1e-4)


def test_direct_logit_attribution_sums_to_the_logit(gpt):
    subject = audit.Subject(gpt)
    reader = attribution.Reader(subject)
    text = reader.texts(subject.texts())[0]
    found = opacity.direct(reader, reader.params, text.batch, text.target)
    assert len(found) == len(opacity.components(reader)) == 5
    nothing = jax.numpy.zeros((1, reader.length, reader.model.cfg.embed_dim))
    nothing = reader.answer(reader.params, text.batch, output=nothing)[0, text.target]
    whole = reader.logits(text, everything(reader))[0, text.target]
    assert float(found.sum()) == pytest.approx(whole - float(nothing), abs=1e-3)


@pytest.mark.slow
def test_what_decides_is_found_and_shown(classifier, tmp_path):
    subject = audit.Subject(classifier, options=audit.Options(examples=8))
    result = opacity.measure(subject)
    for text in result["texts"]:
        word = next(p for p in text["pieces"] if p in ("fine", "dull"))
        for name in ("integrated gradients", "occlusion"):
            scores = np.array(text["scores"][name])
            assert text["pieces"][scores.argmax()] == word, name
    value = {f["name"]: f["value"] for f in result["figures"]}
    of = lambda name: value[f"{name}: comprehensiveness"]
    assert of("occlusion") > of("random") + 0.1
    assert value["random: rank correlation with randomised weights"] == 1  # it reads none
    assert value["logit lens after layer 2: says the last layer's answer"] == 1
    files = [picture.file for picture in opacity.draw({"run": result}, tmp_path)]
    assert len(files) == 2 + len(result["texts"])
    assert all((tmp_path / file).stat().st_size > 1000 for file in files)
