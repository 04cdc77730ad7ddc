"""Tests of launch.py import and export."""

import json
import re

import jax
import numpy as np
import pytest

import launch
from llm_jax import config as configs
from llm_jax import hub, models, objectives
from llm_jax.data import tokenizers
from llm_jax.hub import runs
from llm_jax.sweep import Sweep, design
from llm_jax.train.run import load_params
from tests.hub.test_hub import ENCODER, make, same


def call(capsys, *args):
    """Runs one command; returns its JSON."""
    assert launch.main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def refused(capsys, *args):
    """Runs a command that must fail; returns the error."""
    assert launch.main([*map(str, args)]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_file):
    """A GPT-2 of random weights with a tokenizer."""
    path = tmp_path_factory.mktemp("gpt2") / "hf"
    tokenizer = tokenizers.build(
        configs.ConfigDict({"name": "bpe", "vocab_size": 300, "specials": ()}),
        [json.loads(line)["text"] for line in text_file.read_text().splitlines()],
    )
    model, params = make({}, tokenizer.vocab_size)
    hub.save(model, jax.tree.map(lambda x: 0.1 * x, params), tokenizer, path)
    return path


@pytest.fixture
def keys(text_file):
    """Overrides that make a run tiny."""
    small = {"data.train": text_file, "data.batch_size": 8, "data.validation_fraction": 0.1}
    small |= {"train.steps": 2, "eval.max_batches": 1, "optimizer.warmup_steps": 0}
    return [f"--config.{k}={v}" for k, v in small.items()]


def test_import_eval_generate_train_export(folder, keys, tmp_path, capsys):
    run = f"--workdir={tmp_path / 'run'}"
    found = call(capsys, "import", f"--from={folder}", run, *keys)
    assert found["family"] == "gpt2"
    _, params, tokenizer = hub.load(folder)
    setup, kept, imported, step = load_params(tmp_path / "run")
    assert step == 0 and setup.config.objective.name == "causal_lm"
    assert kept.encode("abc").tolist() == tokenizer.encode("abc").tolist()
    same(imported, params)

    before = call(capsys, "eval", run)["loss"]
    assert call(capsys, "generate", run, "--prompt=ab", "--max_new_tokens=3")["samples"]

    # The same folder again, before any step: all parameters bitwise the same.
    call(capsys, "export", run, f"--to={tmp_path / 'same'}")
    same(hub.load(tmp_path / "same")[1], params)

    # Training goes on from there; what the import has not decided may still change.
    found = call(capsys, "train", run, "--config.optimizer.learning_rate=1e-3")
    assert found["step"] == 2 and found["finished"]
    assert found["eval_loss"] < before
    call(capsys, "export", run, f"--to={tmp_path / 'trained'}", "--dtype=bfloat16")
    after = hub.load(tmp_path / "trained")[1]
    assert (after["embed"]["embedding"] != params["embed"]["embedding"]).any()
    np.testing.assert_allclose(after["embed"]["embedding"], params["embed"]["embedding"], atol=2e-2)

    error = refused(capsys, "train", run, "--config.optimizer.learning_rate=1e-2")
    assert "optimizer.learning_rate" in error


def test_a_sweep_counts_the_model_that_init_from_gives(folder, keys):
    params = hub.load(folder)[1]
    axis = {"a": {}, "b": {"optimizer.learning_rate": 1e-3}, "wider": {"model.lora_rank": 4}}
    given = [*(key.removeprefix("--config.") for key in keys), f"init_from={folder}"]
    found = design.make(Sweep(axes=(axis,), match="params"), "", given)
    assert [*found["variants"]] == ["a", "b"]
    for run in found["variants"].values():
        assert run["parameters"] == sum(x.size for x in jax.tree.leaves(params))
        assert run["config"]["tokenizer"]["path"] == str(folder)
    assert re.search("need model.mlp_dim=.*; use --match=none", found["impossible"]["wider"])


def test_an_encoder_fills_in(tmp_path, keys, capsys, text_file):
    tokenizer = tokenizers.build(
        configs.ConfigDict({"name": "wordpiece", "vocab_size": 60, "specials": ()}),
        [text_file.read_text()],
    )
    changes = ENCODER | {"head": "mlm", "type_vocab_size": 2}
    model, params = make(changes, tokenizer.vocab_size)
    hub.save(model, params, tokenizer, tmp_path / "hf")
    run = f"--workdir={tmp_path / 'run'}"
    call(capsys, "import", f"--from={tmp_path / 'hf'}", run, *keys, "--config.model.dropout=0.0")
    assert load_params(tmp_path / "run")[0].config.objective.name == "masked_lm"
    samples = call(capsys, "generate", run, "--prompt=ab [MASK] cd")["samples"]
    assert len(samples[0]["candidates"][0]) == 5


