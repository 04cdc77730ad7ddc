"""Tests of experts against transformers' Mixtral, and of expert capacity per token."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import config, models, objectives
from llm_jax.models import auxiliary_loss
from llm_jax.models.flops import count_params, train_flops
from llm_jax.models.moe import MixtureOfExperts
from llm_jax.train import groups, optimizer
from llm_jax.train.state import init_state, make_train_step
from tests.tiny_models import tiny_model

B, T, D, E, F = 2, 12, 16, 4, 24


def layer(**changes):
    m = config.base().model
    m.update({"embed_dim": D, "num_heads": 4, "mlp_dim": F, "num_experts": E} | changes)
    return MixtureOfExperts(FrozenConfigDict(config.resolve(m, 10)))


def drawn(gated=True, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"router": draw(D, E), "up": draw(E, D, F), "down": draw(E, F, D)}
    return draw(B, T, D), params | ({"gate": draw(E, D, F)} if gated else {})


@pytest.mark.parametrize("capacity", [0.0, 100.0])
def test_mixtral(capacity):
    torch = pytest.importorskip("torch")
    from transformers import MixtralConfig
    from transformers.models.mixtral import modeling_mixtral as theirs

    x, params = drawn()
    block = theirs.MixtralSparseMoeBlock(
        MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=E)
    )
    up = np.concatenate([params["gate"], params["up"]], axis=-1).swapaxes(1, 2)
    weights = {"gate.weight": params["router"].T, "experts.gate_up_proj": up}
    weights["experts.down_proj"] = params["down"].swapaxes(1, 2)
    block.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
    inputs = torch.from_numpy(x).requires_grad_()
    expected = block(inputs.clone())
    expected.backward(torch.from_numpy(x))
    model = layer(activation="swiglu", expert_capacity=capacity)

    @jax.jit
    def run(params, x, away):
        f = lambda params, x: model.apply({"params": params}, x, mutable=["losses"])[0]
        ours, back = jax.vjp(f, params, x)
        return ours, back(away)

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    ours, (grads, dx) = run(params, x, x)
    close(ours, expected.detach().numpy())
    close(dx, inputs.grad.numpy())
    close(grads["router"], block.gate.weight.grad.numpy().T)
    close(grads["down"].swapaxes(1, 2), block.experts.down_proj.grad.numpy())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 8])
def test_router_balance_means_what_it_does_in_transformers(layers, padded):
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = layer(activation="swiglu", router_balance=0.02)
    real = np.arange(T) < (T if not padded else np.array([[T], [5]]))
    run = jax.jit(lambda p, x, mask: model.apply({"params": p}, x, mask, mutable=["losses"])[1])
    sown, logits = [], []
    for i in range(layers):
        x, params = drawn(seed=i)
        x += 0.5
        params["router"] *= 0.3
        params["router"][:, 0] += 0.2  # so that expert 0 is busier than others in every layer
        mask = jnp.asarray(np.broadcast_to(real, (B, T))) if padded else None
        sown.append(run(params, x, mask))
        logits.append(torch.from_numpy(x.reshape(-1, D) @ params["router"]))
    mask = torch.from_numpy(np.broadcast_to(real, (B, T)).astype(np.int64)) if padded else None
    theirs = load_balancing_loss_func(tuple(logits), E, 2, mask).item()
    assert theirs > 2.1  # 2 were all experts equally busy
    np.testing.assert_allclose(auxiliary_loss(model.cfg, sown), 0.02 * theirs, rtol=1e-5)


def test_router_balance_is_pooled_over_layers():
    """Layers that each send all to an expert of their own are balanced together, not apart."""
    one = lambda e: {"sent": 8.0 * jnp.eye(2)[e], "gates": 8.0 * jnp.eye(2)[e], "tokens": 8.0}
    sown = {f"block_{e}": {"router": (one(e) | {"z": 0.0},)} for e in range(2)}
    sown = jax.tree.map(jnp.asarray, sown)
    cfg = layer(num_experts=2, experts_per_token=1, router_balance=1.0, router_z=0.0).cfg
    assert auxiliary_loss(cfg, sown) == 1.0
    assert auxiliary_loss(cfg, {"block_0": sown["block_0"]}) == 2.0


@pytest.mark.slow
def test_the_objective_has_the_auxiliary_loss_of_all_layers_once(tiny, batch):
    """Once, not once a layer, where every second layer has experts."""
    routed = {"model.num_experts": 4, "model.router_balance": 0.5, "model.router_z": 0.1}
    c = tiny(routed | {"model.num_layers": 4, "model.expert_every": 2})
    c.model = config.resolve(c.model, 259)
    model, objective = models.build(c.model), objectives.get("causal_lm")
    tx = optimizer.build(c, groups.of(c, models.abstract_params(model)))
    state = init_state(model, tx, c)
    rows = batch(c)
    sown = jax.jit(lambda p: model.apply({"params": p}, rows, mutable=["losses"])[1])(state.params)
    _, metrics = jax.jit(make_train_step(model, objective, tx, c))(state, rows)
    own = auxiliary_loss(c.model, sown)
    assert 0.5 < own < 4
    np.testing.assert_allclose(metrics["objective"] - metrics["loss"], own, rtol=1e-4)


def first_come(x, params, real, c, k):
    """What each token gets, one token after the other; and how many found no room."""
    gates = x @ params["router"]
    gates = np.exp(gates) / np.exp(gates).sum(-1, keepdims=True)
    order = np.argsort(-gates, -1)[..., :k]
    y, dropped = np.zeros_like(x), 0
    for b in range(len(x)):
        room = np.full(E, max(1, math.ceil(c * k * real[b].sum() / E)))
        for t in np.flatnonzero(real[b]):
            for choice in range(k):
                e = order[b, t, choice]
                if room[e] == 0:
                    dropped += 1
                    continue
                room[e] -= 1
                share = gates[b, t, e] / (gates[b, t, order[b, t]].sum() if k > 1 else 1)
                h = np.maximum(x[b, t] @ params["up"][e], 0)
                y[b, t] += share * h @ params["down"][e]
    return y, dropped


@pytest.mark.parametrize(("c", "k"), [(0.7, 1), (1.0, 2), (1.3, 2), (4.0, 2), (0.1, 1)])
def test_capacity_is_first_come_first_served_among_real_tokens(c, k):
    x, params = drawn(gated=False)
    real = np.arange(T) < np.array([[T - 1], [5]])
    model = layer(activation="relu", expert_capacity=c, experts_per_token=k)
    run = jax.jit(lambda p, x, real: model.apply({"params": p}, x, real, mutable=["losses"])[0])
    y = run(params, x, jnp.asarray(real))
    expected, dropped = first_come(x, params, real, c, k)
    assert (dropped == 0) == (c == 4.0)
    np.testing.assert_allclose(y[real], expected[real], atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("capacity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_later_tokens_change_nothing_before_them(k, capacity):
    """Neither by taking an expert's room nor by what they hold: a causal model stays causal."""
    model = layer(activation="relu", expert_capacity=capacity, experts_per_token=k)
    x, params = drawn(gated=False)
    run = lambda x: model.apply({"params": params}, x, mutable=["losses"])[0]
    for t in range(1, T):
        changed = np.concatenate([x[:, :t], -5 * x[:, t:]], axis=1)
        np.testing.assert_array_equal(run(changed)[:, :t], run(x)[:, :t])


