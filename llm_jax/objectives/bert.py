"""Masked LM with next sentence prediction (BERT) or sentence order prediction (ALBERT)."""

import dataclasses

import numpy as np
import optax

from llm_jax.objectives import masked_lm
from llm_jax.objectives.objective import count_rows, rows, sums

ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", "\n", "\u010a")  # U+010A: GPT-2's newline


class Bert(masked_lm.MaskedLM):
    """BERT's examples [CLS] A [SEP] B [SEP]; half of the B are random (Devlin 2019, 3.1, A.2).

    tokens, types [T] (0 up to the first [SEP], 1 after it), next_sentence (0: B follows A, 1: B is
    from another document), and the fields of masking. A window is split into A and B at a random
    sentence end, or at any position if it has none.
    """

    fields = ("tokens", "types")
    around = 3
    scalars = ("next_sentence",)

    def __init__(self, tokenizer, config):
        super().__init__(tokenizer, config)
        ends = [bool(piece) and piece.endswith(ENDS) for piece in tokenizer.pieces()]
        self.ends = np.array(ends) & ~self.row.special

    def example(self, piece, rng, elsewhere):
        window, places = self.sentences(piece)
        if len(window) < 2:
            return None
        cut = int(rng.choice(places) if len(places) else rng.integers(1, len(window)))
        a, b, label = self.second(window[:cut], window[cut:], rng, elsewhere)
        start, end = [self.tokenizer.bos_id], [self.tokenizer.eos_id]
        types = np.repeat(np.array([0, 1], np.int32), [len(a) + 2, len(b) + 1])
        fields = {"tokens": np.concatenate([start, a, end, b, end]), "types": types}
        return fields | {"next_sentence": np.array([label], np.int32)}

    def sentences(self, window):
        """Returns the window and the positions of its sentence starts, except the first."""
        return window, np.flatnonzero(self.ends[window[:-1]]) + 1

    def second(self, a, b, rng, elsewhere):
        """Returns (A, B, label) from two consecutive parts."""
        n = len(b)
        if rng.random() < 0.5 and len(other := elsewhere(n + self.stride)):
            if self.ends[a[-1]]:  # B starts a sentence, so its replacement must too
                places = np.flatnonzero(self.ends[other[: max(1, len(other) - n)]]) + 1
                other = other[rng.choice(places) :] if len(places) else other
            if len(other):
                return a, other[:n], 1
        return a, b, 0


def weights(batch):
    """Returns the numbers of masked positions and of sentence pairs."""
    return masked_lm.weights(batch) | count_rows(batch)


def losses(outputs, batch, cfg):
    """Masked LM cross-entropy, and cross-entropy of heads.sequence [B, 2], next_sentence [B]."""
    terms, metrics = masked_lm.losses(outputs, batch, cfg)
    labels, logits = batch["next_sentence"], outputs.heads["sequence"]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    each = {"sentence_loss": nll, "sentence_accuracy": logits.argmax(-1) == labels}
    metrics |= sums(each, rows(batch))
    return terms | {"rows": metrics["sentence_loss"][0]}, metrics


OBJECTIVE = dataclasses.replace(
    masked_lm.OBJECTIVE,
    name="bert",
    examples=Bert,
    weights=weights,
    losses=losses,
    heads=("mlm", "sequence"),
    needs={"model.pooler": (True,), "model.num_labels": (2,), "model.type_vocab_size": (2,),
           "data.packing": ("none",)},
)


class Albert(Bert):
    """ALBERT's examples: half of the pairs are swapped (sentence order prediction), and n-grams of
    up to three whole words are masked (Lan 2020, 3.1). A and B are whole sentences if the window
    has two.
    """

    framed = True  # marks starts and ends of documents, and so of sentences

    def masking(self):
        return masked_lm.Masking(self.tokenizer, self.config, whole_word=True, longest=3)

    def sentences(self, window):
        # An incomplete sentence at either end would reveal the order.
        first, last = window[0] == self.tokenizer.bos_id, window[-1] == self.tokenizer.eos_id
        window = window[int(first) : len(window) - int(last)]
        edge = np.zeros(len(window) + 1, bool)
        edge[1:] = self.ends[window]
        edge[0], edge[-1] = edge[0] | first, edge[-1] | last
        places = np.flatnonzero(edge)
        if len(places) < 3:
            return window, places[:0]
        return window[places[0] : places[-1]], places[1:-1] - places[0]

    def second(self, a, b, rng, elsewhere):
        return (b, a, 1) if rng.random() < 0.5 else (a, b, 0)


ALBERT = dataclasses.replace(OBJECTIVE, name="albert", examples=Albert)
