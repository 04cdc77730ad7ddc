"""Tests of init_from: runs that start from a folder or another run, also after interruptions."""

import json
import shutil

import jax
import numpy as np
import pytest

import launch
from llm_jax import config as configs
from llm_jax import hub
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.loop import Trainer
from llm_jax.train.metrics import read
from llm_jax.train.run import load_params
from tests.hub.test_hub import MODELS, make, same
from tests.hub.test_launch import call, refused

WORDS = "the film was good bad fine poor a plot with cast".split()
CLASSIFY = "--config=configs/finetune/classify.py"


class Killed(BaseException):
    """Nothing of ours catches it, as nothing catches SIGKILL."""


def pretrained(name, folder):
    """A model with the heads of its pretraining, of random weights, and a tokenizer."""
    how = configs.ConfigDict({"name": "wordpiece", "vocab_size": 60, "specials": ()})
    tokenizer = tokenizers.build(how, [" ".join(WORDS)])
    model, params = make(MODELS[name], tokenizer.vocab_size)
    hub.save(model, jax.tree.map(lambda x: 0.1 * x, params), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return pretrained("bert", tmp_path_factory.mktemp("bert") / "hf")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Returns labels -> a .tsv of texts that have them, one in three the first."""
    folder = tmp_path_factory.mktemp("tables")

    def write(*labels):
        path = folder / f"{'-'.join(labels)}.tsv"
        draw = np.random.default_rng(0)
        rows = [f"{' '.join(draw.choice(WORDS, 6))} {i}\t{labels[i % 3 % len(labels)]}"
                for i in range(48)]  # fmt: skip
        path.write_text("\n".join(["text\tlabel", *rows]))
        return path

    return write


@pytest.fixture
def command(source, table, tmp_path):
    """Returns the arguments of a run of one step, changed by keys."""

    def make(name="run", recipe=CLASSIFY, **changes):
        keys = {"init_from": source, "data.train": table("bad", "good"), "data.batch_size": 8,
                "model.max_length": 10, "train.steps": 1, "optimizer.warmup_steps": 0,
                "eval.max_batches": 1, "data.validation_fraction": 0.2}  # fmt: skip
        keys |= {key.replace("__", "."): value for key, value in changes.items()}
        flags = [f"--config.{k}={v}" for k, v in keys.items()]
        return ["train", recipe, f"--workdir={tmp_path / name}", *flags]

    return make


def test_a_folder_gives_all_but_the_head(source, command, tmp_path, capsys):
    call(capsys, *command())
    model, params, tokenizer = hub.load(source)
    setup, kept, begun, _ = load_params(tmp_path / "run", 0)
    about = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert about["new"] == ["sequence"] and about["family"] == "bert"
    assert about["unused"] == ["output_bias", "sequence", "transform"]  # next sentence's, too
    same({k: begun[k] for k in ("pooler",)}, {k: params[k] for k in ("pooler",)})
    table = params["encoder"]["embeddings"]["positions"]
    table["embedding"] = table["embedding"][:10]
    same(begun["encoder"], params["encoder"])
    assert setup.config.model.num_layers == model.num_layers == 3  # the recipe says 2
    assert setup.config.model.dropout == 0.1 and setup.config.data.labels == ("bad", "good")
    assert kept.encode("good film").tolist() == tokenizer.encode("good film").tolist()
    call(capsys, "export", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'hf'}")
    assert hub.load(tmp_path / "hf")[0].head == "sequence"


@pytest.mark.slow
def test_a_decoder_becomes_a_classifier_that_can_be_exported(command, tmp_path, capsys):
    call(capsys, *command(init_from=pretrained("llama", tmp_path / "llama")))
    call(capsys, "export", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'hf'}")
    about = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert about["architectures"] == ["LlamaForSequenceClassification"]
    assert about["id2label"] == {"0": "bad", "1": "good"}


def test_a_head_whose_labels_have_no_names_is_new(source, command, tmp_path, capsys):
    """Which of the data's labels is LABEL_0 nobody knows."""
    model, params, tokenizer = hub.load(source)
    model.head, drop = "sequence", ("transform", "output_bias")
    kept = {name: x for name, x in params.items() if name not in drop}
    hub.save(model, kept, tokenizer, tmp_path / "hf")
    names = hub.labels(json.loads((tmp_path / "hf/config.json").read_text()))
    assert names == ("LABEL_0", "LABEL_1")
    call(capsys, *command(init_from=tmp_path / "hf"))
    about = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert about["new"] == about["unused"] == ["sequence"]
    assert load_params(tmp_path / "run")[0].config.data.labels == ("bad", "good")


@pytest.mark.parametrize(
    "moment", ["during", *(pytest.param(x, marks=pytest.mark.slow) for x in ("before", "after"))]
)
@pytest.mark.slow
def test_killed_at_its_first_checkpoint(moment, source, command, tmp_path, monkeypatch, capsys):
    """The same command begins again; with a checkpoint, without the source."""
    call(capsys, *command("whole"))
    mine = shutil.copytree(source, tmp_path / "source")
    args = command(init_from=mine)
    save, wait = Checkpoints.save, Checkpoints.wait

    def dies(self, *args):
        if moment != "before":
            save(self, *args)
            wait(self)
        if moment == "during":  # as Orbax calls what it has not finished
            (self.folder / "0").rename(self.folder / "0.orbax-checkpoint-tmp")
            (self.folder.parent / "saved.json").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies)
        with pytest.raises(Killed):
            launch.main(args)
    if moment == "after":
        shutil.rmtree(mine)
        assert "init_from" in refused(capsys, *command(init_from=source))
    assert call(capsys, *args)["step"] == 1
    first = [read(tmp_path / name)[0]["loss"] for name in ("whole", "run")]
    assert first[0] == first[1]


