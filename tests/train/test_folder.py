"""Tests that missing or changed files of a run folder are errors that name the file."""

import json
import shutil

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import sharding
from llm_jax.config import ConfigError
from llm_jax.files import is_full
from llm_jax.train.folder import Folder
from llm_jax.train.loop import Trainer, check_steps
from llm_jax.train.metrics import Metrics, read
from llm_jax.train.run import load_params
from tests.conftest import Silent

SMALL = {"train.steps": 2, "train.ema_decay": 0.5, "eval.every": 99, "checkpoint.every": 1,
         "data.batch_size": 4}  # fmt: skip


@pytest.fixture(scope="module")
def config(tiny):
    return lambda changes=None: tiny(SMALL | {"mesh.data": 1, "mesh.fsdp": 4} | (changes or {}))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """(folder, trainer) of a run of two steps on four devices, whose EMA is not its parameters."""
    folder = tmp_path_factory.mktemp("folder") / "run"
    trainer = Trainer(config(), folder, Silent(), jax.devices()[:4])
    trainer.run()
    return folder, trainer


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


def resume(config, folder):
    return Trainer(config, folder, Silent(), jax.devices()[:4])


def largest(tree) -> int:
    """Bytes of a tree on the device that holds most of it."""
    sizes = {}
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            sizes[shard.device] = sizes.get(shard.device, 0) + shard.data.nbytes
    return max(sizes.values())


@pytest.mark.parametrize("devices", [1, 4, 8, None])
def test_parameters_are_read_alone_and_split(devices, trained, run):
    """No optimizer state is needed, an EMA is what comes, and no device holds what it need not."""
    _, trainer = trained
    for item in ("rest", "params"):
        shutil.rmtree(run / "checkpoints" / "2" / item)
    mesh = None
    if devices:
        sizes = configs.base().mesh
        sizes.data, sizes.fsdp = 1, devices
        mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    setup, _, params, step = load_params(run, mesh=mesh)
    assert step == 2
    assert setup.mesh.size == devices or devices is None and setup.mesh.shape["fsdp"] == 8
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, params, trainer.state.ema)
    table = lambda tree: tree["embed"]["embedding"]
    assert not np.array_equal(table(params), table(trainer.state.params))
    whole = sum(x.nbytes for x in jax.tree.leaves(params))
    # Norms and what does not divide are whole on each.
    assert largest(params) < whole / setup.mesh.size * 1.25
    batch = {"tokens": np.arange(16, dtype=np.int32)[None].repeat(8, 0)}
    with sharding.activate(setup.mesh):
        hidden = jax.jit(setup.model.apply)({"params": params}, batch).hidden
    alone = jax.jit(setup.model.apply)({"params": jax.device_get(params)}, batch).hidden
    np.testing.assert_allclose(hidden, alone, atol=1e-5)


def test_the_loop_evaluates_the_average_where_one_is_kept(trained):
    _, trainer = trained
    assert trainer.params() is trainer.state.ema
    with sharding.activate(trainer.mesh):
        loss = trainer.evaluate().values["loss"]
        assert loss == trainer.metrics.last["eval_loss"]
        trainer.state = trainer.state.replace(ema=None)
        assert loss != trainer.evaluate().values["loss"]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip(path):
    path.write_bytes(path.read_bytes()[:-1] + b" ")


def rename(run):
    shutil.rmtree(run / "checkpoints" / "1")
    (run / "checkpoints" / "2").rename(run / "checkpoints" / "1")


