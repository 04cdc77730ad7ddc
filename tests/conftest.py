"""Shared fixtures: eight simulated devices, a compilation cache, a tiny run."""

import gc
import logging
import os
import random
from importlib import metadata
from pathlib import Path

# Before JAX is imported, which reads them; child processes inherit them. Tests run programs of
# no size: most of their time is compilation, which is why it is told not to optimise.
FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
if metadata.version("jaxlib").startswith("0.10."):  # later ones end a process at this flag
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # of MLIR, which take three times as long
given = os.environ.get("XLA_FLAGS", "")
wanted = [f"{name}={value}" for name, value in FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *wanted]).strip()
# A simulated device waits for the others on a thread of XLA's pool, by default one a core: with
# two cores, collectives of which neither waits for the other can wait for a thread for ever.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm_jax" / "tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A tracer makes many objects and few cycles; to look at all for them was a tenth of the time.
gc.set_threshold(50_000, 10, 5)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from llm_jax import config as configs  # noqa: E402

TINY = {
    "model.num_layers": 2,
    "model.embed_dim": 16,
    "model.num_heads": 4,
    "model.max_length": 16,
    "model.positions": "rotary",
    "model.use_bias": False,
    "tokenizer.name": "bytes",
    "data.validation_fraction": 0.1,
    "data.batch_size": 8,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 4,
    "train.steps": 12,
    "train.log_every": 1,
    "eval.every": 5,
    "eval.max_batches": 2,
    "checkpoint.every": 4,
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of research data sets; the test is skipped where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LLM_JAX_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set LLM_JAX_DATA")
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A few KB of sentences in JSONL, of very different lengths."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(40)]
    lines = [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return path


@pytest.fixture(scope="session")
def overrides(text_file):
    """Returns key=value overrides of a tiny run, changed by a dict of keys."""

    def make(changes: dict | None = None) -> list[str]:
        keys = TINY | {"data.train": str(text_file)} | (changes or {})
        return [f"{key}={value}" for key, value in keys.items()]

    return make


@pytest.fixture(scope="session")
def tiny(overrides):
    """Returns the config of a tiny run, changed by a dict of keys as a recipe would."""

    def make(changes: dict | None = None) -> ConfigDict:
        config = configs.base()
        for override in overrides(changes):
            configs.set_key(config, *override.split("=", 1))
        configs.check(config)
        return config

    return make


@pytest.fixture(scope="session")
def batch():
    """Returns random batches of a config's shape; rows differ in how much of them is padding."""

    def make(config, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        shape = B, T = config.data.batch_size, config.model.max_length
        real = np.arange(T) < rng.integers(1, T + 1, (B, 1))
        rows = {
            "tokens": rng.integers(0, 256, shape, np.int32),
            "targets": rng.integers(0, 256, shape, np.int32),
            "weights": real.astype(np.float32),
            "segment_ids": real.astype(np.int32),
            "positions": np.broadcast_to(np.arange(T, dtype=np.int32), shape) * real,
        }
        if config.model.kind != "encoder_decoder":
            return rows
        there = np.roll(real, 1, axis=0)
        read = {"tokens": rng.integers(0, 256, shape, np.int32), "segment_ids": there.astype(int)}
        read["positions"] = np.broadcast_to(np.arange(T, dtype=np.int32), shape) * there
        return rows | {f"encoder_{name}": x for name, x in read.items()}

    return make


@pytest.fixture(autouse=True, scope="module")
def programs_end_with_their_file():
    """A whole run would else hold gigabytes of compiled programs that no other file uses."""
    yield
    jax.clear_caches()


LOG = logging.getLogger("llm_jax")
LOG_AT_FIRST = LOG.handlers, LOG.propagate, LOG.level


@pytest.fixture(autouse=True)
def log_as_it_was():
    """The command line takes over our logger, also in a module's fixtures; a test wants it back."""

    def restore():
        LOG.handlers, LOG.propagate, level = LOG_AT_FIRST
        LOG.setLevel(level)

    restore()
    yield
    restore()


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.values = {}

    def start(self, facts, step, steps):
        self.facts = facts

    def note(self, text):
        self.notes.append(text)

    def progress(self, step, values):
        self.values[step] = values


@pytest.fixture
def silent():
    return Silent()
