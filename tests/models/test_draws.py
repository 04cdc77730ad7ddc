"""Tests of randomness: dropout differs by layer, block, device and microbatch; initialisation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import attention, models, sharding
from llm_jax import config as configs
from llm_jax.attention import Mask, Scoring, blockwise
from llm_jax.models import split
from llm_jax.models.moe import MixtureOfExperts
from llm_jax.models.stack import Context, Stack
from tests.slow import every


def resolved(**changes):
    m = configs.base().model
    m.update({"embed_dim": 16, "num_heads": 2, "head_dim": 8, "positions": "none"} | changes)
    return FrozenConfigDict(configs.resolve(m, 11))


def meshed(**sizes):
    shape = configs.base().mesh
    shape.update({name: 1 for name in shape} | sizes)
    return sharding.make_mesh(shape, jax.devices()[: math.prod(sizes.values())])


def alone(masks):
    """Whether no two of these arrays of bools [n, ...], half of each true, agree by more than
    chance: equal ones agree everywhere, opposite ones nowhere."""
    signs = 2.0 * np.reshape(masks, (len(masks), -1)) - 1
    agree = signs @ signs.T / signs.shape[1]
    return np.abs(agree - np.diag(np.diag(agree))).max() < 6 / signs.shape[1] ** 0.5


def test_alone_can_tell():
    drawn = np.random.default_rng(0).random((3, 500)) < 0.5
    assert alone(drawn)
    assert not alone([*drawn, drawn[1]]) and not alone([*drawn, ~drawn[1]])


STACKS = {
    "scan": ({}, {}),
    "unrolled": ({"scan": False}, {}),
    "shared": ({"share_layers": True}, {}),
    "remat": ({"remat": "full"}, {}),
    "reversible": ({"reversible": True}, {}),
    "pipeline": ({"pipeline_pieces": 4}, {"pipeline": 2}),
    "pipeline of data": ({"pipeline_pieces": 2}, {"pipeline": 2, "data": 2}),
}


@pytest.mark.parametrize("case", every(2, STACKS))
def test_each_residual_branch_drops_positions_of_its_own(case):
    """Of every layer, sub-layer and row: branches add 1, 10, 100, 1000, twice or not at all."""
    changes, sizes = STACKS[case]
    cfg = resolved(num_layers=2, dropout=0.5, **changes)
    stack = Stack(cfg, 2, deterministic=False)
    x = jnp.zeros((8, 16, 16))
    context = Context(Mask(causal=True), jnp.zeros((8, 16), jnp.int32))
    params = stack.init(jax.random.key(0), x, context)["params"]
    params = jax.tree.map(jnp.zeros_like, nn.unbox(params))
    block = params["layers"]["block"]
    shared = changes.get("share_layers", False)
    layers = lambda *values: jnp.asarray(values[:1] if shared else values)[:, None]
    size = lambda x, values: jnp.broadcast_to(values[0] if x.ndim == 1 else values, x.shape)
    for name, values in (("attention", layers(1.0, 100.0)), ("mlp", layers(10.0, 1000.0))):
        bias = block[name]["out" if name == "attention" else "down"]
        bias["bias"] = size(bias["bias"], values)
    run = jax.jit(lambda p, x: stack.apply({"params": p}, x, context, rngs={"dropout": key}))
    key = jax.random.key(1)
    with sharding.activate(meshed(**sizes)):
        sums = np.rint(np.asarray(run(params, x)) * (2 if cfg.reversible else 1))
    digits = [(sums // 10**i).astype(int) % 10 for i in range(2 if shared else 4)]
    if shared:  # the same numbers in both layers: 2 of one layer, or 4 of both
        assert all(0.2 < np.mean(digit == 2) - 0.25 < 0.3 for digit in digits)
        digits = [digit == 4 for digit in digits]
        assert all(0.2 < digit.mean() < 0.3 for digit in digits)
        return
    assert set(np.unique(digits)) == {0, 2}
    assert alone([row > 0 for digit in digits for row in digit])


def dropped(attend, T):
    """bool [B, N, T, T]: which weights of even attention were dropped."""
    kept = attend(jnp.zeros((2, T, 2, 8)), jnp.broadcast_to(jnp.eye(T)[:, None], (2, T, 2, T)))
    return np.asarray(kept).swapaxes(1, 2) == 0


DROPS = [name for name, kind in attention.VARIANTS.items() if {"dropout", "weights"}
         <= kind.supports and name not in ("linformer", "nystrom", "latent")]  # fmt: skip


@pytest.mark.parametrize("name", every(3, DROPS))
def test_each_block_of_attention_drops_weights_of_its_own(name, monkeypatch):
    monkeypatch.setattr(blockwise, "LARGEST", {"cpu": (2**14, 64)})
    variant, T = attention.get(name), 512
    options = {"window": 64, "stride": 2, "block": 64, "random_blocks": 0, "max_length": T,
               "selected_blocks": 2, "lsh_chunk": 64, "lsh_hashes": 1,
               "lsh_buckets": (4,)}  # fmt: skip
    options = {x: options[x] for x in variant.reads}
    made = variant.projections(2, 2, 8, **options)
    for weight, (shape, *_) in variant.weights(2, 2, 8, **options).items():
        options[weight] = jnp.eye(*shape)
    # Nothing is forgotten.
    options |= {name: jnp.full((2, T, *x.shape), 30.0) for name, x in made.items()}
    mask = Mask(causal=True, window=64 if name == "dense" else None)
    scoring = Scoring(dropout_key=jax.random.key(0), dropout_rate=0.5)

    def run(scoring):
        attend = lambda q, v: variant.attend(
            q, None if variant.shared_qk else q, v, mask, scoring, **options
        )
        return dropped(jax.jit(attend), T)

    seen, zero = ~run(Scoring()), run(scoring)
    assert 0.45 < zero[seen].mean() < 0.55
    agree = lambda a, b, both: abs((a == b)[both].mean() - 0.5) < 0.05
    cut = lambda x, t, s: x[..., t : t + 384, s : s + 384]
    for shift in (64, 128):
        for t, s in ((shift, shift), (shift, 0)):
            both = cut(seen, 0, 0) & cut(seen, t, s)
            if both.sum() > 2000:
                assert agree(cut(zero, 0, 0), cut(zero, t, s), both), (shift, t, s)
    both = seen[:, 0] & seen[:, 1]
    assert agree(zero[:, 0], zero[:, 1], both)  # heads
    assert agree(zero[0], zero[1], seen[0] & seen[1])  # rows


def test_both_maps_of_differential_attention_drop_weights_of_their_own():
    """Of even attention with a lambda of 1 their difference is what dropout makes of it."""
    zero, scale = jnp.zeros(8), jnp.ones(16)
    vectors = dict.fromkeys(("lambda_q1", "lambda_k1"), zero.at[0].set(np.log(1.2) ** 0.5))
    vectors |= {"lambda_q2": zero, "lambda_k2": zero}  # e^log 1.2 - e^0 + 0.8 = 1
    q, v = jnp.zeros((1, 64, 2, 8)), jnp.ones((1, 64, 2, 8))
    attend = jax.jit(lambda scoring: attention.get("differential").attend(
        q, q, v, Mask(), scoring, scale=scale, **vectors
    ))  # fmt: skip
    assert np.abs(attend(Scoring())).max() < 1e-2
    assert np.abs(attend(Scoring(dropout_key=jax.random.key(0), dropout_rate=0.5))).max() > 0.1


def test_first_and_last_block_of_bigbird_drop_weights_of_their_own():
    """They see all, one from the front and one from behind."""
    scoring = Scoring(dropout_key=jax.random.key(0), dropout_rate=0.5)
    kind = lambda q, v: attention.get("bigbird").attend(
        q, q, v, Mask(), scoring, block=16, random_blocks=1
    )
    zero = dropped(jax.jit(kind), 128)
    assert alone([zero[:, :, :16], zero[:, :, :-17:-1, ::-1]])


@pytest.mark.parametrize("sizes", [{"context": 4}, {"data": 2, "context": 2}], ids=str)
def test_each_device_drops_weights_of_its_own(sizes):
    scoring = Scoring(dropout_key=jax.random.key(0), dropout_rate=0.5)
    mesh = meshed(**sizes)
    variant = attention.get("dense")
    attend = lambda q, v: split.attend(variant, q, q, v, Mask(), scoring, {})
    with sharding.activate(mesh):
        zero = dropped(jax.jit(attend), 64)
    assert 0.45 < zero.mean() < 0.55
    assert alone(zero.reshape(2 * 2 * 4, 16, 64))  # rows, heads and quarters of the queries


def test_each_device_drops_its_experts_units():
    """All experts alike, all units 1: what comes out is which were kept."""
    cfg = resolved(num_experts=2, experts_per_token=1, mlp_dim=16, mlp_dropout=0.5,
                   activation="relu")  # fmt: skip
    layer, eye = MixtureOfExperts(cfg, deterministic=False), jnp.eye(16)
    params = {"router": jnp.zeros((16, 2)), "up": jnp.ones((2, 16, 16))}
    params["down"] = jnp.stack([eye] * 2)
    run = lambda x: layer.apply(
        {"params": params}, x, rngs={"dropout": jax.random.key(0)}, mutable=["losses"]
    )[0]
    with sharding.activate(meshed(data=4)):
        y = np.asarray(jax.jit(run)(jnp.ones((4, 32, 16))))
    assert set(np.unique(y)) == {0, 16}  # 16 inputs, a gate of 1/2, scaled up by 2
    zero = y == 0
    assert 0.45 < zero.mean() < 0.55
    assert alone(zero)


D, N, H, F = 96, 6, 24, 160
STARTS = {
    "normal": ({}, {"*": 0.05}),
    "residual": ({"scale_residual_init": True, "num_experts": 2, "expert_every": 2},
                 {"attention/out": 0.05 / 8**0.5, "down": 0.05 / 8**0.5, "*": 0.05}),
    "cross": ({"scale_residual_init": True, "kind": "encoder_decoder"},
              {"attention/out": 0.05 / 8**0.5, "down": 0.05 / 8**0.5, "*": 0.05}),
    "fan in": ({"init": "fan_in", "num_experts": 2, "expert_every": 2, "activation": "swiglu"},
               {"attention/out": (N * H) ** -0.5, "down": F**-0.5, "embed": 1.0, "*": D**-0.5}),
    "unscaled": ({"init": "fan_in", "attention_scale": 1.0, "scale_embeddings": True},
                 {"query": (D * H) ** -0.5, "attention/out": (N * H) ** -0.5, "down": F**-0.5,
                  "*": D**-0.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", STARTS)
def test_parameters_start_as_wide_as_is_said(case):
    """Radford 2019, 2.3: residual layers by 1 / sqrt(2 layers); T5: 1 / sqrt(inputs)."""
    changes, stds = STARTS[case]
    m = configs.base().model
    m.update({"num_layers": 4, "embed_dim": D, "num_heads": N, "head_dim": H, "mlp_dim": F,
              "initializer_range": 0.05, "positions": "none"} | changes)  # fmt: skip
    model = models.build(configs.resolve(m, 300))
    params = jax.jit(lambda: models.init_params(model, jax.random.key(0)))()
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if path.endswith(("bias", "scale")):
            assert np.all(x == path.endswith("scale")), path
            continue
        inside = lambda name: name == "*" or f"{name}/" in f"{path}/"  # noqa: B023
        expected = next(std for name, std in stds.items() if inside(name))
        assert abs(np.std(x) / expected - 1) < 4 / (2 * x.size) ** 0.5, (path, np.std(x), expected)
        assert abs(np.mean(x)) < 4 * expected / x.size**0.5, path
