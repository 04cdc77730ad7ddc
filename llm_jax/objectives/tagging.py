"""Tagging: a label for each word, as named entities (BIO) or parts of speech (Devlin 2019, 5.3)."""

import dataclasses
import logging
import re

import numpy as np
import optax
from jax import nn

from llm_jax.data.examples import Examples
from llm_jax.objectives import labels, scores
from llm_jax.objectives.objective import Objective, sums

log = logging.getLogger(__name__)
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+?(?=[\u3040-\u30ff\u3400-\u9fff])"
                  r"|\w+|[^\w\s]")  # fmt: skip


class Tagging(Examples):
    """[CLS] words [SEP]; a word's tag is its first token's (Devlin 2019, 5.3).

    tokens [T]; tags, weights [T], 0 but at a word's first token. A sentence that is too long for a
    row goes on in another. A record may have a text, to be cut in words, in place of tokens.
    """

    reads = ("tokens", "tags")
    fields = ("tokens", "tags", "weights")
    cut = False
    gold = ("tags",)
    stands_in = {"tokens": "text"}  # noqa: RUF012
    too_long = "over several rows"

    def __init__(self, tokenizer, config):
        super().__init__(tokenizer, config)
        self.ids = labels.numbered(config.data.labels)
        self.frame = tokenizer.around("encoder")

    def reading(self, record):
        """The text that the model reads, and where in it each word is: [n, 2]."""
        return spelled(record)

    def examples(self, piece, rng, elsewhere):
        text, words = self.reading(piece)
        ids, spans = self.tokenizer.aligned(text)
        parts, first = self.parts(piece, ids, spans, words), first_tokens(spans, words)
        return [
            self.framed({name: x[start:end] for name, x in parts.items()})
            for start, end in self.rows(first, len(ids))
        ]

    def parts(self, record, ids, spans, words):
        """Fields of a whole sentence: what is said of each of its tokens."""
        tags, weights = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.float32)
        for place, tag in zip(first_tokens(spans, words), record.get("tags", ()), strict=False):
            if place >= 0 and tag in self.ids:  # a tag that training has not cannot be predicted
                tags[place], weights[place] = self.ids[tag], 1
        return {"tokens": ids, "tags": tags, "weights": weights}

    def framed(self, fields):
        """An example of a row's part of a sentence."""
        before, behind = self.frame
        around = len(before), len(behind)
        fields = {name: np.pad(x, around) for name, x in fields.items()}
        fields["tokens"][: around[0]] = before
        fields["tokens"][len(fields["tokens"]) - around[1] :] = behind
        return fields

    def rows(self, first, count):
        """Yields (start, end) of each row's tokens, of `count`: whole words, where one fits."""
        room, start = self.config.model.max_length - sum(map(len, self.frame)), 0
        while start < count:
            end = min(start + room, count)
            inside = first[(first > start) & (first <= end)]
            if end < count and len(inside):
                end = int(inside.max())
            yield start, end
            start = end

    def tags(self, record, rows):
        """The words' tags, and the tags' probabilities.

        A word without a token has O, or the first tag, and probability 0.
        """
        text, words = self.reading(record)
        spans = self.tokenizer.aligned(text)[1]
        first, names = first_tokens(spans, words), self.config.data.labels
        places = zip(rows, self.rows(first, len(spans)), strict=False)
        offset = len(self.frame[0])
        parts = [(row, slice(offset, offset + end - start)) for row, (start, end) in places]
        tags = [names[i] for row, part in parts for i in row["tag"][part]]
        odds = [float(p) for row, part in parts for p in row["probability"][part]]
        blank = "O" if "O" in names else names[0]
        of_words = lambda x, other: [x[i] if 0 <= i < len(x) else other for i in first]
        return of_words(tags, blank), of_words(odds, 0.0)

    def answer(self, record, rows):
        """{tags}, and of B-TYPE, I-TYPE and O {entities: [{start, end, type, text, score}]}."""
        tags, odds = self.tags(record, rows)
        found = {"entities": named(record, tags, odds)} if self.spans else {}
        return {"tags": tags} | found

    @property
    def spans(self):
        """Whether tags are of spans."""
        return any(re.match("[BIES]-", name) for name in self.config.data.labels)

    def score(self, records, answers):
        gold, guess = [r["tags"] for r in records], [a["tags"] for a in answers]
        classes = len(self.config.data.labels) + 1  # the last: of tags that training has not
        number = lambda rows: [self.ids.get(tag, classes - 1) for tags in rows for tag in tags]
        of_words = scores.classes(scores.confusion(number(gold), number(guess), classes))
        if not self.spans:
            return of_words
        return {"accuracy": of_words["accuracy"]} | scores.spans(gold, guess)


