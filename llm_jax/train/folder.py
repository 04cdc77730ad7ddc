"""The run folder: config.json, tokenizer/, checkpoints/, metrics.jsonl, plots and samples."""

import errno
import fcntl
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from weakref import WeakValueDictionary

import jax
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import objectives
from llm_jax.config import ConfigError
from llm_jax.data import sources, tokenizers
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.files import folder_named, read_config, read_json, write_json, write_text
from llm_jax.train import groups
from llm_jax.train.checkpoint import SAVED

IMPORTED = "imported.json"  # where a run came from; written before all else of an import

# What an imported run, not yet trained, has already: other keys may still change.
DECIDED = re.compile(r"model\.(?!lora_)|tokenizer\.|init_from")

# What may stand in a folder that holds no run yet: of a run that died before it had a config.json,
# of a sweep, or of the shell or scheduler that started it.
UNFINISHED = ("tokenizer", "checkpoints", "text.json", "run.json", "log.txt", "lock")
LOGS = (".partial", ".log", ".out", ".err")

# {path: file} that this process has locked. A POSIX lock is a process's, and gone once it closes
# any file of that path: Folders of one path share a file, which closes with the last of them.
LOCKS = WeakValueDictionary()


class Start(NamedTuple):
    """Weights and tokenizer that a new run begins with: see hub.runs.start.

    Attributes:
      params: those that its model takes; what they lack is drawn from config.seed.
      origin: imported.json: from, family, the parts that are new, those that are unused.
    """

    params: Any
    tokenizer: Tokenizer
    origin: dict[str, Any]


