"""Takes in the reports of ablation sweeps, and writes README.md from what it took.

python experiments/ablations/run.py runs/positions runs/norms     # or without folders: README.md
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

TEXT = """# Ablations beside attention's

**Claim.** Positions, norms and heads are one config key each, and a sweep over such a key compares
at equal parameters, data order and seeds, with error bars. **How**, for each of them
(configs/ablations has them all):

```
python launch.py sweep --config=configs/ablations/positions.py --workdir=runs/positions
python experiments/ablations/run.py runs/positions
```

Decoders of 0.8 million parameters, four layers, 128 wide, trained for 300 steps of 8 rows of 256
bytes of text, three seeds: they show what differs *here*, not how it goes on at scale, with words
for tokens, or tuned: one learning rate serves all, chosen for none of them. Where an interval holds
zero, or Holm's p is not small, nothing has been shown. Tokens a second were logged while other work
shared the machine: orders of magnitude. This file is written by run.py, from the sweeps' reports,
which lie beside it with all tables and figures.

"""


def take(folder: Path) -> None:
    """Writes the sweep's report as it stands to a folder of its name here."""
    report.write(folder)
    target = HERE / folder.name
    target.mkdir(exist_ok=True)
    for file in [folder / "sweep.json", *(folder / "report").iterdir()]:
        if file.suffix in (".json", ".md", ".png"):
            shutil.copy(file, target)


def section(folder: Path) -> str:
    """What was run, and the first table of the report."""
    plan = json.loads((folder / "sweep.json").read_text())
    text = (folder / "report.md").read_text()
    ended = re.search(r"\d+ of \d+ runs are finished", text)[0]
    table = re.search(r"^\|.*?(?=\n\n)", text.partition("## Validation loss")[2], re.S | re.M)[0]
    begun = plan["begun"]
    return (
        f"## {folder.name}\n\n{table}\n\n[All of it]({folder.name}/report.md). {ended}. Begun "
        f"{begun['time']}; commit {begun['commit']}; jax {begun['versions']['jax']}; "
        f"{begun['hardware']}.\n"
    )


def main() -> None:
    """Takes in the folders named, and rewrites README.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path, help="sweeps' folders")
    for folder in parser.parse_args().folders:
        take(folder)
    found = sorted(file.parent for file in HERE.glob("*/sweep.json"))
    (HERE / "README.md").write_text(TEXT + "\n".join(map(section, found)))


if __name__ == "__main__":
    main()
