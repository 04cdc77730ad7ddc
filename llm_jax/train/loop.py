"""The training loop: batches in, metrics and checkpoints out, resumable at any moment."""

import dataclasses
import math
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import llm_jax
from llm_jax import config as configs
from llm_jax import objectives, sharding
from llm_jax.config import ConfigError
from llm_jax.data import lengths, pipeline, summary
from llm_jax.data.examples import Examples
from llm_jax.data.fields import Record
from llm_jax.data.lazy import Mixture
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.files import is_full
from llm_jax.objectives import labels
from llm_jax.sharding import hardware
from llm_jax.train import Diverged, Restart, groups, reference
from llm_jax.train.checkpoint import Checkpoints, hushed, join, split
from llm_jax.train.evaluate import Evaluation, evaluate
from llm_jax.train.folder import Folder, Start, describe, same_run
from llm_jax.train.metrics import Meter, Metrics, plot, read
from llm_jax.train.optimizer import schedule
from llm_jax.train.processes import agree, gathered
from llm_jax.train.run import Setup, flops_per_token
from llm_jax.train.state import TrainState, about

COSTS = ("perplexity", "bits_per_byte", "mse")  # of which less is better, beside all losses
JUMP = 0.01  # relative change of the learning rate that goes for none


class Reporter:
    """Receives the loop's messages. This one drops them; console.Reporter shows them."""

    def start(self, facts: dict[str, Any], step: int, steps: int) -> None: ...
    def note(self, text: str) -> None: ...
    def progress(self, step: int, values: dict[str, float]) -> None: ...


