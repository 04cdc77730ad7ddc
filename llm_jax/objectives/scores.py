"""Task scores over a dataset, in NumPy; each is tested against the library or script it names.

An objective's Examples.score returns some of them, under the names that `eval` prints.
"""

import importlib.util
import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from llm_jax.config import ConfigError


def confusion(gold: Sequence[int], guess: Sequence[int], classes: int) -> np.ndarray:
    """Returns the confusion matrix [classes, classes]: rows are true classes, columns predicted."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (np.asarray(gold, int), np.asarray(guess, int)), 1)
    return table


def classes(table: np.ndarray) -> dict[str, float]:
    """Classification scores from a confusion matrix, as in scikit-learn (zero_division=0).

    Accuracy; macro precision, recall and F1 over the classes that occur; micro F1, which equals
    accuracy; Matthews correlation coefficient (Gorodkin 2004).
    """
    hits, gold, guessed = np.diag(table), table.sum(1), table.sum(0)
    occur = (gold + guessed) > 0
    n, right = table.sum(), hits.sum()
    spread = np.sqrt(float(n * n - guessed @ guessed)) * np.sqrt(float(n * n - gold @ gold))
    mean = lambda x: float(x[occur].mean())
    return {
        "accuracy": float(right / n),
        "precision": mean(hits / np.maximum(guessed, 1)),
        "recall": mean(hits / np.maximum(gold, 1)),
        "f1": mean(2 * hits / np.maximum(gold + guessed, 1)),
        "f1_micro": float(right / n),
        "matthews": float((right * n - gold @ guessed) / spread) if spread else 0.0,
    }


def correlation(gold: Sequence[float], guess: Sequence[float]) -> dict[str, float]:
    """Pearson and Spearman correlation, 0 if one side is constant; mean squared error."""
    from scipy import stats

    gold, guess = np.asarray(gold, float), np.asarray(guess, float)
    values = {"mse": float(np.mean((gold - guess) ** 2)), "pearson": 0.0, "spearman": 0.0}
    if np.ptp(gold) and np.ptp(guess):
        values["pearson"] = float(stats.pearsonr(gold, guess).statistic)
        values["spearman"] = float(stats.spearmanr(gold, guess).statistic)
    return values


def retrieval(queries: Sequence, documents: Sequence) -> dict[str, float]:
    """Recall at 1 and 10, and mean reciprocal rank, of each query's document among all documents.

    Ranks by dot products of vectors [n, D]; ties get the best rank.
    """
    queries, documents = np.asarray(queries, np.float32), np.asarray(documents, np.float32)
    ranks = []
    for start in range(0, len(queries), 1024):
        near = queries[start : start + 1024] @ documents.T
        own = np.diagonal(near, start)[:, None]
        ranks.append(1 + (near > own + 1e-6).sum(1))  # tolerates rounding for duplicate texts
    ranks = np.concatenate(ranks)
    recall = {f"recall_at_{k}": float((ranks <= k).mean()) for k in (1, 10)}
    return recall | {"mrr": float((1 / ranks).mean())}


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Returns (start, end, type) of spans in BIO, IOB1 or BIOES tags, as conlleval and seqeval do.

    An I- tag after a tag of another type starts a span.
    """
    spans, start, before = [], None, ("O", "")
    for i, tag in enumerate([*tags, "O"]):
        place, _, kind = tag.partition("-")
        begins = place in "BS" or before[0] in "OES" or before[1] != kind
        if start is not None and (place == "O" or begins):
            spans.append((start, i, before[1]))
            start = None
        if place != "O" and begins:
            start = i
        before = place, kind
    return spans


def spans(gold: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, float]:
    """Micro precision, recall and F1 of spans over all sentences, as in seqeval.

    A span is correct if start, end and type agree.
    """
    both = [
        {(i, *span) for i, tags in enumerate(sentences) for span in entities(tags)}
        for sentences in (gold, guess)
    ]
    right, guessed = map(len, both)
    hits = len(both[0] & both[1])
    return {
        "precision": hits / max(guessed, 1),
        "recall": hits / max(right, 1),
        "f1": 2 * hits / max(right + guessed, 1),
    }


