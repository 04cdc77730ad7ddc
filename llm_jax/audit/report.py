"""report.md, and report.html with its pictures inside: every figure, its error, its command."""

import base64
import html
from pathlib import Path
from typing import Any

from llm_jax.audit.limit import Limit, Picture
from llm_jax.files import write_text
from llm_jax.record import table

STYLE = """body{font:16px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#111}
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ccc;padding:.2em .8em;
text-align:left}td+td{font-variant-numeric:tabular-nums}pre{background:#f4f4f4;padding:.6em;
overflow-x:auto}img{max-width:100%}figure{margin:1em 0}figcaption{color:#444}"""


def write(folder: Path, labels: list[str], results: dict[Limit, dict[str, dict]]) -> Path:
    """Writes both reports and draws the pictures; returns the path of report.md."""
    parts = [("h1", f"Audit: {' against '.join(labels)}"), ("p", (
        "A figure is followed by its 95 % interval: of resampled rows (bootstrap), or of a share "
        "of so many trials (binomial, Wilson's). One without was counted (exact), or its last "
        "column says what it is over."))]
    for limit, by_run in results.items():
        parts += [("h2", limit.name.capitalize()), ("p", limit.about)]
        parts += [("table", _figures(by_run))]
        parts += [("picture", picture) for picture in limit.draw(by_run, folder)]
        parts += [("pre", "\n".join(_origin(*item) for item in by_run.items()))]
    write_text(folder / "report.html", _html(parts, folder))
    write_text(folder / "report.md", _markdown(parts))
    return folder / "report.md"


def _figures(by_run: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a figure a row, a run a column; all runs' figures, in order."""
    tables = {run: {f["name"]: f for f in result["figures"]} for run, result in by_run.items()}
    firsts = {name: f for found in reversed(tables.values()) for name, f in found.items()}
    order = dict.fromkeys(name for found in tables.values() for name in found)
    rows = []
    for name in order:
        f = firsts[name]
        error = f["error"] + f", n = {f['n']:,}" * (f["low"] is not None)
        values = (shown(found.get(name)) for found in tables.values())
        rows.append([name, *values, f["unit"], error])
    return ["", *by_run, "unit", "error"], rows


def shown(figure: dict[str, Any] | None) -> str:
    """A figure with its interval: 0.83 [0.79, 0.86]."""
    if figure is None or figure["value"] is None:
        return "–"
    number = lambda x: f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"
    if abs(figure["value"]) >= 1e9:
        number = lambda x: f"{x:.4g}"
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def _origin(run: str, result: dict) -> str:
    where = f"{run}: step {result['step']}, commit {result['commit']}, {result['time']}"
    return f"{result['command']}\n  # {where}, {result['hardware']}"


def _markdown(parts: list[tuple]) -> str:
    forms = {
        "h1": lambda x: f"# {x}", "h2": lambda x: f"## {x}", "p": str,
        "table": lambda x: table(*x), "pre": lambda x: f"```\n{x}\n```",
        "picture": lambda x: f"[{x.caption}]({x.file})" if x.file.endswith(".html")
        else f"![{x.caption}]({x.file})\n\n{x.caption}",
    }  # fmt: skip
    return "\n\n".join(forms[kind](content) for kind, content in parts) + "\n"


def _html(parts: list[tuple], folder: Path) -> str:
    text = lambda tag: lambda x: f"<{tag}>{html.escape(x)}</{tag}>"

    def rows(content):
        header, body = content
        line = lambda tag, cells: f"<tr>{''.join(text(tag)(str(cell)) for cell in cells)}</tr>"
        return f"<table>{line('th', header)}{''.join(line('td', row) for row in body)}</table>"

    def picture(item: Picture):
        caption = text("figcaption")(item.caption)
        if item.file.endswith(".html"):
            page = html.escape((folder / item.file).read_text("utf-8"), quote=True)
            return f'<details><summary>{html.escape(item.caption)}</summary>{_body(page)}</details>'
        data = base64.b64encode((folder / item.file).read_bytes()).decode()
        alt = html.escape(item.caption, quote=True)
        return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">{caption}</figure>'

    forms = {"table": rows, "picture": picture}
    return page("Audit", "\n".join(forms.get(kind, text(kind))(x) for kind, x in parts))


def _body(page: str) -> str:
    return f'<iframe srcdoc="{page}" style="width:100%;height:30em;border:0"></iframe>'


def page(title: str, body: str) -> str:
    """Returns a page of HTML that needs nothing else."""
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>'
            f"{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n"
            "</body></html>\n")  # fmt: skip
