"""Extractive question answering: predicts the answer span in a text (Devlin 2019, 4.2)."""

import importlib.util
import itertools
import logging
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.data.examples import Examples, joined
from llm_jax.objectives import scores
from llm_jax.objectives.objective import Objective, count_rows

log = logging.getLogger(__name__)
LONGEST = 30  # maximum tokens of an answer
N_BEST = 5


class Window(NamedTuple):
    """A row: tokens, the start of the context in it, the character spans of its tokens [n, 2]."""

    tokens: np.ndarray
    start: int
    spans: np.ndarray


def located(window, answer):
    """Returns the indices of the first and last token of an answer in a row, or (0, 0)."""
    start, text = answer["answer_start"], answer["text"]
    spans, end = window.spans, start + len(text)
    if start < 0 or not text or not len(spans) or start < spans[0, 0] or end > spans[-1, 1]:
        return 0, 0
    first = int(np.searchsorted(spans[:, 1], start, side="right"))
    last = int(np.searchsorted(spans[:, 0], end)) - 1
    return (window.start + first, window.start + last) if first <= last else (0, 0)


def best(window, row):
    """Returns (sum of logits, probability, start, end) for the best spans and for no answer."""
    count = len(window.spans)
    places = np.append(0, window.start + np.arange(count))
    a, b = (row[name][places].astype(float) for name in ("start", "end"))
    p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (a, b))
    nothing = float(a[0] + b[0]), float(p[0] * q[0]), 0, 0
    if not count:
        return [(-np.inf, 0.0, 0, 0)], nothing
    ahead = np.arange(count) - np.arange(count)[:, None]
    total = np.where((ahead >= 0) & (ahead < LONGEST), a[1:, None] + b[1:], -np.inf)
    kept = np.argsort(-total, axis=None)[: min(N_BEST, np.isfinite(total).sum())]
    pairs = zip(*np.unravel_index(kept, total.shape), strict=True)
    return [
        (float(total[i, j]), float(p[i + 1] * q[j + 1]),
         int(window.spans[i, 0]), int(window.spans[j, 1]))
        for i, j in pairs
    ], nothing  # fmt: skip


class QuestionAnswering(Examples):
    """Examples [CLS] question [SEP] context window [SEP], with the answer's first and last token.

    tokens, types [T]; first, last, both 0 if the window does not contain the whole answer. Windows
    start every data.doc_stride tokens (Devlin 2019). A question is truncated to half a row.
    """

    reads = ("context", "question", "answers")
    fields = ("tokens", "types")
    cut = False
    gold = ("answers",)
    too_long = "in windows"
    scalars = ("first", "last")

    def windows(self, record):
        """Returns the rows of a record, at least one."""
        longest, tokenizer = self.config.model.max_length, self.tokenizer
        before, behind = tokenizer.around("encoder")
        question = [*before, *tokenizer.encode(record["question"])[: longest // 2 - len(before)]]
        question += tokenizer.between()
        ids, spans = tokenizer.aligned(record["context"])
        room = longest - len(question) - len(behind)
        step = max(1, min(self.config.data.doc_stride, room))
        starts = range(0, max(len(ids) - room, 0) + step, step)
        parts = [slice(i, i + room) for i in starts]
        return [
            Window(joined(question, ids[part], behind), len(question), spans[part])
            for part in parts
        ]

    def examples(self, piece, rng, elsewhere):
        answer = next(iter(piece.get("answers", ())), None)
        fields, names = [], self.lengths(self.config)
        for window in self.windows(piece):
            types = (np.arange(len(window.tokens)) >= window.start).astype(np.int32)
            place = located(window, answer) if answer else (0, 0)
            row = {"tokens": window.tokens, "types": types}
            row = {name: row[name] for name in names}
            fields.append(row | {"first": np.array(place[:1]), "last": np.array(place[1:])})
        return fields

    def answer(self, record, rows):
        """Returns {answer: {text, start, end, score}, n_best}, ranked by the sum of both logits.

        score: the product of both probabilities in the window. With objective.no_answer, the empty
        text is a candidate, with the logits of the first token, minimised over windows.
        """
        spans, nothing = zip(*map(best, self.windows(record), rows), strict=True)
        found = sorted(itertools.chain(*spans))
        found += [min(nothing)] * self.config.objective.no_answer
        found = {span[2:]: span for span in found}.values()  # of the best window
        answers = []
        for _, score, start, end in sorted(found, reverse=True)[:N_BEST]:
            text = record["context"][start:end]
            start += len(text) - len(text.lstrip())  # a token may start with whitespace
            place = {"start": start, "end": end, "score": score}
            answers.append({"text": text.lstrip()} | place)
        return {"answer": answers[0], "n_best": answers}

    def score(self, records, answers):
        gold = [[answer["text"] for answer in record["answers"]] for record in records]
        return scores.answers(gold, [answer["answer"]["text"] for answer in answers])


def resolve(config, documents):
    """Sets objective.no_answer if the training set has unanswerable questions (SQuAD 2.0).

    Warns about answers that do not occur in their context.

    Raises:
      ConfigError: answers are Chinese, and nltk, which their scores need, is not installed.
    """
    answers = [doc["answers"] for doc in documents]
    if not all(answers):
        config.objective.no_answer = True
    if lost := sum(some[0]["answer_start"] < 0 for some in answers if some):
        log.warning("data.train: the answers to %d of %d questions do not occur in their context; "
                    "they are treated as unanswerable", lost, len(answers))
    texts = [answer["text"] for some in answers for answer in some]
    if scores.chinese(texts) and not importlib.util.find_spec("nltk"):
        raise ConfigError(f"data.train={config.data.train!r}: CMRC's scores of Chinese answers "
                          "need nltk: pip install -r requirements-tasks.txt")


def losses(outputs, batch, cfg):
    """Cross-entropy of heads.span [B, T, 2] over a row's tokens, mean of first and last."""
    rows = models.real(batch)
    logits = jnp.where(rows[..., None], outputs.heads["span"], jnp.finfo(jnp.float32).min)
    wanted = jnp.stack([batch["first"], batch["last"]], 1)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits.swapaxes(1, 2), wanted).mean(1)
    total = jnp.where(rows.any(1), nll, 0).sum()
    return {"rows": total}, {"loss": (total, "rows")}


def predict(outputs, batch):
    """Returns the start and end logits of each token."""
    start, end = jnp.moveaxis(outputs.heads["span"], -1, 0)
    return {"start": start, "end": end}


OBJECTIVE = Objective(
    name="question_answering",
    examples=QuestionAnswering,
    weights=count_rows,
    losses=losses,
    kinds=("encoder",),
    heads=("span",),
    needs={"data.packing": ("none",)},
    resolve=resolve,
    predict=predict,
)
