"""LSH attention: locality-sensitive hashing selects similar tokens (Reformer; Kitaev 2020, 2).

Queries are also the keys. Each hash round sorts the tokens by bucket and splits them into chunks; a
query attends to its own chunk and the previous one. As in the authors' published models, tokens of
a chunk attend to each other regardless of bucket, and a key found in two rounds counts twice.

A causal mask hides later keys, but not their effect on the sort: the number of later tokens in
lower buckets shifts chunk boundaries, and so changes which earlier keys a token attends to. Only
chunks within buckets would avoid this leak; the published models do not use them.
"""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import HIDDEN, PLAIN, Scoring
from llm_jax.attention.variant import Variant, able

ITSELF = -1e5  # above HIDDEN: a token attends to itself only if no other key is visible


def attend(
    query: Array, key: Array | None, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, decided: Array | None = None, lsh_chunk: int = 64, lsh_hashes: int = 1,
    lsh_buckets: tuple[int, ...] = (),
) -> Array:
    """LSH attention: sum over rounds r of softmax_r(z_r) o_r (section 2, appendix A).

    o_r is the attention output within the chunks of round r and z_r its log normaliser. Sequences
    of at most one chunk use full attention, as a single bucket would. Longer ones are padded to
    whole chunks. As in the published models, the first chunk of a round attends to the last chunk
    of the previous round, so that padding can affect its output.

    Args:
      query: [B, T, N, H]; scaled to norm sqrt(H), also the keys.
      key: unused.
      value: [B, T, K, H], K divides N.
      mask: segments are sorted separately, padding last: a token's keys depend on the offset of its
        segment in the row, but not on other segments.
      decided: [B, N, R, T], the bucket of each token in each round; None: computed here.
      lsh_chunk, lsh_hashes, lsh_buckets: see `assign`.
      scoring: scale and dropout; bias, soft cap and sinks are not supported.
    """
    if scoring.asked - {"dropout"} or not mask.whole:
        raise ValueError("attention 'lsh' does not support a bias, prefix or cache: set "
                         "model.attention=dense")
    B, T, N, H = query.shape
    if decided is None:
        decided = assign(query, jax.random.key(0), lsh_chunk, lsh_hashes, lsh_buckets)
    size = min(lsh_chunk, T)
    L = -(-T // size) * size
    segments_BL = mask.query_segments
    if L > T and segments_BL is None:
        segments_BL = jnp.ones((1, T), jnp.int32)
    if segments_BL is not None:
        segments_BL = jnp.pad(segments_BL, [(0, 0), (0, L - T)])
    buckets_BNRL = jnp.pad(decided.astype(jnp.int32), [(0, 0)] * 3 + [(0, L - T)])
    order_BNRL = _sort(buckets_BNRL, segments_BL)

    def sort(x):  # [B, T, N, H] -> [B, N, C, c, H]: C chunks of c tokens, of all rounds
        x = jnp.pad(x, [(0, 0), (0, L - T), (0, 0), (0, 0)]).swapaxes(1, 2)
        return _chunks(_pick(x[:, :, None], order_BNRL), size)

    q_BNCcH, v_BNCcH = sort(query), sort(jnp.repeat(value, N // value.shape[2], axis=2))
    place_BNCc = _chunks(order_BNRL, size)
    ours, theirs = place_BNCc[..., :, None], _with_previous(place_BNCc)[..., None, :]
    visible = mask.near(ours, theirs)
    if segments_BL is not None:
        segment = _chunks(_pick(segments_BL[:, None, None], order_BNRL), size)
        visible = visible & (segment[..., :, None] == _with_previous(segment)[..., None, :])
    y, total = _within_chunks(q_BNCcH, v_BNCcH, visible, ours == theirs, scoring)

    undo_BNRL = jnp.argsort(order_BNRL, axis=-1)
    y_BNRLH, total_BNRL1 = (_pick(x.reshape(*undo_BNRL.shape, -1), undo_BNRL) for x in (y, total))
    # Not jax.nn.softmax, which rounds differently from the published models near ITSELF, where the
    # float32 spacing is 1/128.
    share = jnp.exp(total_BNRL1 - jax.nn.logsumexp(total_BNRL1, axis=2, keepdims=True))
    y_BNLH = jnp.sum(y_BNRLH * share.astype(y.dtype), axis=2)
    return y_BNLH[:, :, :T].swapaxes(1, 2)


def _sort(buckets_BNRL, segments_BL):
    """Token order [B, N, R, L] by segment (padding last), bucket and position."""
    if segments_BL is None:
        return jnp.argsort(buckets_BNRL, axis=-1, stable=True)
    segment = jnp.where(segments_BL == 0, jnp.iinfo(jnp.int32).max, segments_BL)[:, None, None]
    return jnp.lexsort((buckets_BNRL, jnp.broadcast_to(segment, buckets_BNRL.shape)))


def _pick(x, index_BNRL):
    """x [B, N or 1, R or 1, L, ...] -> [B, N, R, L, ...]."""
    index = index_BNRL.reshape(index_BNRL.shape + (1,) * (x.ndim - 4))
    return jnp.take_along_axis(x, index, axis=3)


def _chunks(x, size):
    """[B, N, R, L, ...] -> [B, N, C, c, ...]."""
    return x.reshape(*x.shape[:2], -1, size, *x.shape[4:])


def _with_previous(x):
    """[B, N, C, c, ...] -> [B, N, C, 2 c, ...]; the last chunk precedes the first."""
    return x if x.shape[2] == 1 else jnp.concatenate([jnp.roll(x, 1, axis=2), x], axis=3)


def _within_chunks(q_BNCcH, v_BNCcH, visible, itself, scoring):
    """Returns output [B, N, C, c, H], log normaliser [B, N, C, c, 1]; masks [B, N, C, c, 2 c]."""
    H = q_BNCcH.shape[-1]
    scale = scoring.factor(H)
    k = q_BNCcH.astype(jnp.float32)
    k = k * jax.lax.rsqrt(jnp.square(k).mean(-1, keepdims=True) + 1e-6) * scale
    keys = _with_previous(k.astype(q_BNCcH.dtype))
    scores = jnp.einsum("bncih,bncjh->bncij", q_BNCcH, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(visible, scores, HIDDEN)
    scores = jnp.where(itself, ITSELF, scores)
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    weights = scoring.drop(jnp.exp(scores - total)).astype(v_BNCcH.dtype)
    return jnp.einsum("bncij,bncjh->bncih", weights, _with_previous(v_BNCcH)), total


def assign(
    query: Array, random: Array, lsh_chunk: int = 64, lsh_hashes: int = 1,
    lsh_buckets: tuple[int, ...] = (),
) -> Array:
    """Returns the LSH bucket of each query [B, T, N, H] in each round, [B, N, R, T] uint16.

    Bucket: argmax of [x R; -x R], for random R [H, buckets / 2] (section 2, "Locality sensitive
    hashing"). With several factors, each has its own R, and their combinations are the buckets.

    Args:
      random: a key, or the rotations [N, H, rounds, sum of factors / 2].
      lsh_chunk: chunk length; sequences up to this length have one round and one bucket.
      lsh_hashes: number of rounds.
      lsh_buckets: even factors of the number of buckets; (): from the length, see `factors`.
    """
    B, T, N, H = query.shape
    if T <= lsh_chunk:
        return jnp.zeros((B, N, 1, T), jnp.uint16)
    parts = tuple(lsh_buckets) or factors(T, lsh_chunk)
    if jnp.issubdtype(random.dtype, jax.dtypes.prng_key):
        random = jax.random.normal(random, (N, H, lsh_hashes, sum(parts) // 2))
    query = jax.lax.stop_gradient(query).astype(jnp.float32)
    rotated = jnp.einsum("btnh,nhrf->bnrtf", query, random)
    bucket, start, stride = 0, 0, 1
    for part in parts:
        x = rotated[..., start : start + part // 2]
        bucket += stride * jnp.argmax(jnp.concatenate([x, -x], axis=-1), axis=-1)
        start, stride = start + part // 2, stride * part
    return bucket.astype(jnp.uint16)


def factors(length: int, chunk: int) -> tuple[int, ...]:
    """Returns the largest power of two <= 2 length / chunk, as two factors if above 2 chunk.

    There are about two buckets per chunk; rotations cost the sum of the factors per token.
    """
    bits = (2 * -(-length // chunk)).bit_length() - 1
    if 2**bits <= 2 * chunk:
        return (2**bits,)
    return 2 ** (bits // 2), 2 ** (bits - bits // 2)


def pairs(T: int, lsh_chunk: int = 64, lsh_hashes: int = 1, lsh_buckets: tuple = ()) -> int:
    """Number of query-key pairs that LSH attention computes."""
    return T * T if T <= lsh_chunk else lsh_hashes * T * 2 * lsh_chunk


VARIANT = Variant(
    attend,
    supports=able("causal bidirectional packing dropout grouped weights"),
    flops=lambda T, S, N, H, **lsh: 4 * pairs(T, **lsh) * N * H,
    memory=lambda T, S, N, H, **lsh: pairs(T, **lsh) * N,
    source="Kitaev et al. 2020, https://arxiv.org/abs/2001.04451, section 2",
    reads=("lsh_chunk", "lsh_hashes", "lsh_buckets"),
    decide=assign,
    shared_qk=True,
    leaks="the earlier tokens that a token attends to depend on later ones of its document, since "
    "hashing sorts all of them; its loss is not that of a strictly causal model",
)
