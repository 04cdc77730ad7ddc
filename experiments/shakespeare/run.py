"""Trains configs/shakespeare.py, records the run, and writes README.md from the records.

python experiments/shakespeare/run.py --data=tiny_shakespeare/input.txt [--variant=small]
    [--config.KEY=VALUE …]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import launch  # noqa: E402
from llm_jax import record  # noqa: E402
from llm_jax.train.metrics import read  # noqa: E402

PUBLISHED = {"small": 1.88, "large": 1.4697}

TEXT = """# Character-level tiny Shakespeare

**Claim.** With the settings in nanoGPT's README, on the same text and split (the first 90 % for
training, the last 10 % for validation), llm_jax reaches nanoGPT's validation losses. The table
lists the settings that were run: by llm_jax, and by nanoGPT's model, optimizer and schedule written
in PyTorch (reference.py), which is trained on the same rows.

```
python experiments/shakespeare/run.py --data=tiny_shakespeare/input.txt --variant=small
python experiments/shakespeare/reference.py --data=tiny_shakespeare/input.txt --rate=1e-3
```

The loss is in nats per character, over the whole validation text in consecutive rows, for both.
nanoGPT's README reports a mean over random rows. run.py writes this file from results/.

"""


def main() -> None:
    """Runs one variant and rewrites README.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--variant", default="small", choices=tuple(PUBLISHED))
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as workdir:
        began = time.time()
        code = launch.main(
            ["train", f"--config=configs/shakespeare.py:{args.variant}", f"--workdir={workdir}",
             f"--config.data.train={args.data}", *overrides]
        )  # fmt: skip
        assert code == 0, code
        rows = read(workdir)
        config = json.loads((Path(workdir) / "config.json").read_text())
    losses = [(r["step"], r["eval_loss"]) for r in rows if r.get("eval_loss")]
    name = "-".join([args.variant, *(o.split(".")[-1].replace("=", "_") for o in overrides)])
    rate = config["optimizer"]["learning_rate"]
    save(name, losses, began, code="llm_jax", variant=args.variant, overrides=overrides,
         learning_rate=rate)  # fmt: skip
    write_readme()


def save(name: str, losses: list[tuple[int, float]], began: float, **about: Any) -> None:
    """Writes results/NAME.json of a run that began then, with its validation losses by step."""
    best_step, best = min(losses, key=lambda x: x[1])
    record.write(
        HERE / "results" / f"{name}.json", **about, steps=losses[-1][0],
        seconds=round(time.time() - began, 1), validation_losses=losses, best=best,
        best_step=best_step, last=losses[-1][1],
    )  # fmt: skip


def write_readme() -> None:
    """Writes README.md from every recorded run."""
    rows = []
    for path in sorted((HERE / "results").glob("*.json")):
        r = json.loads(path.read_text())
        rows.append(
            [r["variant"], r.get("code", "llm_jax"), f"{r['learning_rate']:g}",
             r["steps"], PUBLISHED[r["variant"]], f"{r['last']:.4f}",
             f"{r['best']:.4f} (step {r['best_step']})", f"{r['seconds'] / 60:.1f}",
             r["hardware"], r["commit"]]
        )  # fmt: skip
    header = ["setting", "code", "learning rate", "steps", "nanoGPT's README", "last", "best",
              "minutes", "hardware", "commit"]  # fmt: skip
    (HERE / "README.md").write_text(TEXT + record.table(header, rows) + "\n")


if __name__ == "__main__":
    main()
