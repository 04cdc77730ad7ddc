"""Privacy: membership inference, extraction of training texts, exposure of planted canaries."""

import math
import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from llm_jax.audit.limit import Limit, Picture, panels
from llm_jax.audit.statistics import bootstrapped, figure, share
from llm_jax.audit.subject import Subject, needs
from llm_jax.config import ConfigError
from llm_jax.data import fields
from llm_jax.sweep.figures import styles

PREFIXES, SUFFIX = (4, 16, 32), 8  # tokens given, tokens to be reproduced
SECRETS = 1000  # number of random secrets that a canary is ranked against
FALSE = 0.05  # the low false positive rate


def measure(subject: Subject) -> dict:
    """Measures membership inference and, for language models, extraction and exposure."""
    found, (fpr, tpr) = membership(subject)
    if subject.kind == "words":
        for split in ("train", "validation"):
            texts = [subject.lm.tokenizer.encode(text) for text in subject.texts(split)]
            for length in PREFIXES:
                if (hits := extracted(subject, texts, length)) is not None:
                    name = f"extraction, {split}, {length} tokens given"
                    found.append(share(name, hits, f"with the next {SUFFIX} reproduced"))
        for canary in subject.options.canaries:
            bits = exposure(subject, canary)
            found.append(figure(f"exposure of {canary!r}", bits, "bits", error=(
                f"against {SECRETS:,} secrets: at most {math.log2(SECRETS + 1):.1f}, by chance "
                "1.4 on average")))  # fmt: skip
    return {"figures": found, "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()}}


def membership(subject: Subject) -> tuple[list[dict], tuple[np.ndarray, np.ndarray]]:
    """Membership inference by loss (Yeom 2018): AUC, true positives at a low rate, ROC."""
    members, others = (subject.documents(split) for split in ("train", "validation"))
    scores = np.concatenate([-document_losses(subject, x) for x in (members, others)])
    member = np.arange(len(scores)) < len(members)
    found = [
        bootstrapped("membership inference by loss: AUC", auc, scores, member),
        bootstrapped(f"true positives at {FALSE:.0%} false ones", at_low, scores, member),
    ]
    return found, roc(scores, member)


def document_losses(subject: Subject, documents: Sequence) -> np.ndarray:
    """Returns the mean loss of each document (decoders: of its first model.max_length tokens)."""
    if subject.kind == "classes":
        p = subject.probabilities([record["text"] for record in documents])
        return -np.log(np.maximum(p[np.arange(len(p)), subject.gold(documents)], 1e-12))
    length = subject.config.model.max_length
    rows = [subject.lm.tokenizer.encode("\n".join(fields.texts(x)))[:length] for x in documents]
    return -subject.log_likelihoods(rows) / np.maximum([len(row) for row in rows], 1)


def auc(scores: np.ndarray, member: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a member scores higher (Mann-Whitney)."""
    n, m = member.sum(), (~member).sum()
    return (rankdata(scores)[member].sum() - n * (n + 1) / 2) / (n * m)


def roc(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC curve: false and true positive rates at each threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.diff(scores[order]) != 0, True]  # ties share a threshold
    rate = lambda x: np.r_[0, np.cumsum(x[order])[last] / x.sum()]
    return rate(~member), rate(member)


def at_low(scores: np.ndarray, member: np.ndarray, rate: float = FALSE) -> float:
    """Returns the true positive rate at a false positive rate of at most `rate` (Carlini 2022)."""
    fpr, tpr = roc(scores, member)
    return tpr[fpr <= rate].max()


def extracted(subject: Subject, texts: Sequence[np.ndarray], length: int) -> np.ndarray | None:
    """Returns whether greedy decoding of each text's prefix reproduces the text (Carlini 2023)."""
    if length + SUFFIX >= subject.config.model.max_length:
        return None
    texts = [text[: length + SUFFIX] for text in texts if len(text) >= length + SUFFIX]
    if not texts:
        return None
    prompts = [[subject.lm.tokenizer.bos_id, *map(int, text[:length])] for text in texts]
    prompts += prompts[-1:] * (subject.options.examples - len(prompts))  # equal batch sizes
    settings = {"max_new_tokens": SUFFIX, "temperature": 0.0}
    written = subject.lm.generate(prompts, imported=False, **settings)
    pairs = zip(written, texts, strict=False)
    return np.array([[*out["tokens"]][:SUFFIX] == [*map(int, x[length:])] for out, x in pairs])


def exposure(subject: Subject, canary: str) -> float:
    """Exposure of a canary: log2(N + 1) - log2(rank) among N random secrets (Carlini 2019).

    The rank is by log-probability; 1 is the most likely.
    """
    if not (digits := re.findall(r"\d", canary)):
        raise ConfigError(f"--canary={canary!r}: has no digits, which form the secret")
    rng = np.random.default_rng(0)
    texts = [canary]
    for drawn in rng.integers(0, 10, (SECRETS, len(digits))):
        secret = iter(map(str, drawn))
        texts.append(re.sub(r"\d", lambda _, secret=secret: next(secret), canary))
    found = subject.log_likelihoods(texts)
    above = (found[1:] > found[0]).sum() + (found[1:] == found[0]).sum() / 2
    return math.log2(SECRETS + 1) - math.log2(1 + above)


def draw(results, folder):
    with panels(folder, "membership", 2) as axes:
        look = styles(results)
        for ax, scale in zip(axes, ("linear", "log"), strict=True):
            ax.plot([1e-3, 1], [1e-3, 1], color="#999999", linestyle=":", label="chance")
            for run, result in results.items():
                ax.plot(result["roc"]["fpr"], result["roc"]["tpr"], label=run, **look[run])
            ax.set(xlabel="false positive rate", ylabel="true positive rate", xscale=scale,
                   yscale=scale)  # fmt: skip
            if scale == "log":
                ax.set(xlim=(1e-3, 1), ylim=(1e-3, 1))
    return [Picture("membership.png", "ROC of membership inference: the lower a document's loss, "
                    "the likelier it was trained on.")]  # fmt: skip


LIMIT = Limit(
    "privacy",
    "Membership inference by loss; training texts reproduced from their prefix (compared with "
    "validation texts); exposure of planted canaries (--canary).",
    needs("words", "classes"),
    measure,
    draw,
)
