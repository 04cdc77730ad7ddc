import dataclasses
import functools
import json
import re
import types

import jax
import numpy as np
import pytest

import launch
from llm_jax import config as configs
from llm_jax import models, sharding
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.data.tokenizers import Bytes
from llm_jax.decode import Request, beam_search, complete, fill, generate, text
from tests.tiny_models import tiny_model

TOKENIZER = Bytes(["[MASK]"])
V, MASK = TOKENIZER.vocab_size, TOKENIZER.specials["[MASK]"]
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
WORDS = ["the cat sat on the mat", "a dog and a cat", "the dog ran"] * 4


def masked(**changes):
    return tiny_model(V, **{"kind": "encoder", "head": "mlm", "norm_place": "post"} | changes)


def test_gaps_get_the_likeliest_tokens_of_the_whole_model():
    model, params = masked()
    prompts = [[BOS, 5, MASK, 7, MASK, EOS], [BOS, MASK, EOS]]
    found = fill(model, params, prompts, MASK, top_k=3)
    assert [len(gaps) for gaps in found] == [2, 1]
    whole = jax.jit(lambda batch: models.logits(model.apply({"params": params}, batch)))
    for prompt, gaps in zip(prompts, found, strict=True):
        tokens = np.array([prompt + [0] * (6 - len(prompt))])
        # What stands behind the prompt is not looked at.
        batch = {"tokens": tokens, "segment_ids": np.arange(6)[None] < len(prompt)}
        probability = np.asarray(jax.nn.softmax(whole(batch), axis=-1))[0]
        for gap, at in zip(gaps, np.flatnonzero(np.array(prompt) == MASK), strict=True):
            assert [i for i, _ in gap] == np.argsort(-probability[at])[:3].tolist()
            best = np.sort(probability[at])[:-4:-1]
            np.testing.assert_allclose([p for _, p in gap], best, rtol=1e-4)


def test_a_decoder_continues_behind_bos():
    model, params = tiny_model(V)
    found = complete(model, params, TOKENIZER, ["", "ab"], max_new_tokens=5, seed=2)
    right = generate(
        model, params, [[BOS], [BOS, 97, 98]], max_new_tokens=5, eos_id=EOS, seed=2
    )
    assert [list(sample) for sample in found] == [["prompt", "completion", "tokens"]] * 2
    assert [sample["tokens"] for sample in found] == right
    assert [sample["completion"] for sample in found] == [*map(TOKENIZER.decode, right)]
    assert [sample["prompt"] for sample in found] == ["", "ab"]


def test_an_encoder_decoder_reads_the_prompt_and_is_greedy():
    model, params = tiny_model(V, kind="encoder_decoder")
    found = complete(model, params, TOKENIZER, ["", "abc"], max_new_tokens=5)
    where = {"max_new_tokens": 5, "eos_id": EOS, "sources": [[EOS], [97, 98, 99, EOS]]}
    right = generate(model, params, [[BOS]] * 2, temperature=0, **where)
    assert [sample["tokens"] for sample in found] == right
    options = {"max_new_tokens": 5, "beams": 3}
    for alpha, extra in ((0.6, {}), (2.0, {"length_penalty": 2.0})):
        found = complete(model, params, TOKENIZER, ["", "abc"], **options, **extra)
        best = beam_search(model, params, [[BOS]] * 2, beams=3, length_penalty=alpha, **where)
        assert [(s["tokens"], s["score"]) for s in found] == [rows[0] for rows in best]