@pytest.mark.parametrize("capacity", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_padding_changes_nothing(kind, capacity):
    """Neither what it holds nor how much of it there is."""
    changes = {"num_experts": 4, "expert_capacity": capacity, "kind": kind, "head": "none"}
    model, params = tiny_model(router_balance=1.0, router_z=0.1, **changes)
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, 11, (3, 8)), np.array([[8], [3], [5]])

    apply = jax.jit(lambda rows: model.apply({"params": params}, rows, mutable=["losses"]))

    def run(extra):
        real = np.arange(8 + extra) < lengths
        rows = np.pad(tokens, ((0, 0), (0, extra)))
        rows = np.where(real, rows, rng.integers(0, 11, real.shape))
        rows = {"tokens": rows, "segment_ids": real.astype(np.int32)}
        outputs, sown = apply(rows)
        return outputs.features[real], auxiliary_loss(model.cfg, sown)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for extra in (0, 1, 8):
        jax.tree.map(close, run(extra), run(0))


def test_the_router_is_float32_whatever_the_activations_are():
    """Of a router in bfloat16 8 in 1,000 tokens would go elsewhere, and gates be 0.4 % off."""
    x, params = drawn(gated=False)
    x = jnp.asarray(x, jnp.bfloat16)
    model = layer(activation="relu", dtype="bfloat16", router_balance=1.0, router_z=1.0)
    _, sown = model.apply({"params": params}, x, mutable=["losses"])
    logits = np.asarray(x, np.float64) @ params["router"]
    gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    sums = sown["losses"]["router"][0]
    np.testing.assert_allclose(sums["gates"], gates.sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(sums["z"], (np.log(np.exp(logits).sum(-1)) ** 2).sum(), rtol=1e-5)


def test_router_z_is_the_mean_square_of_the_log_normaliser():
    x, params = drawn(gated=False)
    model = layer(router_balance=0.0, router_z=0.5)
    _, sown = model.apply({"params": params}, x, mutable=["losses"])
    expected = 0.5 * np.square(np.log(np.exp(x @ params["router"]).sum(-1))).mean()
    np.testing.assert_allclose(auxiliary_loss(model.cfg, sown), expected, rtol=1e-4)


def test_every_second_layer_and_the_losses_of_each():
    changes = {"num_experts": 2, "expert_every": 2, "num_layers": 4, "attention": "dense,local"}
    model, params = tiny_model(**changes)
    layers = params["decoder"]["stack"]["layers"]
    assert "router" in layers["block_1"]["mlp"] and "router" not in layers["block_0"]["mlp"]
    tokens = jnp.zeros((1, 4), jnp.int32)
    run = jax.jit(lambda p: model.apply({"params": p}, {"tokens": tokens}, mutable=["losses"])[1])
    sown = run(params)
    layers = sown["losses"]["decoder"]["stack"]["layers"]
    assert layers.keys() == {"block_1"} and layers["block_1"]["mlp"]["router"][0]["z"].shape == (2,)


def test_flops_count_the_experts_a_token_meets():
    def of(**changes):
        m = config.base().model
        m.update(changes)
        m = config.resolve(m, 100)
        return train_flops(m, 1, 8), count_params(m)

    (one, few), (two, more) = of(num_experts=8, experts_per_token=1), of(num_experts=8)
    (_, most), (alone, _) = of(num_experts=16, experts_per_token=1), of()
    mlp = 3 * 4 * 2 * 8 * 2 * 256 * 1024  # 4 layers, 8 tokens
    shared, _ = of(num_experts=8, experts_per_token=1, shared_experts=1)
    assert shared - one == two - one == mlp and one > alone and few == more < most
