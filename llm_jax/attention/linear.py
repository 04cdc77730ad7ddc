"""Linear attention, with feature maps or a decaying state.

Feature maps: elu + 1, random features (Performer), Taylor expansion (Based) or squares (ReBased).
RetNet, simple GLA, GLA and HGRN2 differ in the decay of the state.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, layer_norm, rms_norm
from llm_jax.attention.recurrent import CHUNK, head_norm, repeat, sum_of_products
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Linear attention [B, T, N, H]: f(q) sum f(k) v^T / f(q) sum f(k), f(x) = elu(x) + 1.

    Katharopoulos 2020, https://arxiv.org/abs/2006.16236, sections 3.2 and 3.3.

    Args:
      state: [B, N, H, H + 1], the two sums over previous tokens; the final ones are returned too.
    """
    f = lambda x: jax.nn.elu(x) + 1
    return ratio(f, f, query, key, value, mask, state, valid)


def attend_performer(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, random_features: int, decided: Array, state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Performer: `attend` with f(x) = exp(w x - |x|^2 / 2), an unbiased estimate of softmax.

    FAVOR+ (Choromanski 2021, https://arxiv.org/abs/2009.14794, lemma 1 and section 2.4):
    positive features of scaled x along orthogonal random directions w.

    Args:
      decided: [H, M], the directions; redrawn in each training step.
    """
    root = scoring.factor(query.shape[-1]) ** 0.5

    def f(x, axes):
        x = x * root
        z = x @ decided - jnp.square(x).sum(-1, keepdims=True) / 2
        # A factor common to a query's features cancels. For keys, only a factor common to all keys
        # would, and it must not depend on later keys.
        return jnp.exp(z - jax.lax.stop_gradient(z.max(axes, keepdims=True)) if axes else z)

    of_query, of_key = (lambda x: f(x, -1)), (lambda x: f(x, ()))
    return ratio(of_query, of_key, query, key, value, mask, state, valid)


def directions(query: Array, key: Array, random_features: int) -> Array:
    """Returns Gaussian directions [H, M], orthogonal in groups of H (section 2.4)."""
    H = query.shape[-1]
    blocks = -(-random_features // H)
    square, length = jax.random.split(key)
    turns = jnp.linalg.qr(jax.random.normal(square, (blocks, H, H)))[0]
    lengths = jnp.linalg.norm(jax.random.normal(length, (blocks, H, H)), axis=-1)
    rows = (turns * lengths[..., None]).reshape(blocks * H, H)
    return rows[:random_features].T


def attend_based(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Based: `attend` with f(q) f(k) = 1 + z + z^2 / 2, z = scale q k, exp(z) to second order.

    Arora 2024, https://arxiv.org/abs/2402.18668, section 4.1. Meant for keys of about 16 channels:
    there are 1 + H + H (H + 1) / 2 features.
    """
    root = scoring.factor(query.shape[-1]) ** 0.5

    def f(x):
        x = x * root
        return jnp.concatenate([jnp.ones_like(x[..., :1]), x, squares(x) / 2**0.5], axis=-1)

    return ratio(f, f, query, key, value, mask, state, valid, 1e-6)


def attend_rebased(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, gamma: Array, beta: Array, state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """ReBased: `attend` with f(q) f(k) = (scale g(q) g(k))^2, g(x) = gamma norm(x) + beta.

    Aksenov 2024, https://arxiv.org/abs/2402.10644, section 3; gamma and beta [H] are learned.
    """
    root = scoring.factor(query.shape[-1]) ** 0.5
    f = lambda x: squares(layer_norm(x, gamma, beta, EPSILON) * root)
    return ratio(f, f, query, key, value, mask, state, valid, 1e-6)


def squares(x: Array) -> Array:
    """Returns features [..., H (H + 1) / 2] whose inner products are squares of those of x."""
    rows, columns = jnp.tril_indices(x.shape[-1])
    return x[..., rows] * x[..., columns] * jnp.where(rows == columns, 1, 2**0.5)


def ratio(
    of_query: Callable[[Array], Array], of_key: Callable[[Array], Array], query: Array, key: Array,
    value: Array, mask: Mask, state: Array | None, valid: Array | None, least: float = 1e-30,
) -> Array | tuple[Array, Array]:
    """Returns q (sum k value^T) / (q (sum k) + least), for features q and k [B, T, N, M]."""
    N, dtype = query.shape[2], value.dtype
    query, key = of_query(query.astype(jnp.float32)), of_key(repeat(key, N))
    value = repeat(value, N)
    value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    if mask.causal:
        y, state_after = sum_of_products(query, key, value, mask, state=state, valid=valid)
    elif mask.query_segments is None:
        y = jnp.einsum("btnm,bnmv->btnv", query, jnp.einsum("bsnm,bsnv->bnmv", key, value))
    else:
        y = _both_ways(query, key, value, mask)
    y = (y[..., :-1] / (y[..., -1:] + least)).astype(dtype)
    return y if state is None else (y, state_after)


def _both_ways(query, key, value, mask):
    """Bidirectional sums: over all tokens up to each token, plus those after it."""
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


def _squared(first):
    """Costs of feature maps with squares: `first` features before them."""
    M = lambda H: H * (H + 1) // 2 + first(H)
    return dict(
        flops=lambda T, S, N, H, value_dim: (
            2 * T * N * (2 * M(H) * value_dim + min(T, CHUNK) * (M(H) + value_dim))
        ),
        memory=lambda T, S, N, H, value_dim: 2 * T * N * M(H),
        reads=("value_dim",),
        state=lambda N, K, H, value_dim: (N, M(H), value_dim + 1),
    )


BASED = dataclasses.replace(
    VARIANT,
    attend=attend_based,
    source="Arora et al. 2024, https://arxiv.org/abs/2402.18668",
    **_squared(lambda H: 1 + H),
)
REBASED = dataclasses.replace(
    VARIANT,
    attend=attend_rebased,
    source="Aksenov et al. 2024, https://arxiv.org/abs/2402.10644",
    weights=lambda N, K, H, value_dim: {
        "gamma": Weight((H,), ("kv",), jax.nn.initializers.ones),
        "beta": Weight((H,), ("kv",)),
    },
    **_squared(lambda H: 0),
)


def attend_gated(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, decay: Array, norm: Array, state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Gated linear attention [B, T, N, V]: RMSNorm(scale q_t S_t), S_t = a_t S_(t-1) + k_t v_t^T.

    Section 4 of GLA (Yang 2024, https://arxiv.org/abs/2312.06635), a = sigmoid(decay)^(1/16). With
    one decay per head it is simple GLA, `gated_linear`.

    Args:
      decay: [B, T, N, H], or [B, T, N].
      norm: [V], scale of the per-head RMSNorm.
      state: [B, N, H, V], initial state; the final state is returned with the output.
    """
    log_decay = jax.nn.log_sigmoid(decay.astype(jnp.float32)) / 16
    return _gated(query, key, value, log_decay, norm, mask, scoring, state, valid)


def attend_retnet(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Retention: `attend_gated` with decay 1 - 2^(-5 - n) in head n, and a norm without scale.

    RetNet (Sun 2023, https://arxiv.org/abs/2307.08621, section 2.2), with rotary positions.
    """
    log_decay = jnp.log1p(-jnp.exp2(-5.0 - jnp.arange(query.shape[2])))
    log_decay = jnp.broadcast_to(log_decay, query.shape[:3])
    return _gated(query, key, value, log_decay, None, mask, scoring, state, valid)


def attend_hgrn2(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, norm: Array, forget_floor: float, state: Array | None = None, valid: Array | None = None,
    **_,
) -> Array | tuple[Array, Array]:
    """HGRN2: `attend_gated` with decay f = floor + (1 - floor) sigmoid(key), and key 1 - f.

    Qin 2024, https://arxiv.org/abs/2404.07904, section 3.3. The paper learns lower bounds that
    rise with depth; here each is a setting of its layer. SiLU is applied to queries.
    """
    key = key.astype(jnp.float32)
    log_decay = jax.nn.log_sigmoid(key)
    if forget_floor:
        log_decay = jnp.logaddexp(math.log(forget_floor), math.log1p(-forget_floor) + log_decay)
    log_decay = repeat(log_decay, query.shape[2])
    key = (1 - forget_floor) * jax.nn.sigmoid(-key)
    query = jax.nn.silu(query.astype(jnp.float32))
    return _gated(query, key, value, log_decay, norm, mask, scoring, state, valid)


def _gated(query, key, value, log_decay, norm, mask, scoring, state, valid):
    N, H = query.shape[2:]
    query = query.astype(jnp.float32) * scoring.factor(H)
    arrays = query, repeat(key, N), repeat(value, N)
    y, after = sum_of_products(*arrays, mask, log_decay, state, valid)
    y = rms_norm(y, norm, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


def _apart(T, S, N, H, value_dim, **_):
    """FLOPs with decays per channel, where scores are computed for visible pairs only."""
    return T * N * (4 * H * value_dim + min(T, CHUNK) * (H + 2 * value_dim))


GATED_LINEAR = Variant(
    attend_gated,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, value_dim: (
        T * N * (4 * H * value_dim + 2 * min(T, CHUNK) * (H + value_dim))
    ),
    memory=lambda T, S, N, H, value_dim, **_: T * N * max(H, value_dim),
    source="Yang et al. 2024, https://arxiv.org/abs/2312.06635",
    reads=("value_dim",),
    weights=head_norm,
    projections=lambda N, K, H, value_dim: {"decay": Projection((N,), ("heads",), bias=3.0)},
    state=lambda N, K, H, value_dim, **_: (N, H, value_dim),
    gate=jax.nn.silu,
)
GLA = dataclasses.replace(
    GATED_LINEAR,
    flops=_apart,
    projections=lambda N, K, H, value_dim: {
        "decay": Projection((N, H), ("heads", "kv"), bias=3.0, rank=16)
    },
)
RETNET = dataclasses.replace(
    GATED_LINEAR,
    attend=attend_retnet,
    source="Sun et al. 2023, https://arxiv.org/abs/2307.08621",
    weights=lambda N, K, H, value_dim: {},
    projections=lambda N, K, H, value_dim: {},
)
HGRN2 = dataclasses.replace(
    GATED_LINEAR,
    attend=attend_hgrn2,
    flops=_apart,
    source="Qin et al. 2024, https://arxiv.org/abs/2404.07904",
    reads=("value_dim", "forget_floor"),
    projections=lambda N, K, H, **_: {},
)
