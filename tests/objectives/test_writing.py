"""Tests of generated answers: prompts, metrics, eval and predict."""

import json

import jax
import numpy as np
import pytest

import launch
from llm_jax import config as configs
from llm_jax import models, objectives
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Bytes
from llm_jax.decode import log_likelihoods
from llm_jax.objectives import scores
from tests.tiny_models import tiny_model

GOLD = ["The cat sat on the mat.", "It is raining today, isn't it?", "A dog runs."]
GUESS = ["The cat sat on a mat.", "It rains today, doesn't it?", "A dog ran"]


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_log_likelihoods_are_sums_over_the_whole_models_softmax(kind):
    model, params = tiny_model(kind=kind)
    rows, starts = [[1, 2, 3, 4, 5], [7, 8], [9] * 3 + [1] * 15], [3, 1, 17]
    sources = [[4, 5], [1], [2, 3, 4]] if kind == "encoder_decoder" else None
    found = log_likelihoods(model, params, rows, starts, sources=sources, batch_size=2)
    whole = jax.jit(lambda batch: models.logits(model.apply({"params": params}, batch)))
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        start -= max(0, len(row) - 17)
        row = row[-17:]
        batch = {"tokens": np.array([row[:-1]]), "segment_ids": np.ones((1, len(row) - 1), int)}
        if sources:
            batch |= {"encoder_tokens": np.array([sources[i]])}
            batch |= {"encoder_segment_ids": np.ones((1, len(sources[i])), int)}
        logits = np.asarray(whole(batch))[0, start - 1 :]
        logp = np.asarray(jax.nn.log_softmax(logits))
        right = sum(logp[j, token] for j, token in enumerate(row[start:]))
        assert found[i][0] == pytest.approx(right, abs=1e-4)
        assert found[i][1] == (logits.argmax(-1).tolist() == row[start:])


def test_scores_are_those_of_their_libraries():
    sacrebleu = pytest.importorskip("sacrebleu")
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    found = scores.texts(("bleu", "chrf", "rouge"), GOLD, GUESS)
    assert found["bleu"] == sacrebleu.corpus_bleu(GUESS, [GOLD]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(GUESS, [GOLD]).score
    one = rouge.RougeScorer(["rougeL"], use_stemmer=True)
    each = [one.score(a, b)["rougeL"].fmeasure for a, b in zip(GOLD, GUESS, strict=True)]
    assert found["rougeL"] == pytest.approx(np.mean(each))
    chinese = ["今天下雨了吗", "我喜欢你"], ["今天下雨吗", "我喜欢他"]
    right = sacrebleu.corpus_bleu(chinese[1], [chinese[0]], tokenize="zh").score
    assert scores.texts(("bleu",), *chinese) == {"bleu": right}


def test_distinct_and_exact():
    found = scores.texts(("distinct", "exact_match"), ["a b a", "x"], [" a b a", "y"])
    assert found == {"distinct1": 3 / 4, "distinct2": 1.0, "exact_match": 0.5}


def test_an_unknown_score_is_refused():
    with pytest.raises(ConfigError, match="eval.scores=.*allowed are bleu"):
        scores.check(("meteor",))


@pytest.mark.parametrize("name", ["completion", "seq2seq"])
def test_of_a_source_that_is_too_long_the_end_is_left_out(name):
    config = configs.base()
    config.objective.update({"name": name, "prefix": "ab", "suffix": ">"})
    config.model.max_length, config.data.packing = 20, "none"
    examples = objectives.get(name).examples(Bytes(), config)
    record = {"source": "x" * 9 + "y" * 20, "target": "zz"}
    (row,) = examples.examples(record, None, None)
    field = "tokens" if name == "completion" else "encoder_tokens"
    text = Bytes().decode(row[field])
    assert text.startswith("ab" + "x" * 9 + "y") and text.rstrip("z").endswith("y>")
    assert len(row[field]) <= 20
    assert Bytes().decode(row["targets"][row["weights"] > 0]) == "zz"


TASKS = {"translate": "bleu", "translate:decoder": "bleu", "summarise": "rouge1"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TASKS)
def test_eval_scores_and_predict_writes_what_is_written(recipe, tmp_path, capsys):
    """Sums by heart, so that scores are perfect."""
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    words = "one two three four five six".split()
    pairs = [(f"{a} {b}", f"{b} and then {a} again") for a in words for b in words]
    rows = [json.dumps({"source": a, "target": b}) for a, b in pairs]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    name, _, variant = recipe.partition(":")
    config = f"--config=configs/finetune/{name}.py{variant and ':' + variant}"
    keys = {
        "data.train": tmp_path / "train.jsonl", "data.validation_fraction": 0.1,
        "tokenizer.name": "words", "data.batch_size": 16, "train.steps": 200,
        "model.num_layers": 2, "model.embed_dim": 64, "model.num_heads": 2, "model.mlp_dim": 128,
        "model.max_length": 32, "data.target_length": 0, "model.dropout": 0.0,
        "optimizer.learning_rate": 3e-3, "optimizer.warmup_steps": 30, "eval.every": 200,
        "eval.max_new_tokens": 8,
    }  # fmt: skip
    keys.pop("data.target_length") if variant else None
    run = f"--workdir={tmp_path / 'run'}"
    command = ["train", config, run, *(f"--config.{key}={value}" for key, value in keys.items())]
    assert launch.main(command) == 0
    capsys.readouterr()
    assert launch.main(["eval", run, "--split=train", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found[TASKS[recipe]] > (90 if TASKS[recipe] == "bleu" else 0.9)
    assert ("tok:13a" in found.get("bleu_signature", "")) == (TASKS[recipe] == "bleu")
    (tmp_path / "in.jsonl").write_text('{"source": "one two", "id": 3}\n{"source": "six one"}')
    options = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    assert launch.main(["predict", run, *options]) == 0
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["id"], first["text"]) == (3, "two and then one again")
    assert second["text"] == "one and then six again" and -3 < second["score"] < 0

    # There and back, as for back-translation: rows keep what else is in them, and what was read.
    def written(source, target, *options):
        files = f"--input={tmp_path / source}", f"--output={tmp_path / target}"
        assert launch.main(["predict", run, *files, *options]) == 0
        return json.loads((tmp_path / target).read_text().splitlines()[0])

    (tmp_path / "labelled.jsonl").write_text('{"text": "one two", "label": "x"}')
    (tmp_path / "plain.txt").write_text("one two\n")
    for name in ("labelled.jsonl", "plain.txt"):
        row = written(name, f"{name}.out.jsonl")
        assert (row["source"], row["text"]) == ("one two", "two and then one again")
    back = written("labelled.jsonl.out.jsonl", "back.jsonl", "--config.data.source_column=text")
    assert (back["source"], back["label"]) == ("one two", "x") and back["text"] != row["text"]
