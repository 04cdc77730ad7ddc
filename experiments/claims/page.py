"""Writes experiments/README.md and experiments/claims/README.md from the records. No JAX."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import matplotlib
import numpy as np

from experiments.claims import records
from experiments.claims.claim import MARKS, Claim, interval, seeds_needed, verdict
from llm_jax.record import check, table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent

INDEX = """# Experiments

**Claims of papers, run again.** Each line is a sentence of a paper, made small enough for two CPU
cores: models of 0.05 to 2 million parameters, trained for seconds to minutes, over seeds that share
their data and its order. The effect is of one seed's runs, so that data and order cancel out; the
interval is the 95 % interval of its mean by Student's t. ✓ **agrees**: all of the interval lies
where the paper says; ✗ **disagrees**: none of it does; **?** cannot be seen at this size: the rest.
What range a claim names ("better": above 0; "equal": within a margin) is in its file, written
before its runs. Each line stands by itself at 95 %; about one decided line in forty would be wrong
by chance if there were nothing to see. A ✗ says that the sentence does not hold *here*, for models
this small and trained this briefly, not that the paper is wrong.

"""

AFTER = """
[claims/README.md](claims/README.md) has each variant's loss, all seeds, and what carries over;
[docs/reproducing.md](../docs/reproducing.md) adds a paper; [COST.md](COST.md) is what the papers'
own sizes take. `python experiments/claims/run.py` makes what is missing and writes these pages;
with `--seeds=8` it adds seeds. Records of uncommitted code are refused.

![Effects with their intervals](claims/effects.png)

## Other experiments

Where a line says so, records were made from uncommitted changes or commits that were not kept:
their numbers stand as they were measured, but what code made them cannot be told exactly.

"""

DETAILS = """# Claims of papers: the runs

Written by run.py from results/: how each study was made, its variants over seeds, and its claims.
*±* is half of a 95 % interval of the mean over seeds; a difference between variants is judged by
pairs of one seed (below each table), which is sharper than these.

"""


def decided(claim: Claim, runs: dict[str, list[dict]]) -> tuple[list[float], str]:
    """Returns the effect of each seed, and the verdict."""
    finished = {label: [run for run in own if not run["diverged"]] for label, own in runs.items()}
    values = {label: {run["seed"]: records.metric(run, claim.metric) for run in own}
              for label, own in finished.items()}  # fmt: skip
    effects = [*claim.effects(values).values()]
    return effects, verdict(effects, claim.within)


def shown(effects: list[float], unit: str) -> str:
    """The mean effect with its interval and number of seeds."""
    if not effects:
        return "not run"
    mean, half = interval(effects)
    width = f" ± {half:.4f}" if np.isfinite(half) else ""
    return f"{mean:+.4f}{width} {unit} ({len(effects)} seed{'s' * (len(effects) > 1)})"


def row(name: str, title: str, claim: Claim, runs: dict[str, list[dict]]) -> list[str]:
    effects, said = decided(claim, runs)
    link = f"[{title}](claims/README.md#{name})"
    return [MARKS[said], link, claim.says, claim.published, shown(effects, claim.unit)]


def section(name: str, study: records.Study, runs: dict[str, list[dict]]) -> str:
    """A study's part of the details."""
    title, _, text = study.text.partition("\n")
    rows = []
    for variant, own in runs.items():
        losses = [records.loss(run) for run in own]
        mean, half = interval(losses)
        rate = own[0]["keys"].get("optimizer.learning_rate", "")
        each = ", ".join(f"{x:.4f}" for x in losses)
        rows.append([variant, f"{own[0]['parameters']:,}", f"{own[0]['flops_per_token']:.3g}", rate,
                     f"{mean:.4f} ± {half:.4f}", each])  # fmt: skip
    header = ["variant", "parameters", "FLOPs a token", "rate", "validation loss", "each seed"]
    lines = [f"## {name}\n\n**{title}**\n{text}\n", table(header, rows), ""]
    lines += [sentence(claim, runs) for claim in study.claims]
    made = [run for own in runs.values() for run in own]
    several = lambda key: ", ".join(sorted({str(run[key]) for run in made}))
    jax = ", ".join(sorted({run["versions"]["jax"] for run in made}))
    minutes = sum(run["seconds"] for run in made) / 60
    lines.append(f"{len(made)} runs of together {minutes:.0f} minutes. Commits "
                 f"{several('commit')}; jax {jax}; {several('hardware')}.\n")  # fmt: skip
    return "\n".join(lines)


