"""Copies the reports of ablation sweeps here and writes README.md from them.

python experiments/ablations/run.py runs/positions runs/norms     # without directories: README.md
only
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from llm_jax.sweep import report  # noqa: E402

TEXT = """# Ablations of positions, norms and heads

**Claim.** Position encoding, norm and attention heads are one config key each. A sweep over such a
key compares variants with equal parameters, data order and seeds, and reports confidence intervals.

```
python launch.py sweep --config=configs/ablations/positions.py --workdir=runs/positions
python experiments/ablations/run.py runs/positions
```

**Setup.** Decoders with 0.8 million parameters, four layers of width 128, trained for 300 steps
of 8 rows of 256 bytes, three seeds. All variants use the same learning rate, which was not tuned.

**Limits.** The results hold for this setup. They do not predict larger models, subword tokens or
tuned learning rates. If an interval contains zero, or Holm's p is not small, there is no evidence
of a difference. Tokens per second were logged on a shared machine and show only the order of
magnitude.

run.py writes this file from the reports of the sweeps, which contain all tables and figures.

"""


def take(folder: Path) -> None:
    """Copies the report of a sweep to a directory of the same name here."""
    report.write(folder)
    target = HERE / folder.name
    target.mkdir(exist_ok=True)
    for file in [folder / "sweep.json", *(folder / "report").iterdir()]:
        if file.suffix in (".json", ".md", ".png"):
            shutil.copy(file, target)


def section(folder: Path) -> str:
    """Returns the section of a sweep: its first table, and what was run."""
    plan = json.loads((folder / "sweep.json").read_text())
    text = (folder / "report.md").read_text()
    ended = re.search(r"\d+ of \d+ runs are finished", text)[0]
    table = re.search(r"^\|.*?(?=\n\n)", text.partition("## Validation loss")[2], re.S | re.M)[0]
    begun = plan["begun"]
    return (
        f"## {folder.name}\n\n{table}\n\n[Full report]({folder.name}/report.md). {ended}. Started "
        f"{begun['time']}; commit {begun['commit']}; jax {begun['versions']['jax']}; "
        f"{begun['hardware']}.\n"
    )


def main() -> None:
    """Copies the given sweeps and rewrites README.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path, help="sweep directories")
    for folder in parser.parse_args().folders:
        take(folder)
    found = sorted(file.parent for file in HERE.glob("*/sweep.json"))
    (HERE / "README.md").write_text(TEXT + "\n".join(map(section, found)))


if __name__ == "__main__":
    main()
