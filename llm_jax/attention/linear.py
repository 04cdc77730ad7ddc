"""Linear attention by feature maps: elu + 1 (Katharopoulos), random features (Performer)."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.recurrent import CHUNK, repeat, sum_of_products
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, H]: f(q) sum f(k) v^T / f(q) sum f(k), with f(x) = elu(x) + 1.

    Katharopoulos 2020, https://arxiv.org/abs/2006.16236, sections 3.2 and 3.3.

    Args:
      state: [B, N, H, H + 1], the two sums over what came before; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    f = lambda x: jax.nn.elu(x) + 1
    query, key = query.astype(jnp.float32), repeat(key, query.shape[2])
    return ratio(f(query), f(key), value, mask, state, valid)


def attend_performer(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, random_features: int, decided: Array, state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Returns `attend` with f(x) = exp(w x - |x|^2 / 2), x scaled: softmax attention, on average.

    FAVOR+ (Choromanski 2021, https://arxiv.org/abs/2009.14794, lemma 1 and section 2.4):
    positive features along orthogonal random directions w.

    Args:
      decided: [H, M], the directions; drawn again each training step.
    """
    N, H = query.shape[2:]
    root = (H**-0.5 if scoring.scale is None else scoring.scale) ** 0.5

    def f(x, axes):
        x = x * root
        z = x @ decided - jnp.square(x).sum(-1, keepdims=True) / 2
        # What all features of a query share cancels; of keys only what all keys share would,
        # which a later key must not decide.
        return jnp.exp(z - jax.lax.stop_gradient(z.max(axes, keepdims=True)) if axes else z)

    query, key = query.astype(jnp.float32), repeat(key, N)
    return ratio(f(query, -1), f(key, ()), value, mask, state, valid)


def directions(query: Array, key: Array, random_features: int) -> Array:
    """Returns [H, M]: Gaussian vectors, each H of them orthogonal (section 2.4)."""
    H = query.shape[-1]
    blocks = -(-random_features // H)
    square, length = jax.random.split(key)
    turns = jnp.linalg.qr(jax.random.normal(square, (blocks, H, H)))[0]
    lengths = jnp.linalg.norm(jax.random.normal(length, (blocks, H, H)), axis=-1)
    rows = (turns * lengths[..., None]).reshape(blocks * H, H)
    return rows[:random_features].T


def ratio(
    query: Array, key: Array, value: Array, mask: Mask, state: Array | None, valid: Array | None
) -> Array | tuple[Array, Array]:
    """Returns query (sum key value^T) / query (sum key), [B, T, N, H], of features [B, T, N, M]."""
    dtype, value = value.dtype, repeat(value, query.shape[2])
    value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    if mask.causal:
        y, state_after = sum_of_products(query, key, value, mask, state=state, valid=valid)
    elif mask.query_segments is None:
        y = jnp.einsum("btnm,bnmv->btnv", query, jnp.einsum("bsnm,bsnv->bnmv", key, value))
    else:
        y = _both_ways(query, key, value, mask)
    y = (y[..., :-1] / (y[..., -1:] + 1e-30)).astype(dtype)
    return y if state is None else (y, state_after)


def _both_ways(query, key, value, mask):
    """What came before each token, itself included, plus what comes after it."""
    before, _ = sum_of_products(query, key, value, mask)
    flip = lambda x: x[:, ::-1]
    after, _ = sum_of_products(flip(query), flip(key), flip(value), Mask(flip(mask.query_segments)))
    itself = jnp.sum(query * key, axis=-1, keepdims=True) * value
    return before + flip(after) - itself


def _state(N, K, H, random_features=None):
    return N, random_features or H, H + 1


VARIANT = Variant(
    attend,
    supports=able("causal bidirectional packing cache grouped weights"),
    flops=lambda T, S, N, H: 4 * T * N * H * (H + min(T, CHUNK)),
    memory=lambda T, S, N, H: T * N * H,
    source="Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236",
    state=_state,
)
PERFORMER = Variant(
    attend_performer,
    supports=VARIANT.supports,
    flops=lambda T, S, N, H, random_features: (
        T * N * (8 * H * random_features + 2 * min(T, CHUNK) * (H + random_features))
    ),
    memory=lambda T, S, N, H, random_features: 2 * T * N * random_features,
    source="Choromanski et al. 2021, https://arxiv.org/abs/2009.14794",
    reads=("random_features",),
    decide=directions,
    state=_state,
)
