"""Figures of a sweep's report, with one colour and line style per variant. No JAX."""

from pathlib import Path

import numpy as np
from cycler import cycler
from matplotlib.ticker import EngFormatter, LogLocator, StrMethodFormatter

from llm_jax.sweep.results import Summary
from llm_jax.train.metrics import figure

# Okabe and Ito's colour-blind safe palette, without yellow, which is too light on white.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")
LINES = ("-", "--", ":", "-.")


def styles(labels: list[str]) -> dict[str, dict]:
    """Returns {label: line style}: all colours with one line style, then with the next."""
    looks = (cycler(linestyle=LINES) * cycler(color=COLOURS))()
    return dict(zip(labels, looks, strict=False))


def _legend(picture, axes, order: list[str] | None = None) -> None:
    """Adds one legend for all panels, on the right, in the given order."""
    handles, labels = axes.get_legend_handles_labels()
    handle = dict(zip(labels, handles, strict=True))
    order = [label for label in order or labels if label in handle]
    if order:
        picture.legend(
            [handle[x] for x in order], order, loc="outside right center", frameon=False,
            fontsize=8, handlelength=3,
        )  # fmt: skip


def differences(path: Path, summaries: list[Summary]) -> None:
    """Plots each variant's difference from the baseline: seeds, mean and 95 % interval."""
    base, *others = summaries
    shown = [s for s in others if s.difference]
    if not shown:
        return
    with figure(path, 7.5, 1.3 + 0.32 * len(summaries)) as (_, (ax,)):
        for y, summary in enumerate(reversed(shown)):
            seeds = sorted(summary.losses.keys() & base.losses.keys())
            each = [summary.losses[s] - base.losses[s] for s in seeds]
            ax.plot(each, [y - 0.22] * len(each), "o", color="#999999", markersize=4)
            mean, half = summary.difference.mean, summary.difference.half_width
            if half == half:  # NaN for a single seed
                ax.errorbar(mean, y, xerr=half, fmt="D", color="#0072B2", markersize=5, capsize=3)
        ax.axvline(0, color="#000000", linewidth=1, zorder=1)
        ax.set_yticks(range(len(shown)), [s.label for s in reversed(shown)])
        ax.set_xlabel(f"validation loss minus that of {base.label} (nats per token)")


def curves(path: Path, summaries: list[Summary], flops: dict[str, float]) -> None:
    """Plots validation loss against tokens, FLOPs and time: mean over seeds, band min to max."""
    shown = [s for s in summaries if s.curves]
    if not shown:
        return
    look = styles([s.label for s in summaries])
    best = [s.label for s in sorted(shown, key=lambda s: s.mean)]
    with figure(path, 14, 4.6, 3) as (picture, axes):
        for summary in shown:
            n = min(len(c.loss) for c in summary.curves)
            # Without the first point, which would dominate the scale.
            part = slice(1 if n > 2 else 0, n)
            each = lambda name, s=summary, part=part: [getattr(c, name)[part] for c in s.curves]
            mean = lambda name, each=each: np.mean(each(name), axis=0)
            loss = np.array(each("loss"))
            tokens = mean("tokens")
            across = tokens, tokens * flops[summary.label], mean("seconds")
            for ax, x in zip(axes, across, strict=True):
                style = look[summary.label]
                dot = "o" if len(x) == 1 else None
                ax.plot(x, loss.mean(0), label=summary.label, linewidth=1.4, marker=dot, **style)
                ax.fill_between(x, loss.min(0), loss.max(0), color=style["color"], alpha=0.12, lw=0)
        names = "tokens", "training FLOPs", "seconds of training"
        for ax, name in zip(axes, names, strict=True):
            ax.set_xlabel(name)
            if name != "seconds of training":  # thousands are clearer unabbreviated
                ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.yaxis.get_major_formatter().set_useOffset(False)
        axes[0].set_ylabel("validation loss (nats per token)")
        _legend(picture, axes[0], best)


def cost(path: Path, costs: dict[str, dict], labels: list[str]) -> None:
    """Plots time and memory of a layer's forward and backward pass by length."""
    look = styles(labels)
    with figure(path, 12, 4.8, 2) as (picture, axes):
        for label, measured in costs.items():
            for ax, name, scale in zip(axes, ("seconds", "bytes"), (1e-3, 2**20), strict=True):
                points = [(r["length"], r[name] / scale) for r in measured["rows"] if r[name]]
                style = look[label] | {"marker": "o", "markersize": 3}
                ax.plot(*(zip(*points, strict=True) if points else ((), ())), label=label, **style)
        for ax, name in zip(axes, ("milliseconds", "MiB of temporaries"), strict=True):
            ax.set(xlabel="tokens", ylabel=name, xscale="log", yscale="log")
            lengths = sorted({r["length"] for measured in costs.values() for r in measured["rows"]})
            ax.set_xticks(lengths, [f"{n:,}" for n in lengths], fontsize=8)
            ax.minorticks_off()
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        _legend(picture, axes[0], [label for label in labels if label in costs])


def context(path: Path, means: dict[tuple[str, int], dict], labels: list[str]) -> None:
    """Plots loss by position, one panel per length; means: from `report.mean_context`."""
    look, reaches = styles(labels), sorted({reach for _, reach in means})
    if not reaches:
        return
    # Losses that diverge beyond the training length are clipped, to keep the others readable.
    within = [at["bins"][: -(-at["length"] // at["bin"])] for at in means.values()]
    low, top = min(np.nanmin(at["bins"]) for at in means.values()), max(map(np.nanmax, within))
    room = 0.1 * (top - low) or 0.1
    with figure(path, 4.2 * len(reaches) + 2, 4.6, len(reaches)) as (picture, axes):
        for ax, reach in zip(axes, reaches, strict=True):
            for label in labels:
                at = means.get((label, reach), {"bins": [], "bin": 0})
                middle = (np.arange(len(at["bins"])) + 0.5) * at["bin"]
                ax.plot(middle, at["bins"], label=label, linewidth=1.4, **look[label])
            length = next(at["length"] for key, at in means.items() if key[1] == reach)
            ax.axvline(length, color="#999999", linewidth=1, linestyle=":")
            ax.set(xlabel="position in the context", ylim=(low - room, top + room))
            ax.set_title(f"rows of {reach * length:,} tokens", fontsize=10)
        axes[0].set_ylabel("validation loss (nats per token)")
        _legend(picture, axes[0], [x for x in labels if any(x == label for label, _ in means)])
