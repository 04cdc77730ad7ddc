"""Softmax cross-entropy that never holds the logits of a whole batch."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


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
    """Returns the weighted sum of each token's loss, and sums to report.

    With logits = hidden output_matrix^T + bias and z = logsumexp(logits), a token's loss is
    z - (1 - a) logits[target] - a mean(logits) + b z^2, a = label_smoothing, b = z_loss.

    Args:
      hidden: [B, T, D].
      output_matrix: [V, D].
      targets: [B, T] int.
      weights: [B, T]; 0 leaves a token out.
      bias: [V].
      label_smoothing: share of the target spread evenly over the vocabulary.
      z_loss: keeps the logits' scale near 1 (arXiv 2204.02311, section 5).
      chunk: positions whose logits exist at a time; 0: chosen.

    Returns:
      The loss, and a dict of sums: loss (without smoothing and z-loss), z_loss, correct, weight.
    """
    logits = jnp.einsum(
        "btd,vd->btv", hidden, output_matrix.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        logits = logits + bias
    z = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    smooth = label_smoothing * (logits.mean(-1) - hit)
    weights = weights.astype(jnp.float32)
    nll, square = jnp.sum((z - hit) * weights), z_loss * jnp.sum(z * z * weights)
    loss = nll - jnp.sum(smooth * weights) + square
    correct = jnp.sum((hit >= logits.max(-1)) * weights)
    sums = {"loss": nll, "z_loss": square, "correct": correct, "weight": weights.sum()}
    return loss, jax.lax.stop_gradient(sums)
