"""Tests that eight simulated devices on any mesh give the results of one device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from llm_jax import config as configs
from llm_jax import sharding
from llm_jax.config import ConfigError
from llm_jax.models import layers
from llm_jax.models.embeddings import TokenEmbed
from llm_jax.sharding.hardware import chip
from llm_jax.train.checkpoint import Checkpoints, join, split
from llm_jax.train.run import Setup
from llm_jax.train.state import make_eval_step, make_train_step

STEPS = 4

MODELS = {
    # Every size divides; grouped queries, dropout, learned positions and biases besides.
    "even": {
        "model.vocab_size": 264,
        "model.num_kv_heads": 2,
        "model.positions": "learned",
        "model.use_bias": True,
        "model.dropout": 0.1,
        "train.microbatches": 2,
    },
    # 259 rows of the vocabulary divide over nothing.
    "odd": {"model.tie_embeddings": False, "model.activation": "swiglu"},
    "far": {"model.num_layers": 4, "model.positions": "alibi", "model.window": 5,
            "model.attention": "blockwise,local"},
    # Kinds that are not a function of one query and its keys; dropout of weights.
    "linked": {"model.attention": "bigbird,gated_linear", "model.positions": "learned",
               "model.block": 4, "model.short_conv": 4},
    # Kinds that choose keys by those of all tokens.
    "choosing": {"model.attention": "moba,dsa", "model.block": 4, "model.selected_blocks": 2,
                 "model.index_topk": 5, "model.index_dim": 8},
    "dropped": {"model.attention_dropout": 0.2},
    "deep": {"model.num_layers": 8, "model.attention": "dense,local", "model.window": 5,
             "model.pipeline_pieces": 8, "model.remat": "full", "data.batch_size": 16},
    "both": {"model.kind": "encoder_decoder", "model.positions": "relative",
             "objective.name": "seq2seq"},
    "experts with room": {"model.num_experts": 4, "model.expert_capacity": 1.0},
    "experts for all": {"model.num_experts": 4, "model.activation": "swiglu",
                        "model.expert_bias": True, "model.shared_experts": 1},
    "experts in stages": {"model.num_experts": 4, "model.router_balance": 0.5,
                          "model.router_z": 0.1},
}


@pytest.fixture(scope="module")
def trained(tiny, batch):
    """Returns (setup, losses, state) of a model on a mesh, after STEPS steps."""

    @functools.cache
    def prepare(model, data, fsdp, tensor, context=1, expert=1, pipeline=1):
        sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "context": context, "expert": expert}
        sizes["pipeline"] = pipeline
        config = tiny(MODELS[model] | {f"mesh.{axis}": size for axis, size in sizes.items()})
        config.model = configs.resolve(config.model, 259)
        mesh = sharding.make_mesh(config.mesh, jax.devices()[: math.prod(sizes.values())])
        sharding.check(config, mesh)
        return Setup(config, mesh)

    @functools.cache
    def train(model, *mesh):
        setup = prepare(model, *mesh)
        return setup, *advance(setup, setup.draw_state(places(setup)), range(STEPS))

    def places(setup):
        return jax.tree.map(lambda x: x.sharding, setup.abstract_state())

    @functools.cache
    def compiled(setup):
        step = make_train_step(setup.model, setup.objective, setup.tx, setup.config)
        return jax.jit(step, out_shardings=(places(setup), None))

    def advance(setup, state, seeds):
        losses = []
        with sharding.activate(setup.mesh):
            for seed in seeds:
                rows = sharding.put(batch(setup.config, seed), setup.mesh)
                state, metrics = compiled(setup)(state, rows)
                losses.append(float(metrics["loss"]))
        return losses, state

    train.prepare, train.advance = prepare, advance
    return train


@pytest.fixture(autouse=True, scope="module")
def compiled_here():
    """Nothing from the cache: what XLA reads back for a CPU may run two collectives in another
    order on each device, which then wait for one another for ever.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        # Between them all axes of a mesh, and of the model what each of them splits.
        ("even", (1, 2, 2, 2)),
        slow("experts in stages", (2, 1, 1, 1, 2, 2)),
        slow("odd", (8, 1, 1)),
        slow("odd", (1, 8, 1)),
        slow("even", (2, 2, 2)),
        slow("odd", (1, 2, 4)),
        slow("even", (4, 1, 2)),
        slow("far", (2, 1, 1, 4)),
        slow("far", (1, 2, 2, 2)),
        slow("linked", (2, 1, 2, 2)),
        slow("choosing", (2, 1, 2, 2)),
        slow("dropped", (2, 2, 2)),
        slow("odd", (2, 1, 1, 1, 1, 2)),
        slow("far", (1, 1, 2, 2, 1, 2)),
        slow("deep", (1, 2, 1, 1, 1, 4)),
        slow("both", (2, 1, 2, 1, 1, 2)),
        slow("experts in stages", (1, 1, 1, 2, 2, 2)),
        slow("experts with room", (2, 1, 1, 1, 4)),
        slow("experts with room", (1, 1, 2, 2, 2)),
        slow("experts for all", (1, 2, 2, 1, 2)),
    ],
    ids=str,
)
def test_the_same_losses_as_one_device(model, mesh, trained):
    _, expected, _ = trained(model, 1, 1, 1)
    _, losses, _ = trained(model, *mesh)
    assert len(set(losses)) == STEPS
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


