"""Short causal convolutions over queries, keys and values, with a cache for decoding."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(3,))
def convolve(
    x: jax.Array, kernel: jax.Array, segments: jax.Array | None, activate: bool,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Causal depthwise convolution y_t = sum_i kernel_i x_(t+i) + bias, [B, T, N, H] in float32.

    x [B, W - 1 + T, N, H] starts with the W - 1 previous inputs; kernel [W, N, H] ends with the
    weight of the current token. Segments [B, T] do not mix. activate: applies SiLU to y.
    """
    W, T = len(kernel), x.shape[1] - len(kernel) + 1
    y = jnp.zeros((len(x), T, *x.shape[2:]), jnp.float32)
    for i in range(W):
        taken = x[:, i : i + T].astype(jnp.float32) * kernel[i]
        if segments is not None:
            before = jnp.pad(segments, ((0, 0), (W - 1 - i, 0)))[:, :T]
            taken = jnp.where((before == segments)[..., None, None], taken, 0)
        y += taken
    y = y if bias is None else y + bias
    return (jax.nn.silu(y) if activate else y).astype(x.dtype)


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over the last `width` tokens (So 2021, arXiv 2109.08668).

    With cache_length, the 'cache' collection holds the last width - 1 inputs.
    """

    width: int
    axis: str  # logical name of the heads axis
    activate: bool
    use_bias: bool = False
    cache_length: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array | None, positions: jax.Array | None
    ) -> jax.Array:
        """x [B, T, N, H] -> [B, T, N, H]; positions [B, T] >= cache_length are padding."""
        kept = len(x), self.width - 1, *x.shape[2:]
        bound = self.width**-0.5
        init = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        init = nn.with_logical_partitioning(init, ("taps", self.axis, "kv"))
        kernel = self.param("kernel", init, (self.width, *x.shape[2:]))
        bias = None
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis, "kv"))
            bias = self.param("bias", init, x.shape[2:])
        before = jnp.zeros(kept, x.dtype)
        if self.cache_length:
            inputs = self.variable("cache", "inputs", jnp.zeros, kept, x.dtype)
            before = inputs.value
        x = jnp.concatenate([before, x], axis=1)
        if self.cache_length:
            read = (positions < self.cache_length).sum(1, keepdims=True)
            last = (read + jnp.arange(self.width - 1))[..., None, None]
            inputs.value = jnp.take_along_axis(x, last, axis=1)
        return convolve(x, kernel, segments, self.activate, bias)
