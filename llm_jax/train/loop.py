"""The training loop: batches in, metrics and checkpoints out, resumable at any moment."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import llm_jax
from llm_jax import objectives, sharding
from llm_jax.data import pipeline
from llm_jax.sharding.hardware import peak_flops
from llm_jax.train import Diverged
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.evaluate import evaluate
from llm_jax.train.metrics import Meter, Metrics, plot
from llm_jax.train.profile import Profile
from llm_jax.train.run import Folder, Setup, agree, describe, flops_per_token, gathered
from llm_jax.train.state import TrainState, make_eval_step, make_train_step


class Reporter(Protocol):
    """What the loop tells while it runs; launch.py shows it, tests may be silent."""

    def start(self, facts: dict[str, Any], step: int, steps: int) -> None: ...
    def note(self, text: str) -> None: ...
    def progress(self, step: int, values: dict[str, float]) -> None: ...
    def stop(self) -> None: ...


class Trainer:
    """One run: loaded and checked by the constructor, trained by `run`; all devices if not given.

    Raises:
      ConfigError: anything that cannot run, before the first compilation, with nothing changed.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | Path,
        reporter: Reporter,
        devices: list[jax.Device] | None = None,
    ):
        self.config, self.workdir, self.reporter = config, Path(workdir), reporter
        self.stopping = False
        self.several = jax.process_count() > 1
        self.compiling = True  # until the first step is done
        self.mesh = sharding.make_mesh(config.mesh, devices)
        sharding.check(config, self.mesh)
        folder = Folder(workdir)
        objective = objectives.get(config.objective.name)
        splits = objective.splits(config)
        self.tokenizer = folder.tokenizer(config, splits["train"])
        self.setup = Setup(config, self.mesh)
        rows, size = sharding.rows(self.mesh), config.data.batch_size
        self.shares = size / len(rows(size))  # of a batch, this process holds one
        examples = objective.examples(self.tokenizer, config)
        self.batches = pipeline.train_iterator(examples, splits["train"], rows)
        self.held_out = None
        if len(splits["validation"]):
            self.held_out = pipeline.eval_batches(examples, splits["validation"], rows)
        agree(config, self.tokenizer, folder.text)
        folder.commit(config, self.tokenizer)
        self.checkpoints = Checkpoints(workdir, config.checkpoint)
        like = self.setup.abstract_state()
        place = jax.tree.map(lambda x: x.sharding, like)
        self.step, self.state = self._restore(like) or (0, self.setup.draw_state(place))
        self.train_step = jax.jit(
            make_train_step(self.setup.model, self.setup.objective, self.setup.tx, config),
            donate_argnums=0,
            out_shardings=(place, None),
        )
        self.eval_step = jax.jit(make_eval_step(self.setup.model, self.setup.objective, config))
        self.metrics = Metrics(workdir, self.step, writes=jax.process_index() == 0)
        peak = peak_flops(self.mesh.devices.flat[0])
        before = self.metrics.last.get("step_seconds") or 0
        peak = peak and peak * self.mesh.size
        self.meter = Meter(flops_per_token(config), peak, llm_jax.BEGAN, before)
        self.profile = Profile(self.workdir, config.train.profile_steps)

    def _restore(self, like: TrainState) -> tuple[int, TrainState] | None:
        """The newest sound checkpoint's state, the data iterator set behind its last batch."""
        saved = self.checkpoints.steps()
        with sharding.activate(self.mesh):  # as a save is, which then compiles nothing new
            found = self.checkpoints.restore(like)
        if found is None:
            if saved:
                self.reporter.note("no checkpoint is sound: starting again from step 0")
            return None
        step, state, meta = found
        if meta["data"]:  # imported parameters have seen none
            self.batches.set_state(meta["data"])
        self.reporter.note(f"resuming from step {step}")
        return step, state

    def facts(self) -> dict[str, Any]:
        """What a user wants to see before the first step."""
        m, d, o = self.config.model, self.config.data, self.config.optimizer
        count = sum(x.size for x in jax.tree.leaves(self.state.params))
        split = {k: v for k, v in self.mesh.shape.items() if v > 1}
        return {
            "model": f"{count:,} parameters: {m.kind}, {m.num_layers} layers, {m.embed_dim} wide, "
            f"{m.num_heads} heads, {m.dtype}",
            "data": f"{d.train}, {self.config.tokenizer.name} tokenizer of "
            f"{self.tokenizer.vocab_size:,}",
            **({"labels": ", ".join(d.labels)} if d.labels else {}),
            "batch": f"{d.batch_size} sequences of {m.max_length} tokens",
            "optimizer": f"{o.name}, learning rate {o.learning_rate:g}, {o.schedule}",
            "mesh": f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind} {split or ''}",
            "run folder": str(self.workdir),
        }

    def run(self) -> dict[str, Any]:
        """Trains to train.steps, or until SIGTERM or Ctrl-C, then saves; returns a summary.

        Raises:
          Diverged: after train.max_nonfinite steps in a row that were not finite.
        """
        # SIGTERM to one of several is heard by JAX, which has them agree on a step to stop at.
        heard = (signal.SIGINT,) if self.several else (signal.SIGINT, signal.SIGTERM)
        handlers = {s: signal.signal(s, self._stop) for s in heard}
        self.reporter.start(self.facts(), self.step, self.config.train.steps)
        try:
            with sharding.activate(self.mesh):
                while self.step < self.config.train.steps and not self._told_to_stop():
                    self._step()
                if self.step not in self.checkpoints.steps():
                    self.save()
            self.checkpoints.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.reporter.stop()
            self.profile.close()
            self.metrics.close()
            if not self._alone_in_failing():
                self.checkpoints.close()
        if jax.process_index() == 0:
            plot(self.workdir)
        finished = self.step >= self.config.train.steps
        return self.metrics.last | {"step": self.step, "finished": finished}

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

    def _alone_in_failing(self) -> bool:
        """Whether to close would be to wait for others who do not come."""
        return self.several and sys.exc_info()[0] is not None

    def _step(self) -> None:
        """One step; nothing here waits for the device except the first time and to log."""
        self.profile.before(self.step)
        with self.meter.waiting():
            batch = next(self.batches)
        self.state, metrics = self.train_step(self.state, sharding.put(batch, self.mesh))
        self.step += 1
        self.profile.after(self.step, metrics)
        if self.compiling:
            self._first_step(metrics)
        else:
            self.meter.tokens += int(int(objectives.tokens(batch)) * self.shares)
        evaluating = self.held_out is not None and self._due(self.config.eval.every)
        loss = None
        if evaluating or self.step == 1 or self._due(self.config.train.log_every):
            loss = self._log(metrics, evaluating)
        # The log comes first: a checkpoint's step and all before it are in the metrics.
        if self._due(self.config.checkpoint.every) or (
            loss is not None and self.checkpoints.is_best(loss)
        ):
            self.save(loss)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.train.steps

    def _first_step(self, metrics: dict) -> None:
        jax.block_until_ready(metrics)
        self.compiling = False
        self.reporter.note(f"first step done after {time.perf_counter() - llm_jax.BEGAN:.1f} s")
        self.meter.restart()

    def _log(self, metrics: dict, evaluating: bool) -> float | None:
        """Writes the step's numbers, with those of the validation set; returns its loss."""
        values = {k: v.item() for k, v in jax.device_get(metrics).items()} | self.meter.read()
        if evaluating:
            values |= {f"eval_{k}": v for k, v in self.evaluate().items()}
        self.metrics.write(self.step, values)
        self.reporter.progress(self.step, values)
        if values["skipped_in_a_row"] >= self.config.train.max_nonfinite:
            raise Diverged(
                f"step {self.step}: loss or gradient not finite for {values['skipped_in_a_row']} "
                f"steps in a row (train.max_nonfinite={self.config.train.max_nonfinite}). "
                f"The checkpoints, steps {self.checkpoints.steps()}, hold finite parameters. Try a "
                "lower optimizer.learning_rate or a longer optimizer.warmup_steps in a new run"
            )
        self.meter.restart()
        return values.get("eval_loss")

    def params(self, here: bool = False) -> Any:
        """The parameters to evaluate and sample with: the average where one is kept.

        here: this process can use them alone, which of several takes all to call this.
        """
        params = self.state.params if self.state.ema is None else self.state.ema
        if here and self.several:
            return multihost_utils.process_allgather(params, tiled=True)
        return params

    def evaluate(self) -> dict[str, float]:
        """Means over the validation set."""
        limit = self.config.eval.max_batches
        score = self.setup.objective.score
        return evaluate(self.eval_step, self.params(), self.held_out, self.mesh, limit, score)

    def save(self, loss: float | None = None) -> None:
        """Starts writing a checkpoint of this step; `loss` is the validation loss there."""
        data = gathered(self.batches.get_state(), self.config)
        meta = describe(self.workdir, self.config, data)
        with self.meter.apart():
            self.checkpoints.save(self.step, self.state, meta, loss)
