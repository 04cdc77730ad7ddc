"""Tests of the command line: output, exit codes, messages for invalid input."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import launch
from llm_jax import commands
from llm_jax.commands import samples
from llm_jax.config import ConfigError
from llm_jax.train import Diverged, Restart, loop
from llm_jax.train.metrics import read

SIX = {
    "train.steps": 6,
    "eval.max_batches": 0,
    "sample.prompts": "('ab',)",
    "sample.max_new_tokens": 3,
}


@pytest.fixture(scope="module")
def arguments(overrides):
    """Returns --config.KEY=VALUE of a tiny run, changed by a dict of keys."""
    return lambda changes=None: [f"--config.{o}" for o in overrides(changes)]


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory) -> Path:
    """The folder of a run of six steps; tests that may change it take a copy."""
    workdir = tmp_path_factory.mktemp("launch") / "run"
    assert launch.main(["train", f"--workdir={workdir}", *arguments(SIX)]) == 0
    return workdir


@pytest.fixture
def no_compiling(monkeypatch):
    """Fails where anything is compiled, which bad input must never come to."""

    def compiled(name, _seconds, **_):
        assert name != "/jax/core/compile/backend_compile_duration", "compiled"

    jax.monitoring.register_event_duration_secs_listener(compiled)
    yield
    jax.monitoring.clear_event_listeners()


def last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_train_leaves_a_whole_folder(run):
    for name in ("config.json", "tokenizer", "checkpoints", "metrics.jsonl", "tensorboard"):
        assert (run / name).exists()
    assert (run / "loss.png").stat().st_size > 10_000
    assert (run / "samples.txt").read_text().startswith(">>> ab\nab")
    assert [row["step"] for row in read(run)] == [1, 2, 3, 4, 5, 6]


def test_samples_of_others_than_decoders_show_the_prompt_once(tmp_path):
    texts = [{"prompt": "one", "completion": "eins"}] * 2
    samples.write(tmp_path, texts, "encoder_decoder")
    assert (tmp_path / "samples.txt").read_text() == ">>> one\neins\n\n>>> one\neins\n"


def test_candidates_are_shown_with_their_probabilities(capsys):
    gap = [{"text": "cat", "probability": 0.75}, {"text": "dog", "probability": 0.125}]
    samples.show([{"prompt": "a [MASK]", "completion": "a cat", "candidates": [gap]}], "encoder")
    assert capsys.readouterr().out == ">>> a [MASK]\na cat\n  'cat' 0.750, 'dog' 0.125\n\n"


def test_samples_at_the_end_are_what_the_config_asks_for(tiny, tmp_path, monkeypatch):
    noted = {}

    def complete(model, params, tokenizer, prompts, **options):
        noted.update(options, prompts=prompts)
        return []

    monkeypatch.setattr("llm_jax.decode.complete", complete)
    config = tiny({"seed": 7, "sample.prompts": "('ab',)", "sample.max_new_tokens": 3})
    about = {"config": config, "setup": SimpleNamespace(model=None), "tokenizer": None}
    trainer = SimpleNamespace(**about, several=True, workdir=tmp_path)
    commands.train._sample(trainer, None)
    wanted = {"prompts": ("ab",), "seed": 7, "max_new_tokens": 3, "objective": config.objective}
    assert wanted.items() <= noted.items()


def test_facts_are_lines_however_long(capsys):
    from llm_jax.console import Reporter

    reporter = Reporter()
    reporter.start({"model": "x" * 100 + " [3, 4]", "data": "text"}, 0, 5)
    assert capsys.readouterr().err.splitlines() == [
        "model: " + "x" * 100 + " [3, 4]", "data: text", "compiling …",
    ]  # fmt: skip
    reporter.progress(3, {"loss": 0.5, "eval_loss": 0.25, "eval_f1": 0.75, "eval_bleu": 31.25})
    reporter.progress(5, {"loss": 0.5})
    with_scores, without = capsys.readouterr().err.splitlines()
    assert with_scores.startswith("step 3/5  loss 0.500  validation 0.250  f1 0.75  bleu 31.25")
    assert without == "step 5/5  loss 0.500"


def test_the_same_command_has_nothing_left_to_do(run, arguments, capsys):
    rows = read(run)
    assert launch.main(["train", f"--workdir={run}", "--json", *arguments(SIX)]) == 0
    summary = last_json(capsys)
    assert summary["finished"] and summary["step"] == 6
    assert summary["samples"][0]["prompt"] == "ab"
    assert read(run) == rows


def test_eval_agrees_with_training(run, capsys):
    assert launch.main(["eval", f"--workdir={run}", "--json"]) == 0
    found = last_json(capsys)
    assert found["loss"] == pytest.approx(read(run)[-1]["eval_loss"], abs=1e-5)
    assert found["tokens"] == read(run)[-1]["eval_tokens"]
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))


def test_eval_says_what_training_said(arguments, tmp_path, capsys):
    """Of part of the validation set too: the same name is the same number."""
    six = arguments(SIX | {"eval.max_batches": 1, "data.validation_fraction": 0.5})
    assert launch.main(["train", f"--workdir={tmp_path}", *six]) == 0
    said = re.search(r"validation loss ([\d.]+),", capsys.readouterr().out)[1]
    results = []
    for options in ([], ["--max_batches=0"]):
        assert launch.main(["eval", f"--workdir={tmp_path}", "--json", *options]) == 0
        printed = capsys.readouterr().out.splitlines()
        results.append(json.loads(printed[-1]) | {"line": printed[-2]})
    part, whole = results
    assert f"{part['loss']:.3f}" == said and f"validation loss {said}" in part["line"]
    assert whole["tokens"] > part["tokens"]


def test_generate(run, capsys):
    options = ["--prompt=ab", "--prompt=c", "--max_new_tokens=3", "--temperature=0", "--json"]
    assert launch.main(["generate", f"--workdir={run}", *options]) == 0
    samples = last_json(capsys)["samples"]
    assert [s["prompt"] for s in samples] == ["ab", "c"]
    assert all(1 <= len(s["tokens"]) <= 3 for s in samples)
    # The model as its own draft: two accepted tokens and one of its own are the whole text.
    assert launch.main(["generate", f"--workdir={run}", *options, f"--draft={run}",
                        "--draft_tokens=2"]) == 0  # fmt: skip
    result = last_json(capsys)
    assert [s["tokens"] for s in result["samples"]] == [s["tokens"] for s in samples]
    assert (result["acceptance_rate"], result["tokens_per_round"]) == (1.0, 3.0)


def test_a_run_that_diverges_says_so(arguments, tmp_path, monkeypatch, capsys):
    put = loop.sharding.put
    spoil = lambda batch: batch | {"weights": batch["weights"] * np.nan}
    monkeypatch.setattr(loop.sharding, "put", lambda batch, mesh: put(spoil(batch), mesh))
    changes = {"train.max_nonfinite": 2, "sample.prompts": "()"}
    assert launch.main(["train", f"--workdir={tmp_path}", *arguments(changes)]) == 1
    err = capsys.readouterr().err
    assert "diverged: step 2: loss or gradient not finite for 2 steps in a row" in err
    assert "Traceback" not in err


def files(tmp_path) -> dict:
    """Data files, one bad in each way."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "a file").write_text("not a folder")
    return {"tmp": tmp_path}


