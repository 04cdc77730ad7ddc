"""Tests of the commands and the Python code in docs/tasks.md, with a small BERT."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from llm_jax import commands, config, hub, models
from llm_jax.data import tokenizers

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tasks.md").read_text().replace("\\\n", " ")
PATH = TEXT.partition("## From a pretrained BERT")[2]
SMALL = {
    "model.max_length": 16, "data.batch_size": 16, "train.steps": 60, "eval.every": 30,
    "optimizer.learning_rate": 3e-3, "optimizer.warmup_steps": 5,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A BERT of no size in bert/, and texts that one word makes good or bad."""
    import jax

    rng = np.random.default_rng(0)
    words = "the film was quite very a story of people and".split()

    def text(good):
        some = [str(x) for x in rng.choice(words, rng.integers(1, 6))]
        some.insert(rng.integers(0, len(some) + 1), "fine" if good else "dull")
        return " ".join(some)

    texts = {name: [(text(i % 2), i % 2) for i in range(n)]
             for name, n in (("train", 120), ("dev", 20))}  # fmt: skip
    for name, rows in texts.items():
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    (tmp_path / "texts.txt").write_text("\n".join(text for text, _ in texts["dev"]))
    c = config.load("configs/bert.py:tiny", ["tokenizer.vocab_size=80"])
    tokenizer = tokenizers.build(c.tokenizer, [text for text, _ in texts["train"]])
    c.model.update({"vocab_size": 0, "embed_dim": 16, "num_heads": 2, "num_layers": 1,
                    "max_length": 32, "dropout": 0.0, "attention_dropout": 0.0})  # fmt: skip
    model = config.resolve(c.model, tokenizer.vocab_size)
    params = models.init_params(models.build(model), jax.random.key(0))
    hub.save(model, params, tokenizer, tmp_path / "bert", "bert")
    monkeypatch.chdir(tmp_path)
    return tmp_path, [label for _, label in texts["dev"]]


@pytest.mark.slow
def test_five_commands(folder, capsys):
    lines = re.search(r"```\n(.*?)```", PATH, re.DOTALL)[1].splitlines()
    assert len(lines) == 5
    for line in lines:
        verb, *options = shlex.split(line)[2:]
        more = [f"--config.{k}={v}" for k, v in SMALL.items()] if verb == "train" else ["--json"]
        assert commands.main([verb, *options, *more]) == 0
        if verb == "eval":
            assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == 1
    where, labels = folder
    assert "| accuracy | 1 |" in (where / "runs" / "sst2" / "report.md").read_text()
    rows = [json.loads(line) for line in (where / "labels.jsonl").read_text().splitlines()]
    assert [int(row["label"]) for row in rows] == labels
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    classify = transformers.pipeline("text-classification", str(where / "sst2-hf"))
    for row, theirs in zip(rows, classify([row["text"] for row in rows]), strict=True):
        assert theirs["label"] == row["label"]
        assert theirs["score"] == pytest.approx(row["probabilities"][row["label"]], abs=1e-4)
    import llm_jax

    again = llm_jax.load(where / "sst2-hf").predict([row["text"] for row in rows])
    assert [row["label"] for row in again] == [row["label"] for row in rows]


@pytest.mark.slow
def test_ten_lines_of_python(folder, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PATH, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    load = config.load
    small = [f"{key}={value}" for key, value in SMALL.items()]
    monkeypatch.setattr(config, "load", lambda spec, keys: load(spec, [*keys, *small]))
    space = {}
    exec(compile(code, "docs/tasks.md", "exec"), space)
    assert [answer["label"] for answer in space["answers"]] == ["1", "0"]
    assert space["scores"]["eval_accuracy"] == 1
