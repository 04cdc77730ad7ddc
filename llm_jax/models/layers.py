"""The parts that encoders and decoders share: projections, norms, feed-forward, embeddings.

Parameters are float32 and carry logical axis names; activations are in `cfg.dtype`.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.attention import Bias
from llm_jax.models import functions

PLAIN = {
    "gelu": functions.gelu,
    "gelu_tanh": functions.gelu_tanh,
    "relu": functions.relu,
    "silu": functions.silu,
}
GATED = {
    "geglu": functions.gelu,
    "geglu_tanh": functions.gelu_tanh,
    "reglu": functions.relu,
    "swiglu": functions.silu,
}


def annotate(x: jax.Array, *axes: str | None) -> jax.Array:
    """Names the logical axes of an activation; a no-op where no mesh is set."""
    return nn.with_logical_constraint(x, axes)


def normal(cfg: FrozenConfigDict, fan_in: int, scale: float = 1.0):
    """Initialiser: initializer_range, or T5's 1 / sqrt(fan_in) where cfg.init is 'fan_in'."""
    return nn.initializers.normal(
        scale * (cfg.initializer_range if cfg.init == "normal" else fan_in**-0.5)
    )


def residual_scale(cfg: FrozenConfigDict) -> float:
    """1 / sqrt(2 num_layers) where cfg.scale_residual_init (GPT-2 paper, section 2.3), else 1."""
    return (2 * cfg.num_layers) ** -0.5 if cfg.scale_residual_init else 1.0


def both_streams(cfg: FrozenConfigDict) -> bool:
    """Whether a reversible stack's two streams reach the output matrix as one wide vector."""
    return cfg.reversible and cfg.head == "lm" and not cfg.tie_embeddings


class Dense(nn.Module):
    """Contracts the last `len(inputs)` axes of x with a kernel of shape inputs + outputs.

    x [..., *inputs] -> [..., *outputs]; `axes` names the kernel's logical axes.
    """

    cfg: FrozenConfigDict
    inputs: Sequence[int]
    outputs: Sequence[int]
    axes: Sequence[str]
    init_scale: float = 1.0
    use_bias: bool | None = None  # None: as the config says
    bias_start: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, dtype = len(self.inputs), self.cfg.dtype
        init = normal(self.cfg, math.prod(self.inputs), self.init_scale)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(init, self.axes),
            (*self.inputs, *self.outputs),
        )
        y = _product(self.cfg.quantize)(
            x.astype(dtype),
            kernel.astype(dtype),
            ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())),
        )
        if self.cfg.use_bias if self.use_bias is None else self.use_bias:
            start = nn.initializers.constant(self.bias_start)
            init = nn.with_logical_partitioning(start, self.axes[n:])
            y += self.param("bias", init, tuple(self.outputs)).astype(dtype)
        return y


QUANTIZED = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}


def _product(quantize: str) -> Callable[..., jax.Array]:
    """jax.lax.dot_general, or that of operands and gradients rounded channel by channel.

    Formats of fp8: Micikevicius 2022, https://arxiv.org/abs/2209.05433, section 3.
    """
    if quantize == "none":
        return jax.lax.dot_general
    import qwix  # optional: only those who ask for it need it

    forward, backward = QUANTIZED[quantize]
    rule = qwix.QtRule(weight_qtype=forward, act_qtype=forward, bwd_qtype=backward)
    return qwix.QtProvider([rule]).dot_general


class Norm(nn.Module):
    """LayerNorm (Ba 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis."""

    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, shape = self.cfg, (x.shape[-1],)
        named = lambda init: nn.with_logical_partitioning(init, ("norm",))
        scale = self.param("scale", named(nn.initializers.ones), shape)
        if cfg.norm == "rmsnorm":
            return functions.rms_norm(x, scale, cfg.norm_epsilon)
        bias = self.param("bias", named(nn.initializers.zeros), shape) if cfg.use_bias else None
        return functions.layer_norm(x, scale, bias, cfg.norm_epsilon)


