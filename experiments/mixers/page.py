"""Writes README.md and its figures from results/."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, StrMethodFormatter

from llm_jax import record
from llm_jax.files import read_json
from llm_jax.sweep import results
from llm_jax.sweep.figures import COLOURS, styles
from llm_jax.train.metrics import figure

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MARKS = "osD^v"

# Study: test set, and (better variant, worse variant, source).
ZOOLOGY = "[Zoology](https://arxiv.org/abs/2312.04927)"
BASED = "[Based](https://arxiv.org/abs/2402.18668)"
GLA = "[GLA](https://arxiv.org/abs/2312.06635)"
DELTANET = "[DeltaNet](https://arxiv.org/abs/2406.06484)"
GATED = "[Gated DeltaNet](https://arxiv.org/abs/2412.06464)"
GRAZZI = "[Grazzi 2024](https://arxiv.org/abs/2411.12537)"
PRODUCT = "[DeltaProduct](https://arxiv.org/abs/2502.10297)"
RWKV7 = "[RWKV-7](https://arxiv.org/abs/2503.14456)"
GSA = "[GSA](https://arxiv.org/abs/2409.07146)"
KIMI = "[Kimi Linear](https://arxiv.org/abs/2510.26692)"
LOG = "[Log-linear](https://arxiv.org/abs/2506.04761)"
ORDERS = {
    "recall": ("32", [
        ("softmax", "linear", ZOOLOGY), ("softmax", "mamba2", ZOOLOGY),
        ("softmax", "window 32", BASED), ("based", "linear", BASED), ("gla", "retnet", GLA),
        ("deltanet", "gla", DELTANET), ("deltanet", "mamba2", DELTANET),
        ("gated_deltanet", "mamba2", GATED), ("rwkv7", "rwkv6", RWKV7), ("gsa", "gla", GSA),
        ("kda", "gated_deltanet", KIMI), ("log_linear", "gated_linear", LOG),
    ]),
    "parity": ("to 64", [
        ("deltanet, to -1", "deltanet", GRAZZI), ("deltanet, to -1", "mamba2", GRAZZI),
        ("gated_deltanet, to -1", "gated_deltanet", GRAZZI), ("deltanet, to -1", "softmax", GRAZZI),
    ]),
    "s3": ("to 64", [
        ("gated_deltaproduct, to -1", "gated_deltaproduct", PRODUCT),
        ("gated_deltaproduct, to -1", "gated_deltanet, to -1", PRODUCT),
        ("rwkv7", "mamba2", RWKV7), ("rwkv7", "softmax", RWKV7),
    ]),
    "bytes": ("test", [
        ("softmax", "linear", GLA), ("gla", "linear", GLA), ("gated_deltanet", "mamba2", GATED),
        ("gated_deltanet", "gla", GATED), ("kda", "gated_deltanet", KIMI),
    ]),
    "hybrid_recall": ("32", [
        ("1 softmax of 4", "no softmax", KIMI), ("1 softmax of 2", "no softmax", KIMI),
    ]),
    "needle": ("depth 0", [
        ("softmax", "window 32", BASED), ("gated_deltanet", "window 32", GATED),
    ]),
}  # fmt: skip


def load(study: str) -> dict[str, dict]:
    """Returns {variant: record}; a record of uncommitted changes is an error."""
    found = {}
    for file in sorted((RESULTS / study).glob("*.json")):
        one = read_json(file)
        if one["commit"].endswith("+changes"):
            raise SystemExit(f"{file}: is from uncommitted changes; record it again")
        found[one["kind"]] = one
    return found


LANGUAGE = "test"  # the test set scored by loss; tasks are scored by accuracy


def scored(found: dict, test: str) -> dict[int, float]:
    """Returns {seed: accuracy of answers on a test set, or the loss of text}."""
    key = "loss" if test == LANGUAGE else "accuracy"
    return {run["seed"]: run["test"][test][key] for run in found["runs"] if "test" in run}


def tests_of(found: dict) -> list[str]:
    return list(next(run["test"] for run in found["runs"] if "test" in run))


def spread(values: dict[int, float]) -> str:
    """Mean ± half of the 95 % interval of Student's t over the seeds."""
    half = results.stats.t.ppf(0.975, len(values) - 1) * results.standard_error([*values.values()])
    return f"{np.mean([*values.values()]):.3f}" + (f" ± {half:.3f}" if half == half else "")


