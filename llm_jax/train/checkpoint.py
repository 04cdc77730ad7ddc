"""Checkpoints by Orbax: asynchronous, the newest and the best kept, every byte checked.

A checkpoint holds the state, the data iterator, the config and the tokenizer, so that it is
enough by itself.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from llm_jax.config import ConfigError

log = logging.getLogger(__name__)


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """[leaves] uint32: each array's bits summed, the same on whatever mesh it lies."""

    def bits(x):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([bits(x) for x in jax.tree.leaves(tree)])


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, workdir: str | Path, config: ConfigDict):
        self.folder = Path(workdir).absolute() / "checkpoints"
        policies = [keep.LatestN(config.keep_last)]
        if config.keep_best:
            policies.append(
                keep.BestN(
                    get_metric_fn=lambda metrics: -metrics["loss"],
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            # An older "newest" may follow a damaged one that was set aside.
            save_decision_policy=_Always(),
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any, meta: dict, loss: float | None = None) -> None:
        """Starts saving; returns once the state is copied off the device."""
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({"state": state, "bits": fingerprint(state)}),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=None if loss is None else {"loss": loss},
        )

    def restore(self, like: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
        """Returns (step, state, meta) of the newest sound checkpoint, or None if there is none.

        `like` gives shapes, dtypes and shardings; any mesh will do. A damaged checkpoint is
        reported and moved to checkpoints-damaged/, and the one before is used.

        Raises:
          ConfigError: a step that is not there, or a state of another shape than `like`.
        """
        if step is not None and step not in self.steps():
            raise ConfigError(f"--step={step}: {self.folder} holds steps {self.steps()}")
        for candidate in [step] if step is not None else reversed(self.steps()):
            try:
                state, meta = self._read(candidate, like)
                return candidate, state, meta
            except ConfigError:
                raise
            except Exception as error:  # whatever Orbax, TensorStore or JSON say of broken files
                self._set_aside(candidate, error)
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, dict]:
        saved = self.manager.item_metadata(step)["state"]
        if saved is None:
            raise ValueError("its state is missing")
        _same_shapes(saved.tree["state"], like, f"{self.folder}/{step}")
        bits = jax.ShapeDtypeStruct((len(jax.tree.leaves(like)),), jnp.uint32)
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore({"state": like, "bits": bits}),
                meta=ocp.args.JsonRestore(),
            ),
        )
        state = restored["state"]["state"]
        if (fingerprint(state) != restored["state"]["bits"]).any():
            raise ValueError("the arrays are not those that were saved")
        return state, restored["meta"]

    def _set_aside(self, step: int, error: Exception) -> None:
        target = self.folder.parent / "checkpoints-damaged"
        target.mkdir(exist_ok=True)
        to = target / str(step)
        while to.exists():
            to = to.with_name(to.name + "x")
        (self.folder / str(step)).rename(to)
        self.manager.reload()
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        log.warning("checkpoint %d is damaged (%s); moved to %s", step, reason, to)

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        self.manager.close()


class _Always:
    """Save whenever asked; Orbax's default refuses a step older than the newest."""

    def should_save(self, step, previous_steps, *, context):
        return True


def _same_shapes(saved: Any, like: Any, where: str) -> None:
    named = lambda tree: {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    a, b = named(saved), named(like)
    wrong = [f"{k}: {a.get(k, 'absent')} there, {b.get(k, 'absent')} here" for k in a | b
             if a.get(k) != b.get(k)]
    if wrong:
        raise ConfigError(
            f"{where} holds a state of another shape ({len(wrong)} differ): {'; '.join(wrong[:3])}"
        )
