"""Checkpoints by Orbax: asynchronous, the newest and the best kept, every byte checked.

A checkpoint holds the state, the data iterator, the config and the tokenizer, so that it is
enough by itself. It has two items: `state`, the arrays; and `meta`, JSON with a digest of its
own, which says what the arrays must be down to their bits.
"""

import dataclasses
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
from llm_jax.train import Restart

log = logging.getLogger(__name__)


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


# What Orbax finds wrong reaches the user as our own message, or as an exception.
logging.getLogger("absl").addFilter(_not_orbax)


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
            save_decision_policy=_Always(),
            lightweight_initialize=True,  # a damaged checkpoint must not keep us from the others
        )
        self.manager = _Manager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def is_best(self, loss: float) -> bool:
        """Whether a checkpoint of this validation loss would be kept as one of the best."""
        better = sum(other <= loss for other in self.losses.values())
        return math.isfinite(loss) and better < self.config.keep_best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax asks which checkpoints to keep: the newest, and the best of known loss."""
        steps = [info.step for info in checkpoints]
        known = sorted((s for s in steps if s in self.losses), key=self.losses.get)
        kept = {*steps[-self.config.keep_last :], *known[: self.config.keep_best]}
        self.losses = {s: loss for s, loss in self.losses.items() if s in kept}
        return [step in kept for step in steps]

    def save(self, step: int, state: Any, meta: dict, loss: float | None = None) -> None:
        """Starts saving; returns once the state is copied off the device."""
        if loss is not None and math.isfinite(loss):
            self.losses[step] = loss
        kinds, bits = {name: _kind(x) for name, x in _named(state)}, _sum_bits(state)
        meta = meta | {"losses": dict(self.losses)}

        def item():
            pairs = zip(kinds.items(), jax.device_get(bits).tolist(), strict=True)
            arrays = {name: kind | {"bits": sum_} for (name, kind), sum_ in pairs}
            text = json.dumps(meta | {"arrays": arrays})
            return {"digest": _digest(text), "json": text}

        self.manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=_LateSave(item)),
        )

    def restore(self, like: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
        """Returns (step, state, meta) of the newest sound checkpoint, or None if there is none.

        `like` gives shapes, dtypes and shardings; any mesh will do. A damaged checkpoint is
        reported and moved to checkpoints-damaged/, and the one before is used.

        Raises:
          Restart: one of several processes found it damaged.
      ConfigError: a step that is not there or is damaged, or a state of other shapes than
            `like`.
        """
        if step is not None and step not in self.steps():
            raise ConfigError(f"--step={step}: {self.folder} holds steps {self.steps()}")
        for candidate in reversed(self.steps()) if step is None else [step]:
            found = self._try_to_read(candidate, like)
            if isinstance(found, str):
                self._damaged(candidate, found)
                continue
            state, meta = found
            self.losses = {int(s): loss for s, loss in meta.pop("losses").items()}
            return candidate, state, meta
        if step is not None:
            raise ConfigError(f"--step={step}: {self.folder}/{step} is damaged; try another step")
        return None

    def _try_to_read(self, step: int, like: Any) -> tuple[Any, dict] | str:
        """(state, meta) of a sound checkpoint, or what is wrong with a damaged one."""
        with _hushed():
            try:
                return self._read(step, like)
            # Too little memory or too few rights say nothing against the checkpoint.
            except (ConfigError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # whatever Orbax, TensorStore or JSON say of broken files
                reason = (str(error).strip().splitlines() or [repr(error)])[0][:150]
            gc.collect()  # what went wrong in other threads is told when their futures go,
            time.sleep(0.1)  # or when they end
        return reason

    def _read(self, step: int, like: Any) -> tuple[Any, dict]:
        found = self.manager.restore(step, args=ocp.args.Composite(meta=_LateRestore()))
        text = found["meta"]["json"]
        if _digest(text) != found["meta"]["digest"]:
            raise ValueError("its JSON is not what was saved")
        meta = json.loads(text)
        arrays = meta.pop("arrays")
        bits = [array.pop("bits") for array in arrays.values()]
        _check_same(arrays, {name: _kind(x) for name, x in _named(like)}, f"{self.folder}/{step}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        state = self.manager.restore(step, args=args)["state"]
        if _fingerprint(state) != bits:
            raise ValueError("its arrays are not those that were saved")
        return state, meta

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
            raise Restart(
                f"checkpoint {step} is damaged ({reason}); moved to {target}. The same command "
                "resumes from the one before"
            )
        self.manager.reload()
        log.warning("checkpoint %d is damaged (%s); moved to %s", step, reason, target)

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        self.manager.close()


class _Late(ocp.JsonCheckpointHandler):
    """Saves JSON that is made when it is written, beside the steps that follow.

    The loop need not wait for the sums of the arrays' bits, which took longer than all else.
    """

    async def _save_fn(self, x, directory):
        await super()._save_fn(x(), directory)


@ocp.args.register_with_handler(_Late, for_save=True)
@dataclasses.dataclass
class _LateSave(ocp.args.CheckpointArgs):
    item: Callable[[], dict]


@ocp.args.register_with_handler(_Late, for_restore=True)
@dataclasses.dataclass
class _LateRestore(ocp.args.CheckpointArgs):
    item: None = None


class _Manager(ocp.CheckpointManager):
    """Orbax's, told nothing of preemption: the loop stops, and saves what it is told to."""

    def reached_preemption(self, step):
        # Its bookkeeping of that fails on checkpoints of an earlier process (0.12.8).
        return False


class _Always:
    """Save whenever asked: the loop has decided."""

    def should_save(self, step, previous_steps, *, context):
        return True


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps off the terminal what Orbax's other threads say when one read of many fails.

    They print hundreds of lines of tracebacks; the exception that reaches us says it all.
    """
    hooks = sys.excepthook, sys.unraisablehook
    silence = lambda *_: None
    sys.excepthook = sys.unraisablehook = silence
    logging.getLogger("asyncio").addFilter(silence)  # None is false: the record is dropped
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        logging.getLogger("asyncio").removeFilter(silence)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]


def _kind(x: Any) -> dict:
    return {"dtype": str(x.dtype), "shape": list(x.shape)}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _fingerprint(state: Any) -> list[int]:
    return jax.device_get(_sum_bits(state)).tolist()


@jax.jit
def _sum_bits(tree: Any) -> jax.Array:
    """[leaves] uint32: each array's bits summed, the same on whatever mesh it lies."""

    def bits(x):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([bits(x) for x in jax.tree.leaves(tree)])


def _check_same(there: dict, here: dict, where: str) -> None:
    text = lambda array: "{dtype}{shape}".format(**array) if array else "absent"
    wrong = [
        f"{name}: {text(there.get(name))} there, {text(here.get(name))} here"
        for name in there | here
        if there.get(name) != here.get(name)
    ]
    if wrong:
        raise ConfigError(
            f"{where} holds a state of another shape ({len(wrong)} differ): {'; '.join(wrong[:3])}"
        )
