import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import models
from llm_jax.decode import generate, sample
from llm_jax.decode.cache import Memory, pad
from tests.tiny_models import tiny_model

PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
LENGTH = 16
NAN, INF = float("nan"), float("inf")


@functools.partial(jax.jit, static_argnums=0)
def whole(model, params, batch):
    return models.logits(model.apply({"params": params}, batch))


def greedy_by_hand(model, params, prompt, n, source=None):
    """Greedy decoding as its definition has it: the whole model, one row, one token at a time."""
    row, context = [], list(prompt)
    for _ in range(n):
        if len(context) > LENGTH:
            context = context[LENGTH // 2 :]
        batch = {"tokens": np.array([context + [0] * (LENGTH - len(context))])}
        if source:
            batch["encoder_tokens"] = np.array([source + [7] * (6 - len(source))])
            batch["encoder_segment_ids"] = np.arange(6)[None] < len(source)
            batch["segment_ids"] = np.ones_like(batch["tokens"])
        row.append(int(whole(model, params, batch)[0, len(context) - 1].argmax()))
        context.append(row[-1])
    return row


@pytest.mark.slow
def test_greedy_beyond_max_length_equals_the_definition_row_by_row():
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    right = [greedy_by_hand(model, params, prompt, 24) for prompt in PROMPTS]
    assert len({tuple(row) for row in right}) == 3 and len(set(right[0])) > 2
    for cached in (True, False):
        found = generate(
            model, params, PROMPTS, max_new_tokens=24, temperature=0, cached=cached
        )
        assert found == right
    alone = generate(model, params, PROMPTS[2:], max_new_tokens=24, temperature=0)
    assert alone == right[2:]
    # The longest prompt that fits, whose very next token is the last without a cut.
    prompt = (PROMPTS[0] * 4)[:LENGTH]
    found = generate(model, params, [prompt], max_new_tokens=1, temperature=0)
    assert found == [greedy_by_hand(model, params, prompt, 1)]


def test_eos_stops_a_row_while_others_go_on():
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    run = functools.partial(
        generate, model, params, PROMPTS, max_new_tokens=24, temperature=0
    )
    free = run()
    eos = next(t for t in free[0] if 0 < free[0].index(t) < 12 and t not in free[1])
    cut = run(eos_id=eos)
    assert cut == [row[: row.index(eos) + 1] if eos in row else row for row in free]
    assert len(cut[0]) < 13 and len(cut[1]) == 24
    # Of several, the first that comes.
    other = next(t for t in free[1] if t != eos)
    ends = lambda row: [i for i, t in enumerate(row) if t in (eos, other)]
    assert run(eos_id=[other, eos]) == [row[: min(ends(row), default=99) + 1] for row in free]
    assert run(eos_id=[]) == free


def test_an_encoder_decoder_reads_ragged_sources():
    model, params = tiny_model(kind="encoder_decoder", max_length=LENGTH, positions="relative")
    sources = [[4, 5, 6, 7, 8, 9], [3, 1], [2]]
    starts = [[0], [0], [0]]
    run = functools.partial(generate, model, params, max_new_tokens=8, temperature=0)
    found = run(starts, sources=sources)
    assert len({tuple(row) for row in found}) > 1
    by_hand = functools.partial(greedy_by_hand, model, params, [0], 8)
    assert found == [by_hand(source) for source in sources]
    assert found == run(starts, sources=sources, cached=False)


def test_hashing_attention_goes_on_without_a_cache():
    model, params = tiny_model(max_length=LENGTH, attention="dense,lsh", num_kv_heads=4)
    found = generate(model, params, PROMPTS, max_new_tokens=4, temperature=0)
    assert found == [greedy_by_hand(model, params, prompt, 4) for prompt in PROMPTS]


def test_samples_hang_on_seed_and_row_alone():
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    run = functools.partial(
        generate, model, params, max_new_tokens=20, temperature=1.5, top_p=0.95
    )
    found = run(PROMPTS, seed=3)
    assert found == run(PROMPTS, seed=3)
    assert found != run(PROMPTS, seed=4)
    others = run([PROMPTS[0], [9, 9], PROMPTS[2]], seed=3)
    assert others[0] == found[0] and others[2] == found[2] and others[1] != found[1]
    # Equal prompts are continued each in its own way.
    twice = run([[5]] * 3)
    assert twice[0] != twice[1]
    assert all(0 <= t < 11 for row in found for t in row)


def test_one_program_for_all_prompts_of_a_size_and_all_settings():
    model, params = tiny_model(max_length=64)
    run = functools.partial(generate, model, params, top_k=2)
    run([[1, 2, 3], [4]], max_new_tokens=8)
    before = sample._begin._cache_size(), sample._go_on._cache_size()
    run([[5], [6, 7, 8, 9]], max_new_tokens=8, seed=1)
    run([[5, 1, 2], [6]], max_new_tokens=5, temperature=0.5, eos_id=3, top_k=7)
    assert (sample._begin._cache_size(), sample._go_on._cache_size()) == before


def test_bfloat16():
    model, params = tiny_model(max_length=LENGTH, dtype="bfloat16", positions="learned")
    found = generate(model, params, PROMPTS, max_new_tokens=20, top_k=3, top_p=0.9)
    assert all(len(row) == 20 and all(0 <= t < 11 for t in row) for row in found)


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """[V] -> [V]: by sorting, as the papers describe it."""
    p = np.exp(logits / temperature - np.max(logits / temperature))
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    p[order[np.searchsorted(np.cumsum(p[order]), top_p) + 1 :]] = 0
    return np.where(p >= min_p * p.max(), p, 0) / p[p >= min_p * p.max()].sum()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"top_k": 1},
        {"top_k": 99},
        {"top_p": 0.7},
        {"top_p": 1e-6},
        {"temperature": 1.3, "top_k": 7, "top_p": 0.8},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"temperature": 1.3, "top_p": 0.8, "min_p": 0.2},
    ],
)
def test_draws_follow_the_definition(settings):
    logits = np.random.default_rng(0).normal(size=12).astype(np.float32) * 1.5
    right, n = distribution(logits.astype(np.float64), **settings), 20_000
    settings = {"temperature": 1.0} | settings
    draw = jax.jit(lambda logits, keys: sample.choose(logits, keys, **settings))
    found = draw(jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(0), n))
    counts = np.bincount(found, minlength=12)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(right))
    # Five standard deviations, for each token.
    assert np.all(np.abs(counts / n - right) <= 5 * np.sqrt(right * (1 - right) / n) + 1e-12)


