"""Semantic role labelling: the arguments of a predicate of a sentence (Shi and Lin 2019)."""

import dataclasses

import numpy as np

from llm_jax.objectives import scores, tagging


class Roles(tagging.Tagging):
    """As Tagging, with types [T]: 1 at the tokens of the predicate, the word of that place, else 0.

    A sentence is read once for each of its predicates.
    """

    reads = ("tokens", "predicate", "tags")
    fields = (*tagging.Tagging.fields, "types")
    stands_in = {}  # noqa: RUF012

    def parts(self, record, ids, spans, words):
        start, end = words[record["predicate"]]
        types = (spans[:, 0] < end) & (spans[:, 1] > start)
        return super().parts(record, ids, spans, words) | {"types": types.astype(np.int32)}

    def answer(self, record, rows):
        """{tags, roles: [{start, end, type, text, score}]}."""
        predicted = self.tags(record, rows)
        return {"tags": predicted[2], "roles": tagging.named(*predicted)}

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
