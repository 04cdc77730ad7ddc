"""Scores of answers over a whole set. NumPy; each is held to the library or script it is named by.

An objective's Examples.score returns some of these, under the names that `eval` prints.
"""

from collections.abc import Sequence

import numpy as np


def confusion(gold: Sequence[int], guess: Sequence[int], classes: int) -> np.ndarray:
    """Returns the confusion matrix [classes, classes]: how many of each class were called which."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (np.asarray(gold, int), np.asarray(guess, int)), 1)
    return table


def classes(table: np.ndarray) -> dict[str, float]:
    """Scores of a confusion matrix [classes, classes], as scikit-learn's (zero_division=0).

    Accuracy; precision, recall and F1 as means over the classes that occur (macro); F1 of all
    decisions together (micro), which is the accuracy; Matthews' correlation (Gorodkin 2004).
    """
    hits, there, guessed = np.diag(table), table.sum(1), table.sum(0)
    occur = (there + guessed) > 0
    n, right = table.sum(), hits.sum()
    spread = np.sqrt(float(n * n - guessed @ guessed)) * np.sqrt(float(n * n - there @ there))
    mean = lambda x: float(x[occur].mean())
    return {
        "accuracy": float(right / n),
        "precision": mean(hits / np.maximum(guessed, 1)),
        "recall": mean(hits / np.maximum(there, 1)),
        "f1": mean(2 * hits / np.maximum(there + guessed, 1)),
        "f1_micro": float(right / n),
        "matthews": float((right * n - there @ guessed) / spread) if spread else 0.0,
    }


def correlation(gold: Sequence[float], guess: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, 0 where one side does not vary; mean squared error."""
    from scipy import stats

    gold, guess = np.asarray(gold, float), np.asarray(guess, float)
    found = {"mse": float(np.mean((gold - guess) ** 2)), "pearson": 0.0, "spearman": 0.0}
    if np.ptp(gold) and np.ptp(guess):
        found["pearson"] = float(stats.pearsonr(gold, guess).statistic)
        found["spearman"] = float(stats.spearmanr(gold, guess).statistic)
    return found
