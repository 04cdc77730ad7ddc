"""Generalisation: the gap between training and validation, calibration, loss on other files."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from llm_jax import models
from llm_jax.audit.limit import Limit, Picture, panels
from llm_jax.audit.statistics import bootstrapped, figure, ratio
from llm_jax.audit.subject import Subject, needs
from llm_jax.data.examples import Record
from llm_jax.sweep.figures import styles

BINS = 15  # confidence bins (Guo 2017)
SCORES = 2**24  # maximum logits in memory


def measure(subject: Subject) -> dict:
    """Measures losses by split and file, and calibration on the validation set."""
    unit = "nats a token" if subject.kind == "words" else "nats"
    of = {split: subject.row_losses(subject.documents(split)) for split in ("train", "validation")}
    columns = [np.concatenate(x) for x in zip(*of.values(), strict=True)]
    held = np.arange(len(columns[0])) >= len(of["train"][0])
    gap = lambda s, w, held: ratio(s[held], w[held]) - ratio(s[~held], w[~held])
    found = [bootstrapped(f"{name} loss", ratio, *x, unit=unit) for name, x in of.items()]
    found.append(bootstrapped("validation minus train", gap, *columns, held, unit=unit))
    for file in subject.options.data:
        config = ConfigDict(subject.config.to_dict())
        config.data.validation = file
        rows = subject.row_losses(subject.documents("validation", config))
        found.append(bootstrapped(f"loss on {file}", ratio, *rows, unit=unit))
    logits, label, row = predictions(subject, subject.documents("validation"))
    confidence, correct = confident(logits, label)
    found.append(bootstrapped("accuracy", np.mean, correct, groups=row))
    found.append(bootstrapped("ECE", ece, confidence, correct, groups=row))
    fit = row % 2 == 0  # the temperature is fitted to one half and tested on the other
    heat = temperature(logits[fit], label[fit])
    after = confident(logits[~fit] / heat, label[~fit])
    before = (x[~fit] for x in (confidence, correct))
    found += [
        figure("temperature", heat, error=f"fitted to {fit.sum():,} predictions"),
        bootstrapped("ECE of the other half", ece, *before, groups=row[~fit]),
        bootstrapped("ECE of it with the temperature", ece, *after, groups=row[~fit]),
    ]
    return {"figures": found, "reliability": reliability(confidence, correct)}


def predictions(
    subject: Subject, documents: Sequence[Record]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns logits [n, C], true classes [n] and rows [n] for each label or token of documents."""
    classes, objective = subject.kind == "classes", subject.objective

    @jax.jit
    def run(params, batch):
        outputs = subject.lm.model.apply({"params": params}, batch)
        return objective.predict(outputs, batch)["logits"] if classes else models.logits(outputs)

    parts, held, rows = [], 0, 0
    for batch in subject.batches(documents):
        real = batch["segment_ids"].any(1) if classes else batch["weights"] > 0
        logits = np.asarray(run(subject.lm.params, batch))[real]
        label = batch["label" if classes else "targets"][real]
        parts.append((logits, label.reshape(-1), np.nonzero(real)[0] + rows))
        held, rows = held + logits.size, rows + len(real)
        if held > SCORES:
            break
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


def confident(logits: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of the most likely class [n], and whether it is correct."""
    return np.exp(log_softmax(logits, -1).max(-1)), logits.argmax(-1) == label


def ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: weighted mean |accuracy - confidence| of bins (Guo 2017)."""
    excess = np.bincount(_bin(confidence), correct - confidence, BINS)
    return np.abs(excess).sum() / len(confidence)


def temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """Temperature scaling: T that minimises the cross-entropy of logits / T (Guo 2017, 4.2)."""
    rows = np.arange(len(label))
    loss = lambda t: -log_softmax(logits / np.exp(t), -1)[rows, label].mean()
    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict]:
    """Returns mean confidence, accuracy and count of each non-empty bin."""
    which = _bin(confidence)
    return [{"confidence": float(confidence[which == i].mean()), "n": int((which == i).sum()),
             "accuracy": float(correct[which == i].mean())}
            for i in range(BINS) if (which == i).any()]  # fmt: skip


def _bin(confidence):
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def draw(results, folder):
    with panels(folder, "reliability", 2) as axes:
        look = styles(results)
        axes[0].plot([0, 1], [0, 1], color="#999999", linestyle=":", label="calibrated")
        for run, result in results.items():
            bins = result["reliability"]
            x, y, n = ([b[k] for b in bins] for k in ("confidence", "accuracy", "n"))
            half = 1.96 * np.sqrt(np.array(y) * (1 - np.array(y)) / n)
            axes[0].errorbar(x, y, half, marker="o", markersize=4, capsize=2, label=run,
                             **look[run])  # fmt: skip
            axes[1].plot(x, n, marker="o", markersize=4, label=run, **look[run])
        axes[0].set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes[1].set(xlabel="confidence", ylabel="predictions", xlim=(0, 1), yscale="log")
    return [Picture("reliability.png", "Reliability on the validation set, 15 bins of confidence; "
                    "bars are binomial standard errors, times 1.96.")]  # fmt: skip


LIMIT = Limit(
    "generalisation",
    "Loss on training and validation documents and on other files (--data); calibration: ECE, "
    "before and after temperature scaling.",
    needs("words", "classes"),
    measure,
    draw,
)
