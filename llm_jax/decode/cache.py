"""Incremental decoding with a KV cache: prefill of prompts, then one token per row and step."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import attention, models
from llm_jax import config as configs
from llm_jax.models import Model
from llm_jax.models.attention import kept


def _layers(cfg):
    """Returns the configs of the decoder's layers."""
    return configs.layers(cfg, configs.depths(cfg).get("decoder", 0))


class Prompts(NamedTuple):
    """Prompts to continue, with the end-of-text ids."""

    tokens: Any  # [B, T], padded with zeros
    lengths: Any  # [B]
    eos: Any  # end-of-text ids [E]; -1: none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reader:
    """A decoder with its parameters, encoder batch and the size of its KV cache.

    A jit argument. Every leaf of a cache has rows on axis 0. Without `cached`, the cache holds the
    tokens so far, and each step recomputes all of them. Logits of ids that are not allowed are
    -inf.
    """

    model: Model = dataclasses.field(metadata={"static": True})
    params: Any  # `models.unstacked` where `cached`
    source: dict | None  # encoder_tokens, encoder_segment_ids [B, S]
    size: int = dataclasses.field(metadata={"static": True})  # maximum tokens per row
    cached: bool = dataclasses.field(default=True, metadata={"static": True})
    # Bidirectional attention within the prompt (prefix language model).
    prefix: bool = dataclasses.field(default=False, metadata={"static": True})
    allowed: Any = None  # ids that may be generated, bool [V]

    def start(
        self, tokens: jax.Array, lengths: jax.Array, cache: Any = None, first: Any = 0
    ) -> tuple[jax.Array, Any]:
        """Prefill: prompts [B, T] -> logits [B, V] after the last token of each, and the cache.

        If a cache already holds the `first` tokens of the prompts (a number, or one per row [B]),
        tokens are the remaining ones.
        """
        B, T = tokens.shape
        if not self.cached:
            cache = {"tokens": jnp.pad(tokens, ((0, 0), (0, self.size - T)))}
            if self.prefix:
                cache["prefix"] = lengths
            return self._recompute(cache, lengths - 1), cache
        context = {"prefix": lengths} if self.prefix else {}
        if self.source:
            variables = {"params": self.params}
            context["encoded"] = self.model.apply(variables, self.source, method="encode")
        # Padding gets a position after the last slot, so that it is not written to the cache.
        first = jnp.reshape(first, (-1, 1))
        positions = jnp.broadcast_to(first + jnp.arange(T), (B, T))
        positions = jnp.where(positions < lengths[:, None], positions, self.size)
        outputs, cache = self._step(cache or {}, tokens, positions, **context)
        return self._logits(outputs, lengths[:, None] - first - 1)[:, 0], cache

    def advance(self, cache: Any, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        """Decoding step: tokens [B] at positions [B] -> logits [B, V] after them, and the cache."""
        if not self.cached:
            rows = jnp.arange(len(tokens))
            cache = cache | {"tokens": cache["tokens"].at[rows, positions].set(tokens)}
            return self._recompute(cache, positions), cache
        logits, cache = self.extend(cache, tokens[:, None], positions[:, None])
        return logits[:, 0], cache

    def extend(self, cache: Any, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        """Tokens [B, T] at positions [B, T] -> logits [B, T, V] after each, and the cache."""
        outputs, cache = self._step(cache, tokens, positions)
        return self._logits(outputs), cache

    def widen(self, cache: Any, n: int) -> tuple["Reader", Any]:
        """Repeats each row n times, with adjacent copies."""
        source, cache = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), (self.source, cache))
        return dataclasses.replace(self, source=source), cache

    def _step(self, cache, tokens, positions, **context):
        if self.source:
            context["encoded_segments"] = self.source["encoder_segment_ids"]
        context |= {"cache_length": self.size, "method": "step", "mutable": ["cache"]}
        return self.model.apply({"params": self.params, **cache}, tokens, positions, **context)

    def _recompute(self, cache, last):
        tokens = cache["tokens"]
        batch = {"tokens": tokens, **(self.source or {})}
        batch["segment_ids"] = (jnp.arange(self.size) <= last[:, None]).astype(jnp.int32)
        if self.prefix:
            batch["prefix"] = cache["prefix"]
        outputs = self.model.apply({"params": self.params}, batch)
        return self._logits(outputs, last[:, None])[:, 0]

    def _logits(self, outputs: models.Outputs, at: jax.Array | None = None) -> jax.Array:
        """Converts the outputs at `at` [B, P] (None: all) to logits, float32 [B, P, V]."""
        if at is not None:
            hidden = jnp.take_along_axis(outputs.hidden, at[..., None], axis=1)
            outputs = outputs._replace(hidden=hidden)
        logits = models.logits(outputs)
        return logits if self.allowed is None else jnp.where(self.allowed, logits, -jnp.inf)


