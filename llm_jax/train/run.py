"""The run folder: config.json, tokenizer/, checkpoints/, metrics.jsonl, plots and samples."""

import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import models, objectives, sharding
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.train import optimizer
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.state import TrainState, init_state


def prepare(config: ConfigDict, workdir: str | Path, train_documents: Any) -> Tokenizer:
    """Opens the run folder or makes it: tokenizer trained, sizes filled in, config.json written.

    Fills config.model in place. The config is written last: a folder with one is complete.

    Raises:
      ConfigError: the folder holds another run, naming the keys that differ.
    """
    workdir = Path(workdir)
    file = workdir / "config.json"
    old = read_config(workdir) if file.exists() else None
    if old is None:
        tokenizer = tokenizers.build(config.tokenizer, train_documents)
    else:
        tokenizer = tokenizers.load(workdir / "tokenizer")
    config.model = configs.resolve(config.model, tokenizer.vocab_size)
    if old is not None:
        different = configs.differences(old, config)
        if different:
            raise ConfigError(
                f"--workdir={workdir} holds another run ({'; '.join(different)}); "
                "use its values, or another --workdir"
            )
    else:
        tokenizer.save(workdir / "tokenizer")
    partial = file.with_suffix(".partial")
    partial.write_text(configs.to_json(config) + "\n")
    os.replace(partial, file)
    return tokenizer


def read_config(workdir: str | Path) -> ConfigDict:
    """Returns the run's config; ConfigError where the folder holds no run."""
    file = Path(workdir) / "config.json"
    if not file.exists():
        raise ConfigError(f"--workdir={workdir}: no config.json there; it is not a run folder")
    try:
        return configs.from_json(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


class Setup:
    """All that a run's config determines: mesh, model, objective, optimizer, shardings."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.mesh: Mesh = sharding.make_mesh(config.mesh)
        sharding.check(config, self.mesh)
        self.model = models.build(config.model)
        self.objective = objectives.get(config.objective.name)
        self.tx = optimizer.build(config)

    def init(self, params: Any = None) -> TrainState:
        """The state at step 0; trace or jit it."""
        return init_state(self.model, self.tx, self.config, params)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; computes nothing."""
        state = jax.eval_shape(self.init)
        boxed = jax.eval_shape(lambda: models.init_params(self.model, jax.random.key(0)))
        params = sharding.param_shardings(boxed, self.mesh)
        where = sharding.like_params(state, nn.unbox(boxed), params, self.mesh)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
        )


def load_params(workdir: str | Path, step: int | None = None) -> tuple[Setup, Tokenizer, Any, int]:
    """Returns (setup, tokenizer, parameters, step) of a run: averaged parameters where it has them.

    Raises:
      ConfigError: no run, no checkpoint, or no such step.
    """
    config = read_config(workdir)
    config.mesh = configs.base().mesh  # wherever it was trained, here it takes what there is
    setup = Setup(config)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    found = checkpoints.restore(setup.abstract_state(), step)
    checkpoints.close()
    if found is None:
        raise ConfigError(f"--workdir={workdir}: no checkpoint there yet")
    step, state, _ = found
    params = state.params if state.ema is None else state.ema
    return setup, tokenizers.load(Path(workdir) / "tokenizer"), params, step
