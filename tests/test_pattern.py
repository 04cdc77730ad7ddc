"""Tests of layer lists: syntax, scans, and a stack against its single layers."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import config as configs
from llm_jax import models, pattern
from llm_jax.attention import Mask
from llm_jax.models.stack import Block, Context, Stack

LOCAL, GLOBAL = {"attention": "local", "window": "2"}, {"attention": "dense"}
DENSE, REST = {"num_experts": "0", "mlp_dim": "18432"}, {}
DELTA, LATENT, FIRST = {"attention": "kda"}, {"attention": "latent"}, {"attention": "a", "b": "0"}
# The sentence of a paper, a depth, and its layers by hand.
SAID = {
    "5 local window=2, 1 dense": ([*[LOCAL] * 5, GLOBAL] * 4 + [LOCAL] * 2),
    "3 num_experts=0 mlp_dim=18432, rest": [DENSE] * 3 + [REST] * 58,
    "3 kda, latent": [DELTA, DELTA, DELTA, LATENT] * 3,
    "rest kda, 1 latent": [DELTA] * 11 + [LATENT],
    "a b=0, 2 kda, latent, rest (3 kda, latent), 2 kda, latent":
        [FIRST, DELTA, DELTA, LATENT, *[DELTA, DELTA, DELTA, LATENT] * 5, DELTA, DELTA, LATENT],
    "2 (2 kda, latent), rest": [DELTA, DELTA, LATENT] * 2 + [REST],
    "local lsh_buckets=(2, 4)": [{"attention": "local", "lsh_buckets": "(2, 4)"}] * 2,
}  # fmt: skip


@pytest.mark.parametrize("text", SAID)
def test_words_mean_the_papers_layers(text):
    layers = SAID[text]
    assert pattern.expand(pattern.parse(text), len(layers)) == layers
    words = [" ".join(f"{k}={v}" for k, v in layer.items()) or "num_heads=8" for layer in layers]
    again = pattern.expand(pattern.parse(pattern.write(words)), len(layers))
    assert again == [layer or {"num_heads": "8"} for layer in layers]


@pytest.mark.parametrize("seed", range(20))
def test_scans_are_the_layers_again(seed):
    rng = random.Random(seed)
    part = lambda: [rng.choice("abc") for _ in range(rng.randint(1, 5))] * rng.randint(1, 6)
    layers = part() + part() * (seed % 2) + part()
    found, again = pattern.scans(layers), []
    for scan in found:
        assert scan.start == len(again)
        again += layers[scan.start : scan.start + scan.period] * scan.count
        assert len(scan.blocks()) == scan.period
    assert again == layers
    assert len({scan.name for scan in found}) == len(found)


@pytest.mark.parametrize(
    ("layers", "cut"),
    [
        ("a" * 7, [(1, 7)]),
        ("ab" * 6, [(2, 6)]),
        ("ab", [(2, 1)]),
        ("aaba" * 3, [(4, 3)]),
        ("aaaaab" * 10 + "aaaa", [(6, 10), (1, 4)]),
        ("aaa" + "b" * 58, [(1, 3), (1, 58)]),
        ("b" * 11 + "a", [(1, 11), (1, 1)]),
        ("xddf" + "dddf" * 5 + "ddf", [(1, 1), (4, 6), (2, 1)]),
    ],
)
def test_what_repeats_is_one_scan(layers, cut):
    found = pattern.scans(layers)
    assert [(scan.period, scan.count) for scan in found] == cut
    assert (found[0].name == "layers") == (len(cut) == 1)


STACKS = {
    "5 local window=2, 1 dense": {"num_layers": 8},
    "local window=3 num_heads=2 num_kv_heads=1 head_dim=8 mlp_dim=20, rest": {"num_layers": 3},
    "rest num_experts=0 mlp_dim=24, dense": {"num_layers": 3, "num_experts": 2},
    "2 dense, rest (local window=2, dense positions=none), dense qk_norm=True": {"num_layers": 7},
    "2 dense, local window=2, lsh lsh_chunk=4": {"num_layers": 5, "reversible": True,
                                                 "num_kv_heads": 4},
    "2 norm_place=sandwich activation=relu, norm_place=post": {"num_layers": 4, "remat": "full"},
    "dense, local window=2, kda": {"num_layers": 6, "num_kv_heads": 4, "positions": "none",
                                     "scan": False},
}  # fmt: skip
B, T, D = 2, 9, 16


QUICK = list(STACKS)[1:2]


@pytest.mark.parametrize(
    "text", [*QUICK, *(pytest.param(x, marks=pytest.mark.slow) for x in STACKS if x not in QUICK)]
)
def test_a_stack_is_its_layers_one_after_the_other(text):
    changes = {"embed_dim": D, "num_heads": 4, "num_kv_heads": 2, "positions": "rotary"}
    m = configs.base().model
    m.update(changes | {"vocab_size": 11, "layers": text} | STACKS[text])
    config = configs.base()
    config.model = m
    configs.check(config)
    cfg = FrozenConfigDict(configs.resolve(m, 11))
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    context = Context(Mask(causal=True), jnp.broadcast_to(jnp.arange(T), (B, T)))
    stack, n = Stack(cfg, m.num_layers), m.num_layers
    params = models.model.nn.unbox(jax.jit(stack.init)(jax.random.key(1), x, context))["params"]
    found = jax.jit(stack.apply)({"params": params}, x, context)

    flat = jax.tree_util.tree_leaves_with_path(params)
    trees = [{} for _ in range(n)]
    for path, value in flat:
        *rooms, last = (part.key for part in path)
        at = configs.numbers(cfg, "/".join(["stack", *rooms, last]))
        assert len(at) == len(value)
        for place, number in enumerate(at):
            tree = trees[number]
            for room in rooms[2:]:
                tree = tree.setdefault(room, {})
            tree[last] = value[place]
    specs = pattern.expand(pattern.parse(text), n)
    y = (x, x) if cfg.reversible else x
    for spec, tree in zip(specs, trees, strict=True):
        own = configs.base()
        own.model = configs.resolve(m, 11)
        for key, value in spec.items():
            configs.set_key(own, f"model.{key}", value)
        own.model.layers = ""
        y = Block(FrozenConfigDict(own.model)).apply({"params": tree}, y, context)
    y = (y[0] + y[1]) / 2 if cfg.reversible else y
    np.testing.assert_allclose(found, y, atol=2e-5 * np.abs(y).max())


def test_a_program_does_not_grow_with_the_depth():
    def size(depth):
        m = configs.base().model
        m.update({"layers": "5 local window=4, 1 dense", "num_layers": depth, "embed_dim": 16})
        model = models.build(configs.resolve(m, 11))
        shapes = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
        run = lambda p, tokens: model.apply({"params": p}, {"tokens": tokens}).hidden.sum()
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        return len(jax.jit(jax.grad(run)).lower(shapes, tokens).as_text())

    assert size(62) < 1.1 * size(14)  # a stack of single layers: 4 times
