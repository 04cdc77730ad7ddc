"""Writes README.md and its pictures from what lies in results/; no number is typed by hand."""

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

# Study, test set, the better kind, the worse one, and who published that order.
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
    """Returns {kind: its record}; refuses what was made of changes that no commit has."""
    found = {}
    for file in sorted((RESULTS / study).glob("*.json")):
        one = read_json(file)
        if one["commit"].endswith("+changes"):
            raise SystemExit(f"{file}: was made from uncommitted changes; make it again")
        found[one["kind"]] = one
    return found


LANGUAGE = "test"  # the test set of text, scored by loss; those of tasks are by accuracy


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
    """Kinds, the best first: by accuracy, or by loss."""
    mean = lambda kind: np.mean([*scored(study[kind], test).values()])
    return sorted(study, key=mean, reverse=test != LANGUAGE)


def named(test: str) -> str:
    return f"{test} pairs" if test.isdecimal() else "loss on test" if test == LANGUAGE else test


def scores(study: dict) -> str:
    """A row for each kind, the best of the last test set first."""
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
    header = ["", "parameters", "KiB of a row's state", "rate", *map(named, tests)]
    return record.table(header, rows)


def orders(name: str, study: dict) -> str:
    """What was published beside what is found here, of the kinds that are there."""
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
    header = ["published order", "by", f"gain here, {named(test)}", ""]
    return record.table(header, rows) if rows else ""


def dots(path: Path, study: dict, label: str) -> None:
    """A row for each kind, a panel for each test set: its seeds and their mean."""
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
    """Validation loss by step at the rate chosen: mean over seeds, band least to most."""
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
    """The table and the picture of decoding."""
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
    """Accuracy against the share of softmax layers, a line for each number of pairs."""
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
    """Which commits, on what, when."""
    of = lambda key: ", ".join(sorted({x[key] for x in study.values()}))
    jax = ", ".join(sorted({x["versions"]["jax"] for x in study.values()}))
    times = sorted(x["time"] for x in study.values())
    return f"Commits {of('commit')}; jax {jax}; {of('hardware')}; {times[0]} to {times[-1]}."


TEXT = """# Sequence mixers beside each other

**Claim.** One line of a config gives a decoder any published sequence mixer; and what mixers are
known to differ in, as far as it does not need size (how much they recall, whether they track a
state, what a token costs), is seen with models that a CPU core trains in seconds.

**How.** `python experiments/mixers/run.py` makes what is missing in results/ and writes this page.
The models are those of [configs/ablations/mixers.py](../../configs/ablations/mixers.py), which
`launch.py sweep` runs too. Within a task all kinds have equally many parameters (to 1 %, by the
width of the feed-forward layers) and the same batches in the same order. Each takes the learning
rate, of {rates}, with the lower validation loss of seed 0, and is scored with {seeds} seeds on a
test set that chose nothing. *±* is half of a 95 % interval over these seeds. A gain is the mean
over pairs of one seed; a published order **agrees** or **disagrees** with it where that interval
leaves out zero, and is else undecided. Curves of all seeds and rates are in results/.

"""
SECTIONS = {
    "decode": ("What a token costs in decoding", """
One layer, {width} wide, four heads of 64, float32, without feed-forward: bytes that a row of so
many tokens keeps, and the time of one more token over dense attention's, the median of rounds
in which the two take turns (and quartiles, but for 64k tokens, of one or two rounds), on a CPU
core of a machine that other work shared. MoBA, NSA and PaTH compute anew at each step what their
papers keep ([docs/attention.md](../../docs/attention.md)).
"""),
    "recall": ("Recall", """
Multi-query associative recall (Zoology): so many pairs of key and value in a row, then 32
queries; trained on 2 to 32 pairs, tested on each. Two layers, 64 wide, two heads of 16; short
convolutions of 4 before every mixer, softmax too, and no positions (RetNet's keys turn; Mamba-3
has no convolutions), so that nothing differs but the mixer. A run ends early once it answers
0.999 of validation; naming any of the values gives 0.03, naming one of those in the row 1 / pairs.
"""),
    "parity": ("State tracking: parity", """
The product of up to 16 permutations of two things, then of up to 32 and 64, longer than any row
of training. The models as above. Guessing gives 0.5. *to -1*: betas reach 2, so that a
transition has negative eigenvalues. A run ends early once it answers 0.999 of validation three
times in a row.
"""),
    "s3": ("State tracking: S3", """
The same of three things, a group whose elements do not commute; guessing gives 0.17.
"""),
    "bytes": ("Language modelling", """
Bytes of the text that ships with Python; two layers, 128 wide, four heads, rows of 256. Softmax
kinds have rotary positions, linear ones short convolutions, as their papers have them. Test
loss in nats per byte.
"""),
    "hybrid_recall": ("Hybrids", """
Recall as above by four layers, some of them softmax, the others Gated DeltaNet.
"""),
    "needle": ("A needle in a row", """
One of 16 keys with its value at a depth of a row of 256 random words, 0 being the beginning;
asked for at the end.
"""),
}  # fmt: skip
LIMITS = """## What this does not show

Models of {parameters} parameters, trained for seconds on {tokens} tokens.
Orders that come from size, from long training or from long documents are out of reach, and so are
differences of a few percent in loss: three seeds resolve large effects only, and of orders
*undecided* here nothing follows. A kind that fails may do so for want of steps or of a
third learning rate, not of capacity; where softmax and a linear kind differ in recall, state and
training are not told apart. Kinds keep the small settings of the config (windows, blocks, slots),
which were not tuned. Decoding is timed on a CPU, in which memory is fast beside arithmetic, so that
a GPU's ratios are others.
"""


def pictures(name: str, study: dict) -> str:
    """Draws a study; returns the lines that show it."""
    path = HERE / f"{name}.png"
    if name == "bytes":
        curves(path, study)
    elif name == "hybrid_recall":
        ratios(path, study)
    else:
        dots(path, study, "accuracy")
    return f"![{SECTIONS[name][0]}]({path.name})"


def write(rates: tuple[float, ...], seeds: int) -> None:
    """Writes README.md of the studies that have results."""
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