MASKED = [f"--config.{key}" for key in (
    "model.kind=encoder", "model.head=mlm", "objective.name=masked_lm"
)]  # fmt: skip
BAD_TRAIN = {
    "unknown key": (["--config.model.nun_layers=3"], "did you mean model.num_layers"),
    "no --config": (["--model.num_layers=3"], "write --config.model.num_layers"),
    "wrong type": (["--config.model.num_layers=three"], "model.num_layers='three': expected int"),
    "heads": (["--config.model.num_heads=3"], "model.num_heads=3: must divide model.embed_dim=16"),
    "batch": (["--config.data.batch_size=12"], "data.batch_size=12: .*nearest are 8 and 16"),
    "mesh": (["--config.mesh.tensor=3"], "mesh.tensor=3: .*must divide the 8 devices"),
    "mesh and heads": (["--config.mesh.tensor=8"], "model.num_heads=4: must be a multiple"),
    "missing file": (["--config.data.train={tmp}/none.txt"], "none.txt.* matches no file"),
    "empty file": (["--config.data.train={tmp}/empty.txt"], "empty.txt.* is empty"),
    "latin-1": (["--config.data.train={tmp}/latin.txt"], "latin.txt is not UTF-8: byte 0xe9"),
    "too short": (["--config.data.train={tmp}/short.txt"], "data.train.* tokens do not fill"),
    "tfds": (["--config.data.train=tfds:nothing_here"], "tfds:nothing_here is not prepared"),
    "vocabulary": (["--config.model.vocab_size=100"], "model.vocab_size=100: is smaller .*259"),
    "attention": (["--config.model.attention=hydra"], "model.attention='hydra': .*dense"),
    "objective": (["--config.objective.name=guess"], "objective.name='guess': allowed are"),
    "no such recipe": (["--config=configs/none.py"], "no file 'configs/none.py'; known: .*t5"),
    "a recipe's typo": (["--config=configs/lama.py"], "did you mean configs/llama.py"),
    "a recipe without its folder": (["--config=clasify"], "mean configs/finetune/classify.py"),
    "a variant's typo": (["--config=configs/shakespeare.py:smal"], "'smal' .*did you mean small"),
    "no such variant": (["--config=configs/quickstart.py:7b"], "no variant '7b'"),
    "long prompt": (["--config.sample.prompts=" + "ab" * 20], "prompt 'abab.*max_length=16"),
    "prompt without a gap": (
        ["--config.sample.prompts=ab", "--config.tokenizer.specials=[MASK]", *MASKED],
        r"prompt 'ab': must contain",
    ),
    "prompts to a classifier": (
        ["--config.sample.prompts=ab", "--config.model.head=sequence"],
        "sample.prompts: nothing reads it with model.head='sequence'",
    ),
    "key and value apart": (
        ["--config.model.num_layers", "3"], "write --config.model.num_layers=3, one argument"
    ),
    "key without a value": (["--config.seed"], "write --config.seed=VALUE"),
    "a file": (["--workdir={tmp}/a file"], "a file: cannot be created"),
    "below a file": (["--workdir={tmp}/a file/run"], "run: cannot be created"),
}


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_input_to_train(name, arguments, tmp_path, capsys, no_compiling):
    options, message = BAD_TRAIN[name]
    options = [option.format(**files(tmp_path)) for option in options]
    workdir = tmp_path / "run"
    given = [f"--workdir={workdir}", *arguments()]
    code = launch.main(["train", *given, *options])
    refused(code, message, capsys)
    assert not workdir.exists()


