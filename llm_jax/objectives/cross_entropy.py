"""Chunked softmax cross-entropy, which does not materialise the logits of a whole batch.

Logits are computed for a chunk of positions or, on a mesh, for a piece of the vocabulary at a time.
With chunks of positions, a mesh would gather the output matrix, and all-reduce its gradient [V, D],
for each chunk; with pieces, each row is gathered twice, for the losses and for the gradients, and
its gradient is reduced once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from ml_collections import ConfigDict

from llm_jax.models import Outputs
from llm_jax.models.layers import annotate

# Logits per device at a time: 32 MB of float32, or those of 1,024 tokens if that is more, so that
# matrix products are large enough to be efficient.
BYTES, TOKENS = 2**25, 1024
# The same for pieces of the vocabulary.
PIECE = 2**28
HIDDEN = -1e30  # logit of the padding of the last piece


class Tokens(NamedTuple):
    """Statistics of the logits of tokens [B, T] for the loss; the first three have gradients."""

    log_normaliser: Array  # z = logsumexp(logits)
    target: Array  # logits[target]
    mean: Array  # of the logits
    correct: Array  # whether the target is the (first) argmax

    def losses(self, label_smoothing: float, z_loss: float) -> Array:
        """z - (1 - a) logits[target] - a mean(logits) + b z^2, a and b as in `cross_entropy`."""
        z, a, b = self.log_normaliser, label_smoothing, z_loss
        return z - (1 - a) * self.target - a * self.mean + b * z * z


def token_losses(
    hidden: Array, output_matrix: Array, targets: Array,
    *, bias: Array | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0, chunk: int = 0,
    pieces: int = 0, softcap: float | None = None,
) -> Array:
    """Returns the loss of each token [B, T] in nats, in float32; arguments as in `cross_entropy`.

    Differentiable in hidden, matrix and bias, for any function of the losses. The backward pass
    recomputes the logits, unlike `cross_entropy`.
    """
    params = hidden, output_matrix, bias
    layout = _layout(hidden, output_matrix, chunk, pieces, label_smoothing, softcap)
    return _tokens(params, targets, layout).losses(label_smoothing, z_loss)


def cross_entropy(
    hidden: Array, output_matrix: Array, targets: Array, weights: Array,
    *, bias: Array | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0, chunk: int = 0,
    pieces: int = 0, counted: Array | None = None, softcap: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Returns the weighted sum of token losses, and sums for metrics.

    With logits = hidden output_matrix^T + bias and z = logsumexp(logits), a token's loss is
    z - (1 - a) logits[target] - a mean(logits) + b z^2, a = label_smoothing, b = z_loss. All
    results are differentiable in hidden, output_matrix, bias and weights. On one device, the
    gradient of the loss is computed in the forward pass, to compute the logits only once.

    Args:
      hidden: [B, T, D]; matrix products use its dtype and accumulate in float32.
      output_matrix: [V, D].
      targets: [B, T] int.
      weights: [B, T]; 0 excludes a token.
      bias: [V].
      label_smoothing: probability mass spread uniformly over the vocabulary.
      z_loss: coefficient of z^2 (PaLM, arXiv 2204.02311, section 5).
      chunk: number of positions per chunk of the length axis; 0: automatic.
      pieces: number of pieces of the vocabulary; 0: automatic, 1: the whole.
      counted: [B, T], weights of tokens in `correct`; None: those of the loss.
      softcap: c of soft-capped logits c tanh(l / c) (Gemma 2, 2024, section 2); None: no cap.

    Returns:
      The loss, and a dict of weighted sums over tokens: loss (in nats, without smoothing and
      z-loss), z_loss, correct (the target is the argmax), weight.
    """
    weights = weights.astype(jnp.float32)
    params = hidden, output_matrix, bias
    layout = _layout(hidden, output_matrix, chunk, pieces, label_smoothing, softcap)
    if layout.pieces > 1:
        tokens = _tokens(params, targets, layout)
        total = (weights * tokens.losses(label_smoothing, z_loss)).sum()
    else:
        total, tokens = _fused(params, targets, weights, label_smoothing, z_loss, layout)
    z = tokens.log_normaliser
    reported = {
        "loss": z - tokens.target,
        "z_loss": z_loss * z * z,
        "correct": tokens.correct,
        "weight": jnp.ones_like(z),
    }
    sums = {name: (weights * x).sum() for name, x in reported.items()}
    return total, sums | ({} if counted is None else {"correct": (counted * tokens.correct).sum()})


