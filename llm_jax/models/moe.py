"""Mixture of experts: a router selects a few of many feed-forward networks for each token."""

import math
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from ml_collections import FrozenConfigDict

from llm_jax.models import split
from llm_jax.models.functions import GATED, PLAIN
from llm_jax.models.layers import Dense, Mlp, annotate, normal, residual_scale


class MixtureOfExperts(nn.Module):
    """Mixture of experts, sum over the top k of gate_e(x) Mlp_e(x): x [B, T, D] -> [B, T, D].

    Gates are the router's softmax, normalised over the top k experts (Shazeer 2017;
    Fedus 2021, https://arxiv.org/abs/2101.03961; Jiang 2024, https://arxiv.org/abs/2401.04088).
    router_* select DeepSeek-V3's variants (https://arxiv.org/abs/2412.19437, 2.1.2): sigmoid
    scores, a selection bias (constant: it has no gradient, and no load-based update), expert
    groups. shared_experts are added (DeepSeekMoE, Dai 2024, https://arxiv.org/abs/2401.06066, 3.2).
    Capacity factor c: in a row with n real tokens, each expert takes the first ceil(c k n / E) and
    drops the others, whose residual branch is then 0. expert_slots sets this number directly, as in
    transformers' Switch. Without either, routing is dropless. Padding uses no capacity. GShard
    serves all first choices before second ones (Lepikhin 2020, https://arxiv.org/abs/2006.16668,
    algorithm 1), so that with k > 1 later tokens affect which earlier ones are dropped; here tokens
    are served in order, so a decoder remains causal. Sums over real tokens for `auxiliary_loss` are
    sown in the 'losses' collection.
    """

    cfg: FrozenConfigDict
    deterministic: bool = True

    def setup(self):
        self.experts = _Experts(self.cfg)

    @nn.compact
    def __call__(self, x_BTD: Array, real_BT: Array | None = None) -> Array:
        """real_BT: mask of real tokens; None: no padding."""
        cfg = self.cfg
        E, k = cfg.num_experts, cfg.experts_per_token
        # In float32: bfloat16 router logits make training unstable (Fedus 2021, 2.4).
        init = nn.with_logical_partitioning(normal(cfg, cfg.embed_dim), ("embed", None))
        router_DE = self.param("router", init, (cfg.embed_dim, E))
        logits_BTE = jnp.matmul(x_BTD.astype(jnp.float32), router_DE, precision="highest")
        if cfg.expert_bias:
            logits_BTE += self._vector("logit_bias")
        score = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[cfg.router_scores]
        scores_BTE = score(logits_BTE)
        expert_BTk = self._choose(scores_BTE)
        top_BTk = jnp.take_along_axis(scores_BTE, expert_BTk, axis=-1)
        if k > 1 and cfg.router_normalized:
            top_BTk /= top_BTk.sum(-1, keepdims=True)
        top_BTk *= cfg.router_scale
        share_BTE = scores_BTE / scores_BTE.sum(-1, keepdims=True)
        self._sow(logits_BTE, share_BTE, expert_BTk, real_BT)
        kernels = self._kernels()
        if cfg.expert_capacity or cfg.expert_slots:
            y_BTD = self._with_capacity(x_BTD, top_BTk, expert_BTk, kernels, real_BT)
        else:
            y_BTD = self._dropless(x_BTD, top_BTk, expert_BTk, kernels)
        if cfg.shared_experts:
            wide = FrozenConfigDict({**cfg, "mlp_dim": cfg.shared_experts * cfg.mlp_dim})
            shared_BTD = Mlp(wide, self.deterministic, name="shared")(x_BTD)
            if cfg.shared_gate:
                width = (cfg.embed_dim,)
                gate = Dense(cfg, width, (), ("embed",), use_bias=False, name="shared_gate")
                shared_BTD *= jax.nn.sigmoid(gate(x_BTD))[..., None]
            y_BTD += shared_BTD
        return y_BTD.astype(x_BTD.dtype)

    def _vector(self, name):
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        return self.param(name, zeros, (self.cfg.num_experts,))

    def _choose(self, scores_BTE):
        """Top k experts [B, T, k] of the best groups, ranked by best score (sigmoid: best two)."""
        cfg, scores = self.cfg, scores_BTE
        if cfg.router_bias:
            scores += self._vector("choice_bias")
        scores = jax.lax.stop_gradient(scores)
        if (G := cfg.router_groups) > 1:
            groups = scores.reshape(*scores.shape[:2], G, -1)
            best = jax.lax.top_k(groups, 2 if cfg.router_scores == "sigmoid" else 1)[0].sum(-1)
            kept = jax.nn.one_hot(jax.lax.top_k(best, cfg.router_top_groups)[1], G).sum(2)
            scores = jnp.where(kept[..., None] > 0, groups, -jnp.inf).reshape(scores.shape)
        return jax.lax.top_k(scores, cfg.experts_per_token)[1]

    def _sow(self, logits_BTE, gates_BTE, expert_BTk, real_BT):
        sent_BTE = jax.nn.one_hot(expert_BTk, self.cfg.num_experts).sum(2)
        z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
        real_BT = jnp.ones(z_BT.shape) if real_BT is None else real_BT.astype(jnp.float32)
        total = lambda x: jnp.tensordot(real_BT, x, 2)
        sums = {"sent": total(sent_BTE), "gates": total(gates_BTE), "z": total(z_BT)}
        self.sow("losses", "router", sums | {"tokens": real_BT.sum()})

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
            if cfg.expert_bias:
                init = nn.with_logical_partitioning(nn.initializers.zeros, axes[::2])
                kernels[f"{name}_bias"] = self.param(f"{name}_bias", init, (E, out))
        return kernels

    def _with_capacity(self, x_BTD, top_BTk, expert_BTk, kernels, real_BT):
        """Dispatch with capacity: tokens fill expert slots [E, B, C] in order, or are dropped."""
        cfg, (B, T, _) = self.cfg, x_BTD.shape
        E, k = cfg.num_experts, cfg.experts_per_token
        # Capacity for each number of real tokens, from Python: its rounding does not depend on XLA.
        of = [max(1, math.ceil(cfg.expert_capacity * k * n / E)) for n in range(T + 1)]
        of = [min(cfg.expert_slots, T)] * (T + 1) if cfg.expert_slots else of
        C, capacity_B = of[T], of[T]
        # Priority: earlier tokens first, then each token's higher-ranked experts.
        wants_BNE = jax.nn.one_hot(expert_BTk.reshape(B, T * k), E, dtype=jnp.int32)
        if real_BT is not None:
            wants_BNE *= jnp.repeat(real_BT, k, axis=1)[..., None]
            capacity_B = jnp.asarray(of)[real_BT.sum(1)][:, None]
        slot_BN = ((jnp.cumsum(wants_BNE, axis=1) - wants_BNE) * wants_BNE).sum(-1)
        slot_BNC = jax.nn.one_hot(slot_BN, C) * (slot_BN < capacity_B)[..., None]
        place = jnp.einsum("bne,bnc->bnec", wants_BNE.astype(jnp.float32), slot_BNC)
        place_BTkEC = place.reshape(B, T, k, E, C)
        weigh_BTEC = jnp.einsum("btkec,btk->btec", place_BTkEC, top_BTk).astype(x_BTD.dtype)
        sent = jnp.einsum("btec,btd->ebcd", place_BTkEC.sum(2).astype(x_BTD.dtype), x_BTD)
        sent_EBCD = annotate(sent, "experts", "expert_batch", None, "activation_embed")
        # x [E, B, C, I] times kernel [E, I, O], per expert.
        product = lambda x, kernel: jax.lax.dot_general(x, kernel, (((3,), (1,)), ((0,), (0,))))
        each = lambda bias_EO: bias_EO[:, None, None]
        multiply = lambda x, kernel, bias: _add(product(x, kernel), bias, each)
        done = self.experts(sent_EBCD, kernels, multiply, self._dropout_key())
        done_EBCD = annotate(done, "experts", "expert_batch", None, "activation_embed")
        return jnp.einsum("btec,ebcd->btd", weigh_BTEC, done_EBCD)

    def _dropless(self, x_BTD, top_BTk, expert_BTk, kernels):
        """Dropless dispatch: each expert processes all tokens routed to it.

        With expert parallelism, each device gathers the tokens of its expert group, applies its own
        experts, and receives the sums for its own tokens (reduce-scatter).
        """
        mesh = jax.sharding.get_abstract_mesh()
        axes = ("batch", "length", "experts", "mlp")
        batch, length, experts, mlp = axes = [nn.logical_to_mesh_axes((a,))[0] for a in axes]
        sizes = (*x_BTD.shape[:2], *kernels["up"].shape[::2])
        parts = [split.parts(mesh, axis) for axis in axes]
        if max(parts) == 1 or any(map(operator.mod, sizes, parts)):
            return self._grouped(0, x_BTD, top_BTk, expert_BTk, kernels, self._dropout_key())

        def part(x_BTD, top_BTk, expert_BTk, kernels, key):
            first = 0
            if key is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index(mesh.axis_names))
            if experts:
                first = jax.lax.axis_index(experts) * len(kernels["up"])
                take = lambda a: jax.lax.all_gather(a, experts, tiled=True)
                x_BTD, top_BTk, expert_BTk = take(x_BTD), take(top_BTk), take(expert_BTk)
            if mlp and "down_bias" in kernels:  # added once per summed device
                kernels |= {"down_bias": kernels["down_bias"] / parts[3]}
            y_BTD = self._grouped(first, x_BTD, top_BTk, expert_BTk, kernels, key)
            y_BTD = jax.lax.psum(y_BTD, mlp) if mlp else y_BTD
            return jax.lax.psum_scatter(y_BTD, experts, tiled=True) if experts else y_BTD

        rows, up = PartitionSpec(batch, length), PartitionSpec(experts, None, mlp)
        other = {"up": up, "gate": up, "down_bias": PartitionSpec(experts)}
        kinds = {name: other.get(name, PartitionSpec(experts, mlp)) for name in kernels}
        specs = (rows, rows, rows, kinds, PartitionSpec())
        spread = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
        return spread(x_BTD, top_BTk, expert_BTk, kernels, self._dropout_key())

    def _grouped(self, first, x_BTD, top_BTk, expert_BTk, kernels, key):
        """Grouped product: tokens sorted by expert, for the experts from `first` on."""
        (B, T, D), E, k = x_BTD.shape, len(kernels["up"]), expert_BTk.shape[-1]
        expert_N = expert_BTk.reshape(-1) - first
        expert_N = jnp.where((expert_N >= 0) & (expert_N < E), expert_N, E)  # other experts last
        order_N = jnp.argsort(expert_N)
        sizes_E = jnp.bincount(expert_N, length=E).astype(jnp.int32)
        of_row = lambda bias_EO: bias_EO[jnp.minimum(expert_N[order_N], E - 1)]
        mean = jax.named_scope(f"share_{E}_of_{self.cfg.num_experts}")  # of rows; plan reads it
        product = mean(lambda x_NI, kernel_EIO: jax.lax.ragged_dot(x_NI, kernel_EIO, sizes_E))
        multiply = lambda x, kernel, bias: _add(product(x, kernel), bias, of_row)
        done_ND = self.experts(x_BTD.reshape(-1, D)[order_N // k], kernels, multiply, key)
        done_ND = jnp.where((jnp.arange(len(done_ND)) < sizes_E.sum())[:, None], done_ND, 0)
        done_BTkD = done_ND[jnp.argsort(order_N)].reshape(B, T, k, D)
        return jnp.einsum("btkd,btk->btd", done_BTkD, top_BTk.astype(x_BTD.dtype))

    def _dropout_key(self):
        drop = self.cfg.mlp_dropout and not self.deterministic
        return self.make_rng("dropout") if drop else None


class _Experts(nn.Module):
    """The experts' feed-forward networks: a separate module, which qwix finds by its path."""

    cfg: FrozenConfigDict

    def __call__(
        self, x: Array, kernels: dict[str, Array], multiply: Callable, key: Array | None
    ) -> Array:
        """multiply: (x, kernel, bias or None) -> product per expert; key: for dropout, or None."""
        act, rate = self.cfg.activation, self.cfg.mlp_dropout
        layer = lambda x, name: multiply(x, kernels[name], kernels.get(f"{name}_bias"))
        h = layer(x, "up")
        h = GATED[act](layer(x, "gate"), h) if act in GATED else PLAIN[act](h)
        if key is not None:
            h = jnp.where(jax.random.bernoulli(key, 1 - rate, h.shape), h / (1 - rate), 0)
        return layer(h, "down")


def _add(y: Array, bias: Array | None, spread: Callable[[Array], Array]) -> Array:
    return y if bias is None else y + spread(bias).astype(y.dtype)


def auxiliary_loss(cfg: Any, sown: dict) -> Array | float:
    """Auxiliary loss of routers and indexers, from the 'losses' collection of a forward pass.

    Routers: router_balance E sum_e f_e p_e + router_z mean(logsumexp(logits)^2), where f_e is the
    fraction of tokens with expert e in their top k (sum k) and p_e its mean gate (Fedus 2021,
    equation 4; Zoph 2022, equation 5). Indexers: the mean over layers and real queries. Router
    means are over the real tokens of all layers, as in transformers' load_balancing_loss_func, so
    that depth and padding do not change the meaning of a coefficient (Mesh TensorFlow's Switch
    balances each layer separately). The balance loss is not a sum over tokens: with gradient
    accumulation it is the mean over microbatches.
    """
    E, sums = cfg.num_experts, {}
    for path, x in jax.tree_util.tree_leaves_with_path(sown):
        size = (-1, E) if path[-1].key in ("sent", "gates") else (-1,)
        sums.setdefault(path[-1].key, []).append(x.reshape(size).sum(0))
    total = 0.0
    if "attention" in sums:
        total = sum(sums["attention"]) / jnp.maximum(sum(sums["queries"]), 1)
    if "sent" not in sums:
        return total
    sent_E, gates_E, z, tokens = (sum(sums[name]) for name in ("sent", "gates", "z", "tokens"))
    tokens = jnp.maximum(tokens, 1)
    balance = E * jnp.sum(sent_E * gates_E) / tokens**2
    return total + cfg.router_balance * balance + cfg.router_z * z / tokens
