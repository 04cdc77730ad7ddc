"""Compression of trained runs, and a table that compares the results (docs/compress.md).

Distillation is training (`distill`); other methods convert a run's parameters once, to a new run at
step 0.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax import models, record, sharding
from llm_jax.compress import methods
from llm_jax.config import ConfigError
from llm_jax.console import counted
from llm_jax.data import pipeline
from llm_jax.data.examples import Record
from llm_jax.files import folder_named, read_json
from llm_jax.hub import runs
from llm_jax.sweep.figures import COLOURS
from llm_jax.train.evaluate import evaluate
from llm_jax.train.metrics import figure
from llm_jax.train.run import Setup, load_params

FOLDER, ROUNDS = "compress", 5
TEXT = """# {name}, compressed

Loss and score are on the validation set{part}; size is that of the stored parameters, for matrices
with zeros the nonzero entries and a bitmask; tokens per second are for forward passes over full
batches, median of {rounds}, on {hardware}. Products include zeros, and dequantise quantised
weights.

{table}

![score by size](pareto.png)
"""


def compress(workdir: str, target: str, method: str, step: int | str | None = None) -> Path:
    """Creates a run folder with compressed parameters of a checkpoint; returns its path.

    LoRA matrices are merged into the kernels first, and rate factors that freeze kernels removed.

    Raises:
      ConfigError: see methods.apply, load_params, validation; or the folder is not empty.
    """
    setup, tokenizer, params, step = load_params(workdir, step)
    config = setup.config
    if config.model.lora_rank:
        config.optimizer.rate_factors = config.optimizer.decay_factors = ()
    config.model, params = models.merge(config.model, params)
    config, params = methods.apply(config, params, method)
    validation(workdir, setup)
    config.init_from = config.distill.teacher = ""
    origin = {"from": str(workdir), "family": None, "new": [], "unused": [], "method": method,
              "step": step}  # fmt: skip
    runs.make_run(target, config, tokenizer, params, origin)
    return Path(target)


def measure(workdir: str | Path, step: int | str | None = None) -> dict[str, Any]:
    """Returns size, speed and scores of a run: parameters, nonzero, bytes, tokens_per_second …

    Raises:
      ConfigError: see load_params, validation.
    """
    setup, tokenizer, params, step = load_params(workdir, step)
    config, documents = setup.config, validation(workdir, setup)
    batches = pipeline.eval_batches(setup.objective.examples(tokenizer, config), documents)
    eval_step = setup.eval_step(tokenizer)
    with sharding.activate(setup.mesh):
        limit = config.eval.max_batches
        values = evaluate(eval_step, params, batches, setup.mesh, limit).values
        speed = _speed(eval_step, params, next(iter(batches)), config.model.max_length, setup.mesh)
    weights = jax.tree.leaves(models.merge(config.model, params)[1])
    about = Path(workdir) / "imported.json"
    origin = read_json(about) if about.is_file() else {}
    return {
        "run": Path(workdir).name, "method": origin.get("method", ""), "step": step,
        "teacher": bool(config.distill.teacher), "parameters": sum(x.size for x in weights),
        "nonzero": sum(int(np.count_nonzero(np.asarray(x))) for x in weights),
        "bytes": sum(map(stored, jax.tree.leaves(params))), "tokens_per_second": speed,
        "max_batches": limit, "values": values,
        "score": "accuracy" if setup.objective.classes else "loss",
    }  # fmt: skip


def validation(workdir: str | Path, setup: Setup) -> Sequence[Record]:
    """Returns the validation documents of a run; ConfigError if it has none."""
    documents = setup.objective.split(setup.config, "validation")
    if not len(documents) or setup.objective.reference:
        raise ConfigError(f"--workdir={workdir}: has no validation set to measure compression on")
    return documents


def stored(x: jax.Array) -> int:
    """Returns the bytes of an array: dense, or nonzero entries plus a bitmask, if smaller."""
    bits = 4 if x.dtype.name.endswith("int4") else 8 * x.dtype.itemsize
    dense, count = x.size * bits, int(np.count_nonzero(np.asarray(x)))
    return -(-min(dense, count * bits + x.size) // 8)


def _speed(step: Callable, params: Any, batch: dict, length: int, mesh: Any) -> float:
    """Returns the tokens per second of the forward pass on a batch of full rows."""
    shape = batch["tokens"].shape
    wide = lambda x: np.resize(x, (len(x), length)) if x.shape == shape else x
    batch = {name: wide(x) for name, x in batch.items()}
    for name in batch.keys() & {"segment_ids", "encoder_segment_ids"}:
        batch[name] = np.ones_like(batch[name])
    batch, seconds = sharding.put(batch, mesh), []
    jax.block_until_ready(step(params, batch))
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(step(params, batch))
        seconds.append(time.perf_counter() - began)
    return batch["tokens"].size / float(np.median(seconds))


def add(workdir: str | Path, found: dict[str, Any]) -> Path:
    """Stores a measurement in WORKDIR/compress/ and writes the table; returns its path.

    Raises:
      ConfigError: its score or number of batches differs from those in the table.
    """
    folder = folder_named(workdir) / FOLDER
    same = lambda x: f"{x['score']}, eval.max_batches={x['max_batches']}"
    if others := {*map(same, map(read_json, folder.glob("*.json")))} - {same(found)}:
        raise ConfigError(f"{found['run']}: is measured by {same(found)}, unlike the other rows in "
                          f"the table of {folder}: {', '.join(others)}")
    record.write(folder / f"{found['run']}.json", **found)
    return write(folder, Path(workdir).name)


def write(folder: Path, name: str) -> Path:
    """Writes report.md and pareto.png from the measurements in a folder."""
    found = sorted(map(read_json, folder.glob("*.json")), key=lambda x: -x["bytes"])
    best, score = _front(found), found[0]["score"]
    header = ["run", "made by", "parameters", "not 0", "MiB", "loss"]
    header += ["accuracy"] * (score == "accuracy") + ["tokens/s", "Pareto"]
    table = []
    for x in found:
        made = [x["method"] + " then trained" * (x["step"] > 0)] * bool(x["method"])
        made += ["distilled"] * x["teacher"]
        row = [x["run"], ", ".join(made) or "-", f"{x['parameters']:,}", f"{x['nonzero']:,}",
               f"{x['bytes'] / 2**20:.2f}", f"{x['values']['loss']:.4f}"]  # fmt: skip
        row += [f"{x['values']['accuracy']:.4f}"] * (score == "accuracy")
        table.append([*row, f"{x['tokens_per_second']:,.0f}", "yes" * (x in best)])
    limit = found[0]["max_batches"]
    part = f" (at most {counted(limit, 'batches')})" * bool(limit)
    text = TEXT.format(name=name, part=part, rounds=ROUNDS, hardware=found[0]["hardware"],
                       table=record.table(header, table))  # fmt: skip
    (folder / "report.md").write_text(text)
    _draw(folder / "pareto.png", found, best, score)
    return folder / "report.md"


def _cost(x: dict) -> float:
    value = x["values"][x["score"]]
    return -value if x["score"] == "accuracy" else value


def _front(found: list[dict]) -> list[dict]:
    """Returns the Pareto front of size and score."""
    beats = lambda a, b: (a["bytes"] <= b["bytes"] and _cost(a) <= _cost(b)
                          and (a["bytes"], _cost(a)) != (b["bytes"], _cost(b)))  # fmt: skip
    return [x for x in found if not any(beats(other, x) for other in found)]


def _draw(path: Path, found: list[dict], best: list[dict], score: str) -> None:
    with figure(path, 7.5, 4.8) as (_, (axes,)):
        at = lambda xs: ([x["bytes"] / 2**20 for x in xs], [x["values"][score] for x in xs])
        axes.plot(*at(found), "o", color=COLOURS[2], label="others")
        axes.step(*at(best[::-1]), "o-", color=COLOURS[5], label="Pareto front", where="post")
        for i, x in enumerate(sorted(found, key=_cost)):  # labels on alternating sides
            axes.annotate(x["run"], (x["bytes"] / 2**20, x["values"][score]), fontsize=8,
                          textcoords="offset points", xytext=(7 - 14 * (i % 2), 0), va="center",
                          ha="right" if i % 2 else "left")  # fmt: skip
        axes.margins(x=0.15)
        axes.set(xlabel="size of the parameters (MiB)",
                 ylabel="accuracy" if score == "accuracy" else "loss (nats)")  # fmt: skip
        axes.legend(frameon=False)