def ranked(study: dict, test: str) -> list[str]:
    """Returns the variants, the best first, by accuracy or by loss."""
    mean = lambda kind: np.mean([*scored(study[kind], test).values()])
    return sorted(study, key=mean, reverse=test != LANGUAGE)


def named(test: str) -> str:
    return f"{test} pairs" if test.isdecimal() else "loss on test" if test == LANGUAGE else test


def scores(study: dict) -> str:
    """Returns a table with a row per variant, the best on the last test set first."""
    tests = tests_of(next(iter(study.values())))
    rows = [
        [
            kind, f"{x['parameters']:,}",
            "–" if x["state_bytes"] is None else f"{x['state_bytes'] / 1024:.1f}",
            f"{next(r['rate'] for r in x['runs'] if 'test' in r):g}",
            *(spread(scored(x, test)) for test in tests),
        ]
        for kind, x in ((kind, study[kind]) for kind in ranked(study, tests[-1]))
    ]  # fmt: skip
    header = ["", "parameters", "state, KiB per row", "learning rate", *map(named, tests)]
    return record.table(header, rows)


def orders(name: str, study: dict) -> str:
    """Returns a table of published orders and the gains measured here."""
    test, claims = ORDERS[name]
    rows = []
    for better, worse, source in claims:
        if not {better, worse} <= study.keys():
            continue
        found = results.paired(scored(study[better], test), scored(study[worse], test))
        gain = -found.mean if test == LANGUAGE else found.mean
        half = found.half_width
        verdict = "undecided"
        if half == half and abs(gain) > half:
            verdict = "agrees" if gain > 0 else "**disagrees**"
        elif half != half:  # all seeds alike
            verdict = "equal" if gain == 0 else "agrees" if gain > 0 else "**disagrees**"
        shown = f"{gain:+.3f}" + (f" ± {half:.3f}" if half == half else "")
        rows.append([f"{better} over {worse}", source, shown, verdict])
    header = ["published order", "source", f"gain, {named(test)}", ""]
    return record.table(header, rows) if rows else ""


def dots(path: Path, study: dict, label: str) -> None:
    """Draws seeds and mean: a row per variant, a panel per test set."""
    tests = tests_of(next(iter(study.values())))
    kinds = ranked(study, tests[-1])[::-1]
    with figure(path, 2.2 + 2.3 * len(tests), 1.2 + 0.24 * len(kinds), len(tests)) as (_, axes):
        for ax, test in zip(axes, tests, strict=True):
            for y, kind in enumerate(kinds):
                each = [*scored(study[kind], test).values()]
                ax.plot(each, [y] * len(each), "o", color="#999999", markersize=4)
                ax.plot(np.mean(each), y, "D", color="#0072B2", markersize=5)
            names = kinds if ax is axes[0] else [""] * len(kinds)
            ax.set_yticks(range(len(kinds)), names, fontsize=8)
            ax.set(xlabel=label, ylim=(-0.7, len(kinds) - 0.3), xlim=(-0.03, 1.03))
            ax.set_title(named(test), fontsize=10)


def curves(path: Path, study: dict) -> None:
    """Draws validation loss by step at the selected rate: mean and range over seeds."""
    look = styles(list(study))
    with figure(path, 8, 4.6) as (picture, (ax,)):
        for kind in ranked(study, "test"):
            of = [np.array(run["curve"]) for run in study[kind]["runs"] if "test" in run]
            n = min(map(len, of))
            steps, loss = of[0][:n, 0], np.array([x[:n, 2] for x in of])
            ax.plot(steps, loss.mean(0), label=kind, linewidth=1.4, **look[kind])
            ax.fill_between(steps, loss.min(0), loss.max(0), color=look[kind]["color"], alpha=0.12)
        ax.set(xlabel="step", ylabel="validation loss (nats per byte)")
        picture.legend(loc="outside right center", frameon=False, fontsize=8, handlelength=3)