class Folder:
    """A run folder, made by `commit` where there is none. With a checkpoint in it, it holds a run.

    It is locked against other processes until `close`, or this object's end, and that of
    others of the same path in this process.

    Raises:
      ConfigError: it cannot be written, another job trains in it, it holds something else than a
        run, an import that did not finish, or a run that lost its config.json or checkpoints.
    """

    def __init__(self, path: str | Path):
        self.path = folder_named(path)
        self.config_file = self.path / "config.json"
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise ConfigError(f"--workdir={path}: cannot be made ({existing} is a file); name a "
                              "folder")
        if not os.access(existing, os.W_OK):
            raise ConfigError(f"--workdir={path}: cannot be written; name another folder")
        self.steps = [int(p.name) for p in self.path.glob("checkpoints/*") if p.name.isdigit()]
        self.imported = (self.path / IMPORTED).exists() and self.steps in ([], [0])
        self.text: dict | None = None  # the fingerprint of what it trains on, once it is known
        self.old: ConfigDict | None = None
        self.lock: TextIO | None = None
        self.origin: dict[str, Any] = {}  # imported.json
        if not self.config_file.exists():
            self._check_empty()
            return
        config = read_config(self.path)
        self._lock()
        if self.steps:
            self.old = config
        # A run that died before its first checkpoint has nothing to lose: it begins anew.
        # Also one with init_from, whose weights are read again.
        elif self.had_checkpoint(bool(config.init_from)):
            raise self.lost()

    def _check_empty(self) -> None:
        """Refuses a folder without config.json in which there is something else."""
        if (self.path / IMPORTED).exists():
            raise ConfigError(f"--workdir={self.path}: holds an import that did not finish; run "
                              "the import again, or name another folder")
        if self.steps:
            raise ConfigError(f"--workdir={self.path}: no config.json there, but checkpoints "
                              f"{self.steps}; bring it back, or name another folder")
        names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        foreign = [
            name for name in sorted(names)
            if name not in UNFINISHED and not name.startswith(".") and not name.endswith(LOGS)
        ]  # fmt: skip
        if foreign:
            raise ConfigError(f"--workdir={self.path}: is not empty and holds no run "
                              f"({', '.join(foreign[:3])}); name a new folder")

    def had_checkpoint(self, again: bool = False) -> bool:
        """Whether the run has been saved, or imported, so that it holds more than its config.

        again: what was imported is not its only copy.
        """
        damaged = self.path / "checkpoints-damaged"
        known = any((self.path / name).exists() for name in (SAVED, *[IMPORTED] * (not again)))
        return known or (damaged.is_dir() and any(damaged.iterdir()))

    def lost(self) -> ConfigError:
        """The error of a run none of whose checkpoints can be read."""
        imported = (self.path / IMPORTED).exists()
        return ConfigError(
            f"--workdir={self.path}: a checkpoint was saved there, and none is left that is sound; "
            f"to go on would be to start afresh from random weights. Bring a checkpoint back"
            f"{' or import again' * imported}, or, to start afresh, name another --workdir or "
            "remove this one"
        )

    def tokenizer(
        self, config: ConfigDict, train_documents: Sequence[str], start: Start | None = None
    ) -> Tokenizer:
        """Opens the run's tokenizer or builds one, and fills in config.model's sizes with it.

        start: what a new run begins with, whose tokenizer is taken.
        """
        self._check_text(config)
        objective = objectives.get(config.objective.name)
        if self.old is None and start:
            tokenizer, self.origin = start.tokenizer, start.origin
        elif self.old is None:
            tokenizer = objective.build_tokenizer(config, train_documents)
        else:
            tokenizer = tokenizers.load(self.path / "tokenizer")
        if self.old is None:
            default = objective.examples.chat_template
            tokenizer.chat_template = tokenizer.chat_template or default
        config.model = configs.resolve(config.model, tokenizer.vocab_size)
        self._train_new_heads(config)
        if self.old and (different := differences(self.old, config, self.imported)):
            raise ConfigError(f"--workdir={self.path} holds another run ({'; '.join(different)}); "
                              "use its values, or another --workdir")
        return tokenizer

    def _train_new_heads(self, config: ConfigDict) -> None:
        """Has LoRA train what an import drew, too, where rate_factors do not say otherwise."""
        file, o = self.path / IMPORTED, config.optimizer
        if file.is_file() and not self.origin:
            self.origin = read_json(file)
        new = self.origin.get("new")
        if config.model.lora_rank and new and not o.rate_factors:
            heads = ((f"{re.escape(name)}(/.*)?", 1.0) for name in new)
            o.rate_factors = ((groups.ADAPTERS, 1.0), *heads, (".*", 0.0))

    def commit(self, config: ConfigDict, tokenizer: Tokenizer) -> None:
        """Writes tokenizer and config, once nothing about the run can be refused any more.

        config.json comes last: a folder without one holds no run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() != 0:
            return
        self._lock()
        if self.old is None:
            tokenizer.save(self.path / "tokenizer")
        if self.text is not None:
            write_json(self.path / "text.json", self.text)
        write_text(self.config_file, configs.to_json(config) + "\n")
        if self.old is None and self.origin:
            write_json(self.path / IMPORTED, self.origin)

    def close(self) -> None:
        """Lets other processes have the folder, once no other Folder of this process holds it."""
        self.lock = None

    def _lock(self) -> None:
        """Takes the folder's POSIX lock, or refuses it; a process that dies releases it.

        POSIX record locks: also between machines on NFS 4 or Lustre with -o flock; not on object
        stores mounted as folders (gcsfuse), which see only their own machine's.
        """
        path = self.path.resolve() / ".lock"
        self.lock = LOCKS.get(path)
        if jax.process_index() != 0 or self.lock is not None:
            return
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                return
            file.seek(0)
            raise ConfigError(f"--workdir={self.path}: is being trained by {file.read().strip()}; "
                              "wait for it, end it, or name another folder") from error
        self.lock = LOCKS[path] = file
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
        old = read_json(file)
        changed = [name for name in old | self.text if old.get(name) != self.text.get(name)]
        if changed:
            raise ConfigError(f"--workdir={self.path}: the text has changed since the run began "
                              f"({', '.join(changed[:3])}); bring back what it was, use another "
                              f"--workdir, or remove {file} to go on somewhere in the new text")


def differences(old: ConfigDict, new: ConfigDict, imported: bool = False) -> list[str]:
    """Returns 'key: old there, new here' of keys that make it another run.

    imported: of a run at step 0, whose parameters and tokenizer alone are decided.
    """
    different = configs.differences(old, new)
    return list(filter(DECIDED.match, different)) if imported else different


def describe(workdir: str | Path, config: ConfigDict, data: Any) -> dict[str, Any]:
    """Returns a checkpoint's JSON; data: the data iterator's state, or None."""
    return {
        "data": data,
        "config": config.to_dict(),
        "tokenizer": _contents(workdir) if jax.process_index() == 0 else {},
    }


def _contents(workdir: str | Path) -> dict[str, str]:
    files = (Path(workdir) / "tokenizer").iterdir()
    return {f.name: f.read_bytes().decode("latin-1") for f in files if f.is_file()}


def same_run(workdir: str | Path, config: ConfigDict) -> Callable[[int, dict], None]:
    """Returns a check that refuses a checkpoint saved with another config or tokenizer.

    It takes (step, meta), raises a ConfigError that names the keys or files, and is for
    `Checkpoints.restore`.
    """

    def check(step: int, meta: dict) -> None:
        where = Path(workdir) / "checkpoints" / str(step)
        try:
            old = configs.from_dict(meta["config"])
        except ConfigError as error:
            raise ConfigError(f"{where} has a config of another version: {error}") from error
        imported = step == 0 and (Path(workdir) / IMPORTED).exists()
        if different := differences(old, config, imported):
            raise ConfigError(f"{where} is of another config than {Path(workdir) / 'config.json'} "
                              f"({'; '.join(different)}); bring back what was there")
        here, saved = _contents(workdir), meta["tokenizer"]
        if changed := [name for name in saved if here.get(name) != saved[name]]:
            raise ConfigError(f"{where} was saved with another {Path(workdir) / 'tokenizer'} "
                              f"({', '.join(sorted(changed))} differ); bring back what was there")

    return check
