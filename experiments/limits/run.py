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

from llm_jax import record  # noqa: E402
from llm_jax.audit import report  # noqa: E402
from llm_jax.files import read_json  # noqa: E402

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
            "minimal pairs: subject-verb agreement", "integrated gradients: comprehensiveness",
            "random: comprehensiveness"),
    "sst2": ("train loss", "validation loss", "accuracy", "ECE",
             "membership inference by loss: AUC", "occlusion: comprehensiveness",
             "integrated gradients: comprehensiveness", "gradient x input: comprehensiveness",
             "attention: comprehensiveness", "attention rollout: comprehensiveness",
             "random: comprehensiveness", "accuracy, typing errors, 50% of words",
             "en: first minus second word, in templates"),
}  # fmt: skip
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
    text = TEXT.format(tables="\n\n".join(tables), watts=WATTS, **steps)
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--readme", action="store_true")
    if not parser.parse_args().readme:
        main()
    write_readme()