# The quick ones are on a mesh that has been trained on above.
@pytest.mark.parametrize(
    "mesh", [(2, 1, 1, 1, 2, 2), slow((2, 1, 2, 1, 1, 2)), slow((1, 1, 1, 2, 2, 2))], ids=str
)
@pytest.mark.slow
def test_the_same_evaluation_as_one_device(mesh, trained, batch):
    found = []
    for sizes in ((1, 1, 1), mesh):
        setup, _, state = trained("experts in stages", *sizes)
        step = jax.jit(make_eval_step(setup.model, setup.objective, setup.config))
        with sharding.activate(setup.mesh):
            sums, *_ = step(state.params, sharding.put(batch(setup.config, 0), setup.mesh))
        found.append(float(sums["loss"]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_looking_up_moves_vectors_not_the_table(mesh, tiny):
    V, D, B, T = 512, 64, 8, 16
    sizes = {f"mesh.{axis}": n for axis, n in ({"data": 1} | mesh).items()}
    config = tiny({"model.embed_dim": D} | sizes)
    config.model = configs.resolve(config.model, V)
    made = sharding.make_mesh(config.mesh)
    embed = TokenEmbed(FrozenConfigDict(config.model))
    look_up = lambda table, tokens: embed.apply({"params": {"embedding": table}}, tokens)
    loss = lambda table, tokens: jnp.sin(look_up(table, tokens)).sum()
    table = jax.random.normal(jax.random.key(0), (V, D))
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, V)
    place = NamedSharding(made, PartitionSpec("tensor", "fsdp")), sharding.batch_sharding(made)
    with sharding.activate(made):
        step = jax.jit(jax.grad(loss), in_shardings=place, out_shardings=place[0])
        text = step.lower(table, tokens).compile().as_text()
        found = step(*jax.device_put((table, tokens), place))
    assert "all-to-all" in text
    assert f"f32[{V},{D}]" not in text and f"f32[{V // made.shape['tensor']},{D}]" not in text
    np.testing.assert_allclose(found, jax.grad(loss)(table, tokens), rtol=1e-5, atol=1e-5)


def layer(tree):
    return tree["decoder"]["stack"]["layers"]["block"]


def part(x) -> tuple:
    """The shape that one device holds."""
    return x.sharding.shard_shape(x.shape)


def test_each_device_holds_its_part(trained):
    _, _, state = trained("even", 1, 2, 2, 2)
    (adam,) = (s for s in state.opt_state if hasattr(s, "mu"))
    for tree in (state.params, adam.mu, adam.nu):  # [2 layers, ...], 16 wide, 4 heads of 4
        block = layer(tree)
        assert part(block["attention"]["query"]["kernel"]) == (2, 8, 2, 4)
        assert part(block["attention"]["key"]["kernel"]) == (2, 8, 1, 4)
        assert part(block["attention"]["out"]["kernel"]) == (2, 2, 4, 8)
        assert part(block["mlp"]["up"]["kernel"]) == (2, 8, 32)
        assert part(block["mlp"]["up"]["bias"]) == (2, 32)
        assert part(block["mlp"]["down"]["kernel"]) == (2, 32, 8)
        assert part(tree["embed"]["embedding"]) == (132, 8)
        assert part(block["mlp_norm"]["scale"]) == (2, 16)
    assert state.step.sharding.is_fully_replicated

    params = trained.prepare("odd", 1, 2, 4).abstract_state().params
    assert part(params["embed"]["embedding"]) == (259, 8)
    assert part(params["output"]) == (259, 8)
    assert part(layer(params)["mlp"]["gate"]["kernel"]) == (2, 8, 16)


def test_a_checkpoint_goes_onto_another_mesh(trained, tmp_path):
    first = 1, 2, 2, 2
    setup, _, state = trained("even", *first)
    checkpoints = Checkpoints(tmp_path, setup.config.checkpoint)
    checkpoints.save(STEPS, split(state), {"data": {}})
    checkpoints.wait()
    after = {}
    for mesh in (first, (4, 1, 2), (1, 1, 1)):
        other = trained.prepare("even", *mesh)
        _, items, _ = checkpoints.restore(split(other.abstract_state()))
        restored = join(items)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        up = layer(restored.params)["mlp"]["up"]["kernel"]
        assert part(up) == (2, 16 // mesh[1], 64 // mesh[2])
        if mesh != (4, 1, 2):  # its step is compiled nowhere else
            after[mesh], _ = trained.advance(other, restored, range(STEPS, STEPS + 2))
            np.testing.assert_allclose(after[mesh], after[first], rtol=0, atol=1e-5)
    checkpoints.close()


def mesh_of(data=-1, fsdp=1, tensor=1):
    config = configs.base()
    config.mesh.update({"data": data, "fsdp": fsdp, "tensor": tensor})
    return sharding.make_mesh(config.mesh), config


def test_minus_one_is_the_rest():
    others = {"pipeline": 1, "expert": 1, "context": 1}
    assert dict(mesh_of()[0].shape) == {"data": 8, "fsdp": 1, "tensor": 1} | others
    assert dict(mesh_of(2, -1, 2)[0].shape) == {"data": 2, "fsdp": 2, "tensor": 2} | others


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, 3, 1), "mesh.fsdp=3.*multiply to 3.*divide the 8 devices"),
        ((2, 2, 1), "multiply to 4.*equal the 8 devices.*-1"),
        ((-1, -1, 1), "at most one may be -1"),
        ((0, 1, 1), "mesh.data=0.*must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        mesh_of(*sizes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.batch_size", 12, "data.batch_size=12: must divide over .*mesh.expert = 4"),
        ("model.num_heads", 3, "model.num_heads=3: must be a multiple of mesh.tensor=2"),
        ("model.num_kv_heads", 1, "model.num_kv_heads=1: must be a multiple of mesh.tensor=2"),
        ("train.microbatches", 8, "= 4 in train.microbatches=8; the nearest is 32"),
    ],
)
def test_batch_and_heads_must_divide(key, value, message):
    mesh, config = mesh_of(2, 2, 2)
    sharding.check(config, mesh)
    group, name = key.split(".")
    config[group][name] = value
    if key == "data.batch_size":
        config.train.microbatches = 2
    with pytest.raises(ConfigError, match=message):
        sharding.check(config, mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_layers": 3}, "model.num_layers=3: must be a multiple of mesh.pipeline=2$"),
        ({"model.attention": "dense,local"}, "multiple of mesh.pipeline=2, with layers in"),
        ({"model.pipeline_pieces": 1}, "pipeline_pieces=1: must be a multiple of mesh.pipeline=2"),
        ({"model.reversible": True}, "mesh.pipeline=2: reversible layers do not"),
        ({"model.pipeline_pieces": 6}, "must divide over .* = 8 in .* of model.pipeline_pieces=6"),
    ],
)
def test_layers_must_divide_into_stages(changes, message, tiny):
    config = tiny({"mesh.data": 4, "mesh.pipeline": 2} | changes)
    config.model = configs.resolve(config.model, 259)
    with pytest.raises(ConfigError, match=message):
        sharding.check(config, sharding.make_mesh(config.mesh))