def spelled(record):
    """Returns a record's text, and where in it each word is: [n, 2]."""
    if "tokens" not in record:
        spans = [word.span() for word in WORD.finditer(record["text"])]
        return record["text"], np.array(spans, int).reshape(-1, 2)
    ends = np.cumsum([len(word) + 1 for word in record["tokens"]]) - 1
    starts = ends - [len(word) for word in record["tokens"]]
    return " ".join(record["tokens"]), np.stack([starts, ends], 1)


def first_tokens(spans, words):
    """Returns the place of each word's first token, -1 where it has none.

    A token that begins in the blank before a word is the word's; one of two words is the first's.
    """
    place = np.searchsorted(spans[:, 1], words[:, 0], side="right")
    inside = place < len(spans)
    inside[inside] = spans[place[inside], 0] < words[inside, 1]
    first = np.where(inside, place, -1)
    return np.where(np.diff(first, prepend=-2) == 0, -1, first)


def named(record, tags, odds):
    """Returns [{start, end, type, text, score}] of the spans of BIO tags, by characters.

    The score is the mean of their words' probabilities.
    """
    text, words = spelled(record)
    entities = []
    for first, last, kind in scores.entities(tags):
        start, end = int(words[first, 0]), int(words[last - 1, 1])
        entity = {"start": start, "end": end, "type": kind, "text": text[start:end]}
        entities.append(entity | {"score": sum(odds[first:last]) / (last - first)})
    return entities


def held_out(config, split, documents):
    """Warns of tags that cannot be predicted, and count as missed."""
    missed = labels.unknown(config, (tag for doc in documents for tag in doc["tags"]))
    if missed:
        names = ", ".join(f"{name} {count}" for name, count in missed.most_common(5))
        log.warning("data.%s: tags that training does not have count as missed: %s", split, names)


def weights(batch):
    """The number of words."""
    return {"words": batch["weights"].sum()}


def losses(outputs, batch, cfg):
    """Cross-entropy, focal or not, of heads.token [B, T, C] against tags [B, T], by weights."""
    logits, tags, weight = outputs.heads["token"], batch["tags"], batch["weights"]
    each = {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, tags),
        "accuracy": logits.argmax(-1) == tags,
    }
    terms = {"words": (labels.cross_entropy(logits, tags, cfg) * weight).sum()}
    return terms, sums(each, weight, "words")


def predict(outputs, batch):
    """Of each token a tag, and its probability."""
    logits = outputs.heads["token"]
    return {"tag": logits.argmax(-1), "probability": nn.softmax(logits).max(-1)}


OBJECTIVE = Objective(
    name="tagging",
    examples=Tagging,
    weights=weights,
    losses=losses,
    kinds=("encoder", "decoder"),
    heads=("token",),
    needs={"data.packing": ("none",)},
    resolve=lambda config, documents: labels.resolve(
        config, (tag for doc in documents for tag in doc["tags"]), "tags"
    ),
    held_out=held_out,
    predict=predict,
)


class Roles(Tagging):
    """Semantic role labelling: the arguments of a predicate, as tags (Shi and Lin 2019).

    As Tagging, of a text in which the predicate, the word of that place, is marked: [ gave ].

    types [T]: 1 at the tokens of the predicate, else 0 (Shi and Lin 2019, 3.2). A pretrained model
    hardly tells types apart at first, but does see markers (Baldini Soares 2019, 3.2). A sentence
    is read once for each of its predicates.
    """

    reads = ("tokens", "predicate", "tags")
    fields = (*Tagging.fields, "types")
    stands_in = {}  # noqa: RUF012

    def reading(self, record):
        tokens, place = record["tokens"], record["predicate"]
        marked = [*tokens[:place], "[", tokens[place], "]", *tokens[place + 1 :]]
        text, words = spelled({"tokens": marked})
        return text, np.delete(words, [place, place + 2], axis=0)

    def parts(self, record, ids, spans, words):
        start, end = words[record["predicate"]]
        types = (spans[:, 0] < end) & (spans[:, 1] > start)
        return super().parts(record, ids, spans, words) | {"types": types.astype(np.int32)}

    def answer(self, record, rows):
        """{tags, roles: [{start, end, type, text, score}]}."""
        tags, odds = self.tags(record, rows)
        return {"tags": tags, "roles": named(record, tags, odds)}

    def score(self, records, answers):
        """Of arguments: the predicate itself, B-V, is none (Carreras and Marquez 2005)."""
        bare = lambda rows: [["O" if t.endswith("-V") else t for t in row["tags"]] for row in rows]
        return scores.spans(bare(records), bare(answers))


ROLES = dataclasses.replace(
    OBJECTIVE,
    name="roles",
    examples=Roles,
    needs=OBJECTIVE.needs | {"model.type_vocab_size": (2,)},
)
