"""Copies the results of sweeps over synthetic tasks and writes README.md from them.

python experiments/attention_tasks/run.py runs/tasks/*     # without directories: README.md only
python experiments/attention_tasks/run.py --single runs/a runs/b     # for the last table
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from llm_jax import record  # noqa: E402
from llm_jax.data import tasks  # noqa: E402
from llm_jax.files import read_json  # noqa: E402
from llm_jax.sweep import results  # noqa: E402
from llm_jax.train import metrics  # noqa: E402

TEXT = """# Attention variants on synthetic tasks

**Claim.** On tasks whose answer is somewhere in the row, attention variants differ for reasons that
are known in advance.

```
python launch.py sweep --config=configs/ablations/tasks.py:mqar --workdir=runs/tasks/mqar
python experiments/attention_tasks/run.py runs/tasks/*
```

configs/ablations/tasks.py has all tasks.

**Setup.** Two layers of width 64, two heads of size 32, rotary positions, and one learning rate, at
which softmax attention learns with the first seed. Accuracy is computed on the answers only, over
1,000 held-out examples after the last step. *Chance* is the accuracy of naming any of the possible
words. Differences to softmax are paired by seed, ± half of the 95 % interval. Holm's p is corrected
within a task.

**Expected.** Through two layers, a window of w sees 2 (w - 1) tokens back. In recall these are the
keys that were queried recently; for older keys it can only guess. Linear variants store what they
have read in a state of fixed size. Adding to it blurs it (Arora 2023,
https://arxiv.org/abs/2312.04927), a decay forgets, and the delta rule corrects the value of a key
(Yang 2025, https://arxiv.org/abs/2412.06464). Four words to copy fit into any state.

**Limits.** There are few seeds and one learning rate for all variants. A variant that does not
learn here may learn with another rate or with more steps. In induction, and in recall of 8 pairs,
even softmax does not learn with every seed in this number of steps, so these tables show which
variant learns sooner, not which can learn the task. For 8 pairs, some runs are missing, and the
runs of delta were resumed at a later commit than the others.

run.py writes this file from results/.

"""

SINGLES = """## Why there are more queries than pairs

In the published task, no key is queried twice. The remaining queries can then be inferred
without looking up a key. Drawing more queries than pairs independently removes this shortcut.
The runs below differ only in the task. They have one seed, and softmax fails on the task of the
first row with another seed (above), so they are an indication, not a result."""


def take(folder: Path) -> None:
    """Writes results/FOLDER.json from a sweep's folder: accuracy by variant, seed and step."""
    design = read_json(folder / "sweep.json")
    accuracy: dict[str, dict[int, list]] = {label: {} for label in design["variants"]}
    for run in results.runs(design, folder):
        if run.state() == "finished":
            rows = [row for row in run.rows() if row.get("eval_accuracy") is not None]
            accuracy[run.label][run.seed] = [[row["step"], row["eval_accuracy"]] for row in rows]
    record.write(
        HERE / "results" / f"{folder.name}.json",
        begun=design["begun"],
        spec=design["spec"],
        overrides=design["overrides"],
        seeds=design["seeds"],
        baseline=design["baseline"],
        data={label: v["config"]["data"] for label, v in design["variants"].items()},
        train={label: v["config"]["train"] for label, v in design["variants"].items()},
        parameters={label: v["parameters"] for label, v in design["variants"].items()},
        accuracy=accuracy,
    )


def with_error(value: float, error: float, sign: str = "") -> str:
    """A value with its error; a single seed has none."""
    return f"{value:{sign}.3f}" + (f" ± {error:.3f}" if error == error else "")


def section(found: dict) -> str:
    """Returns the section of a task, with accuracies at the last step."""
    base, last = found["baseline"], {}
    for label, seeds in found["accuracy"].items():
        last[label] = {seed: points[-1][1] for seed, points in seeds.items()}
    tests = {k: results.paired(v, last[base]) for k, v in last.items() if k != base}
    holm = results.holm({label: test.p for label, test in tests.items() if test})
    rows = []
    for label, values in last.items():
        test, each = tests.get(label), list(values.values())
        rows.append([
            label,
            f"{found['parameters'][label]:,}",
            ", ".join(f"{x:.3f}" for x in each) or "–",
            with_error(np.mean(each), results.standard_error(each)) if each else "–",
            "baseline" if label == base else
            with_error(test.mean, test.half_width, "+") if test else "–",
            f"{holm[label]:.2g}" if label in holm else "–",
        ])  # fmt: skip
    header = ["", "parameters", "accuracy of each seed", "mean ± standard error",
              f"minus {base}", "Holm's p"]  # fmt: skip
    spec, train = found["data"][base]["train"], found["train"][base]
    task = tasks.parse(spec, "data.train")
    begun, rows_a_step = found["begun"], found["data"][base]["batch_size"]
    finished = sum(map(len, last.values()))
    return (
        f"## {type(task).__name__}: `{spec}`\n\n{record.table(header, rows)}\n\n"
        f"Chance: {1 / getattr(task, 'pairs', task.vocab):.3f}. {train['steps']} steps of "
        f"{rows_a_step} rows; {finished} of {found['seeds'] * len(last)} runs are finished. "
        f"Started {begun['time']}; commit {begun['commit']}; jax {begun['versions']['jax']}; "
        f"{begun['hardware']}.\n"
    )


def take_single(folders: list[Path]) -> None:
    """Writes results/single/runs.json from runs that differ only in data.train."""
    found = []
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        same = {name: part for name, part in config.items() if name not in ("eval", "checkpoint")}
        task = same["data"].pop("train")
        found.append({"task": task, "same": same, "row": metrics.read(folder)[-1]})
    assert all(run["same"] == found[0]["same"] for run in found)
    record.write(HERE / "results" / "single" / "runs.json", runs=found)


def singles(found: dict) -> str:
    """Returns the table of softmax attention on the same number of pairs with other queries."""
    guess = lambda r: 1 / tasks.parse(r["task"], "data.train").pairs
    rows = [
        [f"`{r['task']}`", f"{r['row']['eval_accuracy']:.3f}", f"{guess(r):.3f}"]
        for r in found["runs"]
    ]
    steps = {r["row"]["step"] for r in found["runs"]}
    return (
        f"{SINGLES}\n\n{record.table(['softmax, one seed', 'accuracy', 'chance'], rows)}\n\nAfter "
        f"{', '.join(map(str, steps))} steps. Recorded {found['time']}, commit {found['commit']}; "
        f"jax {found['versions']['jax']}; {found['hardware']}.\n"
    )


def main() -> None:
    """Records the given runs and rewrites README.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path, help="directories of sweeps, or of runs")
    parser.add_argument("--single", action="store_true", help="the directories are single runs")
    args = parser.parse_args()
    if args.single:
        take_single(args.folders)
    else:
        for folder in args.folders:
            take(folder)
    read = lambda pattern: [json.loads(f.read_text()) for f in sorted(HERE.glob(pattern))]
    parts = [*map(section, read("results/*.json")), *map(singles, read("results/single/*.json"))]
    (HERE / "README.md").write_text(TEXT + "\n".join(parts))


if __name__ == "__main__":
    main()