@pytest.mark.parametrize("beams", [1, 3])
def test_by_default_no_more_than_there_is_room_for(beams, caplog):
    model, params = tiny_model(V)
    how = {} if beams > 1 else {"temperature": 0.0}
    run = functools.partial(complete, model, params, TOKENIZER, ["abcd"], beams=beams, **how)
    assert len(run()[0]["tokens"]) <= 16 - 5 + 1
    assert not caplog.messages
    if beams == 1:
        run(max_new_tokens=13)
        assert "leaves room for 12; beyond that, the beginning is dropped" in caplog.text
    else:
        with pytest.raises(ConfigError, match="leaves room for 12"):
            run(max_new_tokens=13)


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder", "encoder"])
def test_ids_that_no_token_has_are_never_drawn(kind):
    """A vocabulary padded to a round number, its padding the likeliest by far."""
    head = "mlm" if kind == "encoder" else "lm"
    model, params = tiny_model(V + 60, kind=kind, head=head)
    if kind == "encoder":
        (sample,) = complete(model, params, TOKENIZER, ["a[MASK]"], top_k=V)
        (gap,) = sample["candidates"]
        assert sorted(c["token"] for c in gap) == [*range(V)]
        assert sum(c["probability"] for c in gap) == pytest.approx(1)
        with pytest.raises(ConfigError, match=f"top_k={V + 1}"):
            complete(model, params, TOKENIZER, ["a[MASK]"], top_k=V + 1)
        return
    run = functools.partial(complete, model, params, TOKENIZER, ["ab", "c"], max_new_tokens=8)
    for how in ({"temperature": 0.0}, {"temperature": 50.0}, {"beams": 3}):
        assert all(0 <= t < V for sample in run(**how) for t in sample["tokens"])


@pytest.mark.slow
def test_samples_of_a_prompt_and_batches():
    model, params = tiny_model(V)
    prompts = ["abcd", "", "xy"]
    run = functools.partial(complete, model, params, TOKENIZER, prompts, max_new_tokens=5, seed=3)
    found = run(samples=3)
    assert [s["prompt"] for s in found] == [p for p in prompts for _ in range(3)]
    assert len({str(s["tokens"]) for s in found}) == 9
    for batch_size in (1, 2, 4):
        assert run(samples=3, batch_size=batch_size) == found
    beams = run(beams=4, samples=2, batch_size=2)
    best = [s for i in range(3) for s in run(beams=4, samples=4)[4 * i : 4 * i + 2]]
    assert [s["tokens"] for s in beams] == [s["tokens"] for s in best]
    np.testing.assert_allclose([s["score"] for s in beams], [s["score"] for s in best], rtol=1e-5)


def test_prompt_and_completion_are_the_text():
    """The blank of a word piece, or of a metaspace, shows between two tokens alone."""
    config = types.SimpleNamespace(name="wordpiece", vocab_size=60, get=lambda *_: [])
    tokenizer = tokenizers.build(config, WORDS)
    model, params = tiny_model(tokenizer.vocab_size)
    samples = complete(model, params, tokenizer, ["the cat"] * 6, max_new_tokens=5)
    for sample in samples:
        whole = [*tokenizer.encode("the cat").tolist(), *sample["tokens"]]
        assert "the cat" + sample["completion"] == tokenizer.decode(whole)
    assert any(sample["completion"].startswith(" ") for sample in samples)


def test_prompts_are_laid_out_as_the_objective_has_it():
    objective = configs.base().objective
    model, params = tiny_model(V, positions="relative")
    objective.name = "prefix_lm"
    found = complete(model, params, TOKENIZER, ["abcd"], objective=objective, max_new_tokens=6)
    prompt = [BOS, 97, 98, 99, 100]
    runs = [
        generate(model, params, [prompt], max_new_tokens=6, eos_id=EOS, prefix=prefix)[0]
        for prefix in (True, False)
    ]
    assert runs[0] == found[0]["tokens"] != runs[1]

    model, params = tiny_model(V, kind="encoder_decoder")
    objective.name, objective.prefix = "seq2seq", "a"
    run = functools.partial(complete, model, params, TOKENIZER, max_new_tokens=5)
    found, plain = run(["", "bc"], objective=objective), run(["a", "abc"])
    assert [sample["tokens"] for sample in found] == [sample["tokens"] for sample in plain]
    assert [sample["prompt"] for sample in found] == ["", "bc"]


