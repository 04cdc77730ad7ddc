"""Bias: counterfactual word pairs in templates, WEAT and SEAT, equalised odds by group."""

import math
import re
from itertools import product

import jax.numpy as jnp
import numpy as np

from llm_jax.audit.limit import Limit, Picture, panels
from llm_jax.audit.statistics import bootstrapped, figure, mean, share
from llm_jax.audit.subject import Subject, needs
from llm_jax.data.augment import WORDS, side
from llm_jax.files import read_json
from llm_jax.models.trace import token_vectors
from llm_jax.sweep.figures import styles

PERMUTATIONS = 2000  # maximum number of permutations in a test
SHARE = 0.1  # minimum fraction of letters for a language to count as used in training
LEAST = 10  # minimum documents per group and label


def measure(subject: Subject) -> dict:
    """Measures each language of the training texts; groups are from validation texts."""
    found, swaps, tests, text = [], {}, [], "".join(subject.texts("train"))
    for language, lists in read_json(WORDS).items():
        if len(re.findall(lists["letters"], text)) < SHARE * len(text):
            continue
        words = sum((x for test in lists["tests"].values() for x in test), [])
        found.append(share(f"{language}: words without an unknown token", known(subject, words)))
        swaps[language] = counterfactual(subject, lists)
        unit = "log p / (1 - p)" if subject.kind == "classes" else "nats a text"
        each = np.array(list(swaps[language].values()))
        found.append(mean(f"{language}: first minus second word, in templates", each.ravel(), unit))
        found.append(mean(f"{language}: size of the difference", np.abs(each).ravel(), unit))
        for targets, words in lists["tests"].items():
            for kind, vectors in (("WEAT", word_vectors), ("SEAT", sentence_vectors)):
                each = vectors(subject, sum(words, []), lists["plain"])
                effect, p = weat(*np.split(each, np.cumsum([len(some) for some in words[:-1]])))
                name = f"{kind}, {targets}"
                tests.append({"language": language, "name": name, "effect": effect})
                found.append(figure(f"{language}: {name}, effect size", effect,
                                    error=f"permutation test, p = {p:.3g}"))  # fmt: skip
    if subject.kind == "classes":
        found += by_group(subject)
    return {"figures": found, "swaps": swaps, "tests": tests}


def known(subject: Subject, words: list[str]) -> list[bool]:
    """Returns whether each word survives tokenisation and decoding."""
    tokenizer = subject.lm.tokenizer
    whole = [tokenizer.decode(tokenizer.encode(word)).replace(" ", "").lower() for word in words]
    return [a == b.lower() for a, b in zip(whole, words, strict=True)]


def counterfactual(subject: Subject, lists: dict) -> dict[str, list[float]]:
    """Returns the score with the first minus with the second word of each pair, per template.

    The score is a classifier's log p / (1 - p) of its last label, or a decoder's log-probability
    of the text (as in CrowS-Pairs; Nangia 2020).
    """
    texts = [template.format(word) for pair, template in product(lists["swaps"], lists["templates"])
             for word in pair]  # fmt: skip
    if subject.kind == "classes":
        p = np.clip(subject.probabilities(texts)[:, -1], 1e-9, 1 - 1e-9)
        scores = np.log(p / (1 - p))
    else:
        scores = subject.log_likelihoods(texts)
    differences = -np.diff(scores.reshape(len(lists["swaps"]), -1, 2))[..., 0]
    return {"/".join(pair): x.tolist() for pair, x in zip(lists["swaps"], differences, strict=True)}


def word_vectors(subject: Subject, words: list[str], plain: str) -> np.ndarray:
    """Returns the mean token embedding of each word [n, E] (WEAT)."""
    rows = [subject.lm.tokenizer.encode(word) for word in words]
    vectors = token_vectors(subject.lm.model, subject.lm.params, jnp.concatenate(rows)[None])[0]
    parts = np.split(np.asarray(vectors), np.cumsum([len(row) for row in rows[:-1]]))
    return np.array([part.mean(0) for part in parts])


def sentence_vectors(subject: Subject, words: list[str], plain: str) -> np.ndarray:
    """Returns the mean hidden state of a plain sentence with each word [n, D] (SEAT; May 2019)."""
    batch = subject.lm.batch([plain.format(word) for word in words])
    real = (batch["segment_ids"] > 0)[..., None]
    features = np.asarray(subject.lm.outputs(batch).features, np.float32)
    return (features * real).sum(1) / real.sum(1)


