"""Metrics logging: metrics.jsonl, TensorBoard events and loss.png."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm_jax.config import ConfigError
from llm_jax.files import parse_json, write_text


class Metrics:
    """Appends a JSON object per logged step; a resumed run first removes rows of later steps.

    Attributes:
      last: the newest value of every metric, with the step under 'step'.
    """

    def __init__(self, workdir: str | Path, start: int, writes: bool = True):
        self.workdir, self.start, self.writes = Path(workdir), start, writes
        self.board, self.file, self.flushed = None, None, 0.0
        rows = [row for row in read(workdir) if row["step"] <= start]
        self.last = {name: value for row in rows for name, value in row.items()}
        if writes:
            path = self.workdir / "metrics.jsonl"
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            self.file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Logs values at a step; non-finite ones become null."""
        finite = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        row = {"step": step} | finite
        self.last |= row
        if not self.writes:
            return
        self.file.write(json.dumps(row) + "\n")
        # Not SummaryWriter: its thread dies on a full disk, after which its queue blocks forever.
        # Imported late: it imports PyTorch if installed, which would delay the first step.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        if self.board is None:
            (folder := self.workdir / "tensorboard").mkdir(exist_ok=True)
            self.board = EventsWriter(str(folder / "events"))
            start = SessionLog(status=SessionLog.START)  # discards events of later steps
            self.board.write_event(Event(step=self.start + 1, session_log=start))
        for name, value in finite.items():
            if value is not None:
                summary = scalar(name, value)
                self.board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() > self.flushed + 60:  # a flush costs an fsync
            self.board.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes all files."""
        for out in (self.file, self.board):
            if out is not None:
                out.close()


def read(workdir: str | Path) -> list[dict]:
    """Returns the rows of metrics.jsonl, without an incomplete last line."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = parse_json(line.decode("utf-8", "replace"), where)
            if not isinstance(row.get("step"), int):
                raise ConfigError(f"{where}: has no step")
        except ConfigError:
            if number == len(lines):
                break
            raise
        rows.append(row)
    return rows


class Meter:
    """Measures throughput, MFU, input wait and goodput per logging interval.

    Args:
      peak: peak FLOP/s of all devices; None: unknown.
      began: time.perf_counter() at the start of the time that goodput is a fraction of.
      step_seconds: time spent in steps before this process, for a resumed run.
    """

    def __init__(
        self, flops_per_token: float, peak: float | None, began: float, step_seconds: float = 0
    ):
        self.flops_per_token, self.peak, self.began = flops_per_token, peak, began
        self.before, self.stepping = step_seconds, 0.0
        self.restart()

    def restart(self) -> None:
        """Starts a new interval; the time until now does not count as step time."""
        self.since, self.tokens, self.apart = time.perf_counter(), 0, {"input": 0.0, "other": 0.0}

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Times work outside steps: "input", waiting for a batch, or "other", such as a save."""
        start = time.perf_counter()
        yield
        self.apart[kind] += time.perf_counter() - start

    def read(self) -> dict[str, float | None]:
        """Returns the values since the last reading (None: unknown), and restarts:

        tokens_per_second; mfu, relative to `peak`; input_seconds, waiting for batches;
        step_seconds, the total time in steps of the run; goodput, the fraction of this process's
        time spent in steps.
        """
        now = time.perf_counter()
        rate = self.tokens / (now - self.since) if self.tokens else None
        if self.tokens:
            self.stepping += now - self.since - sum(self.apart.values())
        known = rate and self.peak
        values = {
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak if known else None,
            "input_seconds": self.apart["input"],
            "step_seconds": self.before + self.stepping,
            "goodput": self.stepping / (now - self.began),
        }
        self.restart()
        return values


def running_mean(values: Sequence[float], n: int) -> list[float]:
    """Returns the trailing mean over n values (fewer at the start)."""
    parts = (values[max(0, i + 1 - n) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


@contextmanager
def figure(path: Path, width: float, height: float, columns: int = 1) -> Iterator[tuple]:
    """Yields a matplotlib figure and its axes, and saves the figure; needs no display."""
    # Without pyplot, because of its global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots(1, columns, squeeze=False)[0]
    yield picture, axes
    for ax in axes:
        if not ax.images:
            ax.grid(alpha=0.3, which="both")
        ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=120)


def plot(workdir: str | Path) -> Path:
    """Plots training and validation loss against steps; returns the path of the image."""
    rows = read(workdir)
    points = lambda key: [(r["step"], r[key]) for r in rows if r.get(key) is not None]
    training, validation = points("loss"), points("eval_loss")
    path = Path(workdir) / "loss.png"
    with figure(path, 7, 4.2) as (_, (axes,)):
        if training:
            steps, losses = zip(*training, strict=True)
            axes.plot(steps, losses, "-", label="training, of a step", alpha=0.35)
            means = running_mean(losses, max(2, len(losses) // 20))
            axes.plot(steps, means, "-", color=axes.lines[0].get_color(), label="running mean")
        if validation:
            axes.plot(*zip(*validation, strict=True), "o-", label="validation", markersize=4)
        axes.set(xlabel="step", ylabel="loss")
        if axes.lines:
            axes.legend(frameon=False)
    return path
