"""`Limit`, the definition of a measure, and helpers for figures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.audit.subject import Subject
from llm_jax.train.metrics import figure

Results = dict[str, dict[str, Any]]  # {run: what `measure` returned}


class Picture(NamedTuple):
    """A figure or page in audit/, with its caption."""

    file: str
    caption: str


class Limit(NamedTuple):
    """A measure of a limit of language models.

    Attributes:
      about: a sentence that describes it.
      lacks: returns why it does not apply to a run; "" if it does.
      measure: -> {"figures": [statistics.figure, …], further results for `draw`}, as JSON.
      draw: (results by run, folder) -> pictures.
    """

    name: str
    about: str
    lacks: Callable[[Subject], str]
    measure: Callable[[Subject], dict[str, Any]]
    draw: Callable[[Results, Path], list[Picture]] = lambda results, folder: []


@contextmanager
def panels(folder: Path, name: str, columns: int = 1, width: float = 5.4) -> Iterator[list]:
    """Yields the axes of NAME.png; adds a legend to axes with labelled lines."""
    with figure(folder / f"{name}.png", width * columns, 4.0, columns) as (_, axes):
        yield axes
        for ax in axes:
            if ax.get_legend_handles_labels()[0]:
                ax.legend(frameon=False, fontsize=8)


def heat_map(ax, table, rows: list, columns: list, least: float = 0.0) -> None:
    """Draws a heat map of numbers from `least` to 1, with the value in each cell."""
    ax.imshow(table, cmap="cividis", vmin=least, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    for (i, j), x in np.ndenumerate(table):
        colour = "black" if x > (least + 1) / 2 else "white"
        ax.text(j, i, f"{x:.2f}", ha="center", va="center", fontsize=8, color=colour)
