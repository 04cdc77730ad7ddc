"""The training loop: steps, hooks, evaluation, metrics and resumable checkpoints."""

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
from llm_jax.console import counted
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

COSTS = ("perplexity", "bits_per_byte", "mse")  # metrics to minimise, besides all losses
JUMP = 0.01  # tolerated relative change of the learning rate on resuming


class Reporter:
    """Receives the messages of the loop. This one drops them; console.Reporter prints them."""

    def start(self, facts: dict[str, Any], step: int, steps: int) -> None: ...
    def note(self, text: str) -> None: ...
    def progress(self, step: int, values: dict[str, float]) -> None: ...


@dataclasses.dataclass
class StepInfo:
    """The argument of hooks, which are called after every step.

    Attributes:
      step: number of steps taken, this one included; `last`: whether it is the last of train.steps.
      metrics: scalars of the step, on the device: reading one blocks until it is computed.
      values: values to log for this step; hooks before `Trainer.log` may add some at any step. At
        logging steps they already include `metrics`.
      trainer: the Trainer. Its state is donated to the next step: do not keep references to it.
    """

    step: int
    last: bool
    metrics: dict[str, jax.Array]
    trainer: "Trainer"
    values: dict[str, float] = dataclasses.field(default_factory=dict)

    def due(self, every: int) -> bool:
        """Returns whether an action that runs every `every` steps, and after the last, is due."""
        return self.last or self.step % every == 0


Hook = Callable[[StepInfo], None]


