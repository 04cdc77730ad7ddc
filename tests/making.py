"""The data pipeline of a config's objective, one call per step; texts and pairs as records."""

import numpy as np

from llm_jax import objectives
from llm_jax.data import pipeline


def records(docs):
    """Texts and pairs of texts as records; all else as it is."""
    if not isinstance(docs, list):
        return docs
    shape = lambda doc: {"text": doc} if isinstance(doc, str) else doc
    pair = lambda doc: dict(zip(("source", "target"), doc, strict=True))
    return [pair(doc) if isinstance(doc, tuple) else shape(doc) for doc in docs]


def texts(docs):
    """The texts of records that have nothing else."""
    return [text for (text,) in (doc.values() for doc in docs)]


def pairs(docs):
    """(source, target) of records."""
    return [(doc["source"], doc["target"]) for doc in docs]


def stream(tokenizer, doc):
    """A text as one example after the other is cut from it: begin, its tokens, end."""
    ids = [tokenizer.bos_id, *tokenizer.encode(doc), tokenizer.eos_id]
    return np.array(ids, np.int32)


def objective(config):
    """The config's objective, checked."""
    chosen = objectives.get(config.objective.name)
    chosen.check(config)
    return chosen


def examples(config, tokenizer):
    return objective(config).examples(tokenizer, config)


def splits(config):
    return objective(config).splits(config)


def build_tokenizer(config, docs):
    return objective(config).build_tokenizer(config, records(docs))


def train_iterator(config, tokenizer, docs, rows=slice):
    return pipeline.train_iterator(examples(config, tokenizer), records(docs), rows)


def eval_batches(config, tokenizer, docs, rows=slice):
    return pipeline.eval_batches(examples(config, tokenizer), records(docs), rows)
