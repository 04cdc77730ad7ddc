"""Tests that generation_config.json has the same effect as in transformers' generate."""

import functools
import json

import numpy as np
import pytest

from llm_jax import hub, models
from llm_jax.config import ConfigError
from llm_jax.decode import complete
from llm_jax.decode.request import Request
from llm_jax.hub import families, text
from tests.hub.test_tokenizer_matrix import BPE, T5, sentencepiece_model, trained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["The cat sat", "<s>it said</s> x", "naïve  café"]
NEW = 8


SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[
    pytest.param("gpt2", marks=SLOW), "llama", pytest.param("t5", marks=SLOW)
])  # fmt: skip
def model(request, tmp_path_factory):
    """(family, folder, our model, our parameters): tiny and random, with a tokenizer."""
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    size = {"pad_token_id": 0}
    if family == "gpt2":
        trained("bytes", ["<|endoftext|>"]).save(str(folder / "tokenizer.json"))
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **size)
        theirs = transformers.GPT2LMHeadModel
    elif family == "llama":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(**BPE))
        about = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        config = transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
            max_position_embeddings=64, **size,
        )  # fmt: skip
        theirs = transformers.LlamaForCausalLM
    else:
        (folder / "spiece.model").write_bytes(sentencepiece_model(**T5))
        # Sentinels are shown here, and left out there.
        (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0}))
        config = transformers.T5Config(
            d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, **size,
        )  # fmt: skip
        theirs = transformers.T5ForConditionalGeneration
    # Every id is a token's: others are drawn there, and here never.
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    config.vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder))
    theirs = theirs(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    theirs.save_pretrained(folder)
    cfg, params, _ = hub.load(folder)
    return family, folder, models.build(cfg), params


def written(folder, family, options):
    """The ids and whole texts that transformers writes."""
    theirs = (transformers.T5ForConditionalGeneration if family == "t5" else
              transformers.AutoModelForCausalLM).from_pretrained(folder).eval()  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in PROMPTS:
        batch = tokenizer(prompt, return_tensors="pt")
        batch.pop("token_type_ids", None)
        row = theirs.generate(**batch, **options)[0].tolist()
        start = 1 if family == "t5" else batch["input_ids"].shape[1]
        before = tokenizer.decode(row[:start], skip_special_tokens=True)
        whole = tokenizer.decode(row, skip_special_tokens=True)
        rows.append((row[start:], whole[len(before):]))
    return rows


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=SLOW)])
def test_greedy_text_is_that_of_generate(every, model):
    family, folder, ours, params = model
    hf = json.loads((folder / "config.json").read_text())
    free = written(folder, family, {"max_new_tokens": NEW, "eos_token_id": -1})
    first, second = free[0][0][3], free[1][0][2]  # they come up in the midst of a text
    cells = [
        (None, {}), (None, {"eos_token_id": first}), (None, {"eos_token_id": [second, first]}),
        ({}, {}), ({}, {"eos_token_id": first}), ({"eos_token_id": first}, {}),
        ({"eos_token_id": [first, second]}, {"eos_token_id": 3}),
        ({"suppress_tokens": [first, second]}, {}), ({"bad_words_ids": [[first]]}, {}),
        ({"max_new_tokens": 3}, {}), ({"max_length": 30}, {}), ({"max_new_tokens": 2,
                                                                 "max_length": 9}, {}),
        ({"do_sample": False, "temperature": 0.1, "top_k": 3}, {}),
        ({"do_sample": True, "top_k": 1}, {}), ({"repetition_penalty": 1.0}, {}),
        ({"repetition_penalty": 1.7}, {}), ({"repetition_penalty": 0.4}, {}),
        ({"repetition_penalty": 1.4, "eos_token_id": first, "min_new_tokens": 5}, {}),
        ({"eos_token_id": [first, second], "min_length": 9}, {}),
        ({"eos_token_id": first, "min_new_tokens": 4, "min_length": 3}, {}),
        ({"do_sample": True, "min_p": 1.0, "top_k": 0}, {}),
    ]  # fmt: skip
    file, differ = folder / "generation_config.json", set()
    for stated, changes in cells[1::every]:
        (folder / "config.json").write_text(json.dumps(hf | changes))
        file.unlink(missing_ok=True)
        if stated is not None:
            start = {"decoder_start_token_id": 0, "pad_token_id": 0} if family == "t5" else {}
            file.write_text(json.dumps(start | stated))
        count = {} if {"max_new_tokens", "max_length"} & set(stated or ()) else {
            "max_new_tokens": NEW}  # fmt: skip
        right = written(folder, family, count)
        tokenizer = text.load(folder, hf | changes, families.get(family))
        samples = []
        for prompt in PROMPTS:  # max_length counts each prompt
            samples += complete(ours, params, tokenizer, [prompt], **count)
        assert [sample["tokens"] for sample in samples] == [ids for ids, _ in right], stated
        assert [sample["completion"] for sample in samples] == [text for _, text in right]
        differ.add(str(right))
    assert len(differ) > 8 / every