class Trainer:
    """A training run: the constructor loads and validates it, `run` trains it.

    Uses all devices unless `devices` is given. `accept(setup, tokenizer)` can raise to reject the
    run before anything is written. `make_step(trainer)` returns a replacement of
    `setup.train_step`, see `llm_jax.privacy`.

    Attributes:
      hooks: functions called in order after each step. Hooks of the constructor run before
        logging, so that the values they add are logged; appended hooks run after checkpointing.

    Raises:
      ConfigError: an invalid run, before the first compilation and before any file changes.
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
            raise ConfigError(f"init_from={config.init_from!r}: a new run needs the result of "
                              "hub.runs.start as the Trainer's argument `start`")
        objective = objectives.get(config.objective.name)
        splits = objective.splits(config)
        self.tokenizer = folder.tokenizer(config, splits["train"], start)
        self.setup = Setup(config, self.mesh)
        if (config.privacy.clip or config.distill.teacher) and make_step is None:
            raise ConfigError("privacy.clip, distill.teacher: the Trainer needs the make_step of "
                              "llm_jax.privacy or llm_jax.compress.distill")
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
        self.costs = [self.cost(row) for row in rows]  # one per evaluation
        self.unchecked: tuple[int, jax.Array] | None = None  # (step, skipped_in_a_row)
        # Log before checkpointing: metrics.jsonl then covers all steps up to any checkpoint.
        self.hooks: list[Hook] = [
            self.profile, self.measure, self.validate, *hooks, self.log,
            self.stop_if_diverged, self.keep,
        ]  # fmt: skip

    def _open_data(self, examples: Examples, splits: dict[str, Sequence[Record]]) -> None:
        """Sets the training data iterator and the validation batches."""
        rows, size = sharding.rows(self.mesh), self.config.data.batch_size
        self.shares = size / len(rows(size))  # this process holds 1 / shares of a batch
        self.batches = pipeline.train_iterator(examples, splits["train"], rows)
        self.mixture = splits["train"] if isinstance(splits["train"], Mixture) else None
        self.sets = {name: summary.line(examples, splits[name])
                     for name in ("train", "validation") if len(splits[name])}  # fmt: skip
        self.held_out = None
        if len(splits["validation"]):
            self.held_out = pipeline.eval_batches(examples, splits["validation"], rows)

    def _open_state(self, folder: Folder, start: Start | None) -> TrainState:
        """Restores or initialises the train state and commits the run folder.

        Returns the shardings of the state.
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
        """Returns the metrics of an evaluation, by evaluating one batch with zero outputs."""
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
        """Raises ConfigError for LoRA on random weights; reports other frozen random weights."""
        frozen = [path for path, group in self.setup.groups.items() if not group.rate]
        adapters = [path for path in self.setup.groups if re.fullmatch(groups.ADAPTERS, path)]
        if frozen and len(frozen) + len(adapters) == len(self.setup.groups):
            raise ConfigError(f"model.lora_rank={self.config.model.lora_rank}: "
                              f"--workdir={self.workdir} holds no run, and adapters on random "
                              "weights learn little; start from a model (init_from=HF_FOLDER, or "
                              "import --from=HF_FOLDER --workdir=… first), or set "
                              "model.lora_rank=0")
        if frozen:
            self.reporter.note(f"frozen at random values: {', '.join(frozen)}")

    def _restore(self, folder: Folder, like: TrainState, place) -> tuple[int, TrainState]:
        """Restores the newest sound checkpoint and the position of the data iterator."""
        same = same_run(self.workdir, self.config)
        with sharding.activate(self.mesh):  # as in saves, to share compiled functions
            wanted = self.setup.reading(split(like))
            restored = self.checkpoints.restore(wanted, accept=same)
        if restored is None:
            raise folder.lost()
        step, items, meta = restored
        state = join(items) if step else self._begin(items["params"], place)
        check_steps(configs.from_dict(meta["config"]), self.config, step, int(state.skipped))
        if meta["data"]:  # none for an import
            self.batches.set_state(meta["data"])
        self.reporter.note(f"resuming from step {step}")
        return step, state

    def _first(self, start: Start | None, place: TrainState) -> TrainState:
        """Initialises the state at step 0; saves it if it starts from given parameters."""
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
        """Initialises the state from a checkpoint's parameters; reports new parameters."""
        given = {groups.name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        told = lambda name: name in given or re.fullmatch(groups.QUANTIZED, name)  # was given
        new = [name for name in self.setup.groups if not told(name)]
        names = [name for name in new if not re.fullmatch(groups.ADAPTERS, name)]
        if lora := len(new) - len(names):
            names.append(counted(lora, "LoRA arrays"))
        if names:
            self.reporter.note(f"initialised from seed={self.config.seed}: {', '.join(names)}")
        return self.setup.draw_state(place, params)

    def facts(self) -> dict[str, Any]:
        """Describes model, data, batch, optimizer and mesh, for display before the first step."""
        m, d, o = self.config.model, self.config.data, self.config.optimizer
        count = sum(x.size for x in jax.tree.leaves(self.state.params))
        split = {k: v for k, v in self.mesh.shape.items() if v > 1}
        kind = self.mesh.devices.flat[0].device_kind
        return {
            "model": f"{count:,} parameters: {m.kind}, {counted(m.num_layers, 'layers')}, "
            f"{m.embed_dim} wide, {counted(m.num_heads, 'heads')}, {m.dtype}",
            "data": f"{d.train}, {self.config.tokenizer.name} tokenizer of "
            f"{self.tokenizer.vocab_size:,}",
            **self.sets,
            **({"labels": labels.some(d.labels)} if d.labels else {}),
            "batch": f"{counted(d.batch_size, 'sequences')} of {m.max_length} tokens"
            + " at most" * lengths.vary(self.config),
            "optimizer": f"{o.name}, learning rate {o.learning_rate:g}, {o.schedule}",
            "mesh": f"{self.mesh.size} x {kind}" + f" {split}" * bool(split),
            "run folder": str(self.workdir),
        }

    def run(self) -> dict[str, Any]:
        """Trains to train.steps, or until SIGTERM or Ctrl-C, then saves; returns a summary.

        The signals are handled after the first step; before it there is nothing to save.

        Raises:
          Diverged: train.max_nonfinite consecutive steps were not finite.
          Restart: the disk is full.
        """
        # Signal handlers are installed once there is a step to save (_first_step).
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self.reporter.start(self.facts(), self.step, self.config.train.steps)
        try:
            self._train()
            self._close()
            if jax.process_index() == 0:
                plot(self.workdir)
        except BaseException as error:
            # Closing waits for all processes of a job, some of which may have failed.
            if not self.several:
                with hushed(), suppress(Exception):  # the first error is raised below
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
            self.reporter.note(f"{why}the best {self.config.eval.metric} is at step {best}; "
                               "--step=best reads it")
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
        """Runs one step; blocks on the device only in the first step and for logging."""
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
        # With several processes, JAX handles SIGTERM, and they agree on a step to stop at.
        for number in (signal.SIGINT,) if self.several else (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        self.reporter.note(f"first step done after {time.perf_counter() - llm_jax.BEGAN:.1f} s")
        self.meter.restart()

    # Hooks, in the order of their calls.

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
        """Fetches the metrics of a step to be logged."""
        every, evaluated = self.config.train.log_every, self._evaluated(info)
        if info.step == 1 or info.due(every) or evaluated:
            self._read(info)

    def validate(self, info: StepInfo) -> None:
        """Evaluates on the validation set every eval.every steps."""
        if self._evaluated(info):
            info.values |= {f"eval_{k}": v for k, v in self.evaluate().values.items()}

    def log(self, info: StepInfo) -> None:
        """Logs info.values to files and to the reporter."""
        if not info.values:
            return
        if "loss" not in info.values:  # a step that is logged only for the values of a hook
            self._read(info)
        self.metrics.write(info.step, info.values)
        self.reporter.progress(info.step, info.values)
        self.meter.restart()

    def stop_if_diverged(self, info: StepInfo) -> None:
        """Raises Diverged after train.max_nonfinite consecutive non-finite steps.

        A step is checked after the next one has been dispatched, so that the device does not idle;
        a logged step is checked immediately.
        """
        this = info.step, info.metrics["skipped_in_a_row"]
        look_at, self.unchecked = (this if info.values else self.unchecked), this
        if look_at is None:
            return
        step, count, limit = look_at[0], int(look_at[1]), self.config.train.max_nonfinite
        if count >= limit:
            raise Diverged(
                f"step {step}: loss or gradient not finite for {counted(count, 'steps')} in a row "
                f"(train.max_nonfinite={limit}). The checkpoints, steps "
                f"{self.checkpoints.steps()}, hold finite parameters. Try a lower "
                "optimizer.learning_rate or a longer optimizer.warmup_steps in a new run"
            )

    def keep(self, info: StepInfo) -> None:
        """Saves every checkpoint.every steps, and if eval.metric is among the best."""
        self.checkpoints.check()
        cost = self.cost(info.values) if self._evaluated(info) else None
        self.costs += [] if cost is None else [cost]
        best = cost is not None and self.checkpoints.is_best(cost)
        if best or info.due(self.config.checkpoint.every):
            self.save(cost)

    def cost(self, values: dict[str, float]) -> float:
        """Returns eval.metric as a cost, lower is better: an accuracy is negated."""
        name = self.config.eval.metric
        if f"eval_{name}" not in values:
            names = [key.removeprefix("eval_") for key in values if key.startswith("eval_")]
            raise ConfigError(f"eval.metric={name!r}: available are {', '.join(names)}")
        value = values[f"eval_{name}"]
        if value is None or not math.isfinite(value):  # non-finite values are logged as None
            return math.inf
        return value if name in COSTS or name.endswith("loss") else -value

    @property
    def out_of_patience(self) -> bool:
        """Whether the last eval.patience evaluations did not improve on an earlier one."""
        worse = len(self.costs) - self.costs.index(min(self.costs)) - 1 if self.costs else 0
        return 0 < self.config.eval.patience <= worse

    def _evaluated(self, info: StepInfo) -> bool:
        return self.held_out is not None and info.due(self.config.eval.every)

    def _read(self, info: StepInfo) -> None:
        own = {k: v.item() for k, v in jax.device_get(info.metrics).items()}
        info.values = own | self.meter.read() | info.values
        if self.mixture:
            info.values |= self.mixture.drawn(gathered(self.batches.get_state(), self.config))

    # Methods for hooks and callers.

    def params(self, here: bool = False) -> Any:
        """Returns the parameters for evaluation and sampling: their moving average if there is one.

        here: gathers them to this process; a collective call of all processes.
        """
        params = self.state.params if self.state.ema is None else self.state.ema
        if here and self.several:
            return multihost_utils.process_allgather(params, tiled=True)
        return params

    def evaluate(self) -> Evaluation:
        """Evaluates on the validation set."""
        limit = self.config.eval.max_batches
        write = self.setup.writer(self.tokenizer) if self.config.eval.scores else None
        return evaluate(self.eval_step, self.params(), self.held_out, self.mesh, limit, write)

    def save(self, cost: float | None = None) -> None:
        """Starts saving a checkpoint of this step; cost: of its evaluation, if any."""
        data = gathered(self.batches.get_state(), self.config)
        meta = describe(self.workdir, self.config, data)
        with self.meter.timing("other"):
            self.checkpoints.save(self.step, split(self.state), meta, cost)

    # Shutdown.

    def _stop(self, number, _frame):
        if self.stopping:  # a second signal stops immediately
            raise KeyboardInterrupt
        self.stopping = True
        self.reporter.note(f"{signal.Signals(number).name}: saving and stopping")
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)

    def _told_to_stop(self) -> bool:
        """Whether to stop after this step; the same on all processes, whichever got the signal."""
        if not self.several:
            return self.stopping
        if multihost_utils.reached_preemption_sync_point(self.step):
            self.reporter.note(f"SIGTERM: saving and stopping at step {self.step}")
            return True
        return False

    def _close(self) -> None:
        """Finishes writing profile, metrics and checkpoints, and releases the folder."""
        self._end_profile()
        self.metrics.close()
        self.checkpoints.close()
        self.folder.close()

    def _full(self) -> str:
        steps = self.checkpoints.complete()
        last = f"the last complete checkpoint is step {steps[-1]}" if steps else "no checkpoint yet"
        return (f"--workdir={self.workdir}: the disk is full at step {self.step}; {last}. Free "
                "some space; the same command then resumes the run")


def check_steps(old: ConfigDict, new: ConfigDict, step: int, skipped: int = 0) -> None:
    """Raises ConfigError if train.steps ends before `step`, or makes the learning rate jump.

    Schedules that do not yet depend on the number of steps can be extended: constant,
    inverse_sqrt, any schedule in its warm-up, wsd before its decay.

    Args:
      old: the config of the checkpoint at `step`.
      skipped: number of those steps that the optimizer skipped.
    """
    steps, were = new.train.steps, old.train.steps
    if steps < step:
        raise ConfigError(f"train.steps={steps}: the run has already reached step {step}. Read a "
                          f"checkpoint with --step, or set train.steps={step} or more")
    if steps == were or step == 0:
        return
    before, after = (float(schedule(config)(step - skipped)) for config in (old, new))
    if abs(before - after) > JUMP * max(before, after):
        raise ConfigError(f"train.steps={steps}: was {were} until step {step}, and the learning "
                          f"rate of optimizer.schedule={new.optimizer.schedule!r} would jump there "
                          f"from {before:.1e} to {after:.1e}. Keep train.steps={were}, or start a "
                          "new run from its weights, --workdir=NEW --config.init_from=THIS_RUN: "
                          "only constant, inverse_sqrt, and wsd before its decay can be extended")