def of_outputs(
    outputs: Outputs, targets: Array, weights: Array, cfg: ConfigDict, counted: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """Returns `cross_entropy` for a model's outputs; cfg: config.objective."""
    return cross_entropy(
        outputs.hidden, outputs.matrix, targets, weights, bias=outputs.bias, counted=counted,
        label_smoothing=cfg.label_smoothing, z_loss=cfg.z_loss, softcap=outputs.softcap,
    )  # fmt: skip


def chunk_length(B: int, T: int, V: int) -> int:
    """Returns the number of positions per chunk."""
    devices = max(1, jax.sharding.get_abstract_mesh().size)  # logits are sharded over all devices
    tokens = max(BYTES // (4 * V), TOKENS) * devices
    return max(1, min(T, tokens // B))


def piece_count(B: int, T: int, V: int) -> int:
    """Returns the number of vocabulary pieces: 1 on a single device, or if there are few logits."""
    devices = jax.sharding.get_abstract_mesh().size
    if devices <= 1 or chunk_length(B, T, V) >= T:
        return 1
    least = -(-4 * B * T * V // (devices * PIECE))
    # A divisor of the vocabulary needs no padding.
    return next((n for n in range(least, min(2 * least, V) + 1) if V % n == 0), least)


class _Layout(NamedTuple):
    """Chunking: positions per chunk and vocabulary pieces; at least one is not split."""

    chunk: int
    pieces: int
    mean: bool  # whether the mean of the logits is needed
    softcap: float | None


def _layout(hidden, output_matrix, chunk, pieces, label_smoothing, softcap) -> _Layout:
    B, T, V = *hidden.shape[:2], len(output_matrix)
    pieces = pieces or (1 if chunk else piece_count(B, T, V))
    chunk = T if pieces > 1 else chunk or chunk_length(B, T, V)
    return _Layout(chunk, pieces, label_smoothing > 0, softcap)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tokens(params, targets, layout) -> Tokens:
    hidden, matrix, bias = params
    look = lambda hidden, targets: (_look((hidden, matrix, bias), targets, layout), ())
    return _by_chunks(look, (hidden, targets), layout.chunk)[0]


def _tokens_forward(params, targets, layout):
    tokens = _tokens(params, targets, layout)
    return tokens, (params, targets, tokens.log_normaliser)


def _tokens_backward(layout, kept, grads: Tokens):
    (hidden, matrix, bias), targets, z = kept

    def learn(hidden, *arrays):
        return _learn((hidden, matrix, bias), *arrays, layout)

    arrays = hidden, targets, z, grads.log_normaliser, grads.target, grads.mean
    d_hidden, d_rest = _by_chunks(learn, arrays, layout.chunk)
    return _like((d_hidden, *d_rest), (hidden, matrix, bias)), None


_tokens.defvjp(_tokens_forward, _tokens_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _fused(params, targets, weights, label_smoothing, z_loss, layout) -> tuple[Array, Tokens]:
    """Returns the weighted sum and its Tokens; gradients are computed in the forward pass."""
    tokens = _tokens(params, targets, layout)
    return (weights * tokens.losses(label_smoothing, z_loss)).sum(), tokens


def _fused_forward(params, targets, weights, label_smoothing, z_loss, layout):
    params, targets, weights = jax.tree.map(lambda p: p.value, (params, targets, weights))
    hidden, matrix, bias = params

    def both(hidden, targets, weights):
        arrays = (hidden, matrix, bias), targets
        tokens = _look(*arrays, layout)
        z, a, b = tokens.log_normaliser, label_smoothing, z_loss
        losses = tokens.losses(a, b)
        slopes = weights * (1 + 2 * b * z), (a - 1) * weights, -a * weights
        d_hidden, sums = _learn(*arrays, z, *slopes, layout)
        return (tokens, losses, d_hidden), ((weights * losses).sum(), sums)

    arrays = hidden, targets, weights
    (tokens, losses, d_hidden), (total, d_rest) = _by_chunks(both, arrays, layout.chunk)
    grads = _like((d_hidden, *d_rest), params)
    return (total, tokens), (grads, losses, params, targets, tokens.log_normaliser)


def _fused_backward(label_smoothing, z_loss, layout, kept, cotangents):
    grads, losses, params, targets, z = kept
    g_total, g_tokens = cotangents
    zero = lambda x: isinstance(x, SymbolicZero)
    if zero(g_total):
        g_total = jnp.zeros(())
    d_params = jax.tree.map(lambda x: (g_total * x).astype(x.dtype), grads)
    if not all(map(zero, g_tokens[:3])):  # a metric is differentiated too
        g_tokens = Tokens(*(jnp.zeros_like(z) if zero(g) else g for g in g_tokens))
        d_reported, _ = _tokens_backward(layout, (params, targets, z), g_tokens)
        d_params = jax.tree.map(jnp.add, d_params, d_reported)
    return d_params, None, g_total * losses


_fused.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)


def _like(grads, params):
    return jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params)


def _by_chunks(f: Callable, arrays: tuple[Array, ...], chunk: int) -> tuple[Any, Any]:
    """Applies f by chunks of positions: (arrays [B, t, ...]) -> (arrays [B, t, ...], sums)."""
    T = arrays[0].shape[1]
    count = -(-T // chunk)
    if count == 1:
        return f(*arrays)
    chunk = -(-T // count)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, count * chunk - T), *[(0, 0)] * (x.ndim - 2)])
    arrays = tuple(map(pad, arrays))

    def body(totals, index):
        # Slice the length axis only: the batch axis stays sharded.
        part, sums = f(*(lax.dynamic_slice_in_dim(x, index * chunk, chunk, 1) for x in arrays))
        return jax.tree.map(jnp.add, totals, sums), part

    _, shapes = jax.eval_shape(f, *(x[:, :chunk] for x in arrays))
    totals, parts = lax.scan(body, jax.tree.map(jnp.zeros_like, shapes), jnp.arange(count))
    join = lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :T]
    return jax.tree.map(join, parts), totals


def _by_pieces(f: Callable, carry: Any, params: tuple, layout: _Layout) -> tuple[Any, Any]:
    """Scans vocabulary pieces: carry, out = f(carry, logits of a piece, its matrix, its ids [v]).

    Returns the final carry, and the outputs [v, ...] for the whole vocabulary.
    """
    hidden, matrix, bias = params
    V, count, cap = len(matrix), layout.pieces, layout.softcap
    rows = -(-V // count)

    def cut(x):
        # Strided, so that each piece is sharded like the whole.
        x = jnp.pad(x, [(0, rows * count - V), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(rows, count, *x.shape[1:]).swapaxes(0, 1)

    def one(carry, part):
        index, matrix, bias = part
        if count > 1:
            matrix = annotate(matrix, "vocab", "activation_embed")
        logits = jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        words = index + count * jnp.arange(rows)
        logits = logits if rows * count == V else jnp.where(words < V, logits, HIDDEN)
        return f(carry, logits, matrix, words)

    matrix = matrix.astype(hidden.dtype)
    if count == 1:
        return one(carry, (0, matrix, bias))
    parts = jax.tree.map(cut, (matrix, bias))
    carry, out = lax.scan(one, carry, (jnp.arange(count), *parts))
    return carry, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:V], out)


def _look(params, targets, layout) -> Tokens:
    """Forward pass over the whole vocabulary."""
    V = len(params[1])

    def look(carry, logits, _, words):
        largest, first, total, hit, mean = carry
        here = logits.max(-1)
        new = jnp.maximum(largest, here)
        # The first argmax; comparisons are local if the vocabulary is sharded.
        word = jnp.where(logits == here[..., None], words, V).min(-1)
        word = jnp.where(here == largest, jnp.minimum(word, first), word)
        first = jnp.where(here < largest, first, word)
        total = total * jnp.exp(largest - new) + jnp.exp(logits - new[..., None]).sum(-1)
        hit += jnp.where(targets[..., None] == words, logits, 0).sum(-1)
        if layout.mean:
            mean += jnp.where(words < V, logits, 0).sum(-1) / V
        return (new, first, total, hit, mean), ()

    zeros = jnp.zeros(targets.shape)
    start = zeros + 2 * HIDDEN, jnp.full(targets.shape, V), zeros, zeros, zeros
    (largest, first, total, hit, mean), _ = _by_pieces(look, start, params, layout)
    return Tokens(largest + jnp.log(total), hit, mean, (first == targets).astype(jnp.float32))


def _learn(params, targets, z, d_z, d_target, d_mean, layout) -> tuple[Array, tuple]:
    """Backward pass: gradients of hidden, and of matrix and bias, in float32."""
    hidden, matrix, bias = params
    V = len(matrix)
    # XLA for CPUs transposes all of the logits' gradient where [B, T] are not one axis. On a mesh
    # they can be sharded differently.
    one_device = jax.sharding.get_abstract_mesh().size <= 1

    def learn(d_hidden, logits, matrix, words):
        slope = jnp.exp(logits - z[..., None]) * d_z[..., None]
        slope += jnp.where(targets[..., None] == words, d_target[..., None], 0)
        if layout.mean:
            slope += jnp.where(words < V, d_mean[..., None] / V, 0)
        if layout.softcap is not None:
            slope *= 1 - jnp.square(jnp.maximum(logits / layout.softcap, -1))
        d_bias = None if bias is None else slope.sum((0, 1))
        slope = slope.astype(hidden.dtype)
        d_hidden += jnp.einsum("btv,vd->btd", slope, matrix, preferred_element_type=jnp.float32)
        rows = lambda x: x.reshape(-1, x.shape[-1]) if one_device else x
        axes = (0,) if one_device else (0, 1)
        d_matrix = lax.dot_general(
            rows(slope), rows(hidden), ((axes, axes), ((), ())), preferred_element_type=jnp.float32
        )
        return d_hidden, (annotate(d_matrix, "vocab", "embed"), d_bias)

    d_hidden, d_rest = _by_pieces(learn, jnp.zeros(hidden.shape), params, layout)
    return d_hidden.astype(hidden.dtype), d_rest
