"""A sweep's report: the same blocks as Markdown with figures, and as one HTML file. No JAX."""

import base64
import html
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax import record
from llm_jax.files import read_json
from llm_jax.sweep import figures, results
from llm_jax.sweep.results import Summary
from llm_jax.sweep.spec import slug

FIT_FROM = 2048  # tokens: below, what does not grow with the length still shows


class Heading(NamedTuple):
    """A title of the second level."""

    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Lines as they stand."""

    text: str


class Table(NamedTuple):
    """Rows of cells under a header, all of them text as shown."""

    header: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """A figure and what is written below it."""

    name: str  # of a file in report/
    text: str


Block = Heading | Text | Code | Table | Picture


def write(workdir: Path) -> Path:
    """Writes report/ from what is finished; returns report.md's path.

    Raises:
      ConfigError: the folder holds no sweep.
    """
    design = results.read_design(workdir)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    found = results.summaries(design, workdir)
    blocks = [
        *_top(design, workdir),
        *_quality(design, found, folder),
        *_curves(design, found, folder),
        *_cost(design, workdir, folder),
        *_context(design, workdir, folder),
    ]
    title = f"Sweep: {workdir.resolve().name}"
    (folder / "report.md").write_text(markdown(title, blocks))
    (folder / "report.html").write_text(page(title, blocks, folder))
    return folder / "report.md"


def _top(design: dict, workdir: Path) -> list[Block]:
    """What was run, where, and what is not there."""
    begun = design["begun"]
    versions = ", ".join(f"{k} {v}" for k, v in begun["versions"].items())
    everything = results.runs(design, workdir)
    states = {run: run.state() for run in everything}
    done = sum(state == "finished" for state in states.values())
    measured = [found for _, found in results.stored(design, workdir, "context.json")]
    told = [begun, *measured, *(run.note() for run in everything)]
    each = lambda name: ", ".join(sorted({str(found[name]) for found in told if name in found}))
    blocks = [
        Code(begun["command"]),
        Text(
            f"Begun {begun['time']}; commit {each('commit') or 'unknown'}; {versions}; "
            f"{each('hardware')}. {len(design['variants'])} variants of "
            f"{design['spec'] or 'the default config'}, {design['seeds']} seeds each, the same for "
            f"all; {done} of {len(everything)} runs are finished."
        ),
    ]
    rows = []
    for run, state in states.items():
        note = run.note()
        last = (note.get("last_lines") or [""])[-1]
        why = {"failed": f"exit code {note.get('exit')}: {last}", "left": "not finished"}
        if state != "finished":
            rows.append([run.label, str(run.seed), why[state]])
    if rows:
        blocks += [
            Heading("Missing"),
            Text("What follows is without these runs; the same command goes on with them."),
            Table(["variant", "seed", ""], rows),
        ]
    return blocks


def _quality(design: dict, found: list[Summary], folder: Path) -> list[Block]:
    base, *_ = found
    compared = sum(math.isfinite(s.holm) for s in found)
    tested = f"Nothing is tested against {base.label}, which takes two seeds of both."
    if compared:
        tested = (
            f"{compared} variants are tested against {base.label}: Holm's p is corrected for all "
            "of them, and is the one to judge by; the intervals are not corrected."
        )
    rows = []
    for s in found:
        variant, d = design["variants"][s.label], s.difference
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
    header = ["variant", "parameters", "train FLOPs a token", "seeds", "validation loss",
              f"minus {base.label}", "p", "Holm's p", "tokens/s, relative"]  # fmt: skip
    figures.differences(folder / "differences.png", found)
    return [
        Heading("Validation loss"),
        Text(
            "Mean over seeds ± standard error of the loss at the last step, nats per token. The "
            "difference is paired by seed (same data order, same seed of the initial draw): mean "
            f"± half of its 95 % interval and the two-sided p of a paired t-test. {tested} "
            "Tokens a second are the median of what was logged, whatever else the machine did at "
            "the time."
        ),
        Text(_matched(design)),
        Table(header, rows),
        *_picture(folder, "differences.png", "Grey: single seeds. Blue: mean and 95 % interval."),
    ]


def _matched(design: dict) -> str:
    if design["match"] == "none":
        return "Nothing was matched: variants may differ in parameters and in FLOPs."
    name = {"params": "parameters", "flops": "flops_per_token"}[design["match"]]
    target = design["variants"][design["baseline"]][name]
    each = [
        f"{label}: {v['config']['model']['mlp_dim']:,} ({v[name] / target - 1:+.2%})"
        for label, v in design["variants"].items()
    ]
    return (
        f"Matched in {name.replace('_', ' ')} by model.mlp_dim (what is left of the "
        f"difference). {'; '.join(each)}."
    )


def _curves(design: dict, found: list[Summary], folder: Path) -> list[Block]:
    flops = {label: v["flops_per_token"] for label, v in design["variants"].items()}
    figures.curves(folder / "loss.png", found, flops)
    shown = _picture(
        folder,
        "loss.png",
        "Lines: mean over seeds; bands: from the lowest to the highest. Seconds are of training "
        "steps as logged, without compiling and evaluating. The legend has the lowest loss first.",
    )
    return [Heading("By tokens, FLOPs and time"), *shown] if shown else []


def exponent(rows: list[dict], name: str) -> float:
    """Of length, fitted on log-log over FIT_FROM tokens and more; not a number for one point."""
    points = [(r["length"], r[name]) for r in rows if r["length"] >= FIT_FROM and r[name]]
    if len(points) < 2:
        return math.nan
    x, y = np.log(np.array(points, float)).T
    return float(np.polyfit(x, y, 1)[0])


def _cost(design: dict, workdir: Path, folder: Path) -> list[Block]:
    files = {label: workdir / "cost" / f"{slug(label)}.json" for label in design["variants"]}
    costs = {label: read_json(f) for label, f in files.items() if f.exists()}
    if not costs:
        return []
    figures.cost(folder / "cost.png", costs, list(design["variants"]))
    lengths = sorted({row["length"] for found in costs.values() for row in found["rows"]})
    forms = {"seconds": lambda x: f"{x * 1e3:,.1f}", "bytes": lambda x: f"{x / 2**20:,.1f}"}
    tables = []
    for name, title in (("seconds", "Milliseconds"), ("bytes", "MiB of temporaries")):
        rows = []
        for label, found in costs.items():
            by_length = {r["length"]: r[name] for r in found["rows"]}
            cells = [forms[name](by_length[n]) if by_length.get(n) else "–" for n in lengths]
            rows.append([label, *cells, _number(exponent(found["rows"], name), ".2f")])
        header = [title, *(f"{n:,}" for n in lengths), "exponent"]
        tables.append(Table(header, rows))
    skipped = [f"{label}: not measured" for label in files if label not in costs]
    skipped += [
        f"{label} from {row['length']:,} tokens: {row['reason']}"
        for label, found in costs.items()
        for row in [r for r in found["rows"] if r["reason"]][:1]
    ]
    where = sorted({found["hardware"] for found in costs.values()})
    return [
        Heading("Cost of an attention layer by length"),
        Text(
            "Forward and backward pass over one sequence: median time of repeated calls, and the "
            "temporary bytes of the compiled program, as XLA accounts for them; where layers "
            "alternate, the mean of a layer. Exponents of length are fitted to "
            f"{FIT_FROM:,} tokens and more. Measured on {'; '.join(where)}."
        ),
        *tables,
        *([Text("Left out: " + "; ".join(skipped) + ".")] if skipped else []),
        *_picture(folder, "cost.png", "Time and temporary memory by length, forward and backward."),
    ]


def mean_context(found: list[dict]) -> dict[str, Any]:
    """Returns the mean over seeds of what `context.measure` wrote, of the same form."""
    first, reaches = found[0], {}
    for reach in first["reaches"]:
        parts = [f["reaches"].get(reach, {"reason": "not measured"}) for f in found]
        bad = [part for part in parts if "reason" in part]
        if bad:
            reaches[reach] = bad[0]
            continue
        bins = np.array([part["bins"] for part in parts], float)  # None: not a number
        losses = [part["loss"] for part in parts]
        reaches[reach] = {"loss": float(np.mean(losses)), "losses": losses, "bins": bins.mean(0)}
    return {"length": first["length"], "bin": first["bin"], "reaches": reaches}


def _context(design: dict, workdir: Path, folder: Path) -> list[Block]:
    by_label: dict[str, list] = {}
    for label, found in results.stored(design, workdir, "context.json"):
        by_label.setdefault(label, []).append(found)
    means = {label: mean_context(found) for label, found in by_label.items()}
    if not means:
        return []
    labels = list(design["variants"])
    figures.context(folder / "context.png", means, labels)
    reaches = sorted({int(r) for found in means.values() for r in found["reaches"]})
    rows, reasons = [], {}
    for label in labels:
        cells = []
        for reach in map(str, reaches):
            here = means[label]["reaches"] if label in means else {}
            at = here.get(reach, {"reason": "not measured"})
            if "reason" in at:
                reasons.setdefault(at["reason"], []).append(f"{label} at {reach}x")
                cells.append("–")
            else:
                cells.append(_with_error(at["loss"], results.standard_error(at["losses"])))
        rows.append([label, *cells])
    why = "; ".join(f"{', '.join(who)}: {reason}" for reason, who in reasons.items())
    return [
        Heading("By position, and beyond the length of training"),
        Text(
            "Loss of the last checkpoint on a fixed sample of the validation documents, cut in "
            "rows of so many times model.max_length; mean over seeds ± standard error. A position "
            "counts from the start of its piece of a document. Longer rows cut the same text in "
            "fewer pieces, which by itself lowers the loss of a model that can use them."
        ),
        Table(["variant", *(f"{reach}x" for reach in reaches)], rows),
        *([Text(f"Not there: {why}.")] if why else []),
        *_picture(
            folder,
            "context.png",
            "Dotted: the length of training. Lines that leave through the top are in the table.",
        ),
    ]


def _picture(folder: Path, name: str, text: str) -> list[Block]:
    return [Picture(name, text)] if (folder / name).exists() else []


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _with_error(value: float, error: float, sign: str = "") -> str:
    shown = _number(value, f"{sign}.4f")
    return f"{shown} ± {error:.4f}" if math.isfinite(error) else shown


def markdown(title: str, blocks: list[Block]) -> str:
    """Returns the blocks as Markdown."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Text(text):
                parts.append(text)
            case Code(text):
                parts.append(f"```\n{text}\n```")
            case Table(header, rows):
                clean = lambda cells: [cell.replace("|", "\\|") for cell in cells]
                parts.append(record.table(clean(header), [clean(row) for row in rows]))
            case Picture(name, text):
                parts.append(f"![{text}]({name})\n\n{text}")
    return "\n\n".join(parts) + "\n"


