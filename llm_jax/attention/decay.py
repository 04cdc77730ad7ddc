"""Cumulative decays of a recurrent state within a chunk of tokens; every decay is at most 1.

The chunkwise form of S_t = a_t S_(t-1) + … needs the products of all a between two tokens. Ratios
of cumulative products overflow for small a, and differences of cumulative logs lose precision after
a strong decay. Here each product is a sum of log decays over recursively halved blocks: from the
earlier token up to the boundary between two halves, and from there to the later token (secondary
chunking, section 4.3 of Yang 2024, https://arxiv.org/abs/2312.06635, down to single tokens).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Decays(NamedTuple):
    """Decays between the tokens of a chunk and between them and the state.

    M is the number of channels, or 1 if all channels share a decay.
    """

    pairs: Array  # bool [B, 1, c, c]: column's token is not later, and in the same segment
    within: Array | None  # [B, N, c, c], from column to row token; None: decays differ by channel
    halves: list[tuple[Array, Array]]  # log decays, see `_halves`
    arriving: Array  # [B, N, c, M], from the state before the chunk to each token
    leaving: Array  # [B, N, c, M], from each token to the state after the chunk
    through: Array  # [B, N, M, 1], from the state before to the state after the chunk

    def scores(self, query: Array, key: Array) -> Array:
        """Returns scores [B, N, c, c], sum_m q_im k_jm decay_ijm for visible pairs, else 0."""
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
        """Returns [B, N, c, M], sum_j weights_ij decay_ijm v_jm, with decays of value channels."""
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
    """Computes the decays of a chunk of c tokens, a power of two.

    Args:
      log_decay: [B, N, c, M], at most 0; None: no decay.
      segments: [B, c].
      before: [B], the segment of the incoming state.
      strict: a token reads the state before its own decay and update.
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
    """Partial sums of x [B, N, c, M] over pairs of blocks of 1, 2, 4 … tokens.

    Returns a list of (until, since), each [B, N, blocks / 2, tokens, M]: for later blocks, the sums
    from their start through each token (strict: before it); for earlier blocks, the sums after each
    token to their end. Also returns both for the whole chunk [B, N, c, M], and its sum
    [B, N, 1, M].
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
    """Returns the even and the odd blocks of [B, N, blocks, ...]."""
    return x[:, :, ::2], x[:, :, 1::2]


def _blocks(x, like):
    """Reshapes tokens [B, N, c, M] to blocks as long as those of [B, N, blocks / 2, tokens, M]."""
    return x.reshape(*x.shape[:2], -1, like.shape[3], x.shape[-1])


def _join(diagonal, corner):
    """Returns [[A, 0], [B, C]] for each pair of diagonal blocks A, C of [B, N, blocks, m, m]."""
    a, c = _split(diagonal)
    return jnp.block([[a, jnp.zeros_like(a)], [corner, c]])
