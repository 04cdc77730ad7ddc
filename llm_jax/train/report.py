"""report.md of an evaluation: scores, the confusion matrix, scores by length, the worst errors."""

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

WORST = 10  # errors that are shown
SHOWN = 300  # characters of a text
LIKELIEST = 3  # labels of an answer
LONGEST = 20  # characters of a label in a picture
CLASSES = 40  # most of them that a confusion matrix has room for
# Scores that a single answer has, 1 being right; the first of them that there is counts.
OF_ONE = {"accuracy": 1, "f1": 1, "chrf": 0.01, "rougeL": 1, "exact_match": 1, "mse": -1}


def write(workdir: str | Path, evaluation: Evaluation, examples: Examples, title: str) -> Path:
    """Writes report.md, and confusion.png of labels and tags, into a run folder; returns its path.

    title: which checkpoint and split.
    """
    path, (values, records, answers) = Path(workdir) / "report.md", evaluation
    parts = [f"# Evaluation: {title}", _table(["score", "value"], values.items())]
    if (table := _confusion(examples, records, answers)) is not None:
        names = examples.config.data.labels
        numbered = _draw(path.with_name("confusion.png"), table, names)
        parts += ["## Confusion matrix", "![rows are true, columns predicted](confusion.png)"]
        parts += [f"The picture has numbers for {', '.join(numbered)}."] if numbered else []
    rows = _by_length(examples, records, answers)
    lines = [(name, *scores.values()) for name, scores in rows]
    parts += ["## By length", "Each quarter of the records is scored as a set of its own."]
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
    """How many of each label (rows) were called which; None where there are none, or too many."""
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
    """Draws a confusion matrix, shaded by the share of each row.

    Returns labels by their number ("1 坏"): those that are long, or not in matplotlib's own font.
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
    """Scores of each quarter of the records, the shortest first."""
    lengths = np.array([sum(map(len, fields.texts(record))) for record in records])
    rows = []
    for places in np.array_split(np.argsort(lengths, kind="stable"), min(4, len(records))):
        some = [[x[i] for i in places] for x in (records, answers)]
        name = f"{lengths[places].min()} to {lengths[places].max()}"
        rows.append((name, {"examples": len(places)} | examples.score(*some)))
    return rows


def _worst(examples: Examples, records: list[Record], answers: list[Record]) -> list[str]:
    """The records with the lowest scores, of equal ones those that the model was surest of.

    Where only a set of answers has a score, as with vectors and replies, there are none.
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
    said = lambda row: json.dumps(shorter(row), ensure_ascii=False, default=str)
    return [f"```\n{said(records[i])}\n{said(answers[i])}\n```" for i in wrong[:WORST]] or ["None."]