def refused(code, message, capsys):
    err = capsys.readouterr().err
    assert code == 2, err
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert re.search(message, line), line


def test_after_bad_input_the_same_folder_takes_good_input(arguments, tmp_path, capsys):
    """A vocabulary too small is only known with the tokenizer, late: still nothing is written."""
    bad = ["train", f"--workdir={tmp_path}", *arguments({"model.vocab_size": 100})]
    assert launch.main(bad) == 2
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_folder(run, arguments, capsys, no_compiling):
    times = lambda: {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != ".lock"}
    before = times()
    code = launch.main(["train", f"--workdir={run}", *arguments(SIX | {"model.dropout": 0.5})])
    refused(code, "holds a different run .*model.dropout: 0.0 there, 0.5 here", capsys)
    assert times() == before


BAD_READ = {
    "eval without a run": (["eval", "--workdir={tmp}"], "{tmp}: has no config.json"),
    "generate without a run": (["generate", "--workdir={tmp}"], "{tmp}: has no config.json"),
    "eval of a file": (["eval", "--workdir={tmp}/a file"], "a file: has no config.json"),
    "no such step": (["eval", "--workdir={run}", "--step=3"], "--step=3: .*holds steps"),
    "no test set": (["eval", "--workdir={run}", "--split=test"], r"config\.data\.test=FILE"),
    "config keys": (["eval", "--workdir={run}", "--config.seed=1"], "seed: cannot be changed"),
    "keys of generate": (["generate", "--workdir={run}", "--config.seed=1"], "seed=1: only train"),
    "a key's typo": (["eval", "--workdir={run}", "--config.data.tset=x"], "did you mean data.test"),
    "prompt": (["generate", "--workdir={run}", "--prompt=a\udcff"], "udcff': is not valid UTF-8"),
    "an unknown option": (["generate", "--workdir={run}", "--max_tokens=3"],
                          "generate: .*--max_tokens=3; .*generate --help. lists"),
    "a key as an option": (["train", "--workdir={run}", "--steps=5"], "mean --config.train.steps"),
    "no file of prompts": (["generate", "--workdir={run}", "--prompts=none.txt"],
                           "error: none.txt: no such file"),
    "temperature nan": (["generate", "--workdir={run}", "--temperature=nan"], "temperature"),
    "temperature": (["generate", "--workdir={run}", "--temperature=-1"], "temperature"),
    "top_p": (["generate", "--workdir={run}", "--top_p=0"], "top_p"),
    "top_k": (["generate", "--workdir={run}", "--top_k=-2"], "top_k"),
    "no tokens": (["generate", "--workdir={run}", "--max_new_tokens=0"], "max_new_tokens"),
}


