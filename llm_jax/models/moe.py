"""A feed-forward layer of many experts, of which a router gives each token a few."""

import math
import operator
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from ml_collections import FrozenConfigDict

from llm_jax.models import split
from llm_jax.models.layers import GATED, PLAIN, annotate, normal, residual_scale


class MixtureOfExperts(nn.Module):
    """Sum over the top experts e of gate_e(x) Mlp_e(x): x [B, T, D] -> [B, T, D].

    Gates are the router's softmax, of several experts made to add up to one (Shazeer 2017;
    Fedus 2021, https://arxiv.org/abs/2101.03961; Jiang 2024, https://arxiv.org/abs/2401.04088).
    With expert_capacity c each row gives an expert at most c k T / E tokens, and those it has
    no room for pass by; without, none is dropped. Sows 'losses': router_balance times Fedus'
    equation 4, router_z times the mean square of the router's logsumexp (Zoph 2022, equation 5).
    """

    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        E, k = cfg.num_experts, cfg.experts_per_token
        # In float32: rounding a router's logits makes it unstable (Fedus 2021, 2.4).
        init = nn.with_logical_partitioning(normal(cfg, cfg.embed_dim), ("embed", None))
        router = self.param("router", init, (cfg.embed_dim, E))
        logits = x.astype(jnp.float32) @ router
        gates = jax.nn.softmax(logits, axis=-1)
        top, chosen = jax.lax.top_k(gates, k)  # [B, T, k]
        if k > 1:
            top /= top.sum(-1, keepdims=True)
        self._sow_losses(logits, gates, chosen)
        kernels = self._kernels()
        route = self._with_room if cfg.expert_capacity else self._to_all
        return route(x, top, chosen, kernels).astype(x.dtype)

    def _sow_losses(self, logits, gates, chosen):
        cfg, E = self.cfg, self.cfg.num_experts
        share = jax.nn.one_hot(chosen, E).mean((0, 1, 2))
        balance = E * jnp.sum(share * gates.mean((0, 1)))
        z = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
        self.sow("losses", "router", cfg.router_balance * balance + cfg.router_z * z)

    def _kernels(self):
        cfg = self.cfg
        E, D, F = cfg.num_experts, cfg.embed_dim, cfg.mlp_dim
        names = ("up", "gate") if cfg.activation in GATED else ("up",)
        shapes = {name: (D, F, 1.0, ("experts", "embed", "mlp")) for name in names}
        shapes["down"] = (F, D, residual_scale(cfg), ("experts", "mlp", "embed"))
        kernels = {}
        for name, (fan_in, out, scale, axes) in shapes.items():
            init = nn.with_logical_partitioning(normal(cfg, fan_in, scale), axes)
            kernels[name] = self.param(name, init, (E, fan_in, out)).astype(cfg.dtype)
        return kernels

    def _with_room(self, x, top, chosen, kernels):
        """Each row's tokens into its experts' slots [E, B, C], first come, first served."""
        cfg, (B, T, _) = self.cfg, x.shape
        E, k = cfg.num_experts, cfg.experts_per_token
        C = max(1, math.ceil(cfg.expert_capacity * k * T / E))
        # First choices before second ones, earlier tokens before later ones.
        wants = jax.nn.one_hot(chosen.swapaxes(1, 2), E, dtype=jnp.int32).reshape(B, k * T, E)
        slot = (jnp.cumsum(wants, axis=1) - wants) * wants
        slots = jax.nn.one_hot(slot.sum(-1), C) * (slot.sum(-1) < C)[..., None]
        place = jnp.einsum("bne,bnc->bnec", wants.astype(jnp.float32), slots)
        place = place.reshape(B, k, T, E, C)
        weigh = jnp.einsum("bktec,btk->btec", place, top).astype(x.dtype)
        sent = jnp.einsum("btec,btd->ebcd", place.sum(1).astype(x.dtype), x)
        sent = annotate(sent, "experts", "expert_batch", None, "activation_embed")
        multiply = lambda x, kernel: jnp.einsum("ebci,eio->ebco", x, kernel)
        done = _feed_forward(cfg.activation, sent, kernels, multiply)
        done = annotate(done, "experts", "expert_batch", None, "activation_embed")
        return jnp.einsum("btec,ebcd->btd", weigh, done)

    def _to_all(self, x, top, chosen, kernels):
        """Each expert's tokens, however many; none is dropped.

        On a mesh that splits experts each device takes the tokens of all with which it shares
        them, adds what its own experts make of these, and gets back the sums of its own tokens.
        """
        act = self.cfg.activation
        mesh = jax.sharding.get_abstract_mesh()
        axes = ("batch", "length", "experts", "mlp")
        batch, length, experts, mlp = axes = [nn.logical_to_mesh_axes((a,))[0] for a in axes]
        sizes = (*x.shape[:2], *kernels["up"].shape[::2])
        parts = [split.parts(mesh, axis) for axis in axes]
        if max(parts) == 1 or any(map(operator.mod, sizes, parts)):
            return _dropless(act, 0, x, top, chosen, kernels)

        def part(x, top, chosen, kernels):
            first = 0
            if experts:
                first = jax.lax.axis_index(experts) * len(kernels["up"])
                take = lambda a: jax.lax.all_gather(a, experts, tiled=True)
                x, top, chosen = take(x), take(top), take(chosen)
            y = _dropless(act, first, x, top, chosen, kernels)
            y = jax.lax.psum(y, mlp) if mlp else y
            return jax.lax.psum_scatter(y, experts, tiled=True) if experts else y

        rows, up = PartitionSpec(batch, length), PartitionSpec(experts, None, mlp)
        kinds = dict.fromkeys(kernels, up) | {"down": PartitionSpec(experts, mlp)}
        spread = jax.shard_map(
            part, mesh=mesh, in_specs=(rows, rows, rows, kinds), out_specs=rows, check_vma=False
        )
        return spread(x, top, chosen, kernels)


def _dropless(
    act: str, first: int | jax.Array, x: jax.Array, top: jax.Array, chosen: jax.Array, kernels: dict
) -> jax.Array:
    """Tokens sorted by expert, each group through its own kernels, of experts from `first` on."""
    (B, T, D), E, k = x.shape, len(kernels["up"]), chosen.shape[-1]
    expert = chosen.reshape(-1) - first
    expert = jnp.where((expert >= 0) & (expert < E), expert, E)  # the others' stand last
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=E).astype(jnp.int32)
    rows = x.reshape(-1, D)[order // k]
    done = _feed_forward(
        act, rows, kernels, lambda x, kernel: jax.lax.ragged_dot(x, kernel, sizes)
    )
    done = jnp.where((jnp.arange(len(done)) < sizes.sum())[:, None], done, 0)
    done = done[jnp.argsort(order)].reshape(B, T, k, D)
    return jnp.einsum("btkd,btk->btd", done, top.astype(x.dtype))


def _feed_forward(act: str, x: jax.Array, kernels: dict, multiply: Callable) -> jax.Array:
    """The feed-forward of each expert; multiply: (x, kernel) -> x kernel, expert by expert."""
    h = multiply(x, kernels["up"])
    h = GATED[act](multiply(x, kernels["gate"])) * h if act in GATED else PLAIN[act](h)
    return multiply(h, kernels["down"])
