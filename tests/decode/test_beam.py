import functools
import itertools

import jax
import numpy as np
import pytest

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.decode import beam_search, generate
from llm_jax.decode.cache import Reader
from tests.tiny_models import tiny_model

PROMPTS = [[1, 2, 3], [2]]
SOURCES = [[1, 2, 1, 3, 2], [3, 1]]


@functools.partial(jax.jit, static_argnums=0)
def whole(model, params, tokens):
    return models.logits(model.apply({"params": params}, {"tokens": tokens}))


def exhaustive(model, params, prompt, eos, steps, alpha):
    """Every continuation, best first: [(tokens, score)]; scored by the whole model."""
    V = model.cfg.vocab_size
    others = [t for t in range(V) if t != eos]
    rows = [[*r, eos] for n in range(steps) for r in itertools.product(others, repeat=n)]
    rows += [list(r) for r in itertools.product(others, repeat=steps)]
    tokens = np.array([prompt + r + [0] * (8 - len(prompt) - len(r)) for r in rows])
    logits = whole(model, params, tokens)
    logp = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
    at = len(prompt) - 1
    total = [sum(logp[i, at + j, t] for j, t in enumerate(r)) for i, r in enumerate(rows)]
    scored = [(r, s / ((5 + len(r)) / 6) ** alpha) for r, s in zip(rows, total, strict=True)]
    return sorted(scored, key=lambda pair: -pair[1])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_wide_enough_finds_all_in_order(alpha):
    model, params = tiny_model(4)
    found = beam_search(
        model, params, PROMPTS, max_new_tokens=3, eos_id=0, beams=54, length_penalty=alpha
    )
    for prompt, hypotheses in zip(PROMPTS, found, strict=True):
        right = exhaustive(model, params, prompt, 0, 3, alpha)
        assert len(hypotheses) == len(right) == 40
        np.testing.assert_allclose([h.score for h in hypotheses], [s for _, s in right], atol=1e-5)
        assert [h.tokens for h in hypotheses] == [r for r, _ in right]


def test_likely_ends_leave_a_beam_alive():
    """Where several ends are the likeliest of all, what goes on stands behind them."""
    model, params = tiny_model(tie_embeddings=False, output_bias=True)
    bias = np.zeros(11, np.float32)
    bias[[3, 7]] = 2
    ends = params | {"output": np.zeros_like(params["output"]), "output_bias": bias}
    (found,) = beam_search(
        model, ends, [[1]], max_new_tokens=6, eos_id=[3, 7], beams=2, length_penalty=8.0
    )
    assert len(found[0].tokens) == 6 and found[0].tokens[-1] in (3, 7)


def test_one_beam_is_greedy():
    model, params = tiny_model()
    greedy = generate(model, params, PROMPTS, max_new_tokens=10, temperature=0)
    eos = greedy[0][4]
    for eos_id in (-1, eos):
        run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=10)
        greedy = run(temperature=0, eos_id=eos_id)
        found = beam_search(
            model, params, PROMPTS, max_new_tokens=10, eos_id=eos_id, beams=1, length_penalty=0.0
        )
        assert [h[0].tokens for h in found] == greedy


@pytest.mark.slow
def test_ragged_sources_with_and_without_a_cache():
    model, params = tiny_model(kind="encoder_decoder", positions="relative")
    run = functools.partial(beam_search, model, params, max_new_tokens=8, eos_id=5, beams=3)
    found = run(PROMPTS, sources=SOURCES)
    slow = run(PROMPTS, sources=SOURCES, cached=False)
    for ours, theirs in zip(found, slow, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-5)
    alone = run(PROMPTS[1:], sources=SOURCES[1:])
    assert [h.tokens for h in alone[0]] == [h.tokens for h in found[1]]
    assert found[1] != run(PROMPTS, sources=[SOURCES[0]] * 2)[1]


def test_it_stops_when_no_live_beam_can_win(monkeypatch):
    model, params = tiny_model(tie_embeddings=False, max_length=32)
    uniform = params | {"output": np.zeros_like(params["output"])}
    steps = []
    advance = Reader.advance

    def counted(self, cache, tokens, positions):
        jax.debug.callback(lambda: steps.append(1))
        return advance(self, cache, tokens, positions)

    monkeypatch.setattr(Reader, "advance", counted)
    run = functools.partial(beam_search, model, max_new_tokens=20, eos_id=0, beams=2)
    # Without a penalty [0] and [1, 0] win at once; with a large one the longest do.
    run(uniform, [[1]], length_penalty=0.0)
    jax.effects_barrier()
    assert len(steps) == 1
    steps.clear()
    run(uniform, [[1]], length_penalty=4.0)
    jax.effects_barrier()
    assert len(steps) == 19


def test_what_is_refused():
    model, params = tiny_model()
    with pytest.raises(ConfigError, match="leaves room for 14"):
        beam_search(model, params, PROMPTS, max_new_tokens=15)