def sentence(claim: Claim, runs: dict[str, list[dict]]) -> str:
    """A claim with its verdict, in words."""
    effects, said = decided(claim, runs)
    what = f"{claim.against} minus {claim.variant}" if claim.effect is None else "Effect"
    low, high = claim.within
    sought = "above 0" if claim.within == (0, np.inf) else f"in {low:g} to {high:g}"
    more = seeds_needed(effects, claim.within)
    power = f" About {more} seeds would decide it." if more and MARKS[said] == "?" else ""
    return (f"- {MARKS[said]} **{said}**. {claim.says} ({claim.paper}). Published: "
            f"{claim.published}. {what}, said to be {sought}: {shown(effects, claim.unit)}.{power} "
            f"{claim.scope} At the paper's size: `{claim.full}`.\n")  # fmt: skip


def picture(found: list[tuple[str, list[float], str]], path: Path) -> None:
    """Draws each effect in units of its interval's half width, so that all fit one axis."""
    colours = {"✓": "tab:green", "✗": "tab:red", "?": "tab:gray"}
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.27 * len(found)), layout="constrained")
    for y, (_, effects, mark) in enumerate(reversed(found)):
        mean, half = interval(effects)
        axes.errorbar(mean, y, xerr=half, fmt="o", color=colours[mark], capsize=3)
    axes.set_yticks(range(len(found)), [label for label, *_ in reversed(found)], fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel("effect with its 95 % interval, linear within ±0.01, logarithmic beyond")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def study_of(folder: Path) -> str:
    """A line on another experiment's folder: its title, and records that name no commit here."""
    title = (folder / "README.md").read_text().partition("\n")[0].lstrip("# ")
    found, sound = [], 0
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        found += [content] if isinstance(content, dict) and "commit" in content else []
    for content in found:
        with suppress(ValueError):
            sound += bool(check(content, folder))
    lost = f" {len(found) - sound} of its {len(found)} records are of code that no commit has."
    return f"- [{folder.name}]({folder.name}/README.md): {title}" + lost * (sound < len(found))


def write() -> None:
    """Writes both pages and the picture."""
    rows, sections, drawn = [], [], []
    for name in records.STUDIES:
        study = records.study(name)
        if not (runs := records.chosen(records.load(name))):
            continue
        title = study.text.partition(":")[0]
        rows += [row(name, title, claim, runs) for claim in study.claims]
        sections.append(section(name, study, runs))
        for claim in study.claims:
            effects, said = decided(claim, runs)
            if len(effects) > 1:
                drawn.append((f"{title}: {claim.says[:70]}", effects, MARKS[said]))
    counts = Counter(line[0] for line in rows)
    total = ", ".join(f"{counts[mark]} {mark} {said}" for said, mark in MARKS.items())
    claims = table(["", "paper", "claim", "published", "here"], rows)
    folders = sorted(path.parent for path in HERE.parent.glob("*/README.md") if path.parent != HERE)
    others = "\n".join(map(study_of, folders))
    picture(drawn, HERE / "effects.png")
    (HERE.parent / "README.md").write_text(f"{INDEX}{total}.\n\n{claims}\n{AFTER}{others}\n")
    (HERE / "README.md").write_text(DETAILS + "\n".join(sections))
