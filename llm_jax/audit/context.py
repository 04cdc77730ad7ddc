"""Long context: loss by position, and retrieval of a needle from a long text."""

from collections.abc import Sequence

import numpy as np

from llm_jax.audit.limit import Limit, Picture, heat_map, panels
from llm_jax.audit.statistics import figure, mean, share
from llm_jax.audit.subject import Subject, needs
from llm_jax.sweep import context
from llm_jax.sweep.figures import styles

REACHES = [1, 2]  # multiples of the training length
TEXT = 256  # tokens per --examples
LENGTHS, DEPTHS = (0.25, 0.5, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)
CHOICES, NEEDLE, QUESTION = 4, "The code is {}. ", "The code is"


def measure(subject: Subject) -> dict:
    """Measures losses by position (sweep.context), and needle retrieval by length and depth."""
    size = TEXT * subject.options.examples
    by_position = context.measure(subject.workdir, REACHES, size)
    found = []
    for reach, at in by_position["reaches"].items():
        if "bins" in at:
            name = f"loss at {reach} times the length trained at"
            over = f"over {at['tokens']:,} tokens"
            found.append(figure(name, at["loss"], "nats a token", error=over))
    text = np.concatenate([subject.lm.tokenizer.encode(x) for x in subject.texts()])
    trials = max(4, subject.options.examples // 8)
    cells = []
    for length in (int(part * subject.config.model.max_length) for part in LENGTHS):
        for depth in DEPTHS:
            right, gain = needle(subject, text, length, depth, trials)
            cells.append({"length": length, "depth": depth, "accuracy": float(right.mean())})
            found.append(share(f"needle, {length} tokens, depth {depth:.0%}: found", right,
                               f"of {CHOICES} codes"))  # fmt: skip
            if depth == DEPTHS[-1]:
                found.append(mean(f"needle, {length} tokens, at the end: gain", gain, "nats"))
    return {"figures": found, **by_position, "needles": cells}


def needle(
    subject: Subject, text: np.ndarray, length: int, depth: float, trials: int
) -> tuple[np.ndarray, np.ndarray]:
    """Needle test: returns for each trial whether the code is retrieved, and its gain.

    A sentence with a 5-digit code is inserted at a depth (0: the start) into a text of `length`
    tokens that ends with the sentence's first words. The log-probability of the code is compared
    over CHOICES texts, with itself and with other codes, so that the prior of a code does not
    matter. The gain is that in its own text minus the mean in the others.
    """
    encode, rng = subject.lm.tokenizer.encode, np.random.default_rng((length, int(100 * depth)))
    rows, starts, asked = [], [], encode(QUESTION)
    for _ in range(trials):
        codes = [str(code) for code in rng.integers(10_000, 100_000, CHOICES)]
        sentences, code = [encode(NEEDLE.format(x)) for x in codes], encode(f" {codes[0]}")
        room = max(0, length - len(asked) - max(map(len, sentences)) - len(code))
        at, cut = rng.integers(max(1, len(text) - room)), round(depth * room)
        hay = text[at : at + room]
        for sentence in sentences:
            rows.append(np.concatenate([hay[:cut], sentence, hay[cut:], asked, code]))
            starts.append(len(rows[-1]) - len(code))
    found = subject.log_likelihoods(rows, starts).reshape(trials, CHOICES)
    return found[:, 0] > found[:, 1:].max(1), found[:, 0] - found[:, 1:].mean(1)


def draw(results, folder):
    with panels(folder, "context", 1 + len(results)) as axes:
        look = styles(results)
        for ax, (run, result) in zip(axes[1:], results.items(), strict=True):
            for reach, at in result["reaches"].items():
                middle = (np.arange(len(at.get("bins", []))) + 0.5) * result["bin"]
                label = f"{run}, rows of {int(reach) * result['length']}"
                style = look[run] | {"alpha": 1 if reach == "1" else 0.5}
                loss = [np.nan if x is None else x for x in at.get("bins", [])]
                axes[0].plot(middle, loss, label=label, **style)
            _heat(ax, run, result["needles"])
        axes[0].set(xlabel="position in the text", ylabel="validation loss (nats per token)")
    return [Picture("context.png", "Left: loss by position, within the training length and "
                    f"beyond. Right: fraction of needles found, among {CHOICES} codes (chance "
                    f"{1 / CHOICES:.0%}).")]  # fmt: skip


def _heat(ax, run: str, cells: Sequence[dict]) -> None:
    lengths = sorted({cell["length"] for cell in cells})
    table = np.full((len(DEPTHS), len(lengths)), np.nan)
    for cell in cells:
        table[DEPTHS.index(cell["depth"]), lengths.index(cell["length"])] = cell["accuracy"]
    heat_map(ax, table, [f"{depth:.0%}" for depth in DEPTHS], lengths)
    ax.set(xlabel="tokens", ylabel="depth of the needle", title=f"needles found: {run}")


LIMIT = Limit(
    "context",
    "Loss by position, within the training length and at twice that; retrieval of a code, by "
    "length of the text and depth of the code.",
    needs("words"),
    measure,
    draw,
)
