"""The run folder: config.json, tokenizer/, checkpoints/, metrics.jsonl, plots and samples."""

import errno
import fcntl
import hashlib
import json
import math
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from llm_jax import attention, models, objectives, sharding
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data import sources, tokenizers
from llm_jax.data.batches import union
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.models.flops import train_flops
from llm_jax.train import groups, optimizer
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.state import TrainState, init_state

# What an imported run, not yet trained, has already: other keys may still change.
IMPORTED = (
    "model.", "tokenizer.", "optimizer.name", "optimizer.clip_norm", "optimizer.rate_factors",
    "train.ema_decay",
)  # fmt: skip


class Folder:
    """A run folder, made by `commit` where there is none. With a checkpoint in it, it holds a run.

    Raises:
      ConfigError: it cannot be written, another job trains in it, or its config.json is gone or
        unreadable.
    """

    locks: dict[Path, Any] = {}  # open for as long as this process lives

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not there.is_dir():
            raise ConfigError(
                f"--workdir={path}: cannot be made ({there} is a file); name a folder"
            )
        if not os.access(there, os.W_OK):
            raise ConfigError(f"--workdir={path}: cannot be written; name another folder")
        if self.config_file.is_file():
            self._lock()
        self.text: dict | None = None  # the fingerprint of what it trains on, once it is known
        # A run that died before its first checkpoint has nothing to lose: it begins anew.
        saved = any(p.name.isdigit() for p in self.path.glob("checkpoints/*"))
        self.old = read_config(self.path) if saved else None
        steps = [p.name for p in self.path.glob("checkpoints/*") if p.name.isdigit()]
        self.imported = steps == ["0"] and (self.path / "imported.json").exists()

    def tokenizer(self, config: ConfigDict, train_documents: Sequence[str]) -> Tokenizer:
        """Opens the run's tokenizer or builds one, and fills in config.model's sizes with it.

        Raises:
          ConfigError: the folder holds another run, naming the keys that differ.
        """
        self._check_text(config)
        if self.old is None:
            objective = objectives.get(config.objective.name)
            tokenizer = objective.build_tokenizer(config, train_documents)
        else:
            tokenizer = tokenizers.load(self.path / "tokenizer")
        config.model = configs.resolve(config.model, tokenizer.vocab_size)
        different = configs.differences(self.old, config) if self.old else []
        if self.imported:
            different = [text for text in different if text.startswith(IMPORTED)]
        if different:
            raise ConfigError(
                f"--workdir={self.path} holds another run ({'; '.join(different)}); "
                "use its values, or another --workdir"
            )
        return tokenizer

    def commit(self, config: ConfigDict, tokenizer: Tokenizer) -> None:
        """Writes down what the run is, once nothing about it can be refused any more."""
        self.path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() != 0:
            return
        self._lock()
        if self.old is None:
            tokenizer.save(self.path / "tokenizer")
        if self.text is not None:
            _write(self.path / "text.json", json.dumps(self.text, indent=2))
        _write(self.config_file, configs.to_json(config))

    def _lock(self) -> None:
        """Refuses a folder that another process holds. A process that dies, however, lets go.

        POSIX record locks: also between machines on NFS 4 or Lustre with -o flock; not on object
        stores mounted as folders (gcsfuse), which see only their own machine's.
        """
        path = self.path.absolute() / ".lock"
        if jax.process_index() != 0 or path in self.locks:
            return
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                return
            file.seek(0)
            raise ConfigError(
                f"--workdir={self.path}: is being trained by {file.read().strip()}; wait for it, "
                "end it, or name another folder"
            ) from error
        self.locks[path] = file  # closing any handle to it would let go of the lock
        file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("JOBSET_NAME")
        file.write(f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' * bool(job)}")
        file.flush()

    def _check_text(self, config: ConfigDict) -> None:
        """Refuses to resume on other text, where the data iterator's state would mean nothing."""
        self.text = sources.fingerprint(config)
        file = self.path / "text.json"
        if self.old is None or self.imported or not file.is_file():
            return
        old = json.loads(file.read_text())
        changed = [name for name in old | self.text if old.get(name) != self.text.get(name)]
        if changed:
            raise ConfigError(
                f"--workdir={self.path}: the text has changed since the run began "
                f"({', '.join(changed[:3])}); bring back what it was, use another --workdir, or "
                f"remove {file} to go on somewhere in the new text"
            )


def agree(config: ConfigDict, tokenizer: Tokenizer, text: dict) -> None:
    """Compares what each process of a job has been given; ConfigError where it is not the same."""
    if jax.process_count() == 1:
        return
    what = {"config": configs.to_json(config), "text": sorted(text.items()),
            "tokenizer": (tokenizer.kind, tokenizer.pieces())}  # fmt: skip
    digest = lambda x: hashlib.blake2b(repr(x).encode(), digest_size=16).digest()
    mine = np.array([list(digest(x)) for x in what.values()], np.uint8)
    for process, theirs in enumerate(multihost_utils.process_allgather(mine)):
        if differ := [n for n, a, b in zip(what, mine, theirs, strict=True) if (a != b).any()]:
            raise ConfigError(
                f"processes {jax.process_index()} and {process} have another {', '.join(differ)}; "
                "start all of a job with the same command, on the same files"
            )


def gathered(state: dict, config: ConfigDict) -> dict:
    """The job's state of the data, of which each process knows that of its shards; all call it."""
    if jax.process_count() == 1 or config.data.shards == 1:
        return state
    mine = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(mine)))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, max(sizes) - len(mine))))
    return union([json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)])


def _write(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text + "\n")
    os.replace(partial, file)


