"""Checkpoints with Orbax: asynchronous saves, retention of the newest and best, checksums.

A checkpoint is self-contained: it holds the train state, the data iterator, the config and the
tokenizer. Its items can be read separately: `params`; `ema`, the moving average, if any; `rest`,
the optimizer state and counters; and `meta`, JSON with its own digest, with the checksum of every
array.
"""

import gc
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.files import write_json
from llm_jax.train import Restart
from llm_jax.train.groups import name as path_name
from llm_jax.train.state import TrainState

log = logging.getLogger(__name__)

SAVED = "saved.json"  # marks a run folder in which a checkpoint was completed
LAYOUT = 2  # version of the checkpoint layout


def split(state: TrainState) -> dict[str, Any]:
    """Splits a state into the Orbax items of a checkpoint: params, rest and, if any, ema."""
    items = {"params": state.params, "rest": state.replace(params=None, ema=None)}
    return items | ({} if state.ema is None else {"ema": state.ema})


def join(items: dict[str, Any]) -> TrainState:
    """Joins the items of `split` into a state."""
    return items["rest"].replace(params=items["params"], ema=items.get("ema"))


# Orbax's problems reach the user as our messages, or as exceptions.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints:
    """The checkpoints of a run folder. read_only: another process may be writing to it.

    Attributes:
      losses: {step: validation loss} of the checkpoints with a known loss.
    """

    def __init__(self, workdir: str | Path, config: ConfigDict, read_only: bool = False):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self.config, self.read_only = config, read_only
        self.losses: dict[int, float] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            # Do not clean up the unfinished checkpoint of another process.
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            lightweight_initialize=True,  # allows a damaged checkpoint next to sound ones
        )
        self.manager = _Manager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def best(self) -> int:
        """Returns the best step by eval.metric; ConfigError if none has been evaluated."""
        if not self.losses:
            self.restore({})
        if not self.losses:
            raise ConfigError(f"--step=best: no step in {self.folder} has been evaluated")
        return min(self.losses, key=self.losses.get)

    def is_best(self, loss: float) -> bool:
        """Whether a checkpoint with this validation loss ranks among those to keep."""
        better = sum(other <= loss for other in self.losses.values())
        return math.isfinite(loss) and better < self.config.keep_best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's preservation policy: keep the newest and the best checkpoints."""
        kept = self._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]

    def _kept(self, steps: list[int]) -> set[int]:
        known = sorted((s for s in steps if s in self.losses), key=self.losses.get)
        return {*steps[-self.config.keep_last :], *known[: self.config.keep_best]}

    def save(self, step: int, items: dict[str, Any], meta: dict, loss: float | None = None) -> None:
        """Starts an asynchronous save; returns once the arrays are copied off the device."""
        if loss is not None and math.isfinite(loss):
            self.losses[step] = loss
        kept = self._kept([*self.steps(), step])
        self.losses = {s: loss for s, loss in self.losses.items() if s in kept}
        text = json.dumps(
            meta
            | {"layout": LAYOUT, "step": step, "losses": self.losses}
            | {"arrays": {name: _described(tree) for name, tree in items.items()}}
        )
        described = {"digest": _digest(text), "json": text}
        trees = {k: ocp.args.StandardSave(jax.tree.map(_byte, x)) for k, x in items.items()}
        args = ocp.args.Composite(meta=ocp.args.JsonSave(described), **trees)
        self.manager.save(step, args=args, force=True)  # waits for the previous save
        self._remember()

    def restore(
        self, like: dict[str, Any] | Callable[[int, dict], dict[str, Any]], step: int | None = None,
        accept: Callable[[int, dict], None] | None = None,
    ) -> tuple[int, dict[str, Any], dict] | None:
        """Returns (step, items, meta) of the newest sound checkpoint, or None if there is none.

        A damaged checkpoint is reported and moved to checkpoints-damaged/, and the previous one is
        used.

        Args:
          like: shapes, dtypes and shardings of the items to read, on any mesh; or a function that
            returns them for (step, meta).
          accept: called with (step, meta) before arrays are read; raises to reject the checkpoint.

        Raises:
          Restart: one of several processes found the checkpoint damaged.
          ConfigError: a missing or damaged step, another checkpoint version, or arrays whose shapes
            differ from `like`.
        """
        if step is not None and step not in self.steps():
            raise ConfigError(f"--step={step}: {self.folder} holds steps {self.steps()}")
        for candidate in reversed(self.steps()) if step is None else [step]:
            outcome = self._try_to_read(candidate, like, accept)
            if isinstance(outcome, str):
                self._damaged(candidate, outcome)
                continue
            items, meta = outcome
            self.losses = {int(s): loss for s, loss in meta.pop("losses").items()}
            return candidate, items, meta
        if step is not None:
            raise ConfigError(f"--step={step}: {self.folder}/{step} is damaged; try another step")
        return None

    def _try_to_read(self, step: int, like: dict | Callable, accept) -> tuple[dict, dict] | str:
        """Returns (items, meta), or the error message for a damaged checkpoint."""
        with hushed():
            try:
                return self._read(step, like, accept)
            # With out-of-memory or permission errors, the checkpoint itself may be sound.
            except (ConfigError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # any error of Orbax, TensorStore or JSON on broken files
                reason = (str(error).strip().splitlines() or [repr(error)])[0][:150]
            gc.collect()  # exceptions of other threads are printed when futures are collected,
            time.sleep(0.1)  # or when the threads end
        return reason

    def _read(self, step: int, like: dict | Callable, accept) -> tuple[dict, dict]:
        where = f"{self.folder}/{step}"
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        described = self.manager.restore(step, args=args)["meta"]
        text = described["json"]
        if _digest(text) != described["digest"]:
            raise ValueError("the digest of its JSON differs from the saved one")
        meta = json.loads(text)
        if meta.get("layout") != LAYOUT:
            raise ConfigError(f"{where}: has layout {meta.get('layout', 1)} (1: llm_jax 0.1); "
                              f"this version reads layout {LAYOUT} (0.2). Export it with the "
                              "version that wrote it, and import the result")
        if meta["step"] != step:
            raise ValueError(f"its metadata is for step {meta['step']}")
        if accept is not None:
            accept(step, meta)
        like = like(step, meta) if callable(like) else like
        saved = meta.pop("arrays")
        for name, tree in like.items():
            kinds = {path: array["kind"] for path, array in saved.get(name, {}).items()}
            _check_same(kinds, {path: _kind(x) for path, x in _named(tree)}, f"{where}/{name}")
        trees = {k: ocp.args.StandardRestore(jax.tree.map(_byte, x)) for k, x in like.items()}
        items = dict(self.manager.restore(step, args=ocp.args.Composite(**trees)).items())
        back = lambda wanted, x: x.astype(jnp.uint4) if wanted.dtype == jnp.uint4 else x
        items = {k: jax.tree.map(back, like[k], items[k]) for k in like}
        if any(_described(items[name]) != saved[name] for name in like):
            raise ValueError("the checksums of its arrays differ from the saved ones")
        return items, meta

    def _damaged(self, step: int, reason: str) -> None:
        if self.read_only:
            log.warning("checkpoint %d is damaged (%s)", step, reason)
            return
        target = self.folder.parent / "checkpoints-damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "x")
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process already moved it
            (self.folder / str(step)).rename(target)
        if jax.process_count() > 1:
            # Other processes may have read their shards without errors, and wait for this one.
            raise Restart(f"checkpoint {step} is damaged ({reason}); moved to {target}. The same "
                          "command resumes from the previous checkpoint")
        self.manager.reload()
        log.warning("checkpoint %d is damaged (%s); moved to %s", step, reason, target)

    def check(self) -> None:
        """Raises the exception of a failed background save, if any."""
        if self.manager.failed is not None:
            raise self.manager.failed

    def complete(self) -> list[int]:
        """Returns the steps of the finished checkpoints on disk."""
        return sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit())

    def wait(self) -> None:
        """Blocks until all saves are on disk."""
        self.manager.wait_until_finished()
        self._remember()

    def close(self) -> None:
        """Waits for saves, then stops the threads."""
        self.manager.close()
        self._remember()

    def _remember(self) -> None:
        """Writes saved.json after the first checkpoint, to detect the loss of all checkpoints."""
        mark = self.folder.parent / SAVED
        if self.read_only or jax.process_index() != 0 or mark.exists():
            return
        if steps := self.complete():
            write_json(mark, {"step": steps[0]})


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its preemption handling, which the loop implements.

    Attributes:
      failed: the exception of a failed background save.
    """

    failed: BaseException | None = None

    def _wait_for_checkpointers(self):
        # Runs in Orbax's thread. After a failed save, one of several processes would wait for the
        # others at one barrier, and they at another, for 20 minutes (0.12.8).
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failed = error
            self._save_progress_tracker.set = lambda in_progress: None
            raise

    def reached_preemption(self, step):
        # Orbax's implementation fails on checkpoints of an earlier process (0.12.8).
        return False


@contextmanager
def hushed() -> Iterator[None]:
    """Suppresses the tracebacks that TensorStore's threads print after a failed read or write.

    Each thread reports to a closed event loop, with hundreds of lines of tracebacks; the exception
    that we receive has all the information. Other unraisable errors go to Python's hook.
    """
    others = sys.unraisablehook

    def hook(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            others(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = others


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [(path_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def _byte(x: Any) -> Any:
    """Converts an array, or its description, from uint4, which TensorStore lacks, to uint8."""
    if x.dtype != jnp.uint4:
        return x
    described = isinstance(x, jax.ShapeDtypeStruct)
    return x.update(dtype=jnp.uint8) if described else x.astype(jnp.uint8)


def _kind(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _described(tree: Any) -> dict[str, dict]:
    """Returns {path: dtype, shape and checksum} of each array, independent of the mesh."""
    names = _named(tree)
    bits = jax.device_get(_sum_bits(tree)).tolist() if names else []
    return {
        path: {"kind": _kind(x), "bits": sum_} for (path, x), sum_ in zip(names, bits, strict=True)
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@jax.jit
def _sum_bits(tree: Any) -> jax.Array:
    """Returns checksums [leaves] uint32, the sum of each array's words."""

    def bits(x):
        x = x.astype(jnp.int8) if x.dtype.name.endswith("int4") else x  # of QLoRA
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([bits(x) for x in jax.tree.leaves(tree)])


def _check_same(saved: dict, here: dict, where: str) -> None:
    """Raises ConfigError if array names or kinds differ, so that the code must have changed."""
    differ = [
        f"{name}: {saved.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in saved | here
        if saved.get(name) != here.get(name)
    ]
    if differ:
        raise ConfigError(f"{where} holds different arrays than this version of llm_jax expects "
                          f"({len(differ)} differ: {'; '.join(differ[:3])}); continue the run with "
                          "the version that started it, or start a new run from its weights with "
                          "init_from")