def weat(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """WEAT effect size and one-sided p of targets x, y [n, D], attributes a, b (Caliskan 2017).

    The association of a target is its mean cosine with a minus that with b. The permutation test
    uses all equal partitions of the union of x and y, or PERMUTATIONS random ones.
    """
    unit = lambda v: v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)
    both = unit(np.concatenate([x, y]))
    s = (both @ unit(a).T).mean(1) - (both @ unit(b).T).mean(1)
    n, rng = len(x), np.random.default_rng(0)
    effect = (s[:n].mean() - s[n:].mean()) / max(s.std(ddof=1), 1e-12)
    drawn = np.array([rng.permutation(s)[:n].sum() for _ in range(PERMUTATIONS)])
    p = (1 + (drawn >= s[:n].sum() - 1e-9).sum()) / (1 + PERMUTATIONS)
    return float(effect), float(p)


def by_group(subject: Subject) -> list[dict]:
    """Equalised odds difference between texts that name only the first or only the second words.

    The maximum over labels of the difference in recall between the groups (Hardt 2016).
    """
    records = subject.documents("validation")
    texts = [record["text"] for record in records]
    group = np.array([*map(side, texts)])
    gold = subject.gold(records)
    guess = subject.probabilities(texts).argmax(1)
    counts = [[((group == g) & (gold == c)).sum() for c in np.unique(gold)]
              for g in (0, 1)]
    if np.min(counts) < LEAST:
        return [figure("equalised odds difference", math.nan, error=(
            f"too few texts: {np.min(counts)} for a group and label, needs {LEAST}"))]
    named = group >= 0
    return [bootstrapped("equalised odds difference", equalised_odds, group[named], gold[named],
                         guess[named])]  # fmt: skip


def equalised_odds(group: np.ndarray, gold: np.ndarray, guess: np.ndarray) -> float:
    """Returns the largest difference between groups in the rate of a label, given the true one."""
    rate = lambda g, c, label: (guess[(group == g) & (gold == c)] == label).mean()
    labels = np.unique(gold)
    return max(abs(rate(0, c, label) - rate(1, c, label)) for c in labels for label in labels)


def _named(language: str, i: int, name: str) -> str:
    """Returns a name for a figure: non-ASCII names are replaced by their number in the JSON."""
    return f"{language}: {name if name.isascii() else i + 1}"


def draw(results, folder):
    with panels(folder, "bias", 2, 6.4) as axes:
        for run, look in styles(results).items():
            swaps = [(_named(language, i, pair), x)
                     for language, pairs in results[run]["swaps"].items()
                     for i, (pair, x) in enumerate(pairs.items())]  # fmt: skip
            centre = [np.mean(x) for _, x in swaps]
            error = [1.96 * np.std(x) / math.sqrt(len(x)) for _, x in swaps]
            look = {"color": look["color"], "label": run, "fmt": "o", "capsize": 2}
            axes[0].errorbar(centre, range(len(swaps)), xerr=error, **look)
            axes[0].set_yticks(range(len(swaps)), [name for name, _ in swaps], fontsize=8)
            tests = results[run]["tests"]
            axes[1].plot([t["effect"] for t in tests], range(len(tests)), "o", color=look["color"],
                         label=run)  # fmt: skip
            names = [_named(t["language"], i, t["name"]) for i, t in enumerate(tests)]
            axes[1].set_yticks(range(len(tests)), names, fontsize=7)
        for ax in axes:
            ax.axvline(0, color="#999999", linewidth=1)
        axes[0].set_xlabel("score with the first word minus the second")
        axes[1].set_xlabel("effect size (standard deviations)")
    return [Picture("bias.png", "Left: mean difference over templates, bars 1.96 standard errors. "
                    "Right: WEAT and SEAT.")]  # fmt: skip


LIMIT = Limit(
    "bias",
    "The change of a score when he becomes she (templates, English and Chinese); associations of "
    "embeddings (WEAT, SEAT); differences in a classifier's errors between groups.",
    needs("words", "classes"),
    measure,
    draw,
)