@dataclasses.dataclass
class StepInfo:
    """What every hook is given after every step.

    Attributes:
      step: steps taken, this one included; `last` where it is the last of train.steps.
      metrics: the step's own scalars, on the device: reading one waits until it is computed.
      values: numbers of this step as they go to metrics.jsonl; a hook before `Trainer.log` may add
        some, at steps of its choice. On a step that is logged anyway they hold `metrics` already.
      trainer: the run; its state is donated to the next step, so none of it may be kept.
    """

    step: int
    last: bool
    metrics: dict[str, jax.Array]
    trainer: "Trainer"
    values: dict[str, float] = dataclasses.field(default_factory=dict)

    def due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and after the last, is done now."""
        return self.last or self.step % every == 0


Hook = Callable[[StepInfo], None]


class Trainer:
    """One training run: loaded and checked by the constructor, trained by `run`.

    It takes all devices if none are given.

    `accept(setup, tokenizer)` raises what a caller has against them, before anything is written.
    `make_step(trainer)` returns what stands in for `setup.train_step`, as in `llm_jax.privacy`.

    Attributes:
      hooks: called in order after each step. Those of the constructor come before the log, so that
        numbers which they add are logged; what is appended comes after the checkpoint.

    Raises:
      ConfigError: anything that cannot run, before the first compilation, with nothing changed.
    """

    def __init__(
        self, config: ConfigDict, workdir: str | Path, reporter: Reporter,
        devices: list[jax.Device] | None = None, hooks: Sequence[Hook] = (),
        accept: Callable[[Setup, Tokenizer], None] | None = None, start: Start | None = None,
        make_step: Callable[["Trainer"], Callable] | None = None,
    ):
        self.config, self.workdir, self.reporter = config, Path(workdir), reporter
        self.stopping = False
        self.several = jax.process_count() > 1
        self.compiling = True  # until the first step is done
        self.mesh = sharding.make_mesh(config.mesh, devices)
        sharding.check(config, self.mesh)
        folder = self.folder = Folder(workdir)
        if config.init_from and folder.old is None and start is None:
            raise ConfigError(f"init_from={config.init_from!r}: a new run needs what "
                              "hub.runs.start makes of it, as this Trainer's start")
        objective = objectives.get(config.objective.name)
        splits = objective.splits(config)
        self.tokenizer = folder.tokenizer(config, splits["train"], start)
        self.setup = Setup(config, self.mesh)
        if (config.privacy.clip or config.distill.teacher) and make_step is None:
            raise ConfigError("privacy.clip, distill.teacher: a Trainer needs the make_step of "
                              "llm_jax.privacy or llm_jax.compress.distill for them")
        step = self.setup.train_step
        if make_step is not None:
            self.documents = len(splits["train"])
            step = make_step(self)
        if accept is not None:
            accept(self.setup, self.tokenizer)
        self._open_data(objective.examples(self.tokenizer, config), splits)
        self.eval_step = self.setup.eval_step(self.tokenizer)
        if self.held_out is not None and config.eval.metric != "loss" and not hooks:
            self.cost(self._measured())
        if self.several:
            text = {f"text of {name}": value for name, value in folder.text.items()}
            agree(configs.flatten(config) | text | {"tokenizer": self.tokenizer.fingerprint()})
        place = self._open_state(folder, start)
        self.train_step = step(place)
        first_params = self.state.params if self.step == 0 else None
        reference.attach(self.setup, self.tokenizer, splits, workdir, first_params)
        self.metrics = Metrics(workdir, self.step, writes=jax.process_index() == 0)
        chip = hardware.chip(self.mesh.devices.flat[0])
        before = self.metrics.last.get("step_seconds") or 0
        peak = chip and chip.flops * self.mesh.size
        self.meter = Meter(flops_per_token(config), peak, llm_jax.BEGAN, before)
        self.profiling = False
        rows = read(workdir) if config.eval.patience else []
        rows = [row for row in rows if row["step"] <= self.step and "eval_loss" in row]
        self.costs = [self.cost(row) for row in rows]  # of every evaluation
        self.unchecked: tuple[int, jax.Array] | None = None  # a step and its skipped_in_a_row
        # The log comes before the checkpoint: the metrics hold a checkpoint's step and all before.
        self.hooks: list[Hook] = [
            self.profile, self.measure, self.validate, *hooks, self.log,
            self.stop_if_diverged, self.keep,
        ]  # fmt: skip

    def _open_data(self, examples: Examples, splits: dict[str, Sequence[Record]]) -> None:
        """Sets the iterator of training batches, and the batches of a validation set."""
        rows, size = sharding.rows(self.mesh), self.config.data.batch_size
        self.shares = size / len(rows(size))  # of a batch, this process holds one
        self.batches = pipeline.train_iterator(examples, splits["train"], rows)
        self.mixture = splits["train"] if isinstance(splits["train"], Mixture) else None
        self.sets = {name: summary.line(examples, splits[name])
                     for name in ("train", "validation") if len(splits[name])}  # fmt: skip
        self.held_out = None
        if len(splits["validation"]):
            self.held_out = pipeline.eval_batches(examples, splits["validation"], rows)

    def _open_state(self, folder: Folder, start: Start | None) -> TrainState:
        """Sets the train state, restored or at step 0, and its step; commits the run folder.

        Returns where the state lies.
        """
        like = self.setup.abstract_state()
        place = jax.tree.map(lambda x: x.sharding, like)
        if folder.old is not None:
            self.checkpoints = Checkpoints(self.workdir, self.config.checkpoint)
            self.step, self.state = self._restore(folder, like, place)
            folder.commit(self.config, self.tokenizer)
        else:
            if start is None:
                self._check_new()
            folder.commit(self.config, self.tokenizer)
            self.checkpoints = Checkpoints(self.workdir, self.config.checkpoint)
            self.step, self.state = 0, self._first(start, place)
        return place

    def _measured(self) -> dict[str, float]:
        """What an evaluation has, by that of a batch of which the model says nothing but zeros."""
        params = self.setup.abstract_params()

        def zeros(params, batch):
            found = jax.eval_shape(self.eval_step, params, batch)
            found = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), found)
            return (*found[:2], found[2] | (about(batch) if found[2] else {}))

        empty = lambda params, records: [{"text": "", "score": 0.0} for _ in records]
        write = empty if self.config.eval.scores else None
        with sharding.activate(self.mesh):
            found = evaluate(zeros, params, self.held_out, self.mesh, 1, write)
        return {f"eval_{name}": value for name, value in found.values.items()}

    def _check_new(self) -> None:
        """Refuses to train nothing but adapters of random weights; tells of other frozen ones."""
        frozen = [path for path, group in self.setup.groups.items() if not group.rate]
        adapters = [path for path in self.setup.groups if re.fullmatch(groups.ADAPTERS, path)]
        if frozen and len(frozen) + len(adapters) == len(self.setup.groups):
            raise ConfigError(f"model.lora_rank={self.config.model.lora_rank}: "
                              f"--workdir={self.workdir} holds no run, and adapters of random "
                              "weights would learn little; begin with a model "
                              "(init_from=HF_FOLDER, or import --from=HF_FOLDER --workdir=… "
                              "first), or set model.lora_rank=0")
        if frozen:
            self.reporter.note(f"frozen at random values: {', '.join(frozen)}")

    def _restore(self, folder: Folder, like: TrainState, place) -> tuple[int, TrainState]:
        """The newest sound checkpoint's state, the data iterator set behind its last batch."""
        same = same_run(self.workdir, self.config)
        with sharding.activate(self.mesh):  # as a save is, which then compiles nothing new
            wanted = self.setup.reading(split(like))
            restored = self.checkpoints.restore(wanted, accept=same)
        if restored is None:
            raise folder.lost()
        step, items, meta = restored
        state = join(items) if step else self._begin(items["params"], place)
        check_steps(configs.from_dict(meta["config"]), self.config, step, int(state.skipped))
        if meta["data"]:  # imported parameters have seen none
            self.batches.set_state(meta["data"])
        self.reporter.note(f"resuming from step {step}")
        return step, state

    def _first(self, start: Start | None, place: TrainState) -> TrainState:
        """The state at step 0; one that begins with given parameters is saved."""
        if start is None:
            return self.setup.draw_state(place)
        origin = start.origin
        family = f" ({origin['family']})" if origin["family"] else ""
        unused = f"; unused: {', '.join(origin['unused'])}" if origin["unused"] else ""
        self.reporter.note(f"init_from: {origin['from']}{family}{unused}")
        state = self._begin(self.setup.put(start.params), place)
        meta = describe(self.workdir, self.config, None)
        self.checkpoints.save(0, {"params": state.params}, meta)
        return state

    def _begin(self, params: Any, place: TrainState) -> TrainState:
        """The state at step 0 of a checkpoint's parameters; tells which of its own are new."""
        given = {groups.name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        told = lambda name: name in given or re.fullmatch(groups.QUANTIZED, name)  # of those given
        new = [name for name in self.setup.groups if not told(name)]
        names = [name for name in new if not re.fullmatch(groups.ADAPTERS, name)]
        if lora := len(new) - len(names):
            names.append(f"{lora} arrays of LoRA")
        if names:
            self.reporter.note(f"drawn anew from seed={self.config.seed}: {', '.join(names)}")
        return self.setup.draw_state(place, params)

    def facts(self) -> dict[str, Any]:
        """Model, data, batch, optimizer and mesh in words, to be shown before the first step."""
        m, d, o = self.config.model, self.config.data, self.config.optimizer
        count = sum(x.size for x in jax.tree.leaves(self.state.params))
        split = {k: v for k, v in self.mesh.shape.items() if v > 1}
        kind = self.mesh.devices.flat[0].device_kind
        return {
            "model": f"{count:,} parameters: {m.kind}, {m.num_layers} layers, {m.embed_dim} wide, "
            f"{m.num_heads} heads, {m.dtype}",
            "data": f"{d.train}, {self.config.tokenizer.name} tokenizer of "
            f"{self.tokenizer.vocab_size:,}",
            **self.sets,
            **({"labels": labels.some(d.labels)} if d.labels else {}),
            "batch": f"{d.batch_size} sequences of {m.max_length} tokens"
            + " at most" * lengths.vary(self.config),
            "optimizer": f"{o.name}, learning rate {o.learning_rate:g}, {o.schedule}",
            "mesh": f"{self.mesh.size} x {kind}" + f" {split}" * bool(split),
            "run folder": str(self.workdir),
        }

    def run(self) -> dict[str, Any]:
        """Trains to train.steps, or until SIGTERM or Ctrl-C, then saves; returns a summary.

        Until the first step is done neither is caught: there is nothing to save.

        Raises:
          Diverged: after train.max_nonfinite steps in a row that were not finite.
          Restart: the disk is full.
        """
        # Signals are heard once there is a step to save (_first_step).
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self.reporter.start(self.facts(), self.step, self.config.train.steps)
        try:
            self._train()
            self._close()
            if jax.process_index() == 0:
                plot(self.workdir)
        except BaseException as error:
            # Closing waits for all processes of a job, of which some may have failed.
            if not self.several:
                with hushed(), suppress(Exception):  # the first error says it
                    self._close()
            if is_full(error):
                raise Restart(self._full()) from error
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        losses = self.checkpoints.losses
        if losses and (best := self.checkpoints.best()) != self.step:
            why = f"eval.patience={self.config.eval.patience}: " * self.out_of_patience
            self.reporter.note(f"{why}the best {self.config.eval.metric} is that of step {best}, "
                               "which --step=best reads")
        if self.mixture:
            last = {name: value for name, value in self.metrics.last.items() if "/" in name}
            self.reporter.note("drawn: " + ", ".join(f"{k} {v:.2%}" for k, v in last.items()))
        finished = self.out_of_patience or self.step >= self.config.train.steps
        return self.metrics.last | {"step": self.step, "finished": finished}

    def _train(self) -> None:
        steps = self.config.train.steps
        self.profile(StepInfo(self.step, False, {}, self))
        with hushed(), sharding.activate(self.mesh):
            while self.step < steps and not self.out_of_patience and not self._told_to_stop():
                self._step()
            if self.step not in self.checkpoints.steps():
                self.save()
        self.checkpoints.wait()

    def _step(self) -> None:
        """One step; nothing here waits for the device except the first time and to log."""
        with self.meter.timing("input"):
            batch = next(self.batches)
        numbers = np.uint32(self.config.seed), np.float32(self.config.optimizer.learning_rate)
        self.state, metrics = self.train_step(
            self.state, sharding.put(batch, self.mesh), *numbers
        )
        self.step += 1
        if self.compiling:
            self._first_step(metrics)
        else:
            self.meter.tokens += int(int(objectives.tokens(batch)) * self.shares)
        info = StepInfo(self.step, self.step == self.config.train.steps, metrics, self)
        for hook in self.hooks:
            hook(info)

    def _first_step(self, metrics: dict) -> None:
        jax.block_until_ready(metrics)
        self.compiling = False
        # SIGTERM to one of several is heard by JAX, which has them agree on a step to stop at.
        for number in (signal.SIGINT,) if self.several else (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        self.reporter.note(f"first step done after {time.perf_counter() - llm_jax.BEGAN:.1f} s")
        self.meter.restart()

    # Hooks, in their order.

    def profile(self, info: StepInfo) -> None:
        """Traces the steps of train.profile_steps, for XProf, TensorBoard or Perfetto."""
        start, stop = self.config.train.profile_steps or (None, None)
        if self.profiling and info.step == stop:
            jax.block_until_ready(info.metrics)
            self._end_profile()
        if info.step == start and jax.process_index() == 0:
            jax.profiler.start_trace(self.workdir / "profile")
            self.profiling = True

    def _end_profile(self) -> None:
        if self.profiling:
            jax.profiler.stop_trace()
            self.profiling = False

    def measure(self, info: StepInfo) -> None:
        """Fetches the metrics of a step that is logged."""
        every, evaluated = self.config.train.log_every, self._evaluated(info)
        if info.step == 1 or info.due(every) or evaluated:
            self._read(info)

    def validate(self, info: StepInfo) -> None:
        """Adds the means over the validation set, every eval.every steps."""
        if self._evaluated(info):
            info.values |= {f"eval_{k}": v for k, v in self.evaluate().values.items()}

    def log(self, info: StepInfo) -> None:
        """Writes and shows info.values."""
        if not info.values:
            return
        if "loss" not in info.values:  # a hook's own, at a step that is logged for them
            self._read(info)
        self.metrics.write(info.step, info.values)
        self.reporter.progress(info.step, info.values)
        self.meter.restart()

    def stop_if_diverged(self, info: StepInfo) -> None:
        """Ends a run after train.max_nonfinite steps in a row that were not finite.

        A step is looked at when the next has been handed to the device, so that neither waits for
        the other; one that is logged, at once.
        """
        this = info.step, info.metrics["skipped_in_a_row"]
        look_at, self.unchecked = (this if info.values else self.unchecked), this
        if look_at is None:
            return
        step, count, limit = look_at[0], int(look_at[1]), self.config.train.max_nonfinite
        if count >= limit:
            raise Diverged(
                f"step {step}: loss or gradient not finite for {count} steps in a row "
                f"(train.max_nonfinite={limit}). The checkpoints, steps "
                f"{self.checkpoints.steps()}, hold finite parameters. Try a lower "
                "optimizer.learning_rate or a longer optimizer.warmup_steps in a new run"
            )

    def keep(self, info: StepInfo) -> None:
        """Saves every checkpoint.every steps, and what is among the best by eval.metric."""
        self.checkpoints.check()
        cost = self.cost(info.values) if self._evaluated(info) else None
        self.costs += [] if cost is None else [cost]
        best = cost is not None and self.checkpoints.is_best(cost)
        if best or info.due(self.config.checkpoint.every):
            self.save(cost)

    def cost(self, values: dict[str, float]) -> float:
        """Returns eval.metric of an evaluation so that less is better: an accuracy is negative."""
        name = self.config.eval.metric
        if f"eval_{name}" not in values:
            names = [key.removeprefix("eval_") for key in values if key.startswith("eval_")]
            raise ConfigError(f"eval.metric={name!r}: an evaluation has {', '.join(names)}")
        value = values[f"eval_{name}"]
        if value is None or not math.isfinite(value):  # None: so it is logged
            return math.inf
        return value if name in COSTS or name.endswith("loss") else -value

    @property
    def out_of_patience(self) -> bool:
        """Whether eval.patience evaluations in a row have not been better than one before them."""
        worse = len(self.costs) - self.costs.index(min(self.costs)) - 1 if self.costs else 0
        return 0 < self.config.eval.patience <= worse

    def _evaluated(self, info: StepInfo) -> bool:
        return self.held_out is not None and info.due(self.config.eval.every)

    def _read(self, info: StepInfo) -> None:
        own = {k: v.item() for k, v in jax.device_get(info.metrics).items()}
        info.values = own | self.meter.read() | info.values
        if self.mixture:
            info.values |= self.mixture.drawn(gathered(self.batches.get_state(), self.config))

    # What hooks and callers use.

    def params(self, here: bool = False) -> Any:
        """The parameters to evaluate and sample with: the average where one is kept.

        here: this process can use them alone, which of several takes all to call this.
        """
        params = self.state.params if self.state.ema is None else self.state.ema
        if here and self.several:
            return multihost_utils.process_allgather(params, tiled=True)
        return params

    def evaluate(self) -> Evaluation:
        """Means and scores over the validation set."""
        limit = self.config.eval.max_batches
        write = self.setup.writer(self.tokenizer) if self.config.eval.scores else None
        return evaluate(self.eval_step, self.params(), self.held_out, self.mesh, limit, write)

    def save(self, cost: float | None = None) -> None:
        """Starts writing a checkpoint of this step, of that `cost`."""
        data = gathered(self.batches.get_state(), self.config)
        meta = describe(self.workdir, self.config, data)
        with self.meter.timing("other"):
            self.checkpoints.save(self.step, split(self.state), meta, cost)

    # The end.

    def _stop(self, number, _frame):
        if self.stopping:  # asked twice: at once
            raise KeyboardInterrupt
        self.stopping = True
        self.reporter.note(f"{signal.Signals(number).name}: saving and stopping")
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)

    def _told_to_stop(self) -> bool:
        """Whether this step is the last; the same on all processes, whichever was told."""
        if not self.several:
            return self.stopping
        if multihost_utils.reached_preemption_sync_point(self.step):
            self.reporter.note(f"SIGTERM: saving and stopping at step {self.step}")
            return True
        return False

    def _close(self) -> None:
        """Finishes writing profile, metrics and checkpoints, and lets go of the folder."""
        self._end_profile()
        self.metrics.close()
        self.checkpoints.close()
        self.folder.close()

    def _full(self) -> str:
        steps = self.checkpoints.complete()
        last = f"the last good checkpoint is step {steps[-1]}" if steps else "nothing was saved yet"
        return (f"--workdir={self.workdir}: the disk is full at step {self.step}; {last}. Free "
                "some space, and the same command goes on from there")


def check_steps(old: ConfigDict, new: ConfigDict, step: int, skipped: int = 0) -> None:
    """Refuses train.steps that would end before `step`, or have the learning rate jump there.

    A schedule that has not begun to depend on the number of steps may go on: constant,
    inverse_sqrt, any in its warm-up, wsd before its decay.

    Args:
      old: the config with which the checkpoint of `step` was saved.
      skipped: steps among them that the optimizer has not taken.
    """
    steps, were = new.train.steps, old.train.steps
    if steps < step:
        raise ConfigError(f"train.steps={steps}: the run has reached step {step} already; nothing "
                          "is left to train. Its checkpoints can be read with --step, or "
                          f"train.steps={step} or more given")
    if steps == were or step == 0:
        return
    before, after = (float(schedule(config)(step - skipped)) for config in (old, new))
    if abs(before - after) > JUMP * max(before, after):
        raise ConfigError(f"train.steps={steps}: was {were} until step {step}, and the learning "
                          f"rate of optimizer.schedule={new.optimizer.schedule!r} would jump there "
                          f"from {before:.1e} to {after:.1e}. Keep train.steps={were}, or train "
                          "anew: only constant, inverse_sqrt, and wsd before its decay, can change "
                          "their end on the way")
