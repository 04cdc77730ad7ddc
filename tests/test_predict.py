"""Tests of `predict`: input formats, order, invalid rows, continued outputs."""

import copy
import fcntl
import json
import resource

import jax
import numpy as np
import pytest

import llm_jax
from llm_jax import commands
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.train import ensemble
from llm_jax.train.loop import Trainer
from llm_jax.train.predict import chunked


class _Silent:
    def start(self, facts, step, steps): ...
    def note(self, text): ...
    def progress(self, step, values): ...


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learned which texts have a plus."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    text = lambda mark: "".join(rng.choice(list("abcd "), rng.integers(1, 40))) + mark
    lines = [f"{text(mark)}\t{mark == '+'}" for mark in rng.choice(["+", "-"], 300)]
    (folder / "train.tsv").write_text("\n".join(["sentence\tgold", *lines]))
    c = configs.base()
    c.update_from_flattened_dict({
        "objective.name": "classification", "model.kind": "encoder", "model.head": "sequence",
        "model.pooler": True, "model.max_length": 48, "model.num_layers": 1,
        "model.embed_dim": 16, "model.num_heads": 2, "data.packing": "none",
        "data.batch_size": 16, "tokenizer.name": "bytes", "model.positions": "none",
        "data.train": str(folder / "train.tsv"), "data.text_column": "sentence",
        "data.label_column": "gold", "train.steps": 60, "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 5,
    })  # fmt: skip
    configs.check(c)
    trainer = Trainer(c, folder / "run", _Silent(), jax.devices()[:1])
    trainer.run()
    return folder / "run", trainer


def texts(count, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda: "".join(rng.choice(list("abcd"), rng.integers(1, 60))) + rng.choice(["+", "-"])
    return [draw() for _ in range(count)]


def predict(workdir, input, output, *more, code=0):
    options = [f"--workdir={workdir}", f"--input={input}", f"--output={output}", *more]
    assert commands.main(["predict", *options]) == code
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.slow
def test_each_kind_of_input_gives_the_same_in_its_order(run, tmp_path, monkeypatch):
    workdir, trainer = run
    some = texts(70)
    (tmp_path / "a.txt").write_text("\n".join(some))
    (tmp_path / "a.tsv").write_text(
        "\n".join(["id\tsentence", *(f"{i}\t{t}" for i, t in enumerate(some))])
    )
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t, "gold": 7}) for t in some))
    found = {
        name: predict(workdir, tmp_path / f"a.{name}", tmp_path / f"{name}.out", "--batch_size=8")
        for name in ("txt", "tsv", "jsonl")
    }
    assert [row["text"] for row in found["txt"]] == some
    assert [row["sentence"] for row in found["tsv"]] == some
    assert [row["id"] for row in found["tsv"]] == [str(i) for i in range(70)]
    assert all(row["gold"] == 7 for row in found["jsonl"])
    for rows in found.values():
        assert [row["label"] for row in rows] == [row["label"] for row in found["txt"]]
        for a, b in zip(rows, found["txt"], strict=True):
            assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)
    right = [
        row["label"] == str(row["text"][-1] == "+") for row in found["txt"] if len(row["text"]) < 46
    ]
    assert np.mean(right) > 0.9
    # One by one and unpadded, the model says the same.
    apply = jax.jit(trainer.setup.model.apply)
    for row in found["txt"][:3]:
        (example,) = trainer.held_out.examples.examples({"text": row["text"]}, None, None)
        logits = apply({"params": trainer.params()}, {"tokens": example["tokens"][None]})
        shares = jax.nn.softmax(logits.heads["sequence"][0])
        assert list(row["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-4)


def test_bad_rows_are_named_and_counted(run, tmp_path, capsys):
    lines = ['{"sentence": "a+"}', "{broken", '{"other": 1}', '{"sentence": ["a", 3]}', "ab-", "",
             '{"sentence": "b+"}']  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(lines[:4] + lines[6:]))
    rows = predict(run[0], tmp_path / "in.jsonl", tmp_path / "out", "--json")
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["errors"] == 3
    assert ["error" in row for row in rows] == [False, True, True, True, False]
    assert "in.jsonl:2" in rows[1]["error"] and "in.jsonl:2" in printed.err
    assert rows[2]["other"] == 1 and "data.text_column" in rows[2]["error"]
    (tmp_path / "in.txt").write_bytes("\n".join(lines).encode() + b"\nna\xefve\n")
    rows = predict(run[0], tmp_path / "in.txt", tmp_path / "out.txt")  # a text, or JSON, a line
    assert ["error" in row for row in rows] == [False, True, True, True, False, True, False, True]
    assert "in.txt:6 is blank" in rows[5]["error"]
    (tmp_path / "in.tsv").write_text("sentence\tx\na+\t1\nb\nc-\t2\n")
    rows = predict(run[0], tmp_path / "in.tsv", tmp_path / "out.tsv")
    assert ["error" in row for row in rows] == [False, True, False]


def test_a_first_row_whose_label_is_0_is_no_header(run, tmp_path):
    from llm_jax.commands.predict import _rows

    examples = copy.copy(run[1].held_out.examples)
    examples.config = copy.deepcopy(examples.config)
    examples.config.data.update({"text_column": "0", "label_column": "1"})
    (tmp_path / "in.tsv").write_text("bad\t0\ngood\t1\n")
    rows = [document for _, document in _rows(str(tmp_path / "in.tsv"), examples)]
    assert rows == [{"text": "bad"}, {"text": "good"}]


@pytest.mark.parametrize("cut", [0, 1, 300, 900, -1, -40])
def test_an_output_is_continued_behind_its_last_whole_line(run, tmp_path, cut, capsys):
    (tmp_path / "in.txt").write_text("\n".join(texts(20)))
    output = tmp_path / "out.jsonl"
    predict(run[0], tmp_path / "in.txt", output)
    whole = output.read_bytes()
    output.write_bytes(whole[:cut])
    predict(run[0], tmp_path / "in.txt", output)
    rows = [json.loads(line) for line in whole.splitlines()]
    again = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["text"] for row in again] == [row["text"] for row in rows]
    kept = whole[:cut].count(b"\n")
    assert output.read_bytes().splitlines()[:kept] == whole.splitlines()[:kept]


