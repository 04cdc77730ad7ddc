"""The training loop: batches in, metrics and checkpoints out, resumable at any moment."""

import signal
import time
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from llm_jax import sharding
from llm_jax.data import pipeline, sources
from llm_jax.models.flops import train_flops
from llm_jax.sharding.hardware import peak_flops
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.evaluate import evaluate
from llm_jax.train.metrics import Metrics, plot, read
from llm_jax.train.run import Setup, prepare
from llm_jax.train.state import make_eval_step, make_train_step


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Reporter(Protocol):
    """What the loop tells while it runs; launch.py shows it, tests may be silent."""

    def start(self, facts: dict[str, Any], step: int, steps: int) -> None: ...
    def note(self, text: str) -> None: ...
    def progress(self, step: int, values: dict[str, float]) -> None: ...
    def stop(self) -> None: ...


class Trainer:
    """One run: loaded and checked by the constructor, trained by `run`."""

    def __init__(self, config: ConfigDict, workdir: str | Path, reporter: Reporter):
        self.began = time.perf_counter()
        self.config, self.workdir, self.reporter = config, Path(workdir), reporter
        sharding.check(config, sharding.make_mesh(config.mesh))
        splits = sources.splits(config)
        self.tokenizer = prepare(config, workdir, splits["train"])
        self.setup = Setup(config)
        self.mesh = self.setup.mesh
        share = (jax.process_index(), jax.process_count())
        self.batches = pipeline.train_iterator(config, self.tokenizer, splits["train"], *share)
        self.held_out = None
        if len(splits["validation"]):
            self.held_out = pipeline.eval_batches(
                config, self.tokenizer, splits["validation"], *share
            )
        self.checkpoints = Checkpoints(workdir, config.checkpoint)
        self.stopping = False
        self._start()

    def _start(self) -> None:
        """Restores the newest checkpoint, or draws the first state."""
        config, setup = self.config, self.setup
        like = setup.abstract_state()
        place = jax.tree.map(lambda x: x.sharding, like)
        found = self.checkpoints.restore(like)
        if found:
            self.step, self.state, meta = found
            self.batches.set_state(meta["data"])
            self.reporter.note(f"resuming from step {self.step}")
        else:
            with sharding.activate(self.mesh):
                self.step, self.state = 0, jax.jit(setup.init, out_shardings=place)()
        self.train_step = jax.jit(
            make_train_step(setup.model, setup.objective, setup.tx, config),
            donate_argnums=0,
            out_shardings=(place, None),
        )
        self.eval_step = jax.jit(make_eval_step(setup.model, setup.objective, config))
        tokens = config.data.batch_size * config.model.max_length
        flops = train_flops(config.model, config.data.batch_size, config.model.max_length)
        peak = peak_flops(self.mesh.devices.flat[0])
        self.mfu_per_rate = flops / tokens / (peak * self.mesh.size) if peak else None
        self.metrics = Metrics(self.workdir, self.step)
        evaluated = [row["eval_loss"] for row in read(self.workdir) if row.get("eval_loss")]
        self.best = min(evaluated, default=float("inf"))

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
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        self.reporter.start(self.facts(), self.step, self.config.train.steps)
        self.mark, self.tokens, self.pending, self.unmeasured = time.perf_counter(), 0, None, True
        try:
            with sharding.activate(self.mesh):
                while self.step < self.config.train.steps and not self.stopping:
                    self._step()
                self._flush()
                if self.step not in self.checkpoints.steps():
                    self.save()
            self.checkpoints.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.reporter.stop()
            self.checkpoints.close()
            self.metrics.close()
        if jax.process_index() == 0:
            plot(self.workdir)
        last = {k: v for row in read(self.workdir) for k, v in row.items()}
        return last | {"step": self.step, "finished": self.step >= self.config.train.steps}

    def _stop(self, number, _frame):
        if self.stopping:  # asked twice: at once
            raise KeyboardInterrupt
        self.stopping = True
        self.reporter.note(f"{signal.Signals(number).name}: saving and stopping")

    def _step(self) -> None:
        config, first = self.config, self.unmeasured
        batch = next(self.batches)
        self.state, metrics = self.train_step(self.state, sharding.put(batch, self.mesh))
        self.step += 1
        # The numbers of a step are fetched only once the next one is under way.
        self._flush()
        self.tokens += int(np.count_nonzero(batch["weights"])) * jax.process_count()
        if first or self._due(config.train.log_every):
            self.pending = (self.step, metrics)
        if first:
            self._flush()
        evaluated = None
        if self.held_out is not None and self._due(config.eval.every):
            self._flush()
            evaluated = self.evaluate()["loss"]
            self.mark, self.tokens = time.perf_counter(), 0
        best = evaluated is not None and evaluated < self.best
        if best:
            self.best = evaluated
        if self._due(config.checkpoint.every) or (best and config.checkpoint.keep_best):
            self.save(evaluated)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.train.steps

    def _flush(self) -> None:
        """Logs the step whose numbers are pending."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        values = {k: v.item() for k, v in jax.device_get(metrics).items()}
        now = time.perf_counter()
        if self.unmeasured:
            values["seconds_to_first_step"] = now - self.began
            self.unmeasured = False
        else:
            rate = self.tokens / (now - self.mark)
            values["tokens_per_second"] = rate
            values["mfu"] = rate * self.mfu_per_rate if self.mfu_per_rate else None
        self.mark, self.tokens = now, 0
        self.metrics.write(step, **values)
        self.reporter.progress(step, values)
        if values["skipped_in_a_row"] >= self.config.train.max_nonfinite:
            raise Diverged(
                f"step {step}: loss or gradient not finite for {values['skipped_in_a_row']} steps "
                f"in a row (train.max_nonfinite={self.config.train.max_nonfinite}); the newest "
                f"checkpoint, step {max(self.checkpoints.steps(), default=0)}, is from before or "
                "holds the last finite parameters. Try a lower optimizer.learning_rate or a longer "
                "optimizer.warmup_steps"
            )

    def params(self) -> Any:
        """The parameters to evaluate and sample with: the average where one is kept."""
        return self.state.params if self.state.ema is None else self.state.ema

    def evaluate(self) -> dict[str, float]:
        """Means over the validation set, written to the metrics as eval_…."""
        values = evaluate(
            self.eval_step, self.params(), self.held_out, self.mesh, self.config.eval.max_batches
        )
        self.metrics.write(self.step, **{f"eval_{k}": v for k, v in values.items()})
        self.reporter.progress(self.step, {f"eval_{k}": v for k, v in values.items()})
        return values

    def save(self, loss: float | None = None) -> None:
        """Starts writing a checkpoint of this step."""
        folder = self.workdir / "tokenizer"
        meta = {
            "data": self.batches.get_state(),
            "config": self.config.to_dict(),
            "tokenizer": {f.name: f.read_bytes().decode("latin-1") for f in folder.iterdir()},
        }
        self.checkpoints.save(self.step, self.state, meta, loss)
