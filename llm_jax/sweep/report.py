"""Sweep reports: Markdown with figures. No JAX."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.console import counted
from llm_jax.files import read_json
from llm_jax.record import table
from llm_jax.sweep import figures, results
from llm_jax.sweep.results import Summary
from llm_jax.sweep.spec import slug

FIT_FROM = 2048  # tokens: below, costs that do not depend on the length dominate


def write(workdir: Path) -> Path:
    """Writes report/ from the finished runs; returns the path of report.md."""
    design = read_json(workdir / "sweep.json")
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    summaries = results.summaries(design, workdir)
    blocks = [
        f"# Sweep: {workdir.resolve().name}",
        *_top(design, workdir),
        *_quality(design, summaries, folder),
        *_curves(design, summaries, folder),
        *_cost(design, workdir, folder),
        *_context(design, workdir, folder),
    ]
    (folder / "report.md").write_text("\n\n".join(blocks) + "\n")
    return folder / "report.md"


def _top(design: dict, workdir: Path) -> list[str]:
    """Returns command, versions, hardware, and a table of missing runs."""
    begun = design["begun"]
    versions = ", ".join(f"{k} {v}" for k, v in begun["versions"].items())
    states = {run: run.state() for run in results.runs(design, workdir)}
    missing = [run for run, state in states.items() if state != "finished"]
    measured = [item for _, item in results.stored(design, workdir, "context.json")]
    records = [begun, *measured, *(run.note() for run in states)]
    each = lambda name: ", ".join(sorted({str(item[name]) for item in records if name in item}))
    blocks = [
        f"```\n{begun['command']}\n```",
        (
            f"Begun {begun['time']}; commit {each('commit') or 'unknown'}; {versions}; "
            f"{each('hardware')}. {counted(len(results.grouped(design)), 'variants')} of "
            f"{design['spec'] or 'the default config'}, {counted(design['seeds'], 'seeds')} each, "
            f"the same for all; {len(states) - len(missing)} of {len(states)} runs are finished."
        ),
    ]
    if reasons := design.get("impossible"):
        blocks += ["## Excluded", *(f"- {name}: {reason}" for name, reason in reasons.items())]
    rows = []
    for run in missing:
        note = run.note()
        last = (note.get("last_lines") or [""])[-1]
        why = f"exit code {note.get('exit')}: {last}"
        rows.append([run.label, str(run.seed), why if states[run] == "failed" else "not finished"])
    if rows:
        blocks += [
            "## Missing",
            "The results below exclude these runs; the same command continues them.",
            table(["variant", "seed", ""], rows),
        ]
    return blocks


def _quality(design: dict, summaries: list[Summary], folder: Path) -> list[str]:
    base, *_ = summaries
    compared = sum(math.isfinite(s.holm) for s in summaries)
    tested = f"No test against {base.label}: it needs two seeds of both variants."
    if compared:
        tested = (
            f"{compared} variants are tested against {base.label}: judge by Holm's p, which is "
            "corrected for multiple tests; the intervals are not corrected."
        )
    rows = []
    for s in summaries:
        variant, d = design["variants"][s.run], s.difference
        rows.append([
            s.label,
            f"{variant['parameters']:,}",
            f"{variant['flops_per_token']:.4g}",
            str(len(s.losses)),
            _with_error(s.mean, results.standard_error(list(s.losses.values()))),
            "baseline" if s is base else _with_error(d.mean, d.half_width, "+") if d else "–",
            _number(d.p if d else math.nan, ".2g"),
            _number(s.holm, ".2g"),
            _number(s.rate / base.rate if base.rate else math.nan, ".2f"),
        ])  # fmt: skip
    split, how = "validation", "of the loss at the last step, nats per token"
    if design.get("tuned"):
        split, how = "test", (
            "of the loss on the whole test split at the last step, nats per token. Each variant "
            "uses the setting with the lowest validation loss of seed 0, also for further seeds: "
            f"{'; '.join(f'{s.label}: {s.run}' for s in summaries)}"
        )
    header = ["variant", "parameters", "train FLOPs / token", "seeds", f"{split} loss",
              f"minus {base.label}", "p", "Holm's p", "tokens/s, relative"]  # fmt: skip
    figures.differences(folder / "differences.png", summaries)
    return [
        f"## {split.capitalize()} loss",
        (
            f"Mean over seeds ± standard error {how}. The "
            "difference is paired by seed (same data order, same initialisation seed): mean ± half "
            f"of its 95 % interval and the two-sided p of a paired t-test. {tested} Tokens per "
            "second are the median of the logged values, including any interference by other "
            "processes."
        ),
        (
            f"Matched by model.mlp_dim. {'; '.join(results.describe_match(design))}."
            if design["match"] != "none"
            else "Not matched: variants may differ in parameters and FLOPs."
        ),
        table(header, rows),
        *_picture(folder, "differences.png", "Grey: single seeds. Blue: mean and 95 % interval."),
    ]


def _curves(design: dict, summaries: list[Summary], folder: Path) -> list[str]:
    flops = {s.label: design["variants"][s.run]["flops_per_token"] for s in summaries}
    figures.curves(folder / "loss.png", summaries, flops)
    shown = _picture(
        folder,
        "loss.png",
        "Lines: mean over seeds; bands: minimum to maximum. Seconds are logged training time, "
        "without compilation and evaluation. The legend is sorted by loss.",
    )
    return ["## By tokens, FLOPs and time", *shown] if shown else []


def exponent(rows: list[dict], name: str) -> float:
    """Returns the exponent of the length, a log-log fit from FIT_FROM tokens; NaN for one point."""
    points = [(r["length"], r[name]) for r in rows if r["length"] >= FIT_FROM and r[name]]
    if len(points) < 2:
        return math.nan
    x, y = np.log(np.array(points, float)).T
    return float(np.polyfit(x, y, 1)[0])


def _cost(design: dict, workdir: Path, folder: Path) -> list[str]:
    files = {label: workdir / "cost" / f"{slug(label)}.json" for label in results.grouped(design)}
    costs = {label: read_json(f) for label, f in files.items() if f.exists()}
    if not costs:
        return []
    figures.cost(folder / "cost.png", costs, list(results.grouped(design)))
    lengths = sorted({row["length"] for measured in costs.values() for row in measured["rows"]})
    forms = {"seconds": lambda x: f"{x * 1e3:,.1f}", "bytes": lambda x: f"{x / 2**20:,.1f}"}
    tables = []
    for name, title in (("seconds", "Milliseconds"), ("bytes", "MiB of temporaries")):
        rows = []
        for label, measured in costs.items():
            by_length = {r["length"]: r[name] for r in measured["rows"]}
            cells = [forms[name](by_length[n]) if by_length.get(n) else "–" for n in lengths]
            rows.append([label, *cells, _number(exponent(measured["rows"], name), ".2f")])
        tables.append(table([title, *(f"{n:,}" for n in lengths), "exponent"], rows))
    skipped = [f"{label}: not measured" for label in files if label not in costs]
    skipped += [
        f"{label} from {row['length']:,} tokens: {row['reason']}"
        for label, measured in costs.items()
        for row in [r for r in measured["rows"] if r["reason"]][:1]
    ]
    where = sorted({measured["hardware"] for measured in costs.values()})
    return [
        "## Cost of an attention layer by length",
        (
            "Forward and backward pass over one sequence: median time of repeated calls, and "
            "temporary memory of the compiled program, as reported by XLA; the mean over "
            "alternating layers. Exponents of the length are fitted from "
            f"{FIT_FROM:,} tokens. Measured on {'; '.join(where)}."
        ),
        *tables,
        *([f"Excluded: {'; '.join(skipped)}."] if skipped else []),
        *_picture(folder, "cost.png", "Time and temporary memory by length, forward and backward."),
    ]


def mean_context(measured: Iterable[tuple[str, dict]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns {(label, multiple of length): means over seeds of `context.measure`}.

    Each has length, bin, losses by seed and bins; or the reason why it is missing.
    """
    seeds: dict[tuple[str, int], list[dict]] = {}
    for label, found in measured:
        for reach, at in found["reaches"].items():
            at = {"length": found["length"], "bin": found["bin"]} | at
            seeds.setdefault((label, int(reach)), []).append(at)
    means = {}
    for key, parts in seeds.items():
        means[key] = next((part for part in parts if "reason" in part), None) or parts[0] | {
            "losses": [part["loss"] for part in parts],
            "bins": np.array([part["bins"] for part in parts], float).mean(0),  # None: not a number
        }
    return means


