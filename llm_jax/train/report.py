"""Evaluation report (report.md): scores, confusion matrix, scores by length, worst errors."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_jax.data import fields
from llm_jax.data.examples import Examples, Record
from llm_jax.files import write_text
from llm_jax.record import table as markdown_table
from llm_jax.train.evaluate import Evaluation
from llm_jax.train.metrics import figure

WORST = 10  # number of errors shown
SHOWN = 300  # characters shown of a text
LIKELIEST = 3  # labels shown per prediction
LONGEST = 20  # characters of a label in a figure
CLASSES = 40  # maximum classes of a confusion matrix
# Scores defined for a single prediction, 1 is correct; the first one available is used.
OF_ONE = {"accuracy": 1, "f1": 1, "chrf": 0.01, "rougeL": 1, "exact_match": 1, "mse": -1}


def write(workdir: str | Path, evaluation: Evaluation, examples: Examples, title: str) -> Path:
    """Writes report.md, and confusion.png for labels and tags; returns the path of report.md.

    title: names the checkpoint and split.
    """
    path, (values, records, answers) = Path(workdir) / "report.md", evaluation
    parts = [f"# Evaluation: {title}", _table(["score", "value"], values.items())]
    if (table := _confusion(examples, records, answers)) is not None:
        names = examples.config.data.labels
        numbered = _draw(path.with_name("confusion.png"), table, names)
        parts += ["## Confusion matrix", "![rows are true, columns predicted](confusion.png)"]
        parts += [f"The figure uses numbers for {', '.join(numbered)}."] if numbered else []
    rows = _by_length(examples, records, answers)
    lines = [(name, *scores.values()) for name, scores in rows]
    parts += ["## By length", "Each quartile of the record lengths is scored separately."]
    parts += [_table(["characters", *rows[0][1]], lines)]
    if worst := _worst(examples, records, answers):
        parts += ["## The worst errors", *worst]
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _table(header: list[str], rows) -> str:
    shown = lambda x: f"{x:.4g}" if isinstance(x, float) else x
    return markdown_table(header, [[shown(x) for x in row] for row in rows])


def _confusion(
    examples: Examples, records: list[Record], answers: list[Record]
) -> np.ndarray | None:
    """Returns the confusion matrix (rows are true labels); None without labels, or too many."""
    names, field = examples.config.data.labels, next(iter(examples.gold), "")
    if field not in ("label", "tags") or not 0 < len(names) <= CLASSES:
        return None
    listed = lambda row: row[field] if field == "tags" else [row[field]]
    table = np.zeros((len(names), len(names)), int)
    for record, answer in zip(records, answers, strict=True):
        for gold, guess in zip(listed(record), listed(answer), strict=True):
            if gold in examples.ids:
                table[examples.ids[gold], examples.ids[guess]] += 1
    return table


def _draw(path: Path, table: np.ndarray, names: Sequence[str]) -> list[str]:
    """Draws a confusion matrix, shaded by the fraction of each row.

    Returns the labels drawn as numbers ("1 坏"): long ones, and those that the font lacks.
    """
    from matplotlib import font_manager

    glyphs = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    fits = lambda name: len(name) <= LONGEST and all(ord(c) in glyphs for c in name)
    numbered = [f"{i} {name}" for i, name in enumerate(names) if not fits(name)]
    names = [name if fits(name) else str(i) for i, name in enumerate(names)]
    size = 2.5 + 0.45 * len(names)
    with figure(path, size, size) as (_, (axes,)):
        axes.imshow(table / np.maximum(table.sum(1, keepdims=True), 1), cmap="Blues", vmax=2)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        for (i, j), count in np.ndenumerate(table):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", fontsize=8)
    return numbered


def _by_length(
    examples: Examples, records: list[Record], answers: list[Record]
) -> list[tuple[str, dict]]:
    """Returns the scores of each quartile of the records by length, shortest first."""
    lengths = np.array([sum(map(len, fields.texts(record))) for record in records])
    rows = []
    for places in np.array_split(np.argsort(lengths, kind="stable"), min(4, len(records))):
        some = [[x[i] for i in places] for x in (records, answers)]
        name = f"{lengths[places].min()} to {lengths[places].max()}"
        rows.append((name, {"examples": len(places)} | examples.score(*some)))
    return rows


def _worst(examples: Examples, records: list[Record], answers: list[Record]) -> list[str]:
    """Returns the records with the lowest scores, the most confident first among equal ones.

    Empty for tasks without scores of single predictions, such as embeddings and replies.
    """
    named = next((name for name in OF_ONE if name in examples.score(records, answers)), None)
    if named is None:
        return []

    def order(i: int) -> tuple[float, float]:
        score = OF_ONE[named] * examples.score([records[i]], [answers[i]])[named]
        return score, -max(answers[i].get("probabilities", {"": 0.0}).values())

    keys = {i: order(i) for i in range(len(records))}
    wrong = sorted((i for i in keys if keys[i][0] < 1), key=keys.get)

    def short(name, x):
        if name == "probabilities":
            return dict(sorted(x.items(), key=lambda pair: -pair[1])[:LIKELIEST])
        return f"{x[:SHOWN]}…" if isinstance(x, str) and len(x) > SHOWN else x

    shorter = lambda row: {name: short(name, value) for name, value in row.items()}
    dump = lambda row: json.dumps(shorter(row), ensure_ascii=False, default=str)
    return [f"```\n{dump(records[i])}\n{dump(answers[i])}\n```" for i in wrong[:WORST]] or ["None."]