def test_sentinels_are_read_and_shown():
    names = ["<extra_id_0>", "<extra_id_1>"]
    tokenizer = Bytes(names)
    zero, one = (tokenizer.specials[name] for name in names)
    assert tokenizer.read("a<extra_id_0>b<extra_id_1>") == [97, zero, 98, one]
    assert Bytes().read("a<extra_id_0>") == [*b"a<extra_id_0>"]
    found = text._with_sentinels(tokenizer, [zero, 97, 98, one, EOS])
    assert found == "<extra_id_0> ab <extra_id_1>"
    assert text._with_sentinels(Bytes(), [97, zero, 98]) == "ab"


@pytest.mark.parametrize("name", ["bytes", "wordpiece", "bpe"])
def test_a_masked_model_fills_in(name):
    config = types.SimpleNamespace(name=name, vocab_size=300, get=lambda *_: ["[MASK]"])
    tokenizer = tokenizers.build(config, WORDS)
    size, mask_id = tokenizer.vocab_size, tokenizer.special("[MASK]")
    model, params = tiny_model(size, kind="encoder", head="mlm", max_length=32)
    prompts = ["the [MASK] sat", "<mask> dog [MASK]"]
    found = complete(model, params, tokenizer, prompts, top_k=2)
    # BPE's words bring their own blank, bytes do not; WordPiece knows none.
    the = "the" if name == "bpe" else "the "
    row = [tokenizer.bos_id, *tokenizer.encode(the), mask_id, *tokenizer.encode(" sat")]
    right = fill(model, params, [[*row, tokenizer.eos_id]], mask_id, top_k=2)[0][0]
    (gap,) = found[0]["candidates"]
    assert [c["token"] for c in gap] == [i for i, _ in right]
    np.testing.assert_allclose([c["probability"] for c in gap], [p for _, p in right], rtol=1e-4)
    assert gap[0]["text"] == tokenizer.decode([gap[0]["token"]])
    assert found[0]["tokens"] == [gap[0]["token"] if t == mask_id else t for t in row[1:]]
    assert found[0]["completion"] == tokenizer.decode(found[0]["tokens"])
    assert [len(gap) for gap in found[1]["candidates"]] == [2, 2]
    assert len(complete(model, params, tokenizer, prompts)[0]["candidates"][0]) == 5
    json.dumps(found)