def _context(design: dict, workdir: Path, folder: Path) -> list[str]:
    means = mean_context(results.stored(design, workdir, "context.json"))
    if not means:
        return []
    labels, reaches = list(results.grouped(design)), sorted({reach for _, reach in means})
    found = {key: at for key, at in means.items() if "bins" in at}
    figures.context(folder / "context.png", found, labels)
    rows, reasons = [], {}
    for label in labels:
        row = [label]
        for key in ((label, reach) for reach in reaches):
            if key in found:
                losses = found[key]["losses"]
                row.append(_with_error(np.mean(losses), results.standard_error(losses)))
            else:
                reason = means.get(key, {"reason": "not measured"})["reason"]
                reasons.setdefault(reason, []).append(f"{label} at {key[1]}x")
                row.append("–")
        rows.append(row)
    why = "; ".join(f"{', '.join(who)}: {reason}" for reason, who in reasons.items())
    return [
        "## By position, and beyond the length of training",
        (
            "Loss of the last checkpoint on a fixed sample of the validation documents, in rows of "
            "multiples of model.max_length; mean over seeds ± standard error. Positions count from "
            "the start of a window. Longer rows cut the same text into fewer windows, which by "
            "itself lowers the loss of a model that can use them."
        ),
        table(["variant", *(f"{reach}x" for reach in reaches)], rows),
        *([f"Missing: {why}."] if why else []),
        *_picture(
            folder,
            "context.png",
            "Dotted: the training length. Values beyond the upper limit are in the table.",
        ),
    ]


def _picture(folder: Path, name: str, text: str) -> list[str]:
    return [f"![{text}]({name})", text] if (folder / name).exists() else []


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _with_error(value: float, error: float, sign: str = "") -> str:
    shown = _number(value, f"{sign}.4f")
    return f"{shown} ± {error:.4f}" if math.isfinite(error) else shown
