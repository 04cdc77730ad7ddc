"""Writes experiments/README.md and experiments/claims/README.md from the records. No JAX."""

import json
import textwrap
from collections import Counter
from contextlib import suppress
from pathlib import Path

import matplotlib
import numpy as np

from experiments.claims import records
from experiments.claims.claim import (
    AGREES,
    DISAGREES,
    MARKS,
    UNSEEN,
    Claim,
    interval,
    seeds_needed,
    verdict,
)
from llm_jax.record import check, table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
LIMIT = 3.0  # of the axis of effects

INDEX = """# Experiments

## Claims of papers

Each row is a statement of a paper, tested with small models on two CPU cores: 0.01 to 2 million
parameters, trained for 10 to 60 seconds. All variants of a study share seeds, data and data order.
The effect is computed per seed; *±* is half of the 95 % confidence interval of its mean (Student's
t). A claim names a range for the effect before the recorded runs: "better" is above 0, "as good
as" is within a margin. Settings, learning rates and margins were chosen after pilot runs, which are
not recorded.

- ✓ agrees: the whole interval is in the range.
- ✗ disagrees: the whole interval is outside it. That is a result for models of this size and
  training length; it does not refute the paper.
- ? cannot be seen at this size: the interval is partly inside.

The intervals are not corrected for the number of rows: without any effect, one row in forty would
agree and one in forty disagree by chance.

"""

AFTER = """
[claims/README.md](claims/README.md) has the variants, all seeds, and the scope of each claim.
[docs/reproducing.md](../docs/reproducing.md) explains how to add one. [COST.md](COST.md) has the
cost of the papers' own runs. `python experiments/claims/run.py` trains what is missing and writes
these pages; `--seeds=8` adds seeds. Records that were made from uncommitted code are refused.

![Effects with 95 % intervals](claims/effects.png)

## Other studies

Where a row says so, records were made from uncommitted changes, or from commits that are not in
this history. Their numbers are as measured, but the exact code is not known.

"""

DETAILS = """# Claims of papers: runs

Written by run.py from results/. *±* is half of a 95 % confidence interval over seeds. Claims
compare variants in pairs of the same seed, which is more precise than comparing rows of a table.

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
        rate = own[0]["keys"].get("optimizer.learning_rate", "as base")
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
    what = f"{claim.against} minus {claim.variant}" if claim.effect is None else "effect"
    low, high = claim.within
    sought = f"above {low:g}" if high == np.inf else f"{low:g} to {high:g}"
    more = seeds_needed(effects, claim.within)
    power = f" About {more} seeds would decide it." if more and said == UNSEEN else ""
    return (f"- {MARKS[said]} **{claim.says}** ({claim.paper}): {said}. Published: "
            f"{claim.published}. Here, {what}: {shown(effects, claim.unit)}; the claim says "
            f"{sought}.{power} {claim.scope} At the paper's size: {claim.full}.\n")  # fmt: skip


def picture(found: list[tuple[str, list[float], Claim, str]], path: Path) -> None:
    """Draws all effects with their intervals, each beside the range that its claim names."""
    styles = {AGREES: ("#0072B2", "o"), DISAGREES: ("#D55E00", "X"), UNSEEN: ("#666666", "s")}
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.36 * len(found)), layout="constrained")
    for y, (_, effects, claim, said) in enumerate(reversed(found)):
        mean, half = interval(effects)
        low, high = np.clip(claim.within, -LIMIT, LIMIT)
        axes.fill_betweenx([y - 0.4, y + 0.4], low, high, color="#56B4E9", alpha=0.25, linewidth=0)
        colour, marker = styles[said]
        axes.errorbar(mean, y, xerr=half, fmt=marker, color=colour, capsize=3)
    labels = [textwrap.fill(label, 60) for label, *_ in reversed(found)]
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(-LIMIT, LIMIT)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("effect, 95 % interval (log beyond ±0.01); shaded: range of the claim")
    marks = [axes.plot([], [], marker, color=c, label=f"{MARKS[said]} {said}")[0]
             for said, (c, marker) in styles.items()]  # fmt: skip
    figure.legend(handles=marks, loc="outside upper center", ncols=3, fontsize=8)
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
    lost = f"; {len(found) - sound} of its {len(found)} records name no commit of this history."
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
                drawn.append((f"{title}: {claim.says}", effects, claim, said))
    counts = Counter(line[0] for line in rows)
    total = ", ".join(f"{counts[mark]} {mark} {said}" for said, mark in MARKS.items())
    claims = table(["", "paper", "claim", "published", "here"], rows)
    folders = sorted(path.parent for path in HERE.parent.glob("*/README.md") if path.parent != HERE)
    others = "\n".join(map(study_of, folders))
    picture(drawn, HERE / "effects.png")
    (HERE.parent / "README.md").write_text(f"{INDEX}{total}.\n\n{claims}\n{AFTER}{others}\n")
    (HERE / "README.md").write_text(DETAILS + "\n".join(sections))
