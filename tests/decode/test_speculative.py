"""Tests of speculative decoding: greedy texts are equal, samples have the exact distribution."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from llm_jax import attention, config, models
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Bytes, Chars
from llm_jax.decode import Draft, complete, generate, stream
from llm_jax.decode.speculative import Speculation
from tests.decode.test_sample import PROMPTS, distribution, whole
from tests.tiny_models import tiny_model

TOKENIZER = Bytes()
V = TOKENIZER.vocab_size
SMALL = {"num_layers": 1, "embed_dim": 8, "num_heads": 2}


def draft_of(vocab_size=11, **changes):
    return Draft(*tiny_model(vocab_size, **changes), TOKENIZER)


SMALL_DRAFT = draft_of(max_length=16, **SMALL)


def speculate(model, params, prompts, draft, draft_tokens, **settings):
    done = Speculation(draft, draft_tokens)
    return generate(model, params, prompts, window=done, **settings), done


@pytest.mark.parametrize("count", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_greedy_texts_are_the_models_own_for_any_draft(count):
    """Rows of different lengths, which accept different numbers, end at an eos or at the limit."""
    model, params = tiny_model(max_length=16, positions="learned")
    how = {"max_new_tokens": 11, "temperature": 0, "min_new_tokens": 1, "repetition_penalty": 1.01}
    free = generate(model, params, PROMPTS, **how)
    how["eos_id"] = next(t for t in free[0] if 0 < free[0].index(t) < 9)
    right = generate(model, params, PROMPTS, **how)
    assert len({len(row) for row in right}) > 1
    found, done = speculate(model, params, PROMPTS, SMALL_DRAFT, count, **how)
    assert found == right and (done.rounds <= [len(row) for row in right]).all()


@pytest.mark.parametrize("temperature", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_draft_equal_to_the_model_is_always_accepted(temperature):
    """So its cache has all tokens: otherwise its distribution would differ."""
    model, params = tiny_model(max_length=16, positions="learned", num_layers=1)
    how = {"max_new_tokens": 11, "temperature": temperature}
    same = Draft(model, params, TOKENIZER)
    found, done = speculate(model, params, PROMPTS * 20, same, 4, **how)
    assert temperature or found == generate(model, params, PROMPTS * 20, **how)
    assert set(done.rounds) == {3} and set(done.accepted) == {4 + 4 + 1}


def chances(model, params, prompt, new, settings):
    """{continuation: probability}, by running the whole model on each beginning."""
    V, penalty = model.cfg.vocab_size, settings.get("repetition_penalty", 1.0)
    settings = {k: v for k, v in settings.items() if k != "repetition_penalty"}
    found, tokens = {(): 1.0}, np.zeros((V**2, 8), np.int32)
    for _ in range(new):
        rows = np.array([[*prompt, *begin] for begin in found])
        tokens[: len(rows), : rows.shape[1]] = rows
        logits = whole(model, params, {"tokens": tokens})[: len(rows), rows.shape[1] - 1]
        logits = np.array(logits, np.float64)
        for row, scores in zip(rows, logits, strict=True):
            seen = np.isin(np.arange(V), row)
            scores[seen] = np.where(scores < 0, scores * penalty, scores / penalty)[seen]
        each = [distribution(x, **settings) for x in logits]
        found = {
            (*begin, token): before * each[i][token]
            for i, (begin, before) in enumerate(found.items())
            for token in range(V)
        }
    return found


def unlikely(counts, right):
    """p value of the chi-squared test; 0 if what has no chance occurs."""
    if counts[right < 1e-12].any():
        return 0.0
    expected = right * counts.sum() / right.sum()
    rare = expected < 5  # the test asks for five of each: these are taken together
    pool = lambda x: np.append(x[~rare], x[rare].sum())
    some = pool(expected) > 0
    return stats.chisquare(pool(counts)[some], pool(expected)[some]).pvalue


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 2.0, "top_k": 4, "repetition_penalty": 1.5},
        pytest.param({"temperature": 1.0}, marks=pytest.mark.slow),
        pytest.param({"temperature": 1.5, "top_p": 0.8}, marks=pytest.mark.slow),
        pytest.param({"min_p": 0.1}, marks=pytest.mark.slow),
    ],
)
def test_samples_have_the_models_own_distribution(settings):
    """Chi-squared over all texts of three tokens out of five, 20,000 samples.

    As many tell wrong rules from the right one, by the first token alone: a rejected token drawn
    again from p, or from q; all accepted; one accepted in eleven less than it should be.
    """
    n, prompt = 20_000, [1, 2]
    model, params = tiny_model(5, **SMALL, max_length=8)
    draft = Draft(model, jax.tree.map(lambda x: 0.5 * x, params), TOKENIZER)
    how = {"draft_tokens": 2, "max_new_tokens": 3, "seed": 5}
    ids, done = speculate(model, params, [prompt] * n, draft, **how, **settings)
    drawn = np.array(ids) @ [25, 5, 1]
    counts = np.bincount(drawn, minlength=125)
    right = chances(model, params, prompt, 3, settings)
    assert list(right) == [*itertools.product(range(5), repeat=3)]
    assert unlikely(counts, np.array([*right.values()])) > 1e-3
    p, q = (np.array([*chances(model, x, prompt, 1, settings).values()])
            for x in (params, draft.params))  # fmt: skip
    kept, fewer = np.minimum(p, q), np.minimum(p / 1.1, q)
    rest = (p - kept) / (p - kept).sum()
    first = np.bincount(drawn // 25, minlength=5)
    assert unlikely(first, p) > 1e-3
    for drawn_again, accepted in ((p, kept), (q, kept), (q, q), (rest, fewer)):
        wrong = accepted + (1 - accepted.sum()) * drawn_again
        assert unlikely(first, wrong) < 1e-6
    assert 0 < done.accepted.sum() < 2 * done.rounds.sum()


def test_samples_of_a_row_hang_on_seed_and_row_alone():
    model, params = tiny_model(max_length=16, positions="learned", num_layers=1)
    how = {"draft": SMALL_DRAFT, "draft_tokens": 4, "max_new_tokens": 11, "top_p": 0.95}
    run = lambda prompts, **more: speculate(model, params, prompts, **how, **more)[0]
    found = run(PROMPTS, seed=3)
    assert found == run(PROMPTS, seed=3) != run(PROMPTS, seed=4)
    # Its neighbour accepts other numbers of tokens.
    others = run([PROMPTS[0], [9, 9], PROMPTS[2]], seed=3)
    assert others[0] == found[0] and others[2] == found[2] and others[1] != found[1]
    cut = run(PROMPTS, seed=3, stop=lambda row, ids: 2 if len(row) == 1 and len(ids) > 2 else None)
    assert cut == [found[0], found[1][:2], found[2]]


STATELESS = [name for name, v in attention.VARIANTS.items() if "cache" in v.supports
             and not v.state]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [*({"attention": name} for name in STATELESS), {"positions": "alibi"},
     {"positions": "relative"}, {"num_experts": 4, "experts_per_token": 2}],
    ids=str,
)  # fmt: skip
def test_greedy_texts_are_the_models_own_for_any_attention_that_can_go_back(changes):
    small = {"window": 17, "stride": 2, "latent_kv": 6, "latent_rotary": 2, "block": 2,
             "selected_blocks": 3, "index_topk": 4, "index_dim": 6}  # fmt: skip
    model, params = tiny_model(max_length=16, **small | changes)
    right = generate(model, params, PROMPTS, max_new_tokens=11, temperature=0)
    draft = Draft(model, jax.tree.map(lambda x: 0.9 * x, params), TOKENIZER)  # often right
    found, done = speculate(model, params, PROMPTS, draft, draft_tokens=3, max_new_tokens=11,
                            temperature=0)  # fmt: skip
    assert found == right and done.accepted.any()


PREFIX = config.base().objective
PREFIX.name = "prefix_lm"
REFUSED = {
    "another tokenizer": ({}, {}, {"tokenizer": Chars(["a"])}, "its tokenizer differs"),
    "another vocabulary": ({}, {"vocab_size": V + 1}, {}, f"vocab_size={V + 1} differs .* {V}"),
    "a state": ({"attention": "dense,linear"}, {}, {}, "the model model.attention='linear' has a"),
    "a convolution": ({}, {"short_conv": 3}, {}, "the draft model model.short_conv=3 has a state"),
    "a window": ({"attention": "local", "window": 4}, {}, {}, "'local' caches only the last 3 of"),
    "no cache": ({}, {"attention": "lsh", "num_kv_heads": 4}, {}, "'lsh' has no KV cache"),
    "an encoder-decoder": ({}, {"kind": "encoder_decoder"}, {}, "draft model .* not a decoder"),
    "experts with slots": ({"num_experts": 2, "expert_capacity": 1.0}, {}, {}, "expert_capacity"),
    "a long text": ({"max_length": 8}, {}, {}, "the model max_new_tokens=8: .* room for 6"),
    "a long text for the draft": ({}, {"max_length": 8}, {}, "draft model max_new_tokens=8"),
    "no tokens": ({}, {}, {"draft_tokens": 0}, "draft_tokens=0: must be in 1 … 32"),
    "too many": ({}, {}, {"draft_tokens": 33}, "draft_tokens=33: must be in 1 … 32"),
    "no draft": ({}, {}, {"draft": None, "draft_tokens": 4}, "draft_tokens=4: only with a draft"),
    "beams": ({}, {}, {"beams": 2}, "beams=2: speculative decoding is for decoders"),
    "after an encoder": ({"kind": "encoder_decoder"}, {}, {}, "model.kind='encoder_decoder'"),
    "a bidirectional prompt": ({}, {}, {"objective": PREFIX}, "does not support prefix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_compiles(name, monkeypatch):
    ours, theirs, settings, told = REFUSED[name]
    model, params = tiny_model(V, **ours)
    draft = draft_of(**{"vocab_size": V} | theirs)
    settings = {"draft": draft, "max_new_tokens": 8} | settings
    if "tokenizer" in settings:
        settings["draft"] = draft._replace(tokenizer=settings.pop("tokenizer"))
    monkeypatch.setattr(models, "unstacked", None)
    with pytest.raises(ConfigError, match=told):
        complete(model, params, TOKENIZER, ["ab"], **settings)


@pytest.mark.slow
def test_a_stream_is_what_complete_writes():
    model, params = tiny_model(V, max_length=32)
    how = {"draft": draft_of(V, max_length=32, **SMALL), "max_new_tokens": 9, "temperature": 0}
    (whole,) = complete(model, params, TOKENIZER, ["ab"], **how)
    assert whole["proposed"] == 4 * whole["rounds"] >= whole["accepted"] >= 0
    pieces = [*stream(model, params, TOKENIZER, "ab", **how)]
    assert "".join(pieces) == whole["completion"] and len(pieces) > 1
    del how["draft"]
    assert complete(model, params, TOKENIZER, ["ab"], **how)[0]["tokens"] == whole["tokens"]
