"""Masked n-grams and sentence order prediction: ALBERT's objective (Lan 2020, 3.1)."""

import dataclasses

import numpy as np

from llm_jax.objectives import bert, masked_lm


class Albert(bert.Bert):
    """As Bert, but half of the pairs are swapped, and n-grams of up to three whole words are
    masked (Lan 2020, 3.1). A and B are whole sentences wherever the window has two.
    """

    framed = True  # to know where a document, and with it a sentence, starts and ends

    def masking(self):
        return masked_lm.Masking(self.tokenizer, self.config, whole_word=True, longest=3)

    def sentences(self, window):
        # Half a sentence at either end would reveal the order.
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


OBJECTIVE = dataclasses.replace(bert.OBJECTIVE, name="albert", examples=Albert)
