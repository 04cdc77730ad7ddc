"""Tests of the run folder: errors, and what can be restarted after a crash."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.files import read_config
from llm_jax.models.flops import train_flops
from llm_jax.train import folder
from llm_jax.train.folder import Folder
from llm_jax.train.run import Setup, flops_per_token, load_params

DOCUMENTS = [{"text": "one document"}, {"text": "another"}]


def opened(config, workdir):
    """Opens the folder as a run does, and says that it is one."""
    run = Folder(workdir)
    tokenizer = run.tokenizer(config, DOCUMENTS)
    run.commit(config, tokenizer)
    return tokenizer


@pytest.fixture
def workdir(tiny, tmp_path):
    """A folder that holds a run with a checkpoint."""
    opened(tiny(), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    return tmp_path / "run"


def contents(folder: Path) -> dict:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_opening_fills_in_sizes_and_writes_them_down(tiny, tmp_path):
    config = tiny()
    assert opened(config, tmp_path).vocab_size == 259
    assert config.model.vocab_size == 259
    assert read_config(tmp_path).to_dict() == config.to_dict()


def test_the_same_config_may_go_on_elsewhere_and_longer(tiny, workdir):
    changed = tiny({"train.steps": 99, "mesh.fsdp": 2, "model.remat": "full", "eval.every": 1})
    opened(changed, workdir)
    assert read_config(workdir).train.steps == 99


def test_another_run_is_refused_and_not_touched(tiny, workdir):
    before = contents(workdir)
    changed = tiny({"model.num_layers": 3, "optimizer.learning_rate": 0.5})
    with pytest.raises(ConfigError) as error:
        opened(changed, workdir)
    for text in (str(workdir), "model.num_layers: 2 there, 3 here", "learning_rate: 0.01 there"):
        assert text in str(error.value)
    assert contents(workdir) == before


def test_a_run_that_never_saved_may_begin_again_otherwise(tiny, workdir):
    (workdir / "checkpoints" / "4").rename(workdir / "checkpoints" / "4.orbax-checkpoint-tmp")
    opened(tiny({"model.num_layers": 3}), workdir)
    assert read_config(workdir).model.num_layers == 3


def test_a_half_made_folder_recovers(tiny, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_kind.json.tmp").write_text('{"ki')
    (tmp_path / "config.partial").write_text("{")
    (tmp_path / "checkpoints").mkdir()
    opened(tiny(), tmp_path)
    assert read_config(tmp_path).model.vocab_size == 259


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"seed": 0, "mod'), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
        (lambda folder: (folder / "tokenizer" / "tokenizer_kind.json").unlink(), "tokenizer"),
    ],
    ids=["config gone", "config cut", "config odd", "tokenizer gone"],
)
def test_a_run_that_lost_a_file_says_which(harm, message, tiny, workdir):
    harm(workdir)
    with pytest.raises(ConfigError, match=message):
        opened(tiny(), workdir)


def test_a_file_is_no_folder(tiny, tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"--workdir={path}: cannot be created"):
            Folder(path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="is not writable"):
        Folder(tmp_path)


def test_only_the_first_process_writes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(folder.jax, "process_index", lambda: 1)
    opened(tiny(), tmp_path)
    assert contents(tmp_path) == {}


def test_attention_that_is_not_there_or_cannot(tiny, workdir):
    config = read_config(workdir)
    config.model.attention = "dense,densest"
    with pytest.raises(ConfigError, match="'densest' is not one of .*dense"):
        Setup(config, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "linformer"}, "'linformer' does not support .*'decoder' .*do: .*dense"),
        ({"attention": "dense,nystrom"}, "'nystrom' does not support model.kind='decoder'"),
        ({"attention": "kda", "kind": "encoder"}, "'kda' does not support .*'encoder'.*later to"),
        ({"attention": "linear", "attention_sinks": True}, "does not support model.attention_sink"),
        ({"attention": "sigmoid", "attention_sinks": True}, "these do: .*dense"),
        ({"attention": "lsh", "positions": "alibi"}, "'lsh' does not support model.positions='al"),
        ({"attention": "bigbird", "positions": "relative"}, "these do: .*longformer"),
        ({"attention": "latent", "num_kv_heads": 1}, "does not support model.num_kv_heads"),
        ({"attention": "differential", "num_kv_heads": 1}, "an even number of key heads"),
        ({"layers": "rest dense, dsa", "reversible": True}, "auxiliary loss of 'dsa'"),
        ({"attention": "linear", "attention_softcap": 3.0}, "'linear' does not support .*softcap"),
    ],
)
def test_attention_that_cannot_do_what_is_asked_names_what_can(changes, message, tiny, workdir):
    config = read_config(workdir)
    for key, value in changes.items():
        config.model[key] = value
    with pytest.raises(ConfigError, match=message):
        Setup(config, None)


@pytest.mark.parametrize(
    ("attention", "kind", "warned"),
    [("dense,lsh", "decoder", True), ("lsh", "encoder", False), ("dense", "decoder", False)],
)
def test_what_leaks_is_warned_of(attention, kind, warned, workdir, caplog):
    config = read_config(workdir)
    config.model.attention, config.model.kind = attention, kind
    Setup(config, None)
    assert ("depend on later ones" in caplog.text) == warned


def test_a_prefix_is_refused_where_nothing_can_be_seen_out_of_order(tiny, workdir):
    config = read_config(workdir)
    config.objective.name, config.model.attention = "prefix_lm", "kda"
    with pytest.raises(ConfigError, match="does not support .*name='prefix_lm'.*do: .*dense"):
        Setup(config, None)


def test_packing_is_refused_where_rows_cannot_be_told_apart(tiny, workdir):
    config = read_config(workdir)
    config.model.kind, config.model.attention = "encoder", "linformer"
    with pytest.raises(ConfigError, match="data.packing='first_fit' .*several segments"):
        Setup(config, None)


def test_flops_a_token_are_of_both_sides_and_of_what_is_predicted(tiny):
    """A masked model's head takes ceil(0.15 x 16) = 3 positions of 16: norm and matrix for each."""

    def resolved(changes):
        config = tiny(changes)
        config.model = configs.resolve(config.model, 264)
        return config

    pairs = resolved({"model.kind": "encoder_decoder", "objective.name": "seq2seq"})
    assert flops_per_token(pairs) == train_flops(pairs.model, 1, 16, 16) / (16 + 16)
    masked = {"model.kind": "encoder", "model.head": "mlm", "objective.name": "masked_lm"}
    masked = resolved(masked)
    spared = train_flops(masked.model, 1, 16) - 16 * flops_per_token(masked)
    assert spared == pytest.approx(6 * (16 - 3) * (16 * 16 + 16 * 264))


