"""Meaning: minimal pairs of a small grammar, and linear probes of each layer."""

from collections.abc import Callable, Sequence

import numpy as np

from llm_jax.audit.limit import Limit, Picture, panels
from llm_jax.audit.statistics import share
from llm_jax.audit.subject import Subject, needs
from llm_jax.sweep.figures import styles

NOUNS = (("dog", "dogs"), ("teacher", "teachers"), ("author", "authors"), ("boy", "boys"),
         ("girl", "girls"), ("doctor", "doctors"), ("student", "students"), ("king", "kings"))
VERBS = (("runs", "run"), ("sleeps", "sleep"), ("works", "work"), ("laughs", "laugh"),
         ("reads", "read"), ("waits", "wait"))
ADJECTIVES = ("old", "young", "tall", "happy", "quiet", "poor")
SENTENCES = 400  # sentences for probes: half for training, half for testing


def agreement(rng) -> tuple[str, str]:
    """The dog runs. / The dog run."""
    noun, verb, n = _draw(rng, NOUNS), _draw(rng, VERBS), rng.integers(2)
    return tuple(f"The {noun[n]} {verb[m]}." for m in (n, 1 - n))


def attractor(rng) -> tuple[str, str]:
    """The dog near the boys runs. / … run."""
    (a, b), verb, n = rng.choice(len(NOUNS), 2, replace=False), _draw(rng, VERBS), rng.integers(2)
    return tuple(f"The {NOUNS[a][n]} near the {NOUNS[b][1 - n]} {verb[m]}." for m in (n, 1 - n))


def determiner(rng) -> tuple[str, str]:
    """This dog runs. / These dog runs."""
    noun, verb, n = _draw(rng, NOUNS), _draw(rng, VERBS), rng.integers(2)
    return tuple(f"{('This', 'These')[m]} {noun[n]} {verb[n]}." for m in (n, 1 - n))


def negation(rng) -> tuple[str, str]:
    """No dog has ever worked. / The dog has ever worked. (a negative polarity item)"""
    noun, rest = _draw(rng, NOUNS)[0], _draw(rng, ("been here", "seen it", "said so", "done this"))
    return tuple(f"{first} {noun} has ever {rest}." for first in ("No", "The"))


def quantifier(rng) -> tuple[str, str]:
    """Many dogs run. / Much dogs run."""
    noun, verb = _draw(rng, NOUNS), _draw(rng, VERBS)
    good, bad, n = _draw(rng, (("Many", "Much", 1), ("Every", "All", 0), ("Several", "Each", 1)))
    return tuple(f"{word} {noun[n]} {verb[n]}." for word in (good, bad))


def order(rng) -> tuple[str, str]:
    """The old dog runs. / The dog old runs."""
    noun, verb, how = _draw(rng, NOUNS), _draw(rng, VERBS), _draw(rng, ADJECTIVES)
    n = rng.integers(2)
    return tuple(f"The {words} {verb[n]}." for words in (f"{how} {noun[n]}", f"{noun[n]} {how}"))


PHENOMENA = {
    "subject-verb agreement": agreement, "agreement across an attractor": attractor,
    "determiner-noun agreement": determiner, "negative polarity": negation,
    "quantifiers": quantifier, "word order": order,
}  # fmt: skip


def _draw(rng, choices):
    return choices[rng.integers(len(choices))]


def measure(subject: Subject) -> dict:
    """Measures minimal pairs (decoders), and probes of each layer (all models)."""
    found, rng = [], np.random.default_rng(0)
    if subject.kind == "words":
        for name, make in PHENOMENA.items():
            pairs = sorted({make(rng) for _ in range(subject.options.examples)})
            found.append(share(f"minimal pairs: {name}", prefers(subject, pairs), "correct"))
    layers, hits = probes(subject), []
    for i, layer in enumerate(layers):
        for task, right in layer.items():
            found.append(share(f"probe of layer {i}: {task}", right))
        hits.append({task: float(right.mean()) for task, right in layer.items()})
    return {"figures": found, "layers": hits}


def prefers(subject: Subject, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Returns whether the first of each pair is more likely (BLiMP; Warstadt 2020)."""
    scores = subject.log_likelihoods([text for pair in pairs for text in pair]).reshape(-1, 2)
    return scores[:, 0] > scores[:, 1]


def probes(subject: Subject) -> list[dict[str, np.ndarray]]:
    """Returns for each layer (0: embeddings) whether a linear probe is correct on test sentences.

    The probe reads the mean hidden state of sentences "The ADJECTIVE NOUN VERB." and predicts
    whether they are plural; in the control task, a random class of each noun form (Hewitt and
    Liang 2019). The difference is the selectivity. Test sentences have other noun-verb pairs.
    """
    rng = np.random.default_rng(0)
    rows = [(i, j, n, _draw(rng, ADJECTIVES)) for i in range(len(NOUNS))
            for j in range(len(VERBS)) for n in (0, 1) for _ in range(4)]  # fmt: skip
    rows = [rows[i] for i in rng.permutation(len(rows))[:SENTENCES]]
    texts = [f"The {how} {NOUNS[i][n]} {VERBS[j][n]}." for i, j, n, how in rows]
    held = np.array([(i + j) % 2 == 0 for i, j, *_ in rows])
    given = rng.permutation(np.arange(2 * len(NOUNS)) % 2).reshape(-1, 2)
    tasks = {"number": np.array([n for _, _, n, _ in rows]),
             "control task": np.array([given[i, n] for i, _, n, _ in rows])}  # fmt: skip
    batch = subject.lm.batch(texts)
    real = (batch["segment_ids"] > 0)[..., None]
    hidden = np.asarray(subject.lm.hidden_states(batch), np.float32)
    found = []
    for layer in (hidden * real).sum(2) / real.sum(1):
        found.append({task: fitted(layer[~held], y[~held])(layer[held]) == y[held]
                      for task, y in tasks.items()})  # fmt: skip
    return found


def fitted(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fits a binary linear classifier of x [n, D]: ridge regression on standardised columns."""
    centre, spread = x.mean(0), x.std(0) + 1e-6
    x = (x - centre) / spread
    weights = np.linalg.solve(x.T @ x + len(x) / 10 * np.eye(x.shape[1]), x.T @ (2 * y - 1))
    return lambda x: ((x - centre) / spread @ weights + (2 * y - 1).mean() > 0).astype(int)


def draw(results, folder):
    with panels(folder, "probes") as (ax,):
        for run, look in styles(results).items():
            for task, mark in (("number", "o"), ("control task", "s")):
                accuracy = [layer[task] for layer in results[run]["layers"]]
                ax.plot(accuracy, marker=mark, markersize=4, label=f"{run}, {task}", **look)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="layer (0: embeddings)", ylabel="accuracy of a linear probe", ylim=(0, 1.03))
    return [Picture("probes.png", "Singular or plural, predicted from the mean hidden state by a "
                    "linear probe; the classes of the control task are random.")]  # fmt: skip


LIMIT = Limit(
    "meaning",
    "Minimal pairs of a small grammar: how often the correct sentence is more likely; linear "
    "probes of each layer, with a control task.",
    needs("words", "classes", hidden=True),
    measure,
    draw,
)
