"""Measures how long a checkpoint blocks the training loop; writes results/ and README.md.

python experiments/checkpoint/run.py [CASE …]      # without cases: all that have no result
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from llm_jax import record  # noqa: E402

STEPS, EVERY = 21, 5
# Case: rows of a batch, of 256 tokens each.
CASES = {"gpt2-124m": 1}
BEFORE = "gpt2-124m-before"  # the same at an earlier commit, stopped early

TEXT = """# How long a checkpoint blocks training

**Claim.** Asynchronous checkpointing blocks the training loop for no longer than one step takes.

**Setup.** `Trainer.run` on GPT-2 124M with AdamW in float32, {steps} steps of rows of 256 tokens
on {hardware}, with a checkpoint every {every} steps (gpt2-124m-before: every 10 steps, stopped
after 20). Every step is logged, so each step ends before the next one starts. The *stall* is the
time spent in `save()`, during which the loop waits. The rest of the checkpoint is written in the
background. On a CPU, the following steps share their cores with this write and are slower, so
they are listed separately. Wall-clock seconds, median (minimum to maximum), on a machine with
other load.

{table}

{verdict}

gpt2-124m-before is an earlier commit, in which `save()` waited for the checksums of the arrays.

**Not measured:** a GPU or TPU, where the background write does not slow down the steps, and the
data copied from the device moves over PCIe.

    python experiments/checkpoint/run.py

{provenance}
"""


def case(name: str) -> None:
    """Trains, and records the time of each step and each save."""
    from llm_jax.config import load
    from llm_jax.train.loop import Trainer

    config = load(f"{ROOT}/configs/gpt2.py:124m", [
        "data.train=builtin:python", "tokenizer.name=bytes", "model.max_length=256",
        "model.dtype=float32", f"data.batch_size={CASES[name]}", f"train.steps={STEPS}",
        "train.log_every=1", "eval.every=1000000", "data.validation_fraction=0", 
        f"checkpoint.every={EVERY}", "checkpoint.keep_last=1", "checkpoint.keep_best=0",
    ])  # fmt: skip
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        trainer = Timed(Trainer, config, folder)
        trainer.run()
    record.write(HERE / "results" / f"{name}.json", steps=trainer.steps,
                 state_bytes=trainer.state_bytes, parameters=trainer.parameters,
                 resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                 tokens=CASES[name] * 256)  # fmt: skip


class Silent:
    """A reporter that prints nothing."""

    start = note = progress = stop = lambda *_: None


def Timed(trainer_class, config, folder):
    """Returns a Trainer that records seconds of each step and save, and whether one is running."""
    import jax

    class TimedTrainer(trainer_class):
        steps, saving = [], 0.0

        def _step(self):
            writing = self.checkpoints.manager.is_saving_in_progress()
            self.saving, began = 0.0, time.perf_counter()
            super()._step()
            took = time.perf_counter() - began
            self.steps.append({"step": self.step, "seconds": took - self.saving,
                               "save_seconds": self.saving, "writing": writing})  # fmt: skip

        def save(self, loss=None):
            began = time.perf_counter()
            super().save(loss)
            self.saving = time.perf_counter() - began

    trainer = TimedTrainer(config, folder, Silent())
    leaves = jax.tree.leaves(trainer.state)
    trainer.state_bytes = sum(x.nbytes for x in leaves)
    trainer.parameters = sum(x.size for x in jax.tree.leaves(trainer.state.params))
    return trainer


def split(found: dict) -> dict[str, list[float]]:
    """Seconds of plain steps, steps during a write, and saves; without the first step."""
    steps = found["steps"][1:]
    return {
        "plain": [s["seconds"] for s in steps if not s["writing"]],
        "beside": [s["seconds"] for s in steps if s["writing"]],
        "stall": [s["save_seconds"] for s in steps if s["save_seconds"]],
    }


def spread(values: list[float]) -> str:
    """Median and range."""
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def write() -> None:
    """Writes README.md from results/."""
    files = {name: HERE / "results" / f"{name}.json" for name in (BEFORE, *CASES)}
    results = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    rows, said = [], []
    for name, found in results.items():
        kinds = split(found)
        rows.append([name, found["commit"], len(kinds["stall"]), found["tokens"],
                     f"{found['state_bytes'] / 1e9:.2f} GB",
                     *(spread(kinds[kind]) for kind in ("plain", "stall", "beside")),
                     f"{found['resident_bytes'] / 1e9:.1f} GB"])  # fmt: skip
        share = max(kinds["stall"]) / statistics.median(kinds["plain"])
        slowed = statistics.median(kinds["beside"]) / statistics.median(kinds["plain"])
        said.append(f"- {name}: the longest stall takes {share:.2f} times as long as the median "
                    f"step without a save ({'claim met' if share <= 1 else 'claim not met'}). "
                    f"Steps during a write take {slowed:.1f} times as long as others.")  # fmt: skip
    header = ["case", "commit", "saves", "tokens per step", "checkpoint", "step", "stall",
              "step during a write", "peak memory"]  # fmt: skip
    text = TEXT.format(
        steps=STEPS, every=EVERY, hardware=next(iter(results.values()))["hardware"],
        table=record.table(header, rows), verdict="\n".join(said),
        provenance="  \n".join(
            f"{name}: commit {r['commit']}, {r['time']}, {r['hardware']}, jax "
            f"{r['versions']['jax']}"
            for name, r in results.items()
        ),
    )  # fmt: skip
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    left = [name for name in CASES if not (HERE / "results" / f"{name}.json").exists()]
    for one in sys.argv[1:] or left:
        case(one)
    write()