class Mlp(nn.Module):
    """act(x up) down, or (act(x gate) * (x up)) down for the gated kinds (Shazeer 2020).

    x [B, T, D] -> [B, T, D], mlp_chunk positions at a time (Kitaev 2020, section 3.1).
    """

    cfg: FrozenConfigDict
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, (B, T, D) = self.cfg.mlp_chunk, x.shape
        if not 0 < size < T:
            return self._positions(x)
        count = -(-T // size)
        x = jnp.pad(x, ((0, 0), (0, count * size - T), (0, 0))).reshape(B, count, size, D)
        one = nn.remat(lambda self, x: self._positions(x), prevent_cse=False)
        each = nn.scan(
            lambda self, _, x: (None, one(self, x)),
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            in_axes=1,
            out_axes=1,
        )
        return each(self, None, x)[1].reshape(B, count * size, D)[:, :T]

    def _positions(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        D, F = (cfg.embed_dim,), (cfg.mlp_dim,)
        h = Dense(cfg, D, F, ("embed", "mlp"), name="up")(x)
        if cfg.activation in GATED:
            gate = Dense(cfg, D, F, ("embed", "mlp"), name="gate")(x)
            h = GATED[cfg.activation](gate) * h
        else:
            h = PLAIN[cfg.activation](h)
        h = annotate(h, "batch", "length", "activation_mlp")
        h = nn.Dropout(cfg.mlp_dropout, deterministic=self.deterministic)(h)
        return Dense(cfg, F, D, ("mlp", "embed"), residual_scale(cfg), name="down")(h)


class TokenEmbed(nn.Module):
    """tokens [B, T] -> [B, T, E]; `matrix` [V, E] serves again as the tied output."""

    cfg: FrozenConfigDict

    def setup(self):
        cfg = self.cfg
        # With inputs scaled up by sqrt(embed_dim), the table starts that much smaller.
        init = normal(cfg, cfg.embed_dim if cfg.scale_embeddings else 1)
        self.matrix = self.param(
            "embedding",
            nn.with_logical_partitioning(init, ("vocab", "embed")),
            (cfg.vocab_size, cfg.embedding_dim),
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Each device looks the tokens of others up too, in its part of the width: vectors change
        # places, where otherwise the whole table would, and a gradient of its size.
        tokens = annotate(tokens, "lookup_batch", "length")
        x = jnp.take(self.matrix, tokens, axis=0)
        x = annotate(x, "lookup_batch", "length", "embed").astype(self.cfg.dtype)
        x = annotate(x, "batch", "length", "activation_embed")
        return x * math.sqrt(self.cfg.embed_dim) if self.cfg.scale_embeddings else x


class Table(nn.Module):
    """A learned vector for each of `size` indices: indices [B, T] -> [B, T, E]."""

    cfg: FrozenConfigDict
    size: int
    axis: str
    dim: int = 0  # 0: embedding_dim

    @nn.compact
    def __call__(self, indices: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(normal(self.cfg, 1), (self.axis, "embed"))
        table = self.param("embedding", init, (self.size, self.dim or self.cfg.embedding_dim))
        table = annotate(table, self.axis, "activation_embed")
        return jnp.take(table, indices, axis=0).astype(self.cfg.dtype)


class Embeddings(nn.Module):
    """What enters the first block: tokens, positions and types [B, T] -> [B, T, D].

    The sum of token, position (learned, axial or sinusoidal) and type vectors; then norm,
    dropout and the projection to embed_dim where the config asks for them.
    """

    cfg: FrozenConfigDict
    tokens: TokenEmbed

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        types: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        cfg = self.cfg
        x = self.tokens(tokens)
        if cfg.type_vocab_size:
            types = jnp.zeros_like(tokens) if types is None else types
            x += Table(cfg, cfg.type_vocab_size, "types", name="types")(types)
        if cfg.positions == "learned":
            size = cfg.max_length + cfg.position_offset
            x += Table(cfg, size, "positions", name="positions")(positions + cfg.position_offset)
        elif cfg.positions == "axial":
            x += self._axial(positions)
        elif cfg.positions == "sinusoidal":
            x += sinusoids(positions, cfg.embedding_dim).astype(x.dtype)
        if cfg.embed_norm:
            x = Norm(cfg, name="norm")(x)
        x = nn.Dropout(cfg.dropout, deterministic=deterministic)(x)
        if cfg.embedding_dim != cfg.embed_dim:
            E, D = (cfg.embedding_dim,), (cfg.embed_dim,)
            x = Dense(cfg, E, D, ("norm", "embed"), name="projection")(x)
        return annotate(x, "batch", "length", "activation_embed")

    def _axial(self, positions: jax.Array) -> jax.Array:
        """Position i columns + j as the vectors of row i and column j, one behind the other."""
        (rows, columns), cfg = self.cfg.axial_shape, self.cfg
        sizes = zip(("rows", "columns"), (rows, columns), cfg.axial_dims, strict=True)
        row, column = (Table(cfg, n, "positions", dim, name=name) for name, n, dim in sizes)
        return jnp.concatenate([row(positions // columns), column(positions % columns)], axis=-1)


def sinusoids(positions: jax.Array, dim: int) -> jax.Array:
    """[B, T] -> [B, T, dim]: sines of p / 10000^(2i/dim), then cosines (Vaswani 2017, 3.5)."""
    rates = 10_000.0 ** (-jnp.arange(0, dim, 2) / dim)
    angles = positions[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)[..., : dim // 2]], axis=-1)


def rotary_rates(cfg: FrozenConfigDict, dim: int = 0) -> jax.Array:
    """[dim / 2] radians a position (0: head_dim), stretched as cfg.rotary_scaling says.

    With s = rotary_factor and L = rotary_original_length:
      linear: all slower by s (Chen 2023, https://arxiv.org/abs/2306.15595).
      ntk: a base so much larger that the slowest is slower by s (bloc97 2023; YaRN's 3.1).
      llama3: slower by s only where a wave is longer than L, not where it is shorter than
        L / 4, smoothly in between (Llama 3's code; its frequency factors are 1 and 4).
      yarn: slower by s where fewer than 1 wave fits into L, not where more than 32 do, a ramp
        over the dimensions in between (Peng 2023, https://arxiv.org/abs/2309.00071, 3.2).
    """
    half, s, L = (dim or cfg.head_dim) // 2, cfg.rotary_factor, cfg.rotary_original_length
    base, scaling = cfg.rotary_base, cfg.rotary_scaling
    if scaling == "ntk":
        base *= s ** (half / (half - 1))
    rates = base ** (-jnp.arange(half) / half)
    if scaling == "linear":
        return rates / s
    if scaling == "llama3":
        waves = L * rates / (2 * math.pi)
        keep = jnp.clip((waves - 1) / (4 - 1), 0, 1)
    elif scaling == "yarn":
        # The dimension whose wave fits so often into L, as the paper's code rounds it.
        at = lambda waves: half * math.log(L / (2 * math.pi * waves)) / math.log(base)
        first, last = max(math.floor(at(32)), 0), min(math.ceil(at(1)), 2 * half - 1)
        keep = 1 - jnp.clip((jnp.arange(half) - first) / max(last - first, 0.001), 0, 1)
    else:
        return rates
    return rates * (keep + (1 - keep) / s)


def rotary_strength(cfg: FrozenConfigDict) -> float:
    """What YaRN multiplies queries and keys by: 0.1 log s + 1 (its equation 22), else 1."""
    return 0.1 * math.log(cfg.rotary_factor) + 1 if cfg.rotary_scaling == "yarn" else 1.0


def rotate(cfg: FrozenConfigDict, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary positions (Su 2021, 3.4.2), halves paired: x [B, T, N, H], positions [B, T]."""
    angles = positions[..., None, None] * rotary_rates(cfg, x.shape[-1])
    strength = rotary_strength(cfg)
    sin, cos = strength * jnp.sin(angles), strength * jnp.cos(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class RelativeBias(nn.Module):
    """T5's bucketed relative positions as a bias over length L (Raffel 2020, 2.1).

    Half of the buckets hold exact distances, the others grow logarithmically up to
    relative_max_distance; a bidirectional stack spends half of all on either side.
    """

    cfg: FrozenConfigDict
    bidirectional: bool

    @nn.compact
    def __call__(self, L: int) -> Bias:
        cfg = self.cfg
        table = self.param(
            "embedding",
            nn.with_logical_partitioning(normal(cfg, cfg.embed_dim), ("buckets", "heads")),
            (cfg.relative_buckets, cfg.num_heads),
        )
        return Bias(jnp.take(table, self.bucket(jnp.arange(1 - L, L)), axis=0).T)

    def bucket(self, distance: jax.Array) -> jax.Array:
        """Bucket index of key minus query distances, any shape."""
        buckets, start = self.cfg.relative_buckets, 0
        if self.bidirectional:
            buckets //= 2
            start = jnp.where(distance > 0, buckets, 0)
            distance = jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        exact = buckets // 2
        ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(
            self.cfg.relative_max_distance / exact
        )
        far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
        return start + jnp.where(distance < exact, distance, far)


def alibi(num_heads: int, L: int) -> Bias:
    """ALiBi's bias -slope |distance| over length L (Press 2022, section 3)."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    # Between powers of two the paper's code takes every other slope of the next power.
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return Bias(-jnp.asarray(slopes)[:, None] * jnp.abs(jnp.arange(1.0 - L, L)))


def position_bias(cfg: FrozenConfigDict, L: int, bidirectional: bool) -> Bias | None:
    """The bias that cfg.positions puts on the scores of a stack; called inside its module."""
    if cfg.positions == "relative":
        return RelativeBias(cfg, bidirectional, name="relative_bias")(L)
    return alibi(cfg.num_heads, L) if cfg.positions == "alibi" else None