@dataclasses.dataclass
class Memory:
    """The KV cache of a text, reused by later texts with the same beginning (turns of a chat)."""

    ids: Sequence[int] = ()  # the cached tokens
    cache: Any = None
    size: int = 0

    def take(self, ids: Sequence[int], size: int, most: int) -> tuple[int, Any, int]:
        """Releases the cache: returns (size, cache, length of its common prefix with ids).

        If it has no room for `size` tokens: (a larger size, None, 0).
        """
        cache, self.cache = self.cache, None
        if cache is None or size > self.size:
            self.size = min(2 * size, most)
            return self.size, None, 0
        both = zip(self.ids, ids[:-1], strict=False)  # recompute the last one
        same = [a == b for a, b in both]
        return self.size, cache, [*same, False].index(False)


def round_up(n: int, most: int) -> int:
    """Rounds up to a power of two, so that few programs are compiled."""
    return min(1 << (n - 1).bit_length(), most)


def pad(rows: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of ids with zeros to int32 tokens [B, T]; also returns their lengths [B]."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), round_up(int(lengths.max()), most)), np.int32)
    for to, row in zip(tokens, rows, strict=True):
        to[: len(row)] = row
    return tokens, lengths


def batch_of(rows: Sequence[Sequence[int]], most: int, side: str = "") -> dict[str, np.ndarray]:
    """Pads rows of ids to a batch {SIDEtokens, SIDEsegment_ids (0: padding)}, both [B, T]."""
    tokens, lengths = pad(rows, most)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    return {f"{side}tokens": tokens, f"{side}segment_ids": real.astype(np.int32)}


def irreversible(cfg: Any, size: int) -> str:
    """Returns why a cache of `size` tokens cannot be cut back to a prefix; "" if it can.

    It can if it has all keys and no state; the reason names a key of config.model.
    """
    if cfg.kind != "decoder":
        return f"model.kind={cfg.kind!r} is not a decoder"
    for layer in _layers(cfg):
        variant, window = attention.get(layer.attention), kept(layer)
        name = f"model.attention={layer.attention!r}"
        if "cache" not in variant.supports:
            return f"{name} has no KV cache"
        if variant.state:
            return f"{name} has a recurrent state"
        if layer.short_conv:
            return f"model.short_conv={layer.short_conv} has a state"
        if window is not None and window < size:
            return f"{name} caches only the last {window} of {size} tokens"
        if layer.expert_capacity or layer.expert_slots:
            return "model.expert_capacity and expert_slots let the tokens of a pass compete"
    return ""


def resumable(reader: Reader) -> bool:
    """Whether a cache can be reused for texts with a common prefix."""
    plain = reader.cached and not reader.prefix
    return plain and not irreversible(reader.model.cfg, reader.size)


def size_of(longest: int, new: int, most: int) -> int:
    """Returns the size of the cache for `new` tokens after prompts of up to `longest`."""
    return min(round_up(longest, most) + round_up(new, most), most)


def prepare(
    model: Model, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
    *, sources: Sequence[Sequence[int]] | None = None, eos_id: int | Sequence[int] = (),
    prefix: bool = False, cached: bool | None = None, allowed: np.ndarray | None = None,
) -> tuple[Reader, Prompts, int]:
    """Returns the reader, the prompts as arrays, and the maximum number of new ids.

    Args:
      sources: encoder inputs of an encoder-decoder, one per prompt.
      eos_id: one or more end-of-text ids.
      prefix: bidirectional attention within prompts, for prefix language models.
      cached: use a KV cache; None: if the attention supports it. False recomputes everything in
        each step: slower, with the same results.
      allowed: bool [V], the ids that may be generated; None: all.
    """
    length = model.cfg.max_length
    encoder_batch = None if sources is None else batch_of(sources, length, "encoder_")
    eos = np.array([*np.ravel(eos_id)] or [-1], np.int32)
    arrays = Prompts(*pad(prompts, length), eos), encoder_batch, allowed
    prompts, encoder_batch, allowed = replicated(arrays)
    room = round_up(max_new_tokens, length)
    size = size_of(prompts.tokens.shape[1], max_new_tokens, length)
    if cached is None:
        cached = all("cache" in attention.get(x.attention).supports for x in _layers(model.cfg))
    params = models.unstacked(model, params) if cached else params
    return Reader(model, params, encoder_batch, size, cached, prefix, allowed), prompts, room


def replicated(tree: Any) -> Any:
    """Replicates arrays over the active mesh, if any, inside or outside of jit.

    Prompts and results need not divide over a mesh, but the compiler might shard them.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.sharding.PartitionSpec())
