"""Incremental decoding with a KV cache: prefill of prompts, then one token a row at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import attention, models
from llm_jax.models import Model


def cacheable(model: Model) -> bool:
    """Whether each of the model's kinds of attention can continue from stored keys and values."""
    return all("cache" in attention.get(k).supports for k in model.cfg.attention.split(","))


class Program(NamedTuple):
    """What a decoding program is compiled for: hashable, a static argument of jit."""

    model: Model
    room: int  # new tokens, at most
    cached: bool
    prefix: bool


class Inputs(NamedTuple):
    """The arrays that a decoding program reads; what is None leaves its part of it out."""

    params: Any
    tokens: np.ndarray  # prompts [B, T], zeros behind each
    lengths: np.ndarray  # [B]
    source: dict | None  # encoder_tokens, encoder_segment_ids [B, S]
    eos: np.ndarray  # ids that end a row [E]; -1: none does
    allowed: np.ndarray | None  # ids that may be drawn, bool [V]


class Reader(NamedTuple):
    """Decoder, parameters, encoder batch and size of the KV cache: traced, inside a jit.

    Every leaf of a cache has layers (or 1) on axis 0 and rows on axis 1. Without `cached` the
    cache is the tokens so far, and each step reads all of them again. Logits of ids that are not
    allowed are -inf.
    """

    model: Model
    params: Any
    source: dict | None  # encoder_tokens, encoder_segment_ids [B, S]
    size: int  # tokens a row comes to hold at most
    cached: bool = True
    prefix: bool = False  # the whole prompt sees itself (a prefix language model)
    allowed: jax.Array | None = None  # bool [V]

    @classmethod
    def of(cls, program: Program, inputs: Inputs) -> "Reader":
        size = min(inputs.tokens.shape[1] + program.room, program.model.cfg.max_length)
        return cls(program.model, inputs.params, inputs.source, size, program.cached,
                   program.prefix, inputs.allowed)  # fmt: skip

    def start(self, tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, Any]:
        """Prompts [B, T] -> logits [B, V] after each one's last token, and the cache."""
        B, T = tokens.shape
        if not self.cached:
            cache = {"tokens": jnp.pad(tokens, ((0, 0), (0, self.size - T)))[None]}
            if self.prefix:
                cache["prefix"] = lengths[None]
            return self._recompute(cache, lengths - 1), cache
        more = {"prefix": lengths} if self.prefix else {}
        if self.source:
            more["encoded"] = self.model.apply(
                {"params": self.params}, self.source, method="encode"
            )
        # What pads a row stands behind the last slot: the cache does not take it in.
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        positions = jnp.where(positions < lengths[:, None], positions, self.size)
        outputs, cache = self._step({}, tokens, positions, **more)
        last = jnp.take_along_axis(outputs.hidden, lengths[:, None, None] - 1, axis=1)
        return self._logits(outputs._replace(hidden=last)), cache

    def advance(self, cache: Any, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        """One more token a row [B], at positions [B] -> logits [B, V] after it, and the cache."""
        if not self.cached:
            rows = jnp.arange(len(tokens))
            cache = cache | {"tokens": cache["tokens"].at[0, rows, positions].set(tokens)}
            return self._recompute(cache, positions), cache
        outputs, cache = self._step(cache, tokens[:, None], positions[:, None])
        return self._logits(outputs), cache

    def widen(self, cache: Any, n: int) -> tuple["Reader", Any]:
        """Each row n times over, neighbours equal."""
        source = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), self.source)
        return self._replace(source=source), jax.tree.map(lambda x: jnp.repeat(x, n, axis=1), cache)

    def _step(self, cache, tokens, positions, **more):
        if self.source:
            more["encoded_segments"] = self.source["encoder_segment_ids"]
        variables = {"params": self.params, **cache}
        return self.model.apply(
            variables, tokens, positions, cache_length=self.size, method="step", mutable=["cache"],
            **more,
        )  # fmt: skip

    def _recompute(self, cache, last):
        tokens = cache["tokens"][0]
        batch = {"tokens": tokens, **(self.source or {})}
        batch["segment_ids"] = (jnp.arange(self.size) <= last[:, None]).astype(jnp.int32)
        if self.prefix:
            batch["prefix"] = cache["prefix"][0]
        outputs = self.model.apply({"params": self.params}, batch)
        hidden = jnp.take_along_axis(outputs.hidden, last[:, None, None], axis=1)
        return self._logits(outputs._replace(hidden=hidden))

    def _logits(self, outputs: models.Outputs) -> jax.Array:
        """Outputs of one token a row -> float32 [B, V]."""
        logits = models.logits(outputs)[:, 0]
        return logits if self.allowed is None else jnp.where(self.allowed, logits, -jnp.inf)


