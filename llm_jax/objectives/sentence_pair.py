"""Masked tokens, and whether two sentences belong together: BERT's next sentence (Devlin 2019,
3.1) and ALBERT's sentence order (Lan 2020, 3.1), which differ only in their batches.
"""

import jax.numpy as jnp
import optax

from llm_jax.objectives import masked_lm


def weights(batch):
    """The numbers of masked positions and of sentence pairs."""
    return masked_lm.weights(batch) | {"pairs": _pairs(batch).sum()}


def losses(outputs, batch, cfg):
    """Masked cross-entropy plus that of heads.sequence [B, 2] against next_sentence [B]."""
    terms, metrics = masked_lm.losses(outputs, batch, cfg)
    labels, pairs, logits = batch["next_sentence"], _pairs(batch), outputs.heads["sequence"]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    hits = (logits.argmax(-1) == labels).astype(jnp.float32)
    terms["pairs"] = (nll * pairs).sum()
    metrics["sentence_loss"] = (terms["pairs"], "pairs")
    metrics["sentence_accuracy"] = ((hits * pairs).sum(), "pairs")
    return terms, metrics


def _pairs(batch):
    """[B]: 1 for a row, 0 for one that only fills up a batch."""
    return (batch["segment_ids"][:, 0] > 0).astype(jnp.float32)
