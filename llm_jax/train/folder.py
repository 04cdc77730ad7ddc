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

IMPORTED = "imported.json"  # the source of an import; written first

# Keys fixed by an import; others may change until the run has been trained.
DECIDED = re.compile(r"model\.(?!lora_)|tokenizer\.|init_from")

# Files allowed in a folder without a run: those of a run that failed before it wrote config.json,
# of a sweep, or of the shell or scheduler that started it.
UNFINISHED = ("tokenizer", "checkpoints", "text.json", "run.json", "log.txt", "lock")
LOGS = (".partial", ".log", ".out", ".err")

SHOWN = 6  # maximum differing keys in a message

# {path: file} locked by this process. A POSIX lock belongs to the process and is released when it
# closes any file of that path: Folders of one path share a file, closed with the last of them.
LOCKS = WeakValueDictionary()


class Start(NamedTuple):
    """Initial weights and tokenizer of a new run, see hub.runs.start.

    Attributes:
      params: parameters of the model; missing ones are initialised from config.seed.
      origin: imported.json: source, family, new parameters, unused tensors.
    """

    params: Any
    tokenizer: Tokenizer
    origin: dict[str, Any]


class Folder:
    """A run folder, created by `commit` if needed.

    It is locked against other processes until `close` or deletion of all Folder objects of this
    path in this process.

    Raises:
      ConfigError: it is not writable, another job trains in it, or it holds something other than a
        run, an incomplete import, or a run without config.json or checkpoints.
    """

    def __init__(self, path: str | Path):
        self.path = folder_named(path)
        self.config_file = self.path / "config.json"
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise ConfigError(f"--workdir={path}: cannot be created ({existing} is a file); name a "
                              "folder")
        if not os.access(existing, os.W_OK):
            raise ConfigError(f"--workdir={path}: is not writable; name another folder")
        self.steps = [int(p.name) for p in self.path.glob("checkpoints/*") if p.name.isdigit()]
        self.imported = (self.path / IMPORTED).exists() and self.steps in ([], [0])
        self.text: dict | None = None  # fingerprint of the training text, once known
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
        # A run that failed before its first checkpoint starts again, also with init_from, whose
        # weights are read again.
        elif self.had_checkpoint(bool(config.init_from)):
            raise self.lost()

    def _check_empty(self) -> None:
        """Raises ConfigError if a folder without config.json holds other files."""
        if (self.path / IMPORTED).exists():
            raise ConfigError(f"--workdir={self.path}: holds an incomplete import; run the import "
                              "again, or name another folder")
        if self.steps:
            raise ConfigError(f"--workdir={self.path}: has checkpoints {self.steps} but no "
                              "config.json; restore it, or name another folder")
        names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        foreign = [
            name for name in sorted(names)
            if name not in UNFINISHED and not name.startswith(".") and not name.endswith(LOGS)
        ]  # fmt: skip
        if foreign:
            raise ConfigError(f"--workdir={self.path}: is not empty and not a run folder "
                              f"({', '.join(foreign[:3])}); name a new folder")

    def had_checkpoint(self, again: bool = False) -> bool:
        """Whether the run has been saved or imported, so that it holds more than its config.

        again: the imported weights can be read again.
        """
        damaged = self.path / "checkpoints-damaged"
        known = any((self.path / name).exists() for name in (SAVED, *[IMPORTED] * (not again)))
        return known or (damaged.is_dir() and any(damaged.iterdir()))

    def lost(self) -> ConfigError:
        """Returns the error for a run without a readable checkpoint."""
        imported = (self.path / IMPORTED).exists()
        return ConfigError(
            f"--workdir={self.path}: a checkpoint was saved here, but no sound one is left; "
            f"continuing would start from random weights. Restore a checkpoint"
            f"{' or import again' * imported}, or, to start from scratch, name another --workdir "
            "or remove this one"
        )

    def tokenizer(
        self, config: ConfigDict, train_documents: Sequence[str], start: Start | None = None
    ) -> Tokenizer:
        """Opens or trains the run's tokenizer, and resolves the sizes in config.model.

        start: initial weights of a new run; provides the tokenizer.
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
            more = len(different) - SHOWN
            parts = [*different[:SHOWN], *[f"{more} more keys"] * (more > 0)]
            raise ConfigError(f"--workdir={self.path} holds a different run "
                              f"({'; '.join(parts)}); use its values, or another --workdir")
        return tokenizer

    def _train_new_heads(self, config: ConfigDict) -> None:
        """With LoRA, also trains heads that an import initialised, unless rate_factors are set."""
        file, o = self.path / IMPORTED, config.optimizer
        if file.is_file() and not self.origin:
            self.origin = read_json(file)
        new = self.origin.get("new")
        if config.model.lora_rank and new and not o.rate_factors:
            heads = ((f"{re.escape(name)}(/.*)?", 1.0) for name in new)
            o.rate_factors = ((groups.ADAPTERS, 1.0), *heads, (".*", 0.0))

    def commit(self, config: ConfigDict, tokenizer: Tokenizer) -> None:
        """Writes tokenizer and config after all checks have passed.

        config.json is written last: a folder without it is not a run.
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
        """Releases the lock, unless another Folder of this process holds it."""
        self.lock = None

    def _lock(self) -> None:
        """Takes the folder's POSIX record lock, or raises ConfigError; it ends with the process.

        The lock works across machines on NFS 4 or Lustre with -o flock, but not on mounted object
        stores (gcsfuse), where it is local to a machine.
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
            raise ConfigError(f"--workdir={self.path}: is in use by {file.read().strip()}; wait "
                              "for it, stop it, or name another folder") from error
        self.lock = LOCKS[path] = file
        file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("JOBSET_NAME")
        file.write(f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' * bool(job)}")
        file.flush()

    def _check_text(self, config: ConfigDict) -> None:
        """Raises ConfigError if the text has changed: the data iterator's state is invalid."""
        self.text = sources.fingerprint(config)
        file = self.path / "text.json"
        if self.old is None or self.imported or not file.is_file():
            return
        if any(self.old.data[key] != config.data[key] for key in ("train", "validation", "test")):
            return  # another run, not changed text: `tokenizer` reports the keys
        old = read_json(file)
        changed = [name for name in old | self.text if old.get(name) != self.text.get(name)]
        if changed:
            raise ConfigError(f"--workdir={self.path}: the text has changed since the run started "
                              f"({', '.join(changed[:3])}); restore it, use another --workdir, or "
                              f"remove {file} to continue at an arbitrary place in the new text")