def answers(gold: Sequence[Sequence[str]], guess: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of answers, the maximum over the gold answers of a question.

    As in SQuAD 2.0's script or, if most answers are Chinese, CMRC 2018's. Unanswerable questions
    have the empty answer.
    """
    if chinese([text for some in gold for text in some]):
        bare, overlap = _cmrc_bare, _cmrc_f1
    else:
        bare, overlap = _squad_words, _squad_f1
        gold = [[text for text in some if _squad_words(text)] for some in gold]
    best = lambda measure: sum(
        max(measure(right, text) for right in some or [""])
        for some, text in zip(gold, guess, strict=True)
    )
    exact, n = lambda right, text: float(bare(right) == bare(text)), max(len(guess), 1)
    return {"exact_match": best(exact) / n, "f1": best(overlap) / n}


def chinese(texts: Sequence[str]) -> bool:
    """Whether most of the texts have Chinese characters."""
    return 2 * sum(bool(_HAN.search(text)) for text in texts) > len(texts)


def texts(names: Sequence[str], gold: Sequence[str], guess: Sequence[str]) -> dict[str, float]:
    """Scores of generated texts, by names in TEXTS; gold: one reference per text.

    BLEU and chrF (0 to 100) as in sacreBLEU, with its Chinese tokenizer if most references are
    Chinese; ROUGE-1, 2 and L as in rouge-score, with stemming, mean F1; distinct n-grams of words
    (Li 2016, arXiv:1510.03055); exact_match up to surrounding whitespace.
    """
    return {k: v for name in names for k, v in TEXTS[name](list(gold), list(guess)).items()}


def check(names: Sequence[str]) -> None:
    """Raises ConfigError for a score that is unknown, or whose library is not installed."""
    for name in names:
        if name not in TEXTS:
            raise ConfigError(f"eval.scores={tuple(names)}: allowed are {', '.join(TEXTS)}")
        needs = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}.get(name)
        if needs and not importlib.util.find_spec(needs):
            raise ConfigError(f"eval.scores={tuple(names)}: {name} needs {needs}: pip install -r "
                              "requirements-tasks.txt")


def bleu(gold: Sequence[str]):
    """Returns sacreBLEU's BLEU metric for texts in this language."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="zh" if chinese(gold) else "13a")


def _bleu(gold, guess):
    return {"bleu": bleu(gold).corpus_score(guess, [gold]).score}


def _chrf(gold, guess):
    from sacrebleu.metrics import CHRF

    return {"chrf": CHRF().corpus_score(guess, [gold]).score}


def _rouge(gold, guess):
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=True)
    found = [scorer.score(*pair) for pair in zip(gold, guess, strict=True)]
    return {name: float(np.mean([one[name].fmeasure for one in found])) for name in names}


def _distinct(gold, guess):
    rows = [text.split() if " " in text else list(text) for text in guess]
    grams = lambda n: [g for row in rows for g in zip(*(row[i:] for i in range(n)), strict=False)]
    return {f"distinct{n}": len(set(grams(n))) / max(len(grams(n)), 1) for n in (1, 2)}


def _exact(gold, guess):
    same = [a.strip() == b.strip() for a, b in zip(gold, guess, strict=True)]
    return {"exact_match": float(np.mean(same))}


TEXTS = {"bleu": _bleu, "chrf": _chrf, "rouge": _rouge, "distinct": _distinct,
         "exact_match": _exact}  # fmt: skip
_HAN = re.compile("[\u4e00-\u9fa5]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _squad_f1(gold: str, guess: str) -> float:
    a, b = _squad_words(gold), _squad_words(guess)
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if a and b else float(a == b)


def _cmrc_bare(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in _CMRC_MARKS)


def _cmrc_units(text: str) -> list[str]:
    """Splits into Chinese characters, and NLTK's words for the text between them."""
    from nltk.tokenize import NLTKWordTokenizer

    words, parts = NLTKWordTokenizer(), re.split(f"({_HAN.pattern})", _cmrc_bare(text))
    return [unit for part in parts for unit in words.tokenize(part)]


def _cmrc_f1(gold: str, guess: str) -> float:
    """F1 by the longest common run of units."""
    a, b = _cmrc_units(gold), _cmrc_units(guess)
    same = SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
    return 2 * same / (len(a) + len(b)) if same else 0.0