FITS = {
    "decoder,lm": (["generate", "train"], ""),
    "encoder,mlm": (["generate", "train"], ""),
    "encoder_decoder,lm": (["generate", "train"], ""),
    "encoder,sequence": (["predict", "train"], "text, label"),
    "decoder,sequence": (["predict", "train"], "text, label"),
    "encoder,token": (["predict", "train"], "tokens, tags"),
    "encoder,span": (["predict", "train"], "context, question, answers"),
    "encoder,none": (["predict", "train", "export"], "text, label"),
    "encoder,detection": (["train", "export"], "text, label"),
}


@pytest.mark.parametrize("model", FITS)
def test_an_import_names_commands_and_columns_that_fit_its_head(
    model, tmp_path, capsys, monkeypatch
):
    (kind, head), (verbs, columns) = model.split(","), FITS[model]
    objective = objectives.suited(configs.ConfigDict({"kind": kind, "head": head})).name
    imported = {"family": "x", "parameters": 5, "kind": kind, "head": head, "objective": objective}
    imported |= {"learning_rate": 5e-5, "new": [], "unused": []}
    monkeypatch.setattr(runs, "import_run", lambda *args: imported)
    assert launch.main(["import", f"--from={tmp_path}", "--workdir=RUN"]) == 0
    printed = capsys.readouterr().out.partition("next:\n")[2]
    assert re.findall(r"launch.py (\w+)", printed) == verbs
    assert re.findall(r"with the columns (.*);", printed) == [columns] * bool(columns)


@pytest.mark.slow
def test_a_trained_electra_leaves_its_generator_behind(keys, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    run, hf = tmp_path / "run", tmp_path / "hf"
    sizes = {"num_layers": 2, "embed_dim": 16, "embedding_dim": 8, "num_heads": 4}
    sizes |= {"max_length": 16, "mlp_dim": 20, "vocab_size": 0}
    more = [f"--config.model.{k}={v}" for k, v in sizes.items()]
    more += [f"--config.tokenizer.vocab_size={80}"]
    call(capsys, "train", "--config=configs/electra.py:small", f"--workdir={run}", *keys, *more)
    # The same command again has only its end to print.
    assert launch.main(["train", f"--workdir={run}"]) == 0
    assert "launch.py generate" not in capsys.readouterr().out
    found = call(capsys, "export", f"--workdir={run}", f"--to={hf}")
    assert (found["family"], found["left_out"]) == ("electra", ["generator"])

    theirs, info = transformers.ElectraForPreTraining.from_pretrained(
        hf, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    setup, _, params, _ = load_params(run)
    tokens = np.arange(5, 17)[None]
    ours = setup.model.apply({"params": params}, {"tokens": tokens}).heads["detection"]
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(tokens)).logits
    np.testing.assert_allclose(ours, logits, atol=1e-5)


@pytest.mark.slow
def test_an_encoder_without_a_head_says_so_and_takes_a_new_one(keys, tmp_path, capsys, text_file):
    tokenizer = tokenizers.build(
        configs.ConfigDict({"name": "wordpiece", "vocab_size": 60, "specials": ()}),
        [text_file.read_text()],
    )
    model, params = make(ENCODER | {"head": "none", "type_vocab_size": 2}, tokenizer.vocab_size)
    hub.save(model, params, tokenizer, tmp_path / "hf")
    source, a, b = f"--from={tmp_path / 'hf'}", tmp_path / "a", tmp_path / "b"
    assert launch.main(["import", source, f"--workdir={a}", *keys]) == 0
    out = capsys.readouterr().out
    assert f"train --workdir={a}" not in out and f"--config.init_from={a}" in out
    # What it cannot do at once, vectors learned from pairs, names the columns that are missing.
    assert "data.pair_column=''" in refused(capsys, "train", f"--workdir={a}", *keys)
    call(capsys, "export", f"--workdir={a}", f"--to={tmp_path / 'again'}")

    found = call(capsys, "import", source, f"--workdir={b}", *keys, "--config.model.head=mlm")
    assert found["new"] == ["output_bias", "transform"]
    imported = load_params(b)[2]
    same({k: v for k, v in imported.items() if k not in found["new"]}, params)
    assert call(capsys, "train", f"--workdir={b}")["step"] == 2
    c = f"--workdir={tmp_path / 'c'}"
    assert "needs 'mlm'" in refused(capsys, "import", source, c, "--config.model.head=lm")
    head = ("--config.model.head=sequence", "--config.model.num_labels=3")
    found = call(capsys, "import", source, c, *keys, "--config.data.packing=none", *head)
    assert found["new"] == ["sequence"] and found["objective"] == "classification"


def test_labels_come_in_the_order_of_their_numbers(tmp_path):
    """Numbers are keys of config.json, so text: of ten labels and more "10" is before "2"."""
    tokenizer = tokenizers.Bytes()
    head = {"head": "sequence", "num_labels": 12, "pooler": True, "type_vocab_size": 2}
    model, params = make(ENCODER | head, tokenizer.vocab_size)
    names = tuple(f"class {i}" for i in range(12))
    hub.save(model, params, tokenizer, tmp_path / "hf", "bert", labels=names)
    assert runs.read(tmp_path / "hf").labels == names


def test_an_imported_translator_wants_pairs(tmp_path, capsys, text_file):
    from tests.hub.test_text import export

    export(tmp_path / "hf", "marian")
    assert launch.main(["import", f"--from={tmp_path / 'hf'}", f"--workdir={tmp_path / 'a'}"]) == 0
    assert "--config.data.train=SOURCES.txt,TARGETS.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(x, marks=pytest.mark.slow) for x in ("roberta", "t5"))]
)
def test_a_shorter_max_length_keeps_the_function(family, tmp_path, capsys, caplog):
    """Of prompts that fit; a table of learned positions is cut, its offset kept, and said so."""
    from tests.hub.test_text import export

    export(tmp_path / "hf", family, "wordpiece")
    logits = {}
    tokens = {"tokens": np.arange(1, 8)[None], "encoder_tokens": np.arange(1, 8)[None]}
    for length in ((), ("--config.model.max_length=8",)):
        run, caplog.records[:] = tmp_path / f"run{len(length)}", []
        call(capsys, "import", f"--from={tmp_path / 'hf'}", f"--workdir={run}", *length)
        setup, _, params, _ = load_params(run)
        assert setup.config.optimizer.learning_rate == 5e-5
        logits[len(length)] = models.logits(setup.model.apply({"params": params}, tokens))
        assert ("keeps only the first" in caplog.text) == bool(length and family != "t5")
    assert setup.config.model.max_length == 8
    np.testing.assert_array_equal(*logits.values())


