"""Token classification: named entities (BIO), parts of speech, roles (Devlin 2019, 5.3)."""

import dataclasses
import itertools
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
    """Tagging examples [CLS] words [SEP]; the first token of a word predicts its tag (5.3).

    tokens [T]; tags, weights [T], 0 except at first tokens. A sentence that is too long continues
    in further rows. A record may have a text, which is split into words, instead of tokens.
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
        """Returns the model's input text, and the character spans of its words [n, 2]."""
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
        """Returns the per-token fields of a whole sentence."""
        tags, weights = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.float32)
        for place, tag in zip(first_tokens(spans, words), record.get("tags", ()), strict=False):
            if place >= 0 and tag in self.ids:  # unknown tags cannot be predicted
                tags[place], weights[place] = self.ids[tag], 1
        return {"tokens": ids, "tags": tags, "weights": weights}

    def framed(self, fields):
        """Returns the example for the part of a sentence in a row."""
        before, behind = self.frame
        around = len(before), len(behind)
        fields = {name: np.pad(x, around) for name, x in fields.items()}
        fields["tokens"][: around[0]] = before
        fields["tokens"][len(fields["tokens"]) - around[1] :] = behind
        return fields

    def rows(self, first, count):
        """Yields (start, end) of the tokens of each row, at word boundaries if possible."""
        room, start = self.config.model.max_length - sum(map(len, self.frame)), 0
        while start < count:
            end = min(start + room, count)
            inside = first[(first > start) & (first <= end)]
            if end < count and len(inside):
                end = int(inside.max())
            yield start, end
            start = end

    def tags(self, record, rows):
        """Returns the tag of each word and its probability.

        A word without a token gets O, or the first tag, with probability 0.
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
        """Returns {tags}, and for BIO tags {entities: [{start, end, type, text, score}]}."""
        tags, odds = self.tags(record, rows)
        found = {"entities": named(record, tags, odds)} if self.spans else {}
        return {"tags": tags} | found

    @property
    def spans(self):
        """Whether tags denote spans."""
        return any(re.match("[BIES]-", name) for name in self.config.data.labels)

    def score(self, records, answers):
        gold, guess = [r["tags"] for r in records], [a["tags"] for a in answers]
        classes = len(self.config.data.labels) + 1  # the last: unknown tags
        number = lambda rows: [self.ids.get(tag, classes - 1) for tags in rows for tag in tags]
        of_words = scores.classes(scores.confusion(number(gold), number(guess), classes))
        if not self.spans:
            return of_words
        return {"accuracy": of_words["accuracy"]} | scores.spans(gold, guess)


def spelled(record):
    """Returns a record's text, and the character spans of its words [n, 2]."""
    if "tokens" not in record:
        spans = [word.span() for word in WORD.finditer(record["text"])]
        return record["text"], np.array(spans, int).reshape(-1, 2)
    ends = np.cumsum([len(word) + 1 for word in record["tokens"]]) - 1
    starts = ends - [len(word) for word in record["tokens"]]
    return " ".join(record["tokens"]), np.stack([starts, ends], 1)


def first_tokens(spans, words):
    """Returns the index of each word's first token, -1 if it has none.

    A token that starts in the whitespace before a word belongs to the word; one that spans two
    words belongs to the first.
    """
    place = np.searchsorted(spans[:, 1], words[:, 0], side="right")
    inside = place < len(spans)
    inside[inside] = spans[place[inside], 0] < words[inside, 1]
    first = np.where(inside, place, -1)
    return np.where(np.diff(first, prepend=-2) == 0, -1, first)


def named(record, tags, odds):
    """Returns [{start, end, type, text, score}] for the spans of BIO tags, in characters.

    The score is the mean probability of the words' tags.
    """
    text, words = spelled(record)
    entities = []
    for first, last, kind in scores.entities(tags):
        start, end = int(words[first, 0]), int(words[last - 1, 1])
        entity = {"start": start, "end": end, "type": kind, "text": text[start:end]}
        entities.append(entity | {"score": sum(odds[first:last]) / (last - first)})
    return entities


def held_out(config, split, documents):
    """Warns about tags that training does not have; they count as errors."""
    missed = labels.unknown(config, (tag for doc in documents for tag in doc["tags"]))
    if missed:
        names = ", ".join(f"{name} {count}" for name, count in missed.most_common(5))
        log.warning("data.%s: tags missing from the training set count as errors: %s", split, names)


def weights(batch):
    """Returns the number of words."""
    return {"words": batch["weights"].sum()}


def losses(outputs, batch, cfg):
    """Cross-entropy or focal loss of heads.token [B, T, C] against tags [B, T], with weights."""
    logits, tags, weight = outputs.heads["token"], batch["tags"], batch["weights"]
    each = {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, tags),
        "accuracy": logits.argmax(-1) == tags,
    }
    terms = {"words": (labels.cross_entropy(logits, tags, cfg) * weight).sum()}
    return terms, sums(each, weight, "words")


def predict(outputs, batch):
    """Returns the tag of each token and its probability."""
    logits = outputs.heads["token"]
    return {"tag": logits.argmax(-1), "probability": nn.softmax(logits).max(-1)}


def resolve(config, documents):
    """Fills in data.labels and model.num_labels."""
    if not config.data.labels:
        pairs = (zip(doc["tokens"], doc["tags"], strict=True) for doc in documents)
        labels.check_columns(config, itertools.chain.from_iterable(pairs), "tokens", "tags")
    labels.resolve(config, (tag for doc in documents for tag in doc["tags"]), "tags")


OBJECTIVE = Objective(
    name="tagging",
    examples=Tagging,
    weights=weights,
    losses=losses,
    kinds=("encoder", "decoder"),
    heads=("token",),
    needs={"data.packing": ("none",)},
    resolve=resolve,
    held_out=held_out,
    predict=predict,
)


class Roles(Tagging):
    """Semantic role labelling: the arguments of a predicate, as tags (Shi and Lin 2019).

    As Tagging, on a text in which the predicate is marked: [ gave ].

    types [T]: 1 at the tokens of the predicate, else 0 (Shi and Lin 2019, 3.2). Pretrained models
    hardly distinguish types at first, but they do use markers (Baldini Soares 2019, 3.2). There is
    one example per predicate of a sentence.
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
        """Returns {tags, roles: [{start, end, type, text, score}]}."""
        tags, odds = self.tags(record, rows)
        return {"tags": tags, "roles": named(record, tags, odds)}

    def score(self, records, answers):
        """Scores arguments; the predicate, B-V, is excluded (Carreras and Marquez 2005)."""
        bare = lambda rows: [["O" if t.endswith("-V") else t for t in row["tags"]] for row in rows]
        return scores.spans(bare(records), bare(answers))


ROLES = dataclasses.replace(
    OBJECTIVE,
    name="roles",
    examples=Roles,
    needs=OBJECTIVE.needs | {"model.type_vocab_size": (2,)},
)