def costs(path: Path, found: dict) -> str:
    """Returns the table of decoding costs and draws the figure."""
    kinds = sorted(found, key=lambda k: found[k]["rows"][-1]["bytes"])
    lengths = [row["length"] for row in found[kinds[0]]["rows"]]
    size = lambda n: f"{n / 2**20:,.2f} MiB" if n >= 2**20 else f"{n / 2**10:,.1f} KiB"

    def time(row):
        quartiles = f" ({row['low']:.2g}–{row['high']:.2g})" * (row["rounds"] >= 4)
        return f"{row['ratio']:.2g}{quartiles}"

    rows = [[kind, *(size(row["bytes"]) for row in found[kind]["rows"]),
             *map(time, found[kind]["rows"])] for kind in kinds]  # fmt: skip
    names = [f"{n // 1024}k" for n in lengths]
    with figure(path, 10, 1.4 + 0.22 * len(kinds), 2) as (picture, axes):
        for i, name in enumerate(names):
            for ax, key, scale in zip(axes, ("bytes", "ratio"), (1024, 1), strict=True):
                x = [found[kind]["rows"][i][key] / scale for kind in kinds]
                ax.plot(x, range(len(kinds)), MARKS[i], color=COLOURS[(0, 1, 4)[i]],
                        label=f"{name} tokens", markersize=5)  # fmt: skip
        axes[0].set_yticks(range(len(kinds)), kinds, fontsize=8)
        axes[1].set_yticks(range(len(kinds)), [""] * len(kinds))
        axes[0].set(xscale="log", xlabel="KiB of a row's state, one layer")
        axes[1].set(xscale="log", xlabel="time of a token / dense attention's")
        axes[1].axvline(1, color="#000000", linewidth=1, zorder=1)
        for ax in axes:
            ax.minorticks_off()
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=20))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        handles, labels = axes[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    header = ["", *names, *(f"time, {name}" for name in names)]
    return record.table(header, rows)


def ratios(path: Path, study: dict) -> None:
    """Draws accuracy by the share of softmax layers, a line per number of pairs."""
    share = {"no softmax": 0, "1 softmax of 4": 0.25, "1 softmax of 2": 0.5, "all softmax": 1}
    kinds = [kind for kind in share if kind in study]
    with figure(path, 6.4, 4) as (picture, (ax,)):
        for test, colour, mark in zip(tests_of(study[kinds[0]]), COLOURS, MARKS, strict=False):
            of = np.array([[*scored(study[kind], test).values()] for kind in kinds])
            x = [share[kind] for kind in kinds]
            ax.plot(x, of.mean(1), f"-{mark}", color=colour, label=named(test))
            ax.fill_between(x, of.min(1), of.max(1), color=colour, alpha=0.12, lw=0)
        ax.set(xlabel="share of layers with softmax", ylabel="accuracy, mean over seeds")
        ax.set_xticks(list(share.values()), ["0", "1/4", "1/2", "1"])
        picture.legend(loc="outside right center", frameon=False, fontsize=8)


def made(study: dict) -> str:
    """Returns the commits, versions, hardware and times of a study."""
    of = lambda key: ", ".join(sorted({x[key] for x in study.values()}))
    jax = ", ".join(sorted({x["versions"]["jax"] for x in study.values()}))
    times = sorted(x["time"] for x in study.values())
    return f"Commits {of('commit')}; jax {jax}; {of('hardware')}; {times[0]} to {times[-1]}."


TEXT = """# Sequence mixers compared

**Claim.** One line of a config gives a decoder any published sequence mixer. The known differences
between mixers that do not depend on model size (recall, state tracking, cost per token) can be seen
in models that train in seconds on a CPU core.

**Setup.** `python experiments/mixers/run.py` produces the missing results and writes this page. The
models are those of [configs/ablations/mixers.py](../../configs/ablations/mixers.py), which
`launch.py sweep` can also run.

- Within a task, all mixers have the same number of parameters (to 1 %, by the width of the
  feed-forward layers) and the same batches in the same order.
- Each mixer uses the learning rate, of {rates}, with the lower validation loss of seed 0, and is
  evaluated with {seeds} seeds on a test set that was not used for selection.
- *±* is half of the 95 % interval over these seeds. A *gain* is the mean difference between two
  mixers, paired by seed. A published order **agrees** or **disagrees** with the gain if the
  interval excludes zero, and is undecided otherwise.
- results/ has the curves of all seeds and rates.

"""
SECTIONS = {
    "decode": ("Cost per token in decoding", """
One layer, width {width}, four heads of size 64, float32, no feed-forward layer. The table shows
the bytes that a row of the given number of tokens stores, and the time of one more token relative
to dense attention. Times are medians of rounds in which both take turns (with quartiles, except
for 64k tokens, which have one or two rounds), on one core of a shared CPU. MoBA, NSA and PaTH
recompute in each step what their papers cache ([docs/attention.md](../../docs/attention.md)).
"""),
    "recall": ("Recall", """
Multi-query associative recall (Zoology): a row has a number of key-value pairs, then 32 queries.
Trained on 2 to 32 pairs, tested on each number. Two layers of width 64, two heads of size 16. All
mixers, including softmax, have short convolutions of 4 and no positions, so that only the mixer
differs; exceptions are RetNet, which rotates keys, and Mamba-3, which has no convolutions. A run
stops early when its validation accuracy reaches 0.999. Naming any value gives 0.03; naming one of
the values in the row gives 1 / pairs.
"""),
    "parity": ("State tracking: parity", """
The product of up to 16 permutations of two elements, then of up to 32 and 64, which is longer
than any training row. Same models as above. Chance is 0.5. *to -1*: beta ranges up to 2, so that
a transition can have negative eigenvalues. A run stops early when its validation accuracy is
0.999 three times in a row.
"""),
    "s3": ("State tracking: S3", """
The same with three elements, a group that is not commutative. Chance is 0.17.
"""),
    "bytes": ("Language modelling", """
Bytes of the text that is distributed with Python. Two layers of width 128, four heads, rows of 256
bytes. As in the papers, softmax variants have rotary positions and linear variants have short
convolutions. Test loss in nats per byte.
"""),
    "hybrid_recall": ("Hybrids", """
Recall as above with four layers, some of them softmax, the others Gated DeltaNet.
"""),
    "needle": ("Needle retrieval", """
One of 16 keys with its value, at a relative depth in a row of 256 random words (0 is the
beginning). It is queried at the end of the row.
"""),
}  # fmt: skip
LIMITS = """## Limits

The models have {parameters} parameters and were trained for seconds on {tokens} tokens.
Differences that need larger models, longer training or long documents cannot appear here, and
neither can differences of a few percent in loss: three seeds resolve only large effects.
*Undecided* is not evidence against a published order. A variant that fails may lack training
steps or a third learning rate, not capacity. Where softmax and a linear variant differ in recall,
this study does not separate the effect of the state size from that of training. All variants use
the small settings of the config (windows, blocks, slots), which were not tuned. Decoding was
timed on a CPU, where memory is fast relative to arithmetic; ratios on a GPU differ.
"""


def pictures(name: str, study: dict) -> str:
    """Draws a study; returns the Markdown of its figure."""
    path = HERE / f"{name}.png"
    if name == "bytes":
        curves(path, study)
    elif name == "hybrid_recall":
        ratios(path, study)
    else:
        dots(path, study, "accuracy")
    return f"![{SECTIONS[name][0]}]({path.name})"


def write(rates: tuple[float, ...], seeds: int) -> None:
    """Writes README.md from the studies that have results."""
    parts = [TEXT.format(rates=" and ".join(f"{rate:g}" for rate in rates), seeds=seeds)]
    for name, (title, text) in SECTIONS.items():
        study = load(name)
        if not study:
            continue
        parts.append(f"## {title}\n{text.format(width=256)}\n")
        if name == "decode":
            parts.append(costs(HERE / "decode.png", study) + f"\n\n![{title}](decode.png)")
        else:
            told = [scores(study), orders(name, study), pictures(name, study)]
            how = "{steps} steps of {rows} rows of {length} tokens: `{task}`."
            told.append(how.format(**next(iter(study.values()))["train"]))
            parts.append("\n\n".join(told))
        parts.append(f"\n\n{made(study)}\n\n")
    made_of = [one for name in SECTIONS if name != "decode" for one in load(name).values()]
    span = lambda xs: f"{min(xs):,} to {max(xs):,}"
    parts.append(LIMITS.format(
        parameters=span([one["parameters"] for one in made_of]),
        tokens=span([t["steps"] * t["rows"] * t["length"] for t in (x["train"] for x in made_of)]),
    ))  # fmt: skip
    (HERE / "README.md").write_text("".join(parts))
