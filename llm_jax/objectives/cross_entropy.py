"""Softmax cross-entropy that never holds the logits of a whole batch."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

# Logits held at a time, on each device: 32 MB of float32, or those of 1,024 tokens where that
# is more, so that the matrix products stay large enough to be fast.
BYTES, TOKENS = 2**25, 1024


def cross_entropy(
    hidden: Array,
    output_matrix: Array,
    targets: Array,
    weights: Array,
    *,
    bias: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int = 0,
) -> tuple[Array, dict[str, Array]]:
    """Returns the weighted sum of the tokens' losses, and sums to report.

    With logits = hidden output_matrix^T + bias and z = logsumexp(logits), a token's loss is
    z - (1 - a) logits[target] - a mean(logits) + b z^2, a = label_smoothing, b = z_loss.
    Gradients reach hidden, output_matrix and bias. They are computed with the loss, chunk by
    chunk, so that logits are neither kept nor computed twice.

    Args:
      hidden: [B, T, D]; its dtype is that of the matrix products, summed in float32.
      output_matrix: [V, D].
      targets: [B, T] int.
      weights: [B, T]; 0 leaves a token out.
      bias: [V].
      label_smoothing: share of the target spread evenly over the vocabulary.
      z_loss: keeps z near 0 (PaLM, arXiv 2204.02311, section 5).
      chunk: positions of the length axis whose logits exist at a time; 0: chosen.

    Returns:
      The loss, and a dict of sums: loss (without smoothing and z-loss), z_loss, correct, weight.
    """
    B, T, _ = hidden.shape
    chunk = min(T, chunk or chunk_length(B, T, output_matrix.shape[0]))
    count = -(-T // chunk)
    chunk = -(-T // count)

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, count * chunk - T), *[(0, 0)] * (x.ndim - 2)])

    weights = pad(weights.astype(jnp.float32))
    return _loss(
        (pad(hidden), output_matrix, bias), pad(targets), weights, label_smoothing, z_loss, chunk
    )


def chunk_length(B: int, T: int, V: int) -> int:
    """Returns how many positions' logits to hold at a time."""
    devices = max(1, jax.sharding.get_abstract_mesh().size)  # the logits are spread over all
    tokens = max(BYTES // (4 * V), TOKENS) * devices
    return max(1, min(T, tokens // B))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _loss(params, targets, weights, label_smoothing, z_loss, chunk):
    sums, _ = _scan(params, targets, weights, label_smoothing, z_loss, chunk, False)
    return sums.pop("total"), sums


def _forward(params, targets, weights, label_smoothing, z_loss, chunk):
    sums, grads = _scan(params, targets, weights, label_smoothing, z_loss, chunk, True)
    return (sums.pop("total"), sums), grads


def _backward(label_smoothing, z_loss, chunk, grads, cotangents):
    g = cotangents[0]
    return jax.tree.map(lambda x: (g * x).astype(x.dtype), grads), None, None


_loss.defvjp(_forward, _backward)


def _scan(params, targets, weights, label_smoothing, z_loss, chunk, differentiate):
    """Returns sums over all chunks, and gradients of the total to (hidden, matrix, bias)."""
    hidden, output_matrix, bias = params
    matrix, V = output_matrix.astype(hidden.dtype), output_matrix.shape[0]

    def part(hidden, targets, weights):
        logits = jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        largest = logits.max(-1, keepdims=True)
        powers = jnp.exp(logits - largest)
        total = powers.sum(-1, keepdims=True)
        z = (largest + jnp.log(total))[..., 0]
        # A comparison, not a gather: it stays local where the vocabulary is sharded.
        target = targets[..., None] == jnp.arange(V)
        hit = jnp.where(target, logits, 0).sum(-1)
        smooth = label_smoothing * (hit - logits.mean(-1)) if label_smoothing else 0.0
        losses = {
            "total": z - hit + smooth + z_loss * z * z,
            "loss": z - hit,
            "z_loss": z_loss * z * z,
            "correct": hit >= largest[..., 0],
            "weight": jnp.ones_like(z),
        }
        sums = {name: (weights * x).sum() for name, x in losses.items()}
        if not differentiate:
            return sums, None
        slope = powers * ((1 + 2 * z_loss * z)[..., None] / total)
        slope -= jnp.where(target, 1 - label_smoothing, 0) + label_smoothing / V
        slope *= weights[..., None]
        d_bias = None if bias is None else slope.sum((0, 1))
        slope = slope.astype(hidden.dtype)
        d_hidden = jnp.einsum("btv,vd->btd", slope, matrix)
        d_matrix = jnp.einsum("btv,btd->vd", slope, hidden, preferred_element_type=jnp.float32)
        return sums, (d_hidden, d_matrix, d_bias)

    arrays = (hidden, targets, weights)
    count = hidden.shape[1] // chunk
    if count == 1:
        sums, grads = part(*arrays)
    else:

        def body(carry, index):
            # Slices of the length axis: the batch axis stays whole, so it stays sharded.
            start = index * chunk
            sums, grads = part(*(lax.dynamic_slice_in_dim(x, start, chunk, 1) for x in arrays))
            if differentiate:
                d_hidden = lax.dynamic_update_slice_in_dim(carry[1][0], grads[0], start, 1)
                rest = jax.tree.map(jnp.add, carry[1][1:], grads[1:])
                grads = (d_hidden, *rest)
            return (jax.tree.map(jnp.add, carry[0], sums), grads), None

        names = ("total", "loss", "z_loss", "correct", "weight")
        zeros = dict.fromkeys(names, jnp.zeros(()))
        empty = None
        if differentiate:
            d_bias = None if bias is None else jnp.zeros_like(bias, jnp.float32)
            empty = jnp.zeros_like(hidden), jnp.zeros_like(output_matrix, jnp.float32), d_bias
        (sums, grads), _ = lax.scan(body, (zeros, empty), jnp.arange(count))
    if differentiate:
        grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params)
    return sums, grads