def round_up(n: int, most: int) -> int:
    """The next power of two: sizes come in few, so that few programs are compiled."""
    return min(1 << (n - 1).bit_length(), most)


def pad(rows: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids -> int32 tokens [B, T], zeros behind each, and their lengths [B]."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), round_up(int(lengths.max()), most)), np.int32)
    for to, row in zip(tokens, rows, strict=True):
        to[: len(row)] = row
    return tokens, lengths


def prepare(
    model: Model, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
    sources: Sequence[Sequence[int]] | None, eos_id: int | Sequence[int],
    allowed: np.ndarray | None, prefix: bool, cached: bool | None,
) -> tuple[Program, Inputs]:
    """The program and the arrays that continue these prompts; ValueError where there are none."""
    length = model.cfg.max_length
    _check(model, prompts, sources, max_new_tokens)
    if allowed is not None and (np.shape(allowed) != (model.cfg.vocab_size,) or not any(allowed)):
        raise ValueError(f"allowed: must be bool [{model.cfg.vocab_size}] and allow some id")
    cached = cacheable(model) if cached is None else cached
    program = Program(model, round_up(max_new_tokens, length), cached, prefix)
    eos = np.array([*np.ravel(eos_id)] or [-1], np.int32)
    arrays = replicated((*pad(prompts, length), encoder_batch(model, sources), eos, allowed))
    return program, Inputs(params, *arrays)


def replicated(tree: Any) -> Any:
    """Has every device of the active mesh, if there is one, hold arrays whole, in a jit or out.

    Prompts and results need not divide over a mesh, as a compiler might have it that they do.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.sharding.PartitionSpec())


def _check(model: Model, prompts: Sequence, sources: Sequence | None, max_new_tokens: int) -> None:
    """Raises ValueError where the model cannot continue these prompts."""
    cfg = model.cfg
    if cfg.kind == "encoder" or not models.heads.speaks(cfg):
        raise ValueError(
            f"model.kind={cfg.kind!r} with model.head={cfg.head!r} writes no text; a decoder "
            "with an output matrix does"
        )
    if (sources is not None) != (cfg.kind == "encoder_decoder"):
        raise ValueError(
            f"sources: model.kind={cfg.kind!r} "
            + ("takes none" if sources is not None else "needs one for each prompt")
        )
    if sources is not None and len(sources) != len(prompts):
        raise ValueError(f"sources: {len(sources)} of them for {len(prompts)} prompts")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    for what, rows in (("prompt", prompts), ("source", sources or ())):
        for row in rows:
            if not 0 < len(row) <= cfg.max_length:
                raise ValueError(
                    f"a {what} of {len(row)} tokens; there must be at least 1 (such as the "
                    f"tokenizer's bos_id) and at most model.max_length={cfg.max_length}"
                )


def encoder_batch(model: Model, sources: Sequence[Sequence[int]] | None) -> dict | None:
    """Sources -> encoder_tokens and encoder_segment_ids [B, S]; segment 0 is padding."""
    if sources is None:
        return None
    tokens, lengths = pad(sources, model.cfg.max_length)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    return {"encoder_tokens": tokens, "encoder_segment_ids": real.astype(np.int32)}