@pytest.mark.parametrize("small", [1e-6, 1e-30, 1.2e-38, 1e-38, 1e-45, 5e-324])
def test_the_smallest_settings_are_the_limit(small):
    """Temperature and top_p toward 0 leave the likeliest token, here never the first."""
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=6)
    right = run(temperature=0)
    assert any(0 not in row for row in right)
    for how in ({"temperature": small}, {"top_p": small}, {"top_p": small, "top_k": 3},
                {"temperature": small, "top_p": small}, {"temperature": 3e38, "top_p": small}):
        assert (run(**how) == right) or how.get("temperature") == 3e38
    # Without a likeliest one, what is drawn is even.
    keys = jax.random.split(jax.random.key(0), 99)
    even = jnp.tile(jnp.array([[0.0, 1, 1]]), (99, 1))
    drawn = sample.choose(even, keys, max(small, sample.TINY), None, small)
    assert set(drawn.tolist()) == {1, 2}


@pytest.mark.parametrize("largest", [2**31 - 1, 2**31, 2**32 - 1])
def test_large_seeds_are_seeds(largest):
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=20)
    assert len({str(run(seed=seed)) for seed in (largest, largest - 1, 0)}) == 3


@pytest.mark.slow
def test_ids_that_are_not_allowed_are_never_drawn():
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    allowed = np.arange(11) % 3 == 1
    run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=20, allowed=allowed)
    free = generate(model, params, PROMPTS, max_new_tokens=20, temperature=0)
    assert not all(allowed[t] for row in free for t in row)
    for how in ({"temperature": 0}, {"temperature": 3e38}, {"top_k": 9}, {"top_p": 0.99}):
        assert all(allowed[t] for row in run(**how, seed=5) for t in row)
    row = list(PROMPTS[0])
    for _ in range(6):  # the likeliest of those allowed
        tokens = np.array([row + [0] * (LENGTH - len(row))])
        logits = np.asarray(whole(model, params, {"tokens": tokens})[0, len(row) - 1])
        row.append(int(np.where(allowed, logits, -INF).argmax()))
    assert run(temperature=0)[0][:6] == row[5:]