RATES = {
    "nothing": ([], 5e-5),
    "an override": (["--config.optimizer.learning_rate=2e-3"], 2e-3),
    "a config": (["--config=configs/gpt2.py:124m"], 6e-4),
}


@pytest.mark.parametrize("name", RATES)
def test_an_imported_run_trains_at_the_rate_it_is_told_or_a_small_one(
    name, folder, tmp_path, capsys
):
    options, rate = RATES[name]
    run = f"--workdir={tmp_path / 'run'}"
    assert call(capsys, "import", f"--from={folder}", run, *options)["learning_rate"] == rate


@pytest.mark.parametrize("config", [[], ["--config=configs/quickstart.py"]])
def test_adapters_of_random_weights_are_refused(config, keys, tmp_path, capsys):
    """As asked of a folder that a mistyped name makes new; nothing is written there."""
    run = tmp_path / "new"
    error = refused(
        capsys, "train", f"--workdir={run}", *config, *keys, "--config.model.lora_rank=2"
    )
    assert f"--workdir={run} holds no run" in error and "import --from=" in error
    assert not run.exists()


def test_refusals(folder, tmp_path, capsys):
    run = f"--workdir={tmp_path / 'run'}"
    assert "no such folder" in refused(capsys, "import", f"--from={tmp_path / 'x'}", run)
    error = refused(capsys, "import", f"--from={folder}", run, "--config.model.num_layers=1")
    assert "num_layers=1: differs from" in error
    error = refused(capsys, "import", f"--from={folder}", run, "--config.model.max_length=13")
    assert f"max_length=13: {folder} has only 12 learned positions" in error
    gated = "--config.model.attention=gated_linear"
    error = refused(capsys, "import", f"--from={folder}", run, gated)
    assert f"model.attention='gated_linear': has parameters that {folder} lacks" in error
    assert not (tmp_path / "run").exists()
    error = refused(capsys, "import", f"--from={folder}", f"--workdir={folder}")
    assert "not empty" in error
    error = refused(capsys, "export", run, f"--to={tmp_path / 'hf'}")
    assert "no config.json" in error
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "config.json").write_text(configs.to_json(configs.base()))
    error = refused(capsys, "export", f"--workdir={tmp_path / 'kept'}", f"--to={folder}")
    assert "not empty" in error
    model, params = make({})
    hub.save(model, params, None, tmp_path / "mute")
    assert "tokenizer" in refused(capsys, "import", f"--from={tmp_path / 'mute'}", run)