@pytest.mark.parametrize(
    "model, options, message",
    [
        ({}, {"beams": 2, "temperature": 0.5}, "beams=2: beam search does not sample"),
        ({}, {"beams": 2, "top_p": 0.5}, "beams=2"),
        ({}, {"beams": 0}, "beams=0"),
        ({}, {"length_penalty": 1.0}, "length_penalty=1.0: only for beam search"),
        ({}, {"beams": 2, "stop": ["x"]}, "beam search does not support stop"),
        ({}, {"beams": 2, "samples": 3}, "samples=3: must be at most beams=2"),
        ({}, {"samples": 2, "temperature": 0.0}, "samples=2: greedy search has only one"),
        ({}, {"samples": 0}, "samples=0"),
        ({}, {"batch_size": 0}, "batch_size=0"),
        ({}, {"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({}, {"min_p": 2.0}, "min_p=2.0"),
        ({"kind": "encoder", "head": "mlm"}, {"prompts": ["[MASK]"], "stop": ["x"]}, "list the"),
        ({}, {"temperature": -1.0}, "temperature=-1.0"),
        ({}, {"prompts": ["x" * 16]}, "17 tokens.*max_length=16"),
        ({}, {"beams": 2, "max_new_tokens": 17}, "leaves room for 14"),
        ({"kind": "encoder_decoder"}, {"prompts": ["x" * 16]}, "17 tokens.*max_length=16"),
        ({"kind": "encoder", "head": "mlm"}, {}, "must contain .MASK."),
        ({"kind": "encoder", "head": "mlm"}, {"prompts": ["[MASK]"], "beams": 2}, "list the"),
        ({"kind": "encoder", "head": "none"}, {"prompts": ["[MASK]"]}, "cannot generate text or"),
        ({"kind": "encoder", "head": "sequence", "num_labels": 2, "pooler": True}, {"top_k": 3},
         "model.head='sequence': the model cannot generate"),
        ({"kind": "encoder", "head": "detection"}, {}, "model.head='detection': the model cannot"),
        ({"head": "none"}, {"beams": 0}, "model.head='none': the model cannot generate"),
    ],
)
def test_what_is_refused(model, options, message):
    options = {"prompts": ["ab"]} | options
    with pytest.raises(ConfigError, match=message):
        complete(*tiny_model(V, **model), TOKENIZER, **options)


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = {
    "temperature": (-1.0, NAN, INF, -INF, 1e39, -1e-45), "top_p": (NAN, INF, 0.0, -0.1, 1.01),
    "min_p": (NAN, -0.1, 1.01), "repetition_penalty": (NAN, INF, 0.0, -1), "top_k": (-1,),
    "min_new_tokens": (-1,), "max_new_tokens": (0,), "seed": (2**32, -1), "beams": (0,),
    "length_penalty": (NAN, INF, -1.0), "samples": (0,), "batch_size": (0,),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(k, v) for k in OUT_OF_RANGE for v in OUT_OF_RANGE[k]])
def test_a_setting_out_of_range_is_refused_wherever_it_comes_from(name, value):
    with pytest.raises(ConfigError, match=f"{name}={re.escape(str(value))}: must be "):
        Request(**{name: value})
    with pytest.raises(ConfigError, match=f"{name}="):
        dataclasses.replace(Request(), **{name: value})


def test_some_id_must_be_left_to_draw():
    with pytest.raises(ConfigError, match="suppressed"):
        complete(*tiny_model(V), TOKENIZER, ["a"], suppressed=range(V))


def test_a_masked_model_needs_a_mask():
    with pytest.raises(ConfigError, match=r"tokenizer.specials.*\[MASK\]"):
        complete(*masked(), Bytes(), ["[MASK]"])


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder", "encoder"])
def test_the_command(kind, monkeypatch, capsys, tmp_path):
    head = "mlm" if kind == "encoder" else "lm"
    model, params = tiny_model(V, kind=kind, head=head)
    config = configs.base()
    run = types.SimpleNamespace(model=model, config=config, mesh=sharding.make_mesh(config.mesh))
    opened = lambda *_: (run, TOKENIZER, params, 7)
    monkeypatch.setattr("llm_jax.train.run.load_params", opened)
    monkeypatch.setattr("llm_jax.commands.read_config", lambda folder: config)
    command = ["generate", "--workdir=x", "--json", "--prompt=a[MASK]", "--max_new_tokens=4"]
    assert launch.main(command) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    (sample,) = result["samples"]
    assert result["step"] == 7
    assert {"prompt", "completion", "tokens"} <= set(sample)
    assert ("candidates" in sample) == (kind == "encoder")
    if kind != "encoder":
        assert launch.main([*command, "--beams=2", "--length_penalty=1"]) == 0
        assert "score" in json.loads(capsys.readouterr().out.splitlines()[-1])["samples"][0]
    assert launch.main([*command, "--beams=2", "--temperature=1"]) == 2
    assert "beams" in capsys.readouterr().err
    if kind == "decoder":
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text("x\ny z\n")
        (tmp_path / "a.jsonl").write_text('{"prompt": "x\\ny"}\n"z"\n')
        for file, prompts in (("a.txt", ["x", "y z"]), ("a.jsonl", ["x\ny", "z"])):
            options = f"--workdir=x --json --max_new_tokens=4 --samples=2 --prompts={file} --stop=q"
            assert launch.main(["generate", *options.split()]) == 0
            result = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert [s["prompt"] for s in result["samples"]] == [p for p in prompts for _ in "12"]
        (tmp_path / "a.jsonl").write_text('{"text": "x"}')
        assert launch.main(["generate", "--workdir=x", "--prompts=a.jsonl"]) == 2
        assert 'line 1: has no "prompt"' in capsys.readouterr().err