def test_reading_needs_a_run_with_a_checkpoint(tiny, tmp_path):
    with pytest.raises(ConfigError, match="has no config.json; it is not a run folder"):
        load_params(tmp_path)
    opened(tiny(), tmp_path)
    with pytest.raises(ConfigError, match="has no sound checkpoint"):
        load_params(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert json.loads((tmp_path / "config.json").read_text())["model"]["vocab_size"] == 259


def test_two_jobs_in_a_folder_are_refused(workdir):
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
    script += "f.write('process 7 on a'); f.flush(); print('held', flush=True); input()"
    command = [sys.executable, "-c", script, str(workdir / ".lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="is in use by process 7 on a; wait"):
            Folder(workdir)
        other.kill()
    run = Folder(workdir)  # who dies lets go
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", script, str(workdir / ".lock")]
    taken = lambda: subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    assert taken()
    second = Folder(workdir)  # a process does not stand in its own way
    second.close()
    third = Folder(workdir / "." / ".." / workdir.name)
    del second, third
    assert taken()
    run.close()
    assert not taken()


@pytest.mark.parametrize("place", [0, 2000, -1])
@pytest.mark.parametrize("imported", [False, True])
def test_resuming_on_other_text_is_refused(place, imported, tiny, tmp_path):
    """Also of a run that was imported, once it has trained."""
    text = tmp_path / "text.txt"
    text.write_text("some words " * 500)
    config = lambda: tiny({"data.train": str(text)})
    opened(config(), tmp_path / "run")
    opened(config(), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    if imported:
        (tmp_path / "run" / "imported.json").write_text("{}")
    opened(config(), tmp_path / "run")
    changed = bytearray(text.read_bytes())
    changed[place] ^= 1
    text.write_bytes(changed)
    with pytest.raises(ConfigError, match="the text has changed since the run started .*text.txt"):
        opened(config(), tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text("other words " * 500)
    # Another run, whose text differs because its data.train does.
    with pytest.raises(ConfigError, match=r"holds a different run \(data.train"):
        opened(tiny({"data.train": str(other)}), tmp_path / "run")
    (tmp_path / "run" / "text.json").unlink()
    opened(config(), tmp_path / "run")
