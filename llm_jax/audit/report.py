"""Audit reports: report.md, and report.html with embedded figures."""

import base64
import html
import re
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from llm_jax.audit.limit import Limit
from llm_jax.files import write_text
from llm_jax.record import table

STYLE = """body{font:16px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#111}
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ccc;padding:.2em .8em;
text-align:left}td+td{font-variant-numeric:tabular-nums}pre{background:#f4f4f4;padding:.6em;
overflow-x:auto}img{max-width:100%}iframe{width:100%;height:30em;border:0}"""


def write(
    folder: Path, labels: list[str], results: dict[Limit, dict[str, dict]],
    reasons: dict[str, str] = {},  # noqa: B006
) -> Path:
    """Writes both reports and draws the figures; returns the path of report.md.

    reasons: why a limit was not measured, by name.
    """
    parts = [f"# Audit: {' against '.join(labels)}", (
        "Each value is followed by its 95 % interval: bootstrap over rows, or binomial (Wilson) "
        "for fractions of trials. Values without an interval are exact, or explained in the last "
        "column.")]  # fmt: skip
    for limit, by_run in results.items():
        parts += [f"## {limit.name.capitalize()}", limit.about, _figures(by_run)]
        for file, caption in limit.draw(by_run, folder):
            page = file.endswith(".html")
            parts += [f"[{caption}]({file})"] if page else [f"![{caption}]({file})", caption]
        for run, result in by_run.items():
            where = f"{run}: step {result['step']}, commit {result['commit']}, {result['time']}"
            parts += [f"```\n{result['command']}\n  # {where}, {result['hardware']}\n```"]
    parts += [f"Not measured: {name}: {reason}" for name, reason in reasons.items()]
    text = "\n\n".join(parts) + "\n"
    write_text(folder / "report.md", text)
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub('<img src="(.+?)"', lambda found: _picture(folder / found[1]), body)
    body = re.sub('<a href="(.+?)">(.+?)</a>', lambda x: _inside(folder / x[1], x[2]), body)
    write_text(folder / "report.html", page_of("Audit", body))
    return folder / "report.md"


def _picture(file: Path) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"'


def _inside(file: Path, caption: str) -> str:
    page = html.escape(file.read_text("utf-8"))
    return f'<details><summary>{caption}</summary><iframe srcdoc="{page}"></iframe></details>'


def _figures(by_run: dict[str, dict]) -> str:
    """Returns a table with a row per figure and a column per run."""
    tables = {run: {f["name"]: f for f in result["figures"]} for run, result in by_run.items()}
    firsts = {name: f for found in reversed(tables.values()) for name, f in found.items()}
    order = dict.fromkeys(name for found in tables.values() for name in found)
    rows = []
    for name in order:
        f = firsts[name]
        error = f["error"] + f", n = {f['n']:,}" * (f["low"] is not None)
        values = (shown(found.get(name)) for found in tables.values())
        rows.append([name, *values, f["unit"], error])
    return table(["", *by_run, "unit", "error"], rows)


def shown(figure: dict[str, Any] | None) -> str:
    """Formats a figure with its interval: 0.83 [0.79, 0.86]."""
    if figure is None or figure["value"] is None:
        return "–"
    number = lambda x: f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"
    if abs(figure["value"]) >= 1e9:
        number = lambda x: f"{x:.4g}"
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def page_of(title: str, body: str) -> str:
    """Returns a self-contained HTML page."""
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>'
            f"{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n"
            "</body></html>\n")  # fmt: skip
