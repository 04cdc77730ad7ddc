"""Decays of a recurrence's state within a chunk of tokens, at most 1 in every step.

A recurrence S_t = a_t S_(t-1) + … makes of a chunk products of all a between two tokens. Divided
out of one product from the chunk's beginning they would overflow where a is small; as
differences of its logarithm they would lose what comes behind a strong decay. Here each is a sum
of log decays over halves of halves: with a boundary between them, a later token counts from it
and an earlier one up to it (secondary chunks, section 4.3 of Yang 2024,
https://arxiv.org/abs/2312.06635, down to single tokens).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Decays(NamedTuple):
    """How much of the state reaches each token of a chunk [B, N, c, M], and of each the state.

    M is 1 where all channels decay alike, else their number.
    """

    pairs: Array  # bool [B, 1, c, c], row's token no earlier than column's, and of its segment
    within: Array | None  # [B, N, c, c], from column's token to row's; None: each channel's own
    halves: list[tuple[Array, Array]]  # its logarithm, see `_halves`
    arriving: Array  # [B, N, c, M], of the state before the chunk
    leaving: Array  # [B, N, c, M], of each token in the state after it
    through: Array  # [B, N, M, 1], of the state before in the state after

    def scores(self, query: Array, key: Array) -> Array:
        """Returns [B, N, c, c], sum_m q_im k_jm decay_ijm of tokens i and j that see each other."""
        if self.within is not None:
            return jnp.einsum("bnim,bnjm->bnij", query, key) * self.within
        scores = jnp.sum(query * key, axis=-1)[..., None, None]
        for until, since in self.halves:
            _, late = _split(_blocks(query, until))
            early, _ = _split(_blocks(key, until))
            corner = jnp.einsum(
                "bnpim,bnpjm->bnpij", late * jnp.exp(until), early * jnp.exp(since)
            )
            scores = _join(scores, corner)
        return jnp.where(self.pairs, scores[:, :, 0], 0)

    def mix(self, weights: Array, value: Array) -> Array:
        """Returns [B, N, c, M], sum_j weights_ij decay_ijm v_jm: of channels of the value."""
        weights = jnp.where(self.pairs, weights, 0)
        y = jnp.diagonal(weights, axis1=-2, axis2=-1)[..., None] * value
        for until, since in self.halves:
            p, m = until.shape[2:4]
            grid = weights.reshape(*weights.shape[:2], p, 2, m, p, 2, m)
            corner = jnp.einsum("bnpipj->bnpij", grid[:, :, :, 1, :, :, 0])
            early, _ = _split(_blocks(value, until))
            more = jnp.exp(until) * (corner @ (early * jnp.exp(since)))
            y += jnp.stack([jnp.zeros_like(more), more], axis=3).reshape(y.shape)
        return y


def decays(log_decay: Array | None, segments: Array, before: Array, strict: bool) -> Decays:
    """Of a chunk of c tokens, a power of two.

    Args:
      log_decay: [B, N, c, M], at most 0; None: no decay.
      segments: [B, c].
      before: [B], the segment that the state belongs to.
      strict: a token sees the state before its own decay and without what it adds.
    """
    c = segments.shape[1]
    same = (segments[:, :, None] == segments[:, None])[:, None]
    pairs = jnp.tril(jnp.ones((c, c), bool), -1 if strict else 0) & same
    last = segments[:, -1:]
    new, old = (x[:, None, :, None] for x in (segments == before[:, None], segments == last))
    whole = (last == before[:, None])[:, None, :, None]
    one = lambda x: x.astype(jnp.float32)
    if log_decay is None:
        return Decays(pairs, one(pairs), [], one(new), one(old), one(whole))
    halves, until, since, total = _halves(log_decay, strict)
    within = None
    if log_decay.shape[-1] == 1:
        within = jnp.zeros((*log_decay.shape[:3], 1, 1))
        for late, early in halves:
            within = _join(within, late + early.swapaxes(-1, -2))
        within = jnp.where(pairs, jnp.exp(within[:, :, 0]), 0)
    masked = lambda seen, x: jnp.where(seen, jnp.exp(x), 0)
    return Decays(
        pairs, within, halves, masked(new, until), masked(old, since),
        masked(whole, total.swapaxes(-1, -2)),
    )  # fmt: skip


def _halves(x: Array, strict: bool) -> tuple[list[tuple[Array, Array]], Array, Array, Array]:
    """Sums of x [B, N, c, M] over blocks of 1, 2, 4 … tokens, of which each two meet in one.

    Returns a list of (until, since), [B, N, blocks / 2, tokens, M]: of each later block the sums
    from its beginning to its tokens (strict: up to them), of each earlier one those from behind
    its tokens to its end; and both of the whole chunk [B, N, c, M], and its sum [B, N, 1, M].
    """
    total = x[:, :, :, None]
    since = jnp.zeros_like(total)
    until = since if strict else total
    halves = []
    while total.shape[2] > 1:
        (early, late), (behind, after), (first, second) = map(_split, (until, since, total))
        halves.append((late, behind))
        until = jnp.concatenate([early, late + first], axis=3)
        since = jnp.concatenate([behind + second, after], axis=3)
        total = first + second
    return halves, until[:, :, 0], since[:, :, 0], total[:, :, 0]


def _split(x):
    """Every first and every second of blocks [B, N, blocks, ...]."""
    return x[:, :, ::2], x[:, :, 1::2]


def _blocks(x, like):
    """Tokens [B, N, c, M] in blocks as long as those of [B, N, blocks / 2, tokens, M]."""
    return x.reshape(*x.shape[:2], -1, like.shape[3], x.shape[-1])


def _join(diagonal, corner):
    """[[A, 0], [B, C]] of every two blocks A and C [B, N, blocks, m, m] of a diagonal."""
    a, c = _split(diagonal)
    return jnp.block([[a, jnp.zeros_like(a)], [corner, c]])