STYLE = """body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif }
table { border-collapse: collapse; font-size: 14px } img { max-width: 100% }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ccc }
th:first-child, td:first-child { text-align: left }
pre { background: #f4f4f4; padding: .7rem; white-space: pre-wrap } figcaption { color: #555 }"""


def page(title: str, blocks: list[Block], folder: Path) -> str:
    """Returns the blocks as one HTML file: pictures inside, nothing from elsewhere."""
    safe, parts = html.escape, []
    row = lambda cells, tag: "".join(f"<{tag}>{safe(cell)}</{tag}>" for cell in cells)
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{safe(text)}</h2>")
            case Text(text):
                parts.append(f"<p>{safe(text)}</p>")
            case Code(text):
                parts.append(f"<pre>{safe(text)}</pre>")
            case Table(header, rows):
                lines = [row(header, "th"), *(row(cells, "td") for cells in rows)]
                parts.append(f"<table>{''.join(f'<tr>{x}</tr>' for x in lines)}</table>")
            case Picture(name, text):
                data = base64.b64encode((folder / name).read_bytes()).decode()
                image = f'<img alt="{safe(text)}" src="data:image/png;base64,{data}">'
                parts.append(f"<figure>{image}<figcaption>{safe(text)}</figcaption></figure>")
    head = f'<meta charset="utf-8"><title>{safe(title)}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{safe(title)}</h1>", *parts])
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
