"""Tests of greedy decoding and beam search against transformers with the same weights."""

import functools

import numpy as np
import pytest

from llm_jax import hub, models
from llm_jax.decode import beam_search, generate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, NEW = 23, 8
END = {"gpt2": 20, "t5": 1}  # tokens that come, in some rows
ROWS = [[5, 9, 3, 17, 8, 2], [4, 6], [11, 20, 7]]
IDS = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 0}


@functools.cache
def peers(name, tmp):
    """A tiny random model: theirs, and ours with its weights."""
    ids = IDS | {"eos_token_id": END[name]}
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32, **ids)
        theirs = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.T5Config(
            d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, **ids,
        )  # fmt: skip
        theirs = transformers.T5ForConditionalGeneration(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    theirs.eval().save_pretrained(tmp)
    cfg, params, _ = hub.load(tmp)
    return theirs, models.build(cfg), params


@pytest.fixture(params=["gpt2", "t5"])
def both(request, tmp_path_factory):
    """Two functions of settings, on the same ROWS: their generate, and a search of ours."""
    theirs, model, params = peers(request.param, tmp_path_factory.getbasetemp() / request.param)
    end, width = END[request.param], max(map(len, ROWS))
    left = request.param == "gpt2"
    blanks = [[0] * (width - len(row)) for row in ROWS]
    beside = lambda blank, x: blank + x if left else x + blank
    join = lambda rows: torch.tensor([*map(beside, blanks, rows)])
    ids, mask = join(ROWS), join([[1] * len(row) for row in ROWS])

    def run(**options):
        found = theirs.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, output_scores=True,
            return_dict_in_generate=True, **options,
        )  # fmt: skip
        rows = found.sequences[:, width if left else 1 :].tolist()
        rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
        return rows, getattr(found, "sequences_scores", None)

    where = {"prompts": ROWS} if left else {"prompts": [[0]] * len(ROWS), "sources": ROWS}
    where |= {"max_new_tokens": NEW, "eos_id": end}
    return run, lambda search, **how: search(model, params, **where, **how)


def test_greedy(both):
    theirs, ours = both
    rows, _ = theirs()
    assert ours(generate, temperature=0) == rows
    assert len({tuple(row) for row in rows}) == len(ROWS)


def test_beam_search_without_a_length_penalty(both):
    theirs, ours = both
    rows, scores = theirs(num_beams=4, num_return_sequences=4, length_penalty=0.0)
    found = [each for hypotheses in ours(beam_search, length_penalty=0.0) for each in hypotheses]
    assert len({len(row) for row in rows}) > 1
    assert [each.tokens for each in found] == rows
    np.testing.assert_allclose([each.score for each in found], scores, atol=1e-4)
