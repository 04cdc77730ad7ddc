"""Tests of the training loop: outputs, no repeated work, failures."""

import itertools
import json
import math
import os
import signal
import time
from types import SimpleNamespace

import jax
import matplotlib.image
import numpy as np
import pytest

from llm_jax.config import ConfigError
from llm_jax.sharding.hardware import Chip
from llm_jax.train import Diverged, Restart, loop
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.evaluate import Evaluation
from llm_jax.train.loop import Trainer
from llm_jax.train.metrics import Meter, Metrics, plot, read, running_mean
from llm_jax.train.run import flops_per_token, load_params
from tests.slow import every


def start(config, workdir, reporter, after=None, hooks=()) -> Trainer:
    """A trainer that calls `after` with itself when all else of a step is done."""
    trainer = Trainer(config, workdir, reporter, jax.devices()[:1], hooks)
    if after is not None:
        trainer.hooks.append(lambda info: after(info.trainer))
    return trainer


def bits(state) -> bytes:
    return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))


def saved(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss of given steps (counted from 1, over all trainers) not a number."""

    def install(steps):
        put, count = loop.sharding.put, itertools.count(1)

        def put_poisoned(batch, mesh):
            if "weights" in batch and next(count) in steps:
                batch = batch | {"weights": batch["weights"] * np.nan}
            return put(batch, mesh)

        monkeypatch.setattr(loop.sharding, "put", put_poisoned)

    return install


def test_nothing_compiles_after_the_first_of_its_kind(tiny, silent, tmp_path):
    compiled, counts = [], []

    def heard(name, _seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    count = lambda trainer: counts.append(len(compiled))
    every = {"train.log_every": 2, "eval.every": 4, "checkpoint.every": 4}
    start(tiny(every), tmp_path, silent, count).run()
    jax.monitoring.clear_event_listeners()
    assert counts[0] > 0
    assert counts[:3] == counts[:1] * 3  # steps, and a log at 2
    assert counts[3:] == counts[3:4] * 9  # all behind the first evaluation and save


def test_a_mixture_logs_what_was_drawn_of_each_source(tiny, silent, tmp_path):
    for name in "ab":
        rows = (json.dumps({"text": f"{name} {i} " * 30}) + "\n" for i in range(20))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    specs = [f"{tmp_path}/{name}.jsonl" for name in "ab"]
    keys = {"data.train": ",".join(specs), "data.weights": "(3, 1)", "train.log_every": 2}
    keys |= {"eval.every": 100, "data.batch_size": 8}
    notes = []
    reporter = SimpleNamespace(**{n: getattr(silent, n) for n in ("start", "progress")})
    reporter.note = notes.append
    trainer = start(tiny(keys), tmp_path / "run", reporter)
    trainer.run()
    rows, mixture = read(tmp_path / "run"), trainer.mixture
    names = [f"{unit}/{spec}" for unit in ("documents", "tokens") for spec in specs]
    assert all(set(names) <= row.keys() for row in rows if "loss" in row)
    assert {n: rows[-1][n] for n in names} == mixture.drawn(trainer.batches.get_state())
    assert 0.5 < rows[-1][names[0]] < 0.95
    (note,) = (note for note in notes if note.startswith("drawn: "))
    assert f"{names[0]} {rows[-1][names[0]]:.2%}" in note


def test_metrics_of_a_run(tiny, silent, tmp_path, monkeypatch):
    config = tiny({"train.log_every": 3})
    late, clock = [0.0], time.perf_counter

    def an_hour_longer(f):
        def called(*args):
            late[0] += 3600
            return f(*args)

        return called

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
    for owner, name in ((Trainer, "evaluate"), (Checkpoints, "save")):
        monkeypatch.setattr(owner, name, an_hour_longer(getattr(owner, name)))
    summary = start(config, tmp_path, silent).run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 5, 6, 9, 10, 12]
    for row in rows:
        assert {"loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"} <= set(row)
        assert ("eval_loss" in row) == (row["step"] in (5, 10, 12))
        assert 0 < row["loss"] < 6 and row["grad_norm"] > 0
        assert row["tokens_per_second"] is None or row["tokens_per_second"] > 0
    assert [row["step"] for row in rows if row["tokens_per_second"] is None] == [1]
    # Neither evaluations nor saves are steps.
    assert late[0] >= 6 * 3600 and 0 < rows[-1]["step_seconds"] < 3600
    assert rows[0]["learning_rate"] == pytest.approx(1e-2 / 4)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert rows[-1]["eval_loss"] == summary["eval_loss"] < rows[2]["eval_loss"]
    # Of bytes, all targets but the ends of documents are one byte each.
    bits = summary["eval_loss"] / np.log(2)
    assert bits < summary["eval_bits_per_byte"] < 1.2 * bits
    assert summary["finished"] and summary["step"] == 12
    assert silent.values[12]["loss"] == rows[-1]["loss"]

    picture = matplotlib.image.imread(tmp_path / "loss.png")
    assert picture.shape[0] > 300 and len(np.unique(picture.reshape(-1, 4), axis=0)) > 20
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 1000

    resumed = start(config, tmp_path, silent)
    assert resumed.meter.read()["step_seconds"] == rows[-1]["step_seconds"]
    assert resumed.run() == summary  # has nothing left to do
    assert [row["step"] for row in read(tmp_path)] == [row["step"] for row in rows]


def test_rates_are_of_all_devices_and_processes(tiny, silent, tmp_path, monkeypatch):
    """One of two processes, which compiles for an hour and then takes a second a step."""
    now, seen = [0.0], []

    def step(state, batch, seed, peak):
        now[0] += 1.0 if seen else 3600.0
        seen.append(int((batch["segment_ids"] > 0).sum()))
        return state, {}

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(loop.hardware, "chip", lambda device: Chip(flops=1e9))
    monkeypatch.setattr(loop.Setup, "draw_state", lambda *_: SimpleNamespace(params={}))
    monkeypatch.setattr(loop.sharding, "rows", lambda mesh: lambda n: np.arange(n // 2))
    monkeypatch.setattr(loop.sharding, "put", lambda batch, mesh: batch)
    trainer = Trainer(tiny(), tmp_path, silent, jax.devices())
    trainer.train_step, trainer.hooks = step, []
    for _ in range(3):
        trainer._step()
    found, tokens = trainer.meter.read(), 2 * (seen[1] + seen[2])
    assert found["tokens_per_second"] == tokens / 2 and found["step_seconds"] == 2
    flops = flops_per_token(trainer.config)
    assert found["mfu"] == pytest.approx(tokens / 2 * flops / 8e9)


def test_a_running_mean_is_of_the_last_values():
    assert running_mean([1.0, 2.0, 6.0, 4.0], 2) == [1.0, 1.5, 4.0, 5.0]


def test_the_meter_counts_since_its_last_reading(monkeypatch):
    now = 0.0
    monkeypatch.setattr("llm_jax.train.metrics.time.perf_counter", lambda: now)
    meter = Meter(flops_per_token=6.0, peak=1000.0, began=0.0, step_seconds=3.0)
    now = 10.0
    meter.restart()
    with meter.timing("input"):
        now = 10.5
    meter.tokens += 100
    now = 12.0
    assert meter.read() == {
        "tokens_per_second": 50.0,
        "mfu": 0.3,
        "input_seconds": 0.5,
        "step_seconds": 4.5,
        "goodput": 1.5 / 12,
    }
    now = 20.0
    meter.restart()  # an evaluation lies between
    meter.tokens += 7
    with meter.timing("other"):
        now = 20.75  # a save
    now = 21.0
    values = meter.read()
    assert values["tokens_per_second"] == 7.0 and values["input_seconds"] == 0
    assert values["step_seconds"] == 4.75 and values["goodput"] == 1.75 / 21


def test_a_profile_is_of_the_steps_from_start_to_stop(tiny, tmp_path, monkeypatch):
    """Counted from 0, the last not among them, also where a run is resumed between."""
    calls, step = [], 0
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(step))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(step))
    for first, expected in ((0, [2, 4]), (2, [2, 4]), (3, []), (5, [])):
        calls.clear()
        config = tiny({"train.profile_steps": (2, 4)})
        trainer = SimpleNamespace(config=config, workdir=tmp_path, profiling=False)
        trainer._end_profile = lambda trainer=trainer: Trainer._end_profile(trainer)
        for step in range(first, 8):  # steps taken
            Trainer.profile(trainer, SimpleNamespace(step=step, metrics=()))
        assert calls == expected


def test_a_profile_of_chosen_steps(tiny, silent, tmp_path):
    config = tiny({"train.profile_steps": (2, 4), "train.steps": 5, "eval.every": 99})
    start(config, tmp_path, silent).run()
    (found,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert found.stat().st_size > 1000
    rows = read(tmp_path)
    assert all(row["input_seconds"] >= 0 and 0 <= row["goodput"] < 1 for row in rows)
    assert rows[0]["step_seconds"] == 0 < rows[-1]["step_seconds"]


def test_rows_ahead_of_a_checkpoint_and_half_lines_are_forgotten(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 1.0 / step, "bad": float("inf")})
    metrics.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3]
    metrics = Metrics(tmp_path, 2)
    assert metrics.last == {"step": 2, "loss": 0.5, "bad": None}
    metrics.close()
    assert [row["step"] for row in read(tmp_path)] == [1, 2]
    Metrics(tmp_path, 0, writes=False).write(9, {"loss": 1.0})
    assert [row["step"] for row in read(tmp_path)] == [1, 2]
    assert plot(tmp_path).stat().st_size > 5000


def test_a_bad_step_is_skipped_and_many_in_a_row_stop_the_run(tiny, silent, tmp_path, poison):
    config = tiny({"train.max_nonfinite": 3, "eval.every": 100})
    poison({3, 4, *range(7, 20)})
    trainer = start(config, tmp_path, silent)
    with pytest.raises(Diverged, match=r"step 9: .* 3 steps in a row .*steps \[4, 8\]"):
        trainer.run()
    rows = read(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 0, 1, 2, 2, 2, 3, 4, 5]
    assert [row["loss"] is None for row in rows] == [s in (3, 4, 7, 8, 9) for s in range(1, 10)]
    assert saved(tmp_path) == [4, 8]
    resumed = start(config, tmp_path, silent)
    assert resumed.step == 8
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(resumed.state.params))
    assert bits(resumed.state.params) == bits(trainer.state.params)  # of step 6, the last good one
    resumed.checkpoints.close()


def test_bad_steps_are_counted_where_none_is_logged(tiny, silent, tmp_path, poison):
    config = tiny({"train.max_nonfinite": 3, "train.log_every": 100, "eval.every": 100,
                   "checkpoint.every": 100, "train.steps": 100})  # fmt: skip
    poison(range(3, 100))
    with pytest.raises(Diverged, match=r"step 5: .* 3 steps in a row"):
        start(config, tmp_path, silent).run()


def test_a_full_disk_names_the_last_good_step(tiny, silent, tmp_path, monkeypatch):
    """As TensorStore says it from another thread, in text; the same command goes on."""
    save = Checkpoints.save

    def full(self, step, *rest):
        if step == 8:
            self.wait()
            raise ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device")
        save(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        with pytest.raises(Restart, match="disk is full at step 8; the last .* is step [45]"):
            start(tiny(), tmp_path, silent).run()
    assert start(tiny(), tmp_path, silent).run()["finished"]


def test_a_hook_of_ones_own(tiny, silent, tmp_path):
    """Its numbers are logged, at its own steps too; what is appended comes after the checkpoint."""
    seen = []

    def hook(info):
        if info.step % 2 == 0:
            info.values["mine"] = 10.0 * info.step

    def behind(info):
        info.trainer.checkpoints.wait()
        seen.append((info.step, info.last, saved(tmp_path)))

    trainer = start(tiny({"train.steps": 4, "train.log_every": 3, "checkpoint.every": 2}),
                    tmp_path, silent, hooks=[hook])  # fmt: skip
    trainer.hooks.append(behind)
    trainer.run()
    rows = {row["step"]: row.get("mine") for row in read(tmp_path)}
    assert rows == {1: None, 2: 20.0, 3: None, 4: 40.0}
    assert all("loss" in row and "tokens" in row for row in read(tmp_path))
    assert seen == [(1, False, []), (2, False, [2]), (3, False, [2]), (4, True, [2, 4])]


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_no_bit(tiny, silent, tmp_path, caplog):
    first = start(tiny(), tmp_path, silent)
    summary = first.run()
    (tmp_path / "checkpoints" / "12" / "meta" / "metadata").unlink()
    second = start(tiny(), tmp_path, silent)
    assert second.step == 10  # evaluated at 10, and best there
    assert "checkpoint 12 is damaged" in caplog.text and "moved to" in caplog.text
    again = second.run()
    assert again["loss"] == summary["loss"] and again["eval_loss"] == summary["eval_loss"]
    assert bits(second.state) == bits(first.state)
    assert [row["step"] for row in read(tmp_path)] == list(range(1, 13))

    for step in saved(tmp_path):
        (tmp_path / "checkpoints" / str(step) / "meta" / "metadata").unlink()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for _ in range(2):  # and not the second time either
        with pytest.raises(ConfigError, match="no sound one is left.*start from random weights"):
            start(tiny(), tmp_path, silent)
    assert len(list((tmp_path / "checkpoints-damaged").iterdir())) >= 3
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_best_by_validation_is_kept(tiny, silent, tmp_path, monkeypatch):
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: math.nan, 10: 0.9, 12: 1.5}
    found = lambda self: Evaluation({"loss": losses[self.step]}, [], [])
    monkeypatch.setattr(Trainer, "evaluate", found)
    config = tiny({"eval.every": 2, "checkpoint.every": 3, "checkpoint.keep_last": 1})
    seen = {}

    def look(trainer):
        trainer.checkpoints.wait()
        seen[trainer.step] = saved(tmp_path)
        if trainer.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    start(config, tmp_path, silent, look).run()
    start(config, tmp_path, silent, look).run()
    assert [seen[s] for s in range(2, 8)] == [[2], [2, 3], [4], [4], [4, 6], [4, 6]]
    assert [seen[s] for s in range(8, 13)] == [[4, 7], [4, 9], [10], [10], [10, 12]]


def test_asked_twice_it_stops_at_once(tiny, silent, tmp_path):
    def twice(trainer):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started us behind it
    with pytest.raises(KeyboardInterrupt):
        start(tiny(), tmp_path, silent, twice).run()
    assert saved(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is before


class Scored:
    """A hook that says what an evaluation found, in place of the loop."""

    def __init__(self, name, values):
        self.name, self.values = name, iter(values)

    def __call__(self, info):
        if any(key.startswith("eval_") for key in info.values):
            info.values[f"eval_{self.name}"] = next(self.values)


@pytest.mark.parametrize(
    ("metric", "values", "ends", "best"),
    every(2, [
        ("f1", [0.1, 0.5, 0.4, 0.5, 0.9], 4, 2),  # as good is no better
        ("f1", [0.1, 0.2, 0.1, 0.3, 0.2], 5, 4),
        ("mse", [3.0, 2.0, 2.5, 2.2, 1.0], 4, 2),
        ("f1", [-0.1, float("nan"), -0.2, -0.3, -0.4], 3, 1),
    ]),
)
def test_a_run_ends_early_and_keeps_its_best(metric, values, ends, best, tiny, tmp_path, silent):
    changes = {
        "train.steps": 5, "eval.every": 1, "eval.metric": metric, "eval.patience": 2,
        "checkpoint.keep_last": 1, "checkpoint.every": 100, "eval.max_batches": 1,
    }  # fmt: skip
    hook = Scored(metric, values)
    trainer = Trainer(tiny(changes), tmp_path, silent, jax.devices()[:1], [hook])
    summary = trainer.run()
    assert summary["finished"] and summary["step"] == ends
    assert trainer.checkpoints.steps() == sorted({best, ends})
    assert any(f"is at step {best}; " in note for note in silent.notes)
    assert load_params(tmp_path, "best")[3] == best and load_params(tmp_path)[3] == ends
    again = Trainer(tiny(changes), tmp_path, silent, jax.devices()[:1], [hook])
    assert again.run()["step"] == ends  # what has ended stays so


def test_a_metric_that_an_evaluation_has_not_is_refused_first(tiny, tmp_path, silent):
    config = tiny({"train.steps": 2, "eval.every": 1, "eval.metric": "f1"})
    with pytest.raises(ConfigError, match="eval.metric='f1': available are .*loss"):
        Trainer(config, tmp_path, silent, jax.devices()[:1])
    assert not list(tmp_path.iterdir())
