"""Audits a small GPT and a small SST-2 classifier; writes their reports and README.md.

python experiments/limits/run.py            # or only --readme; SST-2 in $LLM_JAX_DATA/sst2
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from llm_jax import record  # noqa: E402
from llm_jax.audit import report  # noqa: E402
from llm_jax.files import read_json  # noqa: E402
from llm_jax.train.metrics import figure  # noqa: E402

SST2 = Path(os.environ.get("LLM_JAX_DATA", ROOT.parent / "shared" / "data")) / "sst2"
WATTS = 100  # assumed, not measured
RUNS = {
    "gpt": ["--config=configs/quickstart.py", "--config.train.steps=100",
            "--config.eval.max_batches=5", "--config.eval.every=100",
            "--config.checkpoint.every=100"],
    "sst2": ["--config=configs/finetune/classify.py", f"--config.data.train={SST2}/train.tsv",
             f"--config.data.validation={SST2}/dev.tsv", "--config.data.text_column=0",
             "--config.data.label_column=1", "--config.model.max_length=64",
             "--config.optimizer.learning_rate=5e-4", "--config.train.steps=200"],
}  # fmt: skip
SHOWN = {
    "gpt": ("train loss", "validation loss", "ECE", "membership inference by loss: AUC",
            "minimal pairs: subject-verb agreement"),
    "sst2": ("train loss", "validation loss", "accuracy", "ECE",
             "membership inference by loss: AUC", "accuracy, typing errors, 50% of words",
             "en: first minus second word, in templates"),
}  # fmt: skip
FAITHFUL = "comprehensiveness", "sufficiency (lower is better)"
TEXT = """# Audits of two small models

**Setup.** A GPT of the size of the quickstart, trained for {gpt} steps, and an SST-2 classifier
trained from scratch for {sst2} steps. `launch.py audit` measures both
([docs/audit.md](../../docs/audit.md)):

```
python experiments/limits/run.py
```

The full reports are [gpt/report.md](gpt/report.md) and [sst2/report.md](sst2/report.md), each
with a self-contained report.html. Selected results with 95 % intervals:

{tables}

## Attribution methods, ranked by faithfulness

Comprehensiveness is the decrease of the answer's probability when a method's top tokens are
removed, sufficiency the decrease when only they are left ([docs/audit.md](../../docs/audit.md)).
Intervals are bootstrap intervals over texts; where they overlap, the order is not certain.

{ranking}

![faithfulness of attribution methods](faithfulness.png)

Both models are small and were trained for minutes on a shared CPU. The results show that the
measurements work and how large their errors are, not what good models achieve. Energy assumes
{watts} W.

[remedies.md](remedies.md): quantisation, pruning, distillation and DP-SGD of such models,
and remedies of bias.
"""


def launch(*options: str) -> None:
    """Runs launch.py."""
    subprocess.run([sys.executable, "launch.py", *options], cwd=ROOT, check=True)


def main() -> None:
    """Trains and audits both models and copies the reports."""
    for name, options in RUNS.items():
        run = Path("runs") / "limits" / name
        launch("train", f"--workdir={run}", *options)
        launch("audit", f"--workdir={run}", f"--watts={WATTS}")
        shutil.rmtree(HERE / name, ignore_errors=True)
        shutil.copytree(ROOT / run / "audit", HERE / name)


def write_readme() -> None:
    """Writes README.md of the two audits."""
    tables, steps = [], {}
    for name, wanted in SHOWN.items():
        results = [read_json(file) for file in sorted((HERE / name).glob("*.json"))]
        figures = {f["name"]: f for result in results for f in result["figures"]}
        rows = [[x, report.shown(figures.get(x)), figures.get(x, {}).get("unit", "")]
                for x in wanted]  # fmt: skip
        tables += [f"## {name}", record.table(["", "value", "unit"], rows)]
        steps[name] = results[0]["step"]
    text = TEXT.format(tables="\n\n".join(tables), ranking=ranking(), watts=WATTS, **steps)
    if (HERE / "canaries.md").exists():
        text += ("\n[canaries.md](canaries.md): exposure of canaries by repetition, with "
                 "deduplication and DP-SGD.\n")  # fmt: skip
    (HERE / "README.md").write_text(text)


def ranking() -> str:
    """Returns tables of attribution methods, the most comprehensive first; draws the intervals."""
    parts = []
    with figure(HERE / "faithfulness.png", 11, 3.6, len(RUNS)) as (_, axes):
        for name, ax in zip(RUNS, axes, strict=True):
            found = read_json(HERE / name / "opacity.json")["figures"]
            by = {kind: {f["name"].partition(": ")[0]: f for f in found if f["name"].endswith(kind)}
                  for kind in FAITHFUL}  # fmt: skip
            first = by[FAITHFUL[0]]
            order = sorted(first, key=lambda method: -first[method]["value"])
            rows = [[x, *(report.shown(by[kind][x]) for kind in FAITHFUL)] for x in order]
            texts = first[order[0]]["n"]
            parts += [f"### {name} ({texts} texts)", record.table(["method", *FAITHFUL], rows)]
            low, x, high = np.array([[first[method][k] for method in order]
                                     for k in ("low", "value", "high")])  # fmt: skip
            ax.errorbar(x, order, xerr=[x - low, high - x], fmt="o", capsize=3, color="#0072B2")
            ax.invert_yaxis()
            ax.set(title=name, xlabel="comprehensiveness (probability), 95 % intervals")
    return "\n\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--readme", action="store_true")
    if not parser.parse_args().readme:
        main()
    write_readme()