def test_ties_at_the_threshold_are_all_kept():
    logits = jnp.zeros((4000, 4)).at[:, 3].set(-1.0)
    keys = jax.random.split(jax.random.key(0), 4000)
    for settings in ({"top_k": 1}, {"top_p": 0.1}):
        found = sample.choose(logits, keys, 1.0, **settings)
        assert set(np.unique(found)) == {0, 1, 2}


def test_no_temperature_is_the_first_of_the_likeliest():
    found = sample.choose(jnp.array([[0.0, 2, 2], [-1, -3, -2]]), None)
    assert found.tolist() == [1, 0] and found.dtype == jnp.int32


def test_rows_are_padded_to_few_sizes():
    tokens, lengths = pad([[1, 2, 3, 4, 5], [6]], most=6)
    assert tokens.tolist() == [[1, 2, 3, 4, 5, 0], [6, 0, 0, 0, 0, 0]]
    assert lengths.tolist() == [5, 1]
    assert pad([[1, 2, 3]], most=100)[0].shape == (1, 4)


@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_stream_shows_more_and_more_of_what_is_written(every):
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    settings = {"max_new_tokens": 24, "temperature": 1.5, "seed": 5, "repetition_penalty": 1.3}
    right = generate(model, params, PROMPTS, **settings)
    shown = []
    for rows in sample.stream(model, params, PROMPTS, every=every, **settings):
        shown.append([list(row) for row in rows])
    assert shown[-1] == right
    assert len(shown) >= 24 // every
    for rows in shown:
        assert rows == [row[: len(rows[0])] for row in right]


def test_a_row_that_is_stopped_changes_no_other():
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=24, temperature=0)
    free = run()
    stop = lambda prompt, ids: 11 if prompt == PROMPTS[0] and len(ids) > 10 else None
    assert run(stop=stop) == [free[0][:11], *free[1:]]


def test_minimum_length_is_of_each_row():
    model, params = tiny_model(max_length=LENGTH, positions="learned")
    run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=8, temperature=0)
    ends = sorted({t for row in run() for t in row})
    assert {len(row) for row in run(eos_id=ends)} == {1}
    leasts = [3, 0, 5]
    for row, least in zip(run(eos_id=ends, min_new_tokens=leasts), leasts, strict=True):
        assert len(row) > least and not set(row[:least]) & set(ends)
        assert least or len(row) == 1


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"positions": "relative", "attention": "dense,local", "window": 3}, True),
        pytest.param({"attention": "latent", "latent_kv": 6, "latent_rotary": 2}, True,
                     marks=pytest.mark.slow),
        # the last keys alone, and a state, which cannot be cut
        pytest.param({"attention": "dense,local", "window": 3}, False, marks=pytest.mark.slow),
        pytest.param({"attention": "linear"}, False, marks=pytest.mark.slow),
        pytest.param({"short_conv": 3}, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_text_goes_on_from_the_memory_of_another(changes, kept, monkeypatch):
    """Of texts that go on, differ early, late or not at all, are shorter, or outgrow the model."""
    model, params = tiny_model(max_length=LENGTH, **changes)
    memory, known, take = Memory(), [], Memory.take
    monkeypatch.setattr(Memory, "take", lambda *args: known.append(take(*args)) or known[-1])
    settings, text = {"max_new_tokens": 4, "temperature": 1}, []
    for prompt in ([1, 2, 3], [1, 2], [1, 2, 9, 9, 4], None, None, [5], None):
        prompt = prompt or [*text, 7]  # None: a conversation's next turn
        (reply,) = generate(model, params, [prompt], memory=memory, **settings)
        assert [reply] == generate(model, params, [prompt], **settings)
        text = prompt + reply
    shared = [first for _, _, first in known]
    # The fifth begins with all 13 that are there, and outgrows the model at its third token.
    assert shared == ([0, 1, 2, 8, 13, 0, 0, 4] if kept else [])


def test_a_memory_is_sound_after_an_interruption():
    model, params = tiny_model(max_length=LENGTH)
    memory, settings = Memory(), {"max_new_tokens": 6, "temperature": 0}
    for tokens in (1, 4):
        pieces = sample.stream(model, params, [[1, 2, 3]], memory=memory, every=1, **settings)
        for _ in range(tokens):
            (row,) = next(pieces)
        pieces.close()
        prompt = [1, 2, 3, *row, 4]
        assert memory.cache is not None
        found = generate(model, params, [prompt], memory=memory, **settings)
        assert found == generate(model, params, [prompt], **settings)