def differences(old: ConfigDict, new: ConfigDict, imported: bool = False) -> list[str]:
    """Returns 'key: old there, new here' for each key whose change makes it a different run.

    imported: at step 0 of an import, only keys of parameters and tokenizer are fixed.
    """
    different = configs.differences(old, new)
    return list(filter(DECIDED.match, different)) if imported else different


def describe(workdir: str | Path, config: ConfigDict, data: Any) -> dict[str, Any]:
    """Returns the JSON metadata of a checkpoint; data: the data iterator's state, or None."""
    return {
        "data": data,
        "config": config.to_dict(),
        "tokenizer": _contents(workdir) if jax.process_index() == 0 else {},
    }


def _contents(workdir: str | Path) -> dict[str, str]:
    files = (Path(workdir) / "tokenizer").iterdir()
    return {f.name: f.read_bytes().decode("latin-1") for f in files if f.is_file()}


def same_run(workdir: str | Path, config: ConfigDict) -> Callable[[int, dict], None]:
    """Returns a check for `Checkpoints.restore`: same config and tokenizer as the folder's.

    It takes (step, meta) and raises a ConfigError that names the keys or files that differ.
    """

    def check(step: int, meta: dict) -> None:
        where = Path(workdir) / "checkpoints" / str(step)
        try:
            old = configs.from_dict(meta["config"])
        except ConfigError as error:
            raise ConfigError(f"{where} has the config of another version: {error}") from error
        imported = step == 0 and (Path(workdir) / IMPORTED).exists()
        if different := differences(old, config, imported):
            raise ConfigError(f"{where} has a config different from "
                              f"{Path(workdir) / 'config.json'} ({'; '.join(different)}); restore "
                              "the original file")
        here, saved = _contents(workdir), meta["tokenizer"]
        if changed := [name for name in saved if here.get(name) != saved[name]]:
            raise ConfigError(f"{where} was saved with another {Path(workdir) / 'tokenizer'} "
                              f"({', '.join(sorted(changed))} differ); restore the original files")

    return check
