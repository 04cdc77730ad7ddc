"""Where a run's numbers go: metrics.jsonl, TensorBoard events and loss.png."""

import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter


class Metrics:
    """Appends one JSON object a logged step; a resumed run first forgets what lies ahead of it."""

    def __init__(self, workdir: str | Path, start: int):
        self.workdir = Path(workdir)
        self.path = self.workdir / "metrics.jsonl"
        kept = [row for row in read(self.workdir) if row["step"] <= start]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self.path)
        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, **values: float | None) -> None:
        """Logs values at a step; None and non-finite ones are written as null."""
        row = {k: v if v is not None and abs(v) < float("inf") else None for k, v in values.items()}
        self.file.write(json.dumps({"step": step} | row) + "\n")
        for name, value in row.items():
            if value is not None:
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes everything out."""
        self.file.close()
        self.board.close()


def read(workdir: str | Path) -> list[dict]:
    """Returns the rows of metrics.jsonl; a last line cut short by a crash is dropped."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot(workdir: str | Path) -> Path:
    """Draws training and validation loss against steps; returns the picture's path."""
    # Figure without pyplot: no global state and no display needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read(workdir)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    path = Path(workdir) / "loss.png"
    figure.savefig(path, dpi=120)
    return path
