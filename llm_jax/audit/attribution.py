"""Attribution methods: the contribution of each input token to the model's answer."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import models
from llm_jax.audit.subject import Subject
from llm_jax.models.trace import token_vectors, trace

STEPS = 128  # steps of the path of integrated gradients
LONGEST = 32  # maximum tokens of a text


@dataclasses.dataclass(frozen=True)
class Text:
    """A text as model input, padded to T tokens.

    Attributes:
      batch: tokens, segment_ids [1, T].
      free: [T], whether a token may be removed: neither padding nor a special token.
      pieces: the tokens as text.
      read: the position that the head reads: the first of an encoder, the last of a decoder.
      target: the most likely class or next token.
    """

    batch: dict[str, np.ndarray]
    free: np.ndarray
    pieces: list[str]
    read: int = 0
    target: int = 0


class Reader:
    """Evaluates a model's answer if some input tokens are replaced by zero vectors.

    The answer is a class or, for language models, the next token. Its score is log p / (1 - p).
    """

    def __init__(self, subject: Subject):
        self.lm, self.model = subject.lm, subject.lm.model
        self.params, self.classes = subject.lm.params, subject.kind == "classes"
        self.length = min(LONGEST, self.model.cfg.max_length)

    def texts(self, texts: list[str]) -> list[Text]:
        """Tokenises and truncates texts; skips texts of less than 4 tokens."""
        tokenizer, rows = self.lm.tokenizer, []
        before, behind = tokenizer.around(self.model.cfg.kind)
        for text in texts:
            ids = [int(i) for i in tokenizer.encode(text)]
            ids = ids[: self.length - len(before) - len(behind)]
            if len(ids) < 4:
                continue
            row = [*before, *ids, *behind]
            free = [False] * len(before) + [True] * len(ids) + [False] * len(behind)
            pad = self.length - len(row)
            tokens = np.array([row + [tokenizer.pad_id] * pad], np.int32)
            batch = {"tokens": tokens, "segment_ids": (np.arange(self.length) < len(row))[None] * 1}
            known = tokenizer.pieces()
            pieces = [tokenizer.decode([i]) or known[i] for i in row]
            read = 0 if self.model.cfg.kind == "encoder" else len(row) - 1
            target = int(self.answer(self.params, batch).argmax())
            rows.append(Text(batch, np.array(free + [False] * pad), pieces, read, target))
        return rows

    def logits(self, text: Text, seen: np.ndarray, params: Any = None) -> np.ndarray:
        """Returns logits [N, C] for masks of visible tokens [N, T], T at a time."""
        params, found = self.params if params is None else params, []
        for at in range(0, len(seen), self.length):
            part = np.ones((self.length, self.length), bool)
            part[: len(seen[at : at + self.length])] = seen[at : at + self.length]
            found.append(self._logits(params, text.batch, part, text.free))
        return np.concatenate(found)[: len(seen)]

    def probability(self, text: Text, seen: np.ndarray) -> np.ndarray:
        """Returns the probability [N] of the full text's answer."""
        return np.exp(np.asarray(jax.nn.log_softmax(self.logits(text, seen))))[:, text.target]

    def score(self, text: Text, seen: np.ndarray, params: Any = None) -> np.ndarray:
        """Returns log p / (1 - p), [N], of the full text's answer."""
        return np.asarray(log_odds(self.logits(text, seen, params), text.target))

    @partial(jax.jit, static_argnums=0)
    def _logits(self, params, batch, seen, free):
        vectors = token_vectors(self.model, params, batch["tokens"]) * (seen | ~free)[..., None]
        return self.answer(params, copies(batch, len(seen)), vectors=vectors)

    @partial(jax.jit, static_argnums=0)
    def gradients(self, params, batch, free, target):
        """Returns gradient x input and integrated gradients [T], for free tokens.

        x . df/dx (Shrikumar 2016), and x . mean of df/dx on the straight path from 0 to x
        (Sundararajan 2017), whose sum is the score difference of the ends, up to the
        discretisation error.
        """
        own = token_vectors(self.model, params, batch["tokens"])
        start = own * ~free[:, None]
        score = lambda v: log_odds(self.answer(params, batch, vectors=v), target)[0]
        slope = lambda share: jax.grad(score)(start + share * (own - start))
        # Midpoint rule in u, share = u^3: norms make the function steep near 0.
        u = (jnp.arange(STEPS) + 0.5) / STEPS
        path = jax.lax.map(lambda u: 3 * u**2 * slope(u**3), u).mean(0)
        each = lambda gradient: (gradient * (own - start)).sum(-1)[0]
        return each(slope(1.0)), each(path)

    def answer(self, params: Any, batch: dict, **given: Any) -> jax.Array:
        """Returns logits [B, C]; given: arguments of `trace`."""
        return self.answer_logits(trace(self.model, params, batch, **given).outputs, batch)

    def answer_logits(self, outputs: models.Outputs, batch: dict) -> jax.Array:
        """Returns the logits [B, C] of model outputs."""
        if self.classes:
            return outputs.heads["sequence"]
        last = (batch["segment_ids"].sum(1) - 1)[:, None, None]
        hidden = jnp.take_along_axis(outputs.hidden, last, axis=1)
        return models.logits(outputs._replace(hidden=hidden))[:, 0]


def copies(batch: Any, count: int) -> Any:
    """Arrays [1, …] as [count, …]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), batch)


def log_odds(logits: jax.Array, target: int) -> jax.Array:
    """log p / (1 - p) of the target, [N, C] -> [N]."""
    others = jnp.where(jnp.arange(logits.shape[-1]) == target, -jnp.inf, logits)
    return logits[:, target] - jax.nn.logsumexp(others, -1)


def _gradients(reader, text, params):
    return reader.gradients(params, text.batch, text.free, text.target)


def occlusion(reader: Reader, text: Text, params: Any) -> np.ndarray:
    """Occlusion: the decrease of the score without a token (Zeiler and Fergus 2014)."""
    each = ~np.eye(reader.length, dtype=bool)
    whole = reader.score(text, np.ones((1, reader.length), bool), params)
    return whole - reader.score(text, each, params)


def attention(reader: Reader, text: Text, params: Any) -> np.ndarray:
    """Attention weights of the read position in the last layer, mean over heads."""
    return _attention(reader, text, params)[-1][text.read]


def rollout(reader: Reader, text: Text, params: Any) -> np.ndarray:
    """Attention rollout: the product of (A + I) / 2 over layers (Abnar and Zuidema 2020)."""
    flow = np.eye(reader.length)
    for weights in _attention(reader, text, params):
        flow = (weights + np.eye(reader.length)) / 2 @ flow
    return flow[text.read]


def _attention(reader, text, params):
    """Attention weights [layers, T, T], mean over heads."""
    lm = dataclasses.replace(reader.lm, params=params)
    return np.asarray(lm.attention_weights(text.batch))[:, 0].mean(1)


METHODS: dict[str, Callable[[Reader, Text, Any], np.ndarray]] = {
    "gradient x input": lambda *given: _gradients(*given)[0],
    "integrated gradients": lambda *given: _gradients(*given)[1],
    "occlusion": occlusion,
    "attention": attention,
    "attention rollout": rollout,
    # A baseline that any method should exceed.
    "random": lambda reader, text, _: np.random.default_rng(text.batch["tokens"].sum()).random(
        reader.length
    ),
}
