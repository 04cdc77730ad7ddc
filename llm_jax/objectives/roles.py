"""Semantic role labelling: the arguments of a predicate of a sentence (Shi and Lin 2019)."""

import dataclasses

import numpy as np

from llm_jax.objectives import scores, tagging


class Roles(tagging.Tagging):
    """As Tagging, of a text in which the predicate, the word of that place, is marked: [ gave ].

    types [T]: 1 at the tokens of the predicate, else 0 (Shi and Lin 2019, 3.2). A pretrained model
    hardly tells types apart at first, but does see markers (Baldini Soares 2019, 3.2). A sentence
    is read once for each of its predicates.
    """

    reads = ("tokens", "predicate", "tags")
    fields = (*tagging.Tagging.fields, "types")
    stands_in = {}  # noqa: RUF012

    def reading(self, record):
        tokens, place = record["tokens"], record["predicate"]
        marked = [*tokens[:place], "[", tokens[place], "]", *tokens[place + 1 :]]
        text, words = tagging.spelled({"tokens": marked})
        return text, np.delete(words, [place, place + 2], axis=0)

    def parts(self, record, ids, spans, words):
        start, end = words[record["predicate"]]
        types = (spans[:, 0] < end) & (spans[:, 1] > start)
        return super().parts(record, ids, spans, words) | {"types": types.astype(np.int32)}

    def answer(self, record, rows):
        """{tags, roles: [{start, end, type, text, score}]}."""
        tags, odds = self.tags(record, rows)
        return {"tags": tags, "roles": tagging.named(record, tags, odds)}

    def score(self, records, answers):
        """Of arguments: the predicate itself, B-V, is none (Carreras and Marquez 2005)."""
        bare = lambda rows: [["O" if t.endswith("-V") else t for t in row["tags"]] for row in rows]
        return scores.spans(bare(records), bare(answers))


OBJECTIVE = dataclasses.replace(
    tagging.OBJECTIVE,
    name="roles",
    examples=Roles,
    needs=tagging.OBJECTIVE.needs | {"model.type_vocab_size": (2,)},
)