CHANGED = {
    "activation": (
        lambda run: edit(run / "config.json", lambda c: c["model"].update(activation="relu")),
        "model.activation: 'gelu_tanh' there, 'relu' here",
    ),
    "unknown key": (
        lambda run: edit(run / "config.json", lambda c: c["model"].update(depth=3)),
        r"config\.json: unknown config key 'model.depth'",
    ),
    "wrong type": (
        lambda run: edit(run / "config.json", lambda c: c["model"].update(num_layers="2")),
        r"config\.json: model.num_layers='2': expected int",
    ),
    "tokenizer": (lambda run: flip(run / "tokenizer" / "tokenizer_kind.json"), "tokenizer_kind"),
    "no tokenizer": (lambda run: shutil.rmtree(run / "tokenizer"), "tokenizer"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoint"),
    "renamed checkpoint": (rename, "no sound checkpoint|no sound one is left"),
    "an older checkpoint": (
        lambda run: [(run / "checkpoints" / s / "meta").rename(run / s) for s in "12"],
        "no sound checkpoint|no sound one is left",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_was_changed_is_named_by_all_who_read(name, run, config):
    """Training goes by the folder's own config.json, as it does without --config."""
    harm, message = CHANGED[name]
    harm(run)
    rows = (run / "metrics.jsonl").read_bytes()
    for call in (load_params, lambda folder: resume(mine(folder, config), folder)):
        with pytest.raises(ConfigError, match=message):
            call(run)
    assert (run / "metrics.jsonl").read_bytes() == rows


def mine(folder, config):
    content = json.loads((folder / "config.json").read_text())
    try:
        return configs.from_dict(content)
    except ConfigError:
        return config()


def test_an_import_that_lost_its_weights_or_did_not_finish_trains_nothing(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "imported.json").write_text("{}")
    for name in ("", "tokenizer", "checkpoints"):
        (folder / name).mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="an incomplete import"):
            Folder(folder)
    (folder / "config.json").write_text(configs.to_json(config()))
    with pytest.raises(ConfigError, match="no sound one is left.*import again"):
        Folder(folder)


FOREIGN = {
    "a Hugging Face folder": {"config.json": '{"model_type": "gpt2", "n_layer": 2}'},
    "somebody's text": {"thesis.tex": "…"},
    "a list": {"config.json": "[]"},
    "weights": {"model.safetensors": ""},
    "checkpoints without a config": {"checkpoints/4/x": ""},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_a_run_is_left_alone(name, config, tmp_path):
    for path, text in FOREIGN[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=str(tmp_path)):
        resume(config(), tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("path", "message"), [("", "is empty"), (" ", "is empty"), ("gs://b/run", "is a URL")]
)
def test_what_no_folder_can_be(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (Folder, load_params):
        with pytest.raises(ConfigError, match=f"--workdir={path.strip()}: {message}"):
            call(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("schedule", "steps", "at", "jumps"),
    [
        ("constant", 2000, 1000, False),
        ("inverse_sqrt", 2000, 1000, False),
        ("cosine", 2000, 50, False),  # in its warm-up
        ("cosine", 2000, 900, True),
        ("cosine", 1100, 1000, True),
        ("cosine", 950, 900, True),  # shorter
        ("linear", 2000, 1000, True),
        ("wsd", 2000, 700, False),  # before its decay
        ("wsd", 2000, 900, True),
        ("cosine", 1000, 900, False),
    ],
)
def test_a_longer_run_is_refused_where_its_rate_would_jump(schedule, steps, at, jumps, tiny):
    changes = {"optimizer.schedule": schedule, "train.steps": 1000, "optimizer.warmup_steps": 100}
    if schedule == "wsd":
        changes["optimizer.decay_steps"] = 200
    old, new = tiny(changes), tiny(changes | {"train.steps": steps})
    if not jumps:
        check_steps(old, new, at)
        return
    with pytest.raises(ConfigError, match=rf"train.steps={steps}: was 1000 .*jump .*e-0\d to"):
        check_steps(old, new, at)


def test_the_rate_goes_by_steps_that_were_taken(tiny):
    """Of 130 steps 40 were skipped: the schedule is still in its warm-up."""
    changes = {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 100}
    old, new = (tiny(changes | {"train.steps": steps}) for steps in (200, 2000))
    check_steps(old, new, 130, skipped=40)
    with pytest.raises(ConfigError, match="jump"):
        check_steps(old, new, 130)


def test_fewer_steps_than_were_taken(run, config):
    with pytest.raises(ConfigError, match="train.steps=1: the run has already reached step 2"):
        resume(config({"train.steps": 1}), run)
    assert json.loads((run / "config.json").read_text())["train"]["steps"] == 2


def test_a_broken_row_of_metrics_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for row in ("[1]", "{}", '{"step": 2, "lo', "[" * 100_000, '{"step": "2"}', "\xff"):
        file.write_text('{"step": 1}\n' + row + '\n{"step": 3}\n', "latin-1")
        with pytest.raises(ConfigError, match="metrics.jsonl, line 2: "):
            read(tmp_path)
        file.write_text('{"step": 1}\n' + row, "latin-1")
        assert read(tmp_path) == [{"step": 1}]


def test_tensorboard_gets_each_value_at_its_step(tmp_path):
    """In records of a length, a checksum, an event and a checksum, as TensorFlow writes them."""
    from tensorboardX.proto.event_pb2 import Event

    metrics = Metrics(tmp_path, 6)
    metrics.write(7, {"loss": 1.5, "mfu": None})
    metrics.write(9, {"loss": 0.25})
    metrics.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:
        size = 12 + int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12:size]))
        data = data[size + 4 :]
    assert [x.step for x in events if x.HasField("session_log")] == [7]  # later ones are not kept
    values = [(x.step, v.tag, v.simple_value) for x in events for v in x.summary.value]
    assert values == [(7, "loss", 1.5), (9, "loss", 0.25)]


def test_a_full_disk_ends_the_log(tmp_path, monkeypatch):
    """Also TensorBoard's, whose own writer would wait for a dead thread for ever."""
    from tensorboardX import record_writer

    monkeypatch.setattr(record_writer, "open_file", lambda path: open("/dev/full", "wb"))
    with pytest.raises(OSError) as error:
        Metrics(tmp_path, 0).write(1, {"loss": 1.0})
    assert is_full(error.value)