def describe(workdir: str | Path, config: ConfigDict, data: Any) -> dict[str, Any]:
    """Returns what a checkpoint holds beside its arrays; data: the iterator's state, or None."""
    files = (Path(workdir) / "tokenizer").iterdir() if jax.process_index() == 0 else ()
    return {
        "data": data,
        "config": config.to_dict(),
        "tokenizer": {f.name: f.read_bytes().decode("latin-1") for f in files},
    }


def read_config(workdir: str | Path) -> ConfigDict:
    """Returns the run's config; ConfigError where the folder holds no run."""
    file = Path(workdir) / "config.json"
    if not file.exists():
        raise ConfigError(f"--workdir={workdir}: no config.json there; it is not a run folder")
    try:
        return configs.from_json(file.read_text())
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: {error}") from error


class Setup:
    """All that a run's config determines: model, objective, optimizer, and where arrays lie.

    Raises:
      ConfigError: no such attention or objective, or attention that cannot do what is asked.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self.config, self.mesh = config, mesh
        _check_attention(config)
        try:
            models.heads.check(config.model)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.model = models.build(config.model)
        self.objective = objectives.get(config.objective.name)
        self.params = models.abstract_params(self.model)
        self.groups = groups.of(config, self.params)
        self.tx = optimizer.build(config, self.groups)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; computes nothing."""
        state = jax.eval_shape(lambda: init_state(self.model, self.tx, self.config))
        shardings = sharding.param_shardings(self.params, self.mesh)
        where = sharding.like_params(state, state.params, shardings, self.mesh)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
        )

    def draw_state(self, place: TrainState) -> TrainState:
        """The state at step 0, drawn from config.seed, each array lying as `place` says."""
        # It runs once: on a CPU, compiling it with all optimisations takes longer than they save.
        quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        draw = lambda: init_state(self.model, self.tx, self.config)
        with sharding.activate(self.mesh):
            return jax.jit(draw, out_shardings=place, compiler_options=quick)()


def _check_attention(config: ConfigDict) -> None:
    cfg, packing, objective = config.model, config.data.packing, config.objective.name
    needed = {
        "causal": (cfg.kind != "encoder", f"model.kind={cfg.kind!r}"),
        "bidirectional": (cfg.kind != "decoder", f"model.kind={cfg.kind!r}"),
        "packing": (packing != "none", f"data.packing={packing!r}"),
        "prefix": (objectives.get(objective).prefix, f"objective.name={objective!r}"),
        "dropout": (cfg.attention_dropout > 0, "model.attention_dropout > 0"),
        "grouped": (cfg.num_kv_heads < cfg.num_heads, "model.num_kv_heads < model.num_heads"),
        "bias": (cfg.positions in ("relative", "alibi"), f"model.positions={cfg.positions!r}"),
        "softcap": (cfg.attention_softcap > 0, "model.attention_softcap > 0"),
        "sinks": (cfg.attention_sinks, "model.attention_sinks=True"),
    }
    for kind in cfg.attention.split(","):
        if kind not in attention.VARIANTS:
            names = ", ".join(sorted(attention.VARIANTS))
            raise ConfigError(f"model.attention={cfg.attention!r}: {kind!r} is not one of {names}")
        wanted = {ability for ability, (asked, _) in needed.items() if asked}
        variant = attention.get(kind)
        for ability in sorted(wanted - variant.supports):
            # Those that do all that this config asks for, the likest first.
            mine = variant.supports
            able = [n for n, v in attention.VARIANTS.items() if wanted <= v.supports]
            able.sort(key=lambda n: len(attention.get(n).supports ^ mine))  # noqa: B023
            raise ConfigError(
                f"model.attention={cfg.attention!r}: {kind!r} cannot do {needed[ability][1]} "
                f"({attention.ABILITIES[ability]}); these can: {', '.join(able)}"
            )
        try:
            reads = {name: cfg[name] for name in variant.reads}
            variant.weights(cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, **reads)
        except ValueError as error:
            raise ConfigError(f"model.attention={cfg.attention!r}: {error}") from error


def flops_per_token(config: ConfigDict) -> float:
    """FLOPs of training on a token of either side, of a config whose model is resolved."""
    return _flops_per_token(config, config.model)


def recomputed_flops_per_token(config: ConfigDict) -> float:
    """FLOPs a token that remat adds to them: the forward pass of all layers once more."""
    if config.model.remat not in ("full", "offload") and not config.model.reversible:
        return 0.0  # "dots" keeps all products but attention's own
    layers = ConfigDict(config.model.to_dict())
    layers.head = "none"
    return _flops_per_token(config, layers) / 3


def _flops_per_token(config, model):
    what = objectives.get(config.objective.name).examples
    lengths = what.lengths(config)
    sides = lengths["tokens"], lengths.get("encoder_tokens", 0)
    return train_flops(model, 1, *sides, what.predicted(config)) / sum(sides)


def load_params(workdir: str | Path, step: int | None = None) -> tuple[Setup, Tokenizer, Any, int]:
    """Returns (setup, tokenizer, parameters, step) of a run: averaged parameters where it has them.

    Wherever the run was trained, here it takes as many devices as divide its batch.

    Raises:
      ConfigError: no run, no checkpoint, or no such step.
    """
    config = read_config(workdir)
    config.mesh = configs.base().mesh
    count = math.gcd(jax.device_count(), config.data.batch_size)
    setup = Setup(config, sharding.make_mesh(config.mesh, jax.devices()[:count]))
    tokenizer = tokenizers.load(Path(workdir) / "tokenizer")
    found = None
    if (Path(workdir) / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, config.checkpoint, read_only=True)
        found = checkpoints.restore(setup.abstract_state(), step)
        checkpoints.close()
    if found is None:
        raise ConfigError(f"--workdir={workdir}: no sound checkpoint there yet")
    step, state, _ = found
    return setup, tokenizer, state.params if state.ema is None else state.ema, step