def test_a_full_disk_is_told_and_gone_on_from(run, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("\n".join(texts(5)))
    where = f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'o'}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        assert commands.main(["predict", f"--workdir={run[0]}", *where]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "o: the disk is full; free some space" in capsys.readouterr().err
    rows = predict(run[0], tmp_path / "in.txt", tmp_path / "o")
    assert [row["text"] for row in rows] == texts(5)


def test_what_cannot_be_predicted_is_refused(run, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("\n".join(texts(5)))
    (tmp_path / "other.txt").write_text("\n".join(texts(5, seed=2)))
    predict(run[0], tmp_path / "in.txt", tmp_path / "out")
    before = (tmp_path / "out").read_bytes()
    for options, message in (
        (("--input", tmp_path / "other.txt", "--output", tmp_path / "out"), "do not match --input"),
        (("--input", tmp_path / "no.txt", "--output", tmp_path / "new"), "no.txt"),
        (("--input", tmp_path / "in.txt", "--output", tmp_path / "no" / "x"), "no folder"),
        (("--input", tmp_path / "in.txt", "--output", tmp_path / "new", "--step=99"), "--step=99"),
        (
            ("--input", tmp_path / "in.txt", "--output", tmp_path / "new", "--batch_size=0"),
            "least 1",
        ),
    ):
        code = commands.main(["predict", f"--workdir={run[0]}", *map(str, options)])
        assert code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "out").read_bytes() == before
    with (tmp_path / "out").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as of another process
        predict(run[0], tmp_path / "in.txt", tmp_path / "out", code=2)
    assert "another process is writing to it" in capsys.readouterr().err


def test_columns_of_other_names_are_named_and_a_file_without_any_is_refused(run, tmp_path, capsys):
    some = texts(30)
    (tmp_path / "in.csv").write_text("\n".join(["review", *some]))
    output = tmp_path / "out"
    options = [f"--input={tmp_path / 'in.csv'}", f"--output={output}"]
    assert commands.main(["predict", f"--workdir={run[0]}", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("row 1: data.text_column") == 1 and "29 more rows like row 1" in err
    assert not output.exists()  # which the next would go on with
    rows = predict(run[0], tmp_path / "in.csv", output, "--config.data.text_column=review")
    assert [row["review"] for row in rows] == some and all("label" in row for row in rows)
    options = ["--config.data.labels=a,b", *options]
    assert commands.main(["predict", f"--workdir={run[0]}", *options]) == 2
    assert "data.labels: cannot be changed" in capsys.readouterr().err


def test_answers_go_to_the_standard_output(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("a+\n\nb-\n")
    options = [f"--workdir={run[0]}", "--input=in.txt", "--output=-", "--json"]
    assert commands.main(["predict", *options]) == 0
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row.get("text") for row in rows] == ["a+", None, "b-"] and last["errors"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_another_file_is_scored_and_training_s_is_not_read(run, tmp_path, capsys):
    lines = [f"{text}\t{text[-1] == '+'}" for text in texts(40)]
    (tmp_path / "other.tsv").write_text("\n".join(["review\ttrue", *lines]))
    train = run[0].parent / "train.tsv"
    columns = ["--config.data.text_column=review", "--config.data.label_column=true"]
    asked = [f"--workdir={run[0]}", f"--config.data.test={tmp_path / 'other.tsv'}", "--json"]
    train.rename(train.with_suffix(".away"))
    try:
        assert commands.main(["eval", *asked, *columns]) == 0
    finally:
        train.with_suffix(".away").rename(train)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = predict(run[0], tmp_path / "other.tsv", tmp_path / "o", columns[0])
    right = np.mean([row["label"] == row["true"] for row in rows])
    assert found["split"] == "test" and found["examples"] == 40
    assert found["accuracy"] == pytest.approx(right)

    # The scores are told, too, where no report can be written.
    (run[0] / "report.md").unlink()
    (run[0] / "report.md").mkdir()
    assert commands.main(["eval", *asked, *columns]) == 0
    found_again, err = capsys.readouterr()
    assert json.loads(found_again.splitlines()[-1])["accuracy"] == found["accuracy"]
    assert "report.md cannot be written" in err
    (run[0] / "report.md").rmdir()


def test_lines_of_text_are_no_table_of_the_columns_of_training(run, tmp_path):
    from llm_jax.commands.predict import _rows
    from llm_jax.objectives import tagging

    examples = copy.copy(run[1].held_out.examples)
    config = copy.deepcopy(examples.config)
    config.data.update({"tokens_column": "0", "tags_column": "1", "labels": ("O", "B-LOC")})
    examples = tagging.Tagging(examples.tokenizer, config)
    (tmp_path / "in.txt").write_text("Paris, France.\nDon't\n")
    (tmp_path / "in.conll").write_text("Paris B-LOC\n, O\n\nLyon B-LOC\n")
    read = lambda name: [*_rows(str(tmp_path / name), examples)]
    texts = [tagging.spelled(document) for _, document in read("in.txt")]
    words = [[text[a:b] for a, b in spans] for text, spans in texts]
    assert words == [["Paris", ",", "France", "."], ["Don", "'", "t"]]
    assert [record for record, _ in read("in.conll")][0] == {
        "tokens": ["Paris", ","], "tags": ["B-LOC", "O"]
    }  # fmt: skip


def test_a_classifier_does_not_converse(run, capsys):
    assert commands.main(["chat", f"--workdir={run[0]}"]) == 2
    assert "'classification' does not support chat; use `predict`" in capsys.readouterr().err


def test_items_come_in_lists():
    assert list(chunked(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunked([], 3)) == []


@pytest.mark.slow
def test_an_ensemble_averages_probabilities(run, tmp_path, monkeypatch):
    """Of predict and eval alike, against the members' own answers."""
    workdir, trainer = run
    c = configs.from_dict(trainer.config.to_dict())
    c.seed, c.train.steps = 1, 20
    Trainer(c, tmp_path / "second", _Silent(), jax.devices()[:1]).run()
    (tmp_path / "a.txt").write_text("\n".join(texts(20)))
    read = lambda out, *more: predict(*more[:1], tmp_path / "a.txt", tmp_path / out, *more[1:])
    one, two = read("1.out", workdir), read("2.out", tmp_path / "second")
    both = read("3.out", workdir, f"--ensemble={tmp_path / 'second'}")
    for a, b, mean in zip(one, two, both, strict=True):
        parts = a["probabilities"], b["probabilities"]
        expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
        assert mean["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert mean["label"] == max(expected, key=expected.get)
    assert max(abs(a["probabilities"]["True"] - b["probabilities"]["True"])
               for a, b in zip(one, two, strict=True)) > 0.1  # fmt: skip
    found = llm_jax.load([workdir, tmp_path / "second"]).predict(texts(20))
    for mean, row in zip(both, found, strict=True):
        assert mean["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
    twice = f"--workdir={workdir}", f"--ensemble={workdir}", "--step=best"
    assert commands.main(["eval", *twice]) == 0
    load = ensemble.load_params

    def other(workdir, *how):
        found = load(workdir, *how)
        if len(how) > 1:
            found[0].config.data.labels = ("no", "yes")
        return found

    monkeypatch.setattr(ensemble, "load_params", other)
    with pytest.raises(ConfigError, match="its data.labels differs from"):
        ensemble.load([workdir, workdir])