@pytest.mark.slow
def test_a_run_gives_its_average_and_goes_on_longer(tmp_path, tiny, text_file, capsys):
    """Without --config all of the model is the source's, but for what is asked."""
    keys = {"data.train": text_file, "train.steps": 2, "train.ema_decay": 0.5, "model.dropout": 0.1,
            "model.num_layers": 1, "model.embed_dim": 16, "model.num_heads": 4, "seed": 7,
            "model.positions": "rotary", "model.max_length": 16, "data.batch_size": 8,
            "tokenizer.name": "bytes", "eval.max_batches": 1}  # fmt: skip
    flags = [f"--config.{k}={v}" for k, v in keys.items()]
    call(capsys, "train", f"--workdir={tmp_path / 'a'}", *flags)
    more = {"init_from": tmp_path / "a", "data.train": text_file, "train.steps": 1,
            "model.max_length": 24, "data.batch_size": 8, "eval.max_batches": 1}  # fmt: skip
    flags = [f"--config.{k}={v}" for k, v in more.items()]
    call(capsys, "train", f"--workdir={tmp_path / 'b'}", *flags)
    setup, _, begun, _ = load_params(tmp_path / "b", 0)
    same(begun, load_params(tmp_path / "a")[2])
    m = setup.config.model
    assert (m.max_length, m.num_layers, m.dropout) == (24, 1, 0.1)
    assert setup.config.optimizer.learning_rate == 5e-5
    again = f"--workdir={tmp_path / 'b'}"
    assert "a different run" in refused(capsys, "train", again, "--config.model.dropout=0.2")
    assert call(capsys, "train", again, "--config.train.log_every=5")["step"] == 1


@pytest.mark.slow
def test_a_classifier_keeps_its_labels(command, table, tmp_path, capsys):
    call(capsys, *command("first", data__labels='("good", "bad")'))
    head = load_params(tmp_path / "first")[2]["sequence"]
    # Of the same labels: their order, and the head, are the first run's.
    call(capsys, *command("same", init_from=tmp_path / "first"))
    setup, _, begun, _ = load_params(tmp_path / "same", 0)
    assert setup.config.data.labels == ("good", "bad")
    same(begun["sequence"], head)
    # Others must be named.
    three = {"init_from": tmp_path / "first", "data__train": table("a", "b", "c")}
    assert " is not in data.labels (good, bad)" in refused(capsys, *command("x", **three))
    call(capsys, *command("three", **three, data__labels='("a", "b", "c")'))
    assert json.loads((tmp_path / "three" / "imported.json").read_text())["new"] == ["sequence"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__num_layers": 5}, "model.num_layers=5: differs from {}, which has 3"),
        ({"model__norm": "rmsnorm"}, "model.norm='rmsnorm': differs from {}, which has 'lay"),
        ({"tokenizer__name": "bytes"}, "cannot be set, the tokenizer comes from {}"),
        ({"model__max_length": 13}, "model.max_length=13: {} has only 12 learned"),
        ({"init_from": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_contradictions_are_refused(changes, message, source, command, tmp_path, capsys):
    assert message.format(source) in refused(capsys, *command(**changes))
    assert not (tmp_path / "run").exists()


def test_nothing_is_random_unasked(source, tiny, tmp_path, silent):
    with pytest.raises(ConfigError, match="init_from=.*hub.runs.start"):
        Trainer(tiny({"init_from": str(source)}), tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_lora_trains_the_new_head_too(command, source, tmp_path, capsys):
    pytest.importorskip("qwix")
    args = command(model__lora_rank=2, train__steps=2, optimizer__learning_rate=0.1)
    call(capsys, *args)
    before, after = (load_params(tmp_path / "run", step)[2] for step in (0, 2))
    changed = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (str(path), bool((a != b).any())), before, after
    )
    leaves = jax.tree.leaves(changed, is_leaf=lambda x: isinstance(x, tuple))
    moved = {path for path, moved in leaves if moved}
    assert moved and all("lora" in path or "sequence" in path for path in moved)
    assert any("sequence" in path for path in moved)
