"""Checkpoints by Orbax: asynchronous, the newest and the best kept, every byte checked.

A checkpoint holds the state, the data iterator, the config and the tokenizer, so that it is
enough by itself. Its items are read apart: `params`; `ema`, where an average is kept; `rest`, the
optimizer's state and counters; and `meta`, JSON with a digest of its own, which says what the
arrays must be down to their bits.
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

SAVED = "saved.json"  # beside checkpoints/: since one was complete, there is something to lose
LAYOUT = 2  # of a checkpoint: its items and what meta says of them


def split(state: TrainState) -> dict[str, Any]:
    """Splits a state into a checkpoint's Orbax items: params, rest and, where kept, ema."""
    items = {"params": state.params, "rest": state.replace(params=None, ema=None)}
    return items | ({} if state.ema is None else {"ema": state.ema})


def join(items: dict[str, Any]) -> TrainState:
    """Returns the state of which `split` made the items."""
    return items["rest"].replace(params=items["params"], ema=items.get("ema"))


# What Orbax finds wrong reaches the user as our own message, or as an exception.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints:
    """The checkpoints of one run folder; read_only: of a run that another process may be writing.

    Attributes:
      losses: {step: validation loss} of the checkpoints whose loss is known.
    """

    def __init__(self, workdir: str | Path, config: ConfigDict, read_only: bool = False):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self.config, self.read_only = config, read_only
        self.losses: dict[int, float] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            # Another process's unfinished checkpoint is not ours to clean up.
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            lightweight_initialize=True,  # a damaged checkpoint must not keep us from the others
        )
        self.manager = _Manager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def best(self) -> int:
        """Returns the step that is best by eval.metric; ConfigError where no evaluation was."""
        if not self.losses:
            self.restore({})
        if not self.losses:
            raise ConfigError(f"--step=best: no step of {self.folder} has been evaluated")
        return min(self.losses, key=self.losses.get)

    def is_best(self, loss: float) -> bool:
        """Whether a checkpoint of this validation loss would be kept as one of the best."""
        better = sum(other <= loss for other in self.losses.values())
        return math.isfinite(loss) and better < self.config.keep_best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax asks which checkpoints to keep: the newest, and the best of known loss."""
        kept = self._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]

    def _kept(self, steps: list[int]) -> set[int]:
        known = sorted((s for s in steps if s in self.losses), key=self.losses.get)
        return {*steps[-self.config.keep_last :], *known[: self.config.keep_best]}

    def save(self, step: int, items: dict[str, Any], meta: dict, loss: float | None = None) -> None:
        """Starts saving named trees of arrays; returns once they are copied off the device."""
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
        self.manager.save(step, args=args, force=True)  # having waited for the one before
        self._remember()

    def restore(
        self, like: dict[str, Any] | Callable[[int, dict], dict[str, Any]], step: int | None = None,
        accept: Callable[[int, dict], None] | None = None,
    ) -> tuple[int, dict[str, Any], dict] | None:
        """Returns (step, items, meta) of the newest sound checkpoint, or None if there is none.

        A damaged checkpoint is reported and moved to checkpoints-damaged/, and the one before is
        used.

        Args:
          like: shapes, dtypes and shardings of the items that are wanted; the others are not
            read. Any mesh will do. Or what returns them of a checkpoint's (step, meta).
          accept: is shown (step, meta) before arrays are read, and raises what it has against it.

        Raises:
          Restart: one of several processes found it damaged.
          ConfigError: a step that is not there or is damaged, a checkpoint of another version,
            or arrays of other shapes than `like`.
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
        """(items, meta) of a sound checkpoint, or what is wrong with a damaged one."""
        with hushed():
            try:
                return self._read(step, like, accept)
            # Out of memory, or no permission: the checkpoint itself may be sound.
            except (ConfigError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # whatever Orbax, TensorStore or JSON say of broken files
                reason = (str(error).strip().splitlines() or [repr(error)])[0][:150]
            gc.collect()  # other threads' exceptions are printed when their futures are collected,
            time.sleep(0.1)  # or when the threads end
        return reason

    def _read(self, step: int, like: dict | Callable, accept) -> tuple[dict, dict]:
        where = f"{self.folder}/{step}"
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        described = self.manager.restore(step, args=args)["meta"]
        text = described["json"]
        if _digest(text) != described["digest"]:
            raise ValueError("its JSON is not what was saved")
        meta = json.loads(text)
        if meta.get("layout") != LAYOUT:
            raise ConfigError(f"{where}: has layout {meta.get('layout', 1)} (1: of llm_jax 0.1); "
                              f"this version reads layout {LAYOUT} (0.2). Export it with the "
                              "version that wrote it, and import that")
        if meta["step"] != step:
            raise ValueError(f"it is that of step {meta['step']}")
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
            raise ValueError("its arrays are not those that were saved")
        return items, meta

    def _damaged(self, step: int, reason: str) -> None:
        if self.read_only:
            log.warning("checkpoint %d is damaged (%s)", step, reason)
            return
        target = self.folder.parent / "checkpoints-damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "x")
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process was quicker
            (self.folder / str(step)).rename(target)
        if jax.process_count() > 1:
            # The others may have found nothing wrong with their parts, and wait for this one.
            raise Restart(f"checkpoint {step} is damaged ({reason}); moved to {target}. The same "
                          "command resumes from the one before")
        self.manager.reload()
        log.warning("checkpoint %d is damaged (%s); moved to %s", step, reason, target)

    def check(self) -> None:
        """Raises what a save has failed by in the background, if one has."""
        if self.manager.failed is not None:
            raise self.manager.failed

    def complete(self) -> list[int]:
        """Steps of the finished checkpoints on disk."""
        return sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit())

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self.manager.wait_until_finished()
        self._remember()

    def close(self) -> None:
        """Waits, then frees the threads."""
        self.manager.close()
        self._remember()

    def _remember(self) -> None:
        """Writes saved.json once there is a checkpoint, so that losing all of them is noticed."""
        mark = self.folder.parent / SAVED
        if self.read_only or jax.process_index() != 0 or mark.exists():
            return
        if steps := self.complete():
            write_json(mark, {"step": steps[0]})


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its handling of preemption, which the loop does itself.

    Attributes:
      failed: what a save failed by in the background.
    """

    failed: BaseException | None = None

    def _wait_for_checkpointers(self):
        # In Orbax's thread. One of several processes whose save has failed would then wait for the
        # others at one barrier, and they for it at another, for 20 minutes (0.12.8).
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failed = error
            self._save_progress_tracker.set = lambda in_progress: None
            raise

    def reached_preemption(self, step):
        # Its bookkeeping of that fails on checkpoints of an earlier process (0.12.8).
        return False


@contextmanager
def hushed() -> Iterator[None]:
    """Drops what TensorStore's threads print when one of many reads or writes has failed.

    Each tells a closed event loop of its own end, hundreds of lines of tracebacks; the exception
    that reaches us says it all. Python has one hook for what no thread can raise; any other error
    goes on to it.
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
    """An array, or what describes it; of uint4, which TensorStore does not write, as uint8."""
    if x.dtype != jnp.uint4:
        return x
    described = isinstance(x, jax.ShapeDtypeStruct)
    return x.update(dtype=jnp.uint8) if described else x.astype(jnp.uint8)


def _kind(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _described(tree: Any) -> dict[str, dict]:
    """{path: dtype, shape and checksum of the bits} of each array, independent of the mesh."""
    names = _named(tree)
    bits = jax.device_get(_sum_bits(tree)).tolist() if names else []
    return {
        path: {"kind": _kind(x), "bits": sum_} for (path, x), sum_ in zip(names, bits, strict=True)
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@jax.jit
def _sum_bits(tree: Any) -> jax.Array:
    """Checksums [leaves] uint32: each array's words summed."""

    def bits(x):
        x = x.astype(jnp.int8) if x.dtype.name.endswith("int4") else x  # a QLoRA's
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([bits(x) for x in jax.tree.leaves(tree)])


def _check_same(saved: dict, here: dict, where: str) -> None:
    """Refuses arrays of another name or kind: configs were equal, so that the code is another."""
    differ = [
        f"{name}: {saved.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in saved | here
        if saved.get(name) != here.get(name)
    ]
    if differ:
        raise ConfigError(f"{where} holds other arrays than this version of llm_jax has "
                          f"({len(differ)} differ: {'; '.join(differ[:3])}); end the run with the "
                          "version that began it, or begin another with init_from, of its weights "
                          "alone")