@pytest.mark.parametrize("entry", [
    {"repetition_penalty": "x"}, {"no_repeat_ngram_size": 2}, {"num_beams": 4},
    {"forced_bos_token_id": 3}, {"forced_eos_token_id": 3}, {"min_length": 1.5}, {"typical_p": 0.5},
    {"bad_words_ids": [[1, 2]]}, {"bad_words_ids": 3}, {"begin_suppress_tokens": [3]},
    {"min_p": "x", "do_sample": True}, {"guidance_scale": 2.0}, {"stop_strings": [3]},
    {"eos_token_id": "x"},
    {"max_new_tokens": 1.5}, {"do_sample": "yes"}, {"suppress_tokens": [1.5]},
])  # fmt: skip
def test_what_would_change_the_text_is_refused_by_name(entry):
    with pytest.raises(ConfigError, match=next(iter(entry))):
        Request().resolve("decoder", entry)
    assert Request(imported=False).resolve("decoder", entry) == Request(imported=False).resolve(
        "decoder", None
    )


def test_stop_strings_end_where_those_of_generate_do(model):
    """Ids to the one that completes a stop string, and the text before it."""
    family, folder, ours, params = model
    hf = json.loads((folder / "config.json").read_text())
    words = transformers.AutoTokenizer.from_pretrained(folder)
    pieces = words.convert_ids_to_tokens(range(hf["vocab_size"]))
    mute = [i for i, piece in enumerate(pieces) if not piece.strip("\u2581Ġ").isalpha()]
    start = {"decoder_start_token_id": 0, "pad_token_id": 0} if family == "t5" else {}
    stated = json.dumps(start | {"suppress_tokens": mute})
    (folder / "generation_config.json").write_text(stated)
    free = written(folder, family, {"max_new_tokens": NEW})
    tokenizer = text.load(folder, hf, families.get(family))
    run = functools.partial(complete, ours, params, tokenizer, PROMPTS)
    lengths = set()
    for start, end in ((1, 3), (2, 7), (5, 6), (7, 11)):  # within tokens and across their borders
        stops = [free[0][1][start:end], free[1][1][start : end + 1]]
        options = {"max_new_tokens": NEW, "stop_strings": stops}
        right = written(folder, family, options | {"tokenizer": words})
        samples = run(max_new_tokens=NEW, stop=stops)
        assert [s["tokens"] for s in samples] == [ids for ids, _ in right]
        for sample, (_, whole) in zip(samples, right, strict=True):
            found = [whole.find(stop) for stop in stops if stop in whole]
            assert sample["completion"] == whole[: min(found, default=len(whole))]
        lengths |= {len(ids) for ids, _ in right}
    assert len(lengths) > 2


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.7}, {"min_new_tokens": 4}])
def test_beams_obey_the_rules_as_those_of_generate_do(model, settings):
    family, folder, ours, params = model
    hf = json.loads((folder / "config.json").read_text())
    (folder / "generation_config.json").unlink(missing_ok=True)
    options = {"max_new_tokens": NEW, "num_beams": 3, "num_return_sequences": 3}
    free = written(folder, family, options | {"eos_token_id": -1})
    eos = free[0][0][1]
    right = written(folder, family, options | settings | {
        "eos_token_id": eos, "length_penalty": 0.0, "early_stopping": False})  # fmt: skip
    assert right != free
    tokenizer = text.load(folder, hf | {"eos_token_id": eos}, families.get(family))
    found = complete(ours, params, tokenizer, PROMPTS, max_new_tokens=NEW, beams=3, samples=3,
                     length_penalty=0.0, **settings)  # fmt: skip
    assert len(found) == 9
    assert [s["score"] for s in found[:3]] == sorted((s["score"] for s in found[:3]), reverse=True)
    ended = lambda ids: ids[: ids.index(eos) + 1] if eos in ids else ids  # pads follow
    assert [s["tokens"] for s in found[::3]] == [ended(ids) for ids, _ in right]


def test_what_is_asked_for_stands_above_the_file():
    stated = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 5}
    drawn = lambda r: (r.temperature, r.top_k, r.top_p, r.max_new_tokens)
    assert drawn(Request().resolve("decoder", stated)) == (0.6, 50, 0.9, 5)
    assert drawn(Request(temperature=0.0).resolve("decoder", stated)) == (0.0, 0, 1.0, 5)
    assert drawn(Request(top_k=3, max_new_tokens=2).resolve("decoder", stated)) == (1.0, 3, 1.0, 2)
    assert drawn(Request().resolve("decoder", {})) == (0.0, 0, 1.0, None)
    assert drawn(Request().resolve("decoder", None)) == (1.0, 0, 1.0, None)
    assert Request(beams=1).resolve("decoder", {"num_beams": 4}).beams == 1
    assert Request(beams=4).resolve("decoder", {"num_beams": 2}).beams == 4
    rules = {"repetition_penalty": 1.5, "min_new_tokens": 2, "stop_strings": "x", "min_p": 0.2}
    ruled = lambda r: (r.repetition_penalty, r.min_new_tokens, list(r.stop), r.min_p)
    assert ruled(Request().resolve("decoder", rules)) == (1.5, 2, ["x"], 0.0)
    assert ruled(Request().resolve("decoder", rules | {"do_sample": True}))[3] == 0.2
    asked = Request(repetition_penalty=1.0, min_new_tokens=0, stop=(), min_p=0.5)
    assert ruled(asked.resolve("decoder", rules)) == (1.0, 0, [], 0.5)
    assert np.array_equal(Request().resolve("decoder", {"eos_token_id": [4, 2]}).eos_ids, [4, 2])