@pytest.mark.parametrize("name", BAD_READ)
def test_bad_input_to_eval_and_generate(name, run, tmp_path, capsys):
    argv, message = BAD_READ[name]
    places = files(tmp_path) | {"run": run}
    code = launch.main([a.format(**places) for a in argv])
    refused(code, message.format(**places), capsys)


PROMPTS = {
    "no JSON": ('"a"\n\n{{"prompt": 1', "line 3: not readable as JSON"),
    "another key": ('{{"text": "a"}}', r"line 1: has no \"prompt\" or \"messages\", .*'text'"),
    "a number": ('"a"\n5', "line 2: holds a int"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_line_that_is_no_prompt_is_named(name, run, tmp_path, capsys):
    content, message = PROMPTS[name]
    file = tmp_path / "prompts.jsonl"
    file.write_text(content.format())
    code = launch.main(["generate", f"--workdir={run}", f"--prompts={file}"])
    refused(code, f"{file}, {message}", capsys)


@pytest.mark.parametrize("verb", ["eval", "train", "generate"])
def test_a_hugging_face_folder_is_no_run(verb, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    code = launch.main([verb, f"--workdir={tmp_path}"])
    refused(code, f"Hugging Face folder.*import --from={tmp_path} --workdir=", capsys)


def test_a_new_run_without_a_config_says_what_it_is_made_of(tmp_path, capsys):
    source = tmp_path / "hub" / "bert-base"
    code = launch.main(["train", f"--workdir={tmp_path / 'r'}", f"--config.init_from={source}"])
    err = capsys.readouterr().err
    assert code == 2 and "its architecture" in err.partition("error")[0]
    assert f"{source}: no such folder; models are not downloaded by name" in err
    assert "hf download NAME --local-dir=FOLDER" in err


def test_without_a_command_it_shows_help_or_runs_the_quickstart(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        launch.main(["--help"])
    assert stop.value.code == 0
    assert "python launch.py generate" in capsys.readouterr().out
    seen = {}


    def run(args, overrides):
        seen.update(vars(args))
        return {}

    monkeypatch.setitem(commands.VERBS, "train", commands.VERBS["train"]._replace(run=run))
    assert launch.main(["--config.train.steps=5"]) == 0
    assert seen["config"] == "configs/quickstart.py" and seen["workdir"] == "runs/quickstart"


@pytest.mark.parametrize("argv", [["fly"], ["train"], ["eval", "--workdir=x", "--split=dev"]])
def test_wrong_usage_exits_with_2(argv, capsys):
    assert launch.main(argv) == 2
    assert "usage: launch.py" in capsys.readouterr().err


WRONG = {
    "train": ["train", "--workdir={tmp}/r", "--config.model.norm=x"],
    "usage": ["train"],
    "unknown option": ["eval", "--workdir={tmp}", "--loud"],
    "unknown verb": ["fly"],
    "key without --config": ["train", "--workdir={tmp}/r", "--model.norm=x"],
    "eval": ["eval", "--workdir={tmp}"],
    "generate": ["generate", "--workdir={tmp}"],
    "import": ["import", "--workdir={tmp}/r", "--from={tmp}"],
    "export": ["export", "--workdir={tmp}", "--to={tmp}/out"],
    "plan": ["plan", "--config=quickstart", "--topology=v9:2"],
    "sweep": ["sweep", "--workdir={tmp}/r", "--axis=model.norm"],
    "report": ["sweep", "--workdir={tmp}/r", "--report"],
    "submit": ["submit", "--workdir={tmp}/r", "--on=gke"],
    "prepare": ["prepare", "--name=x", "--clean=everything", "--tfds_dir={tmp}"],
    "no folder": ["train", "--workdir="],
    "blanks": ["eval", "--workdir=  "],
    "no text": ["train", "--workdir={tmp}/r", "--config.data.train=a\udcffb"],
    "no byte": ["train", "--workdir={tmp}/a\0b"],
    "no name": ["export", "--workdir={tmp}", "--to=a\udcff"],
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_is_one_line_and_one_object(name, tmp_path, capsys, monkeypatch, no_compiling):
    monkeypatch.chdir(tmp_path)
    code = launch.main([a.format(tmp=tmp_path) for a in WRONG[name]] + ["--json"])
    captured = capsys.readouterr()
    (line,) = (line for line in captured.err.splitlines() if line.startswith("error: "))
    assert code == 2 and "Traceback" not in captured.err
    (last,) = captured.out.splitlines()
    assert f"error: {json.loads(last)['error']}" == line.encode(errors="replace").decode()
    assert list(tmp_path.iterdir()) == []


RAISED = {
    "interrupted": (KeyboardInterrupt(), 130, "interrupted"),
    "disk": (OSError(28, "No space left on device", "/runs/a"), 1, "No space left .* '/runs/a'"),
    "diverged": (Diverged("step 7"), 1, "step 7"),
    "lost": (Restart("another process"), 1, "another process"),
    "config": (ConfigError("a key"), 2, "a key"),
    "ours": (ZeroDivisionError("by us"), 1, "ZeroDivisionError.*by us"),
}


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("verb", commands.VERBS)
def test_whatever_a_verb_raises_json_says_it(name, verb, run, capsys, monkeypatch):
    error, expected, message = RAISED[name]
    workdir = run

    def run(args, overrides):
        raise error

    monkeypatch.setitem(commands.VERBS, verb, commands.VERBS[verb]._replace(run=run))
    options = [f"--workdir={workdir}"] * bool(commands.VERBS[verb].workdir)
    needs = {"import": "--from=x", "export": "--to=x", "submit": "--on=slurm"}
    needs |= {"predict": "--input=x --output=x", "prepare": "--name=x"}
    options += needs.get(verb, "").split()
    options += ["--config=x", "--topology=cpu:8"] * (verb == "plan")
    assert launch.main([verb, *options, "--json"]) == expected
    captured = capsys.readouterr()
    assert re.search(message, json.loads(captured.out.splitlines()[-1])["error"])
    assert ("Traceback" in captured.err) == (name == "ours")  # a bug is shown where it is


def test_printed_commands_are_quoted_for_the_shell(run, tmp_path, capsys, arguments):
    copy = shutil.copytree(run, tmp_path / "it's a run; ls")
    assert launch.main(["train", f"--workdir={copy}", *arguments(SIX)]) == 0
    printed = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    words = [shlex.split(line.partition(", or,")[0]) for line in printed]
    assert words[:2] == [
        ["python", "launch.py", "generate", f"--workdir={copy}", "--prompt=ab"],
        ["python", "launch.py", "eval", f"--workdir={copy}"],
    ]
    assert words[2] == ["python", "launch.py", "export", f"--workdir={copy}", "--to=FOLDER"]
    assert words[3] == ["open", f"{copy}/loss.png"]
    assert words[4] == ["tensorboard", f"--logdir={copy}/tensorboard"]


def test_wrong_arguments_are_refused_before_anything_slow_is_imported(tmp_path, run):
    here, missing = f"--workdir={tmp_path / 'new'}", f"--workdir={tmp_path / 'missing'}"
    new, input = [f"--input={tmp_path / 'missing'}", "--output=-"], ["--input=-", "--output=-"]
    wrong = [
        ["train", here, "--config.model.norm=x"],
        ["train", here, "--config.data.train=missing"],
        ["train", here, "--config.init_from=missing"],
        ["import", here, "--from=missing"],
        ["sweep", here, "--config=missing"],
        ["sweep", missing, "--report"],
        ["prepare", "--name=x", "--config.data.train=missing"],
        ["plan", "--config=missing", "--topology=cpu:8"],
        ["export", missing, "--to=x"],
        ["predict", missing, *input],
        ["predict", f"--workdir={run}", *new],
        ["generate", f"--workdir={run}", "--prompts=missing"],
        ["eval", f"--workdir={run}", "--ensemble=missing"],
        ["audit", f"--workdir={run}", "--against=missing"],
        *([verb, missing] for verb in ("eval", "generate", "chat", "audit", "compress")),
    ]
    code = (
        "import sys, launch\n"
        f"for argv in {wrong}:\n"
        "    assert launch.main(argv) == 2, argv\n"
        "    slow = {'jax', 'flax', 'grain', 'orbax', 'scipy', 'tensorflow_datasets'}\n"
        "    assert not slow & sys.modules.keys(), (argv, slow & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(wrong) and all("missing" in line for line in errors[1:])