@pytest.mark.parametrize(
    ("axis", "key", "value"), [("context", "max_length", 250), ("expert", "num_experts", 6)]
)
def test_rows_and_experts_must_divide(axis, key, value):
    config = configs.base()
    config.mesh.update({"data": 2, axis: 4})
    config.model[key] = value
    with pytest.raises(ConfigError, match=f"model.{key}={value}: must be a .*mesh.{axis}=4"):
        sharding.check(config, sharding.make_mesh(config.mesh))



def test_a_batch_is_split_over_data_and_fsdp():
    mesh, _ = mesh_of(2, 2, 2)
    rows = np.arange(32).reshape(8, 4)
    (x,) = sharding.put({"tokens": rows}, mesh).values()
    assert part(x) == (2, 4)
    np.testing.assert_array_equal(x, rows)
    assert sharding.batch_shards(mesh) == 4


def test_only_a_leaf_that_mirrors_a_parameter_lies_like_it():
    mesh, _ = mesh_of(1, -1, 1)
    params = {"a": {"kernel": jnp.ones((8, 4))}, "b": {"kernel": jnp.ones((4, 8))}}
    spec = jax.sharding.PartitionSpec
    split = lambda *axes: jax.sharding.NamedSharding(mesh, spec(*axes))
    where = {"a": {"kernel": split("fsdp", None)}, "b": {"kernel": split(None, "fsdp")}}
    state = {"mu": params, "rows": {"a": {"kernel": jnp.ones(8)}}, "count": jnp.zeros(())}
    state["left"] = {"a": {"kernel": jnp.ones((8, 1))}}  # as many axes, and another shape
    found = sharding.like_params(state, params, where, mesh)
    assert found["mu"] == where
    others = found["rows"]["a"]["kernel"], found["left"]["a"]["kernel"], found["count"]
    assert {*others} == {sharding.replicated(mesh)}


def test_peak_flops_is_known_by_part_of_the_name():
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert chip(Device()).flops == 989e12
    assert chip(jax.devices()[0]) is None


@pytest.mark.parametrize(
    ("axes", "shard"),
    [
        (("batch", "length", "activation_mlp"), (4, 2, 8)),
        (("batch", "length", "activation_heads", "activation_kv"), (4, 2, 8, 16)),
        (("batch", "length", "activation_kv_heads", "activation_kv"), (4, 2, 8, 16)),
        (("batch", "length", "activation_embed"), (4, 2, 16)),
    ],
)
def test_activations_lie_as_their_axes_say(axes, shard):
    """On data 2, context 2, tensor 2: features of the feed-forward layer and heads by tensor."""
    sizes = configs.base().mesh
    sizes.data, sizes.context, sizes.tensor = 2, 2, 2
    x = jnp.zeros((8, 4, 16, 16)[: len(axes)])
    with sharding.activate(sharding.make_mesh(sizes)):
        y = jax.jit(lambda x: layers.annotate(x, *axes))(x)
    assert y.sharding.shard_shape(y.shape) == shard
