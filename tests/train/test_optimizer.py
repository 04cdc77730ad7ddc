"""Tests of schedules, of two steps of each optimizer in NumPy, and of parameter groups."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import attention, models, sharding
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.train import groups, optimizer
from llm_jax.train.run import Setup
from llm_jax.train.state import make_train_step
from tests.slow import every


def rates(steps, **changes):
    """The learning rate at given steps, in thousandths: 100 steps, peak 1, warm-up 10."""
    config = configs.base()
    config.train.steps = 100
    config.optimizer.update({"learning_rate": 1.0, "warmup_steps": 10} | changes)
    return [round(1000 * float(optimizer.schedule(config)(step))) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        ("constant", (0, 4, 9, 10, 99), (100, 500, 1000, 1000, 1000)),
        # Half-way, at 10 + 45, cosine and line stand between 1 and the last 0.1.
        ("cosine", (0, 9, 10, 55, 100, 150), (100, 1000, 1000, 550, 100, 100)),
        ("linear", (0, 9, 10, 55, 100, 150), (100, 1000, 1000, 550, 100, 100)),
        # peak * sqrt(warmup / step), 40 being four warm-ups.
        ("inverse_sqrt", (0, 9, 10, 40, 90), (100, 1000, 1000, 500, 333)),
        # Constant until the last fifth, 80 to 100.
        ("wsd", (0, 9, 10, 80, 90, 100), (100, 1000, 1000, 1000, 550, 100)),
    ],
)
def test_schedule(schedule, steps, expected):
    assert rates(steps, schedule=schedule) == list(expected)
    assert rates(steps, schedule=schedule, warmup_steps=0.1) == list(expected)  # of 100 steps


def test_schedule_edges():
    assert rates((0, 1), schedule="constant", warmup_steps=0) == [1000, 1000]
    assert rates((0, 50), schedule="cosine", warmup_steps=0) == [1000, 550]
    assert rates((0, 1), schedule="constant", warmup_steps=1) == [1000, 1000]
    wsd = {"schedule": "wsd", "decay_steps": 50, "final_fraction": 0.0}
    assert rates((50, 75, 100), **wsd) == [1000, 500, 0]
    # A decay that ends before the run does, and a peak that is held.
    for schedule in ("cosine", "linear"):
        assert rates((10, 35, 60, 99), schedule=schedule, decay_steps=50) == [1000, 550, 100, 100]
    held = {"schedule": "inverse_sqrt", "hold_steps": 15}
    assert rates((4, 9, 24, 25, 100), **held) == [500, 1000, 1000, 1000, 500]
    assert rates((0, 15, 60), **held, warmup_steps=0) == [1000, 1000, 500]


def tree_of(config):
    """Parameters by shapes alone, and their groups by path."""
    params = models.abstract_params(configs.resolve(config.model, 300))
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    return shapes, groups.of(config, params)


def sizes(params, wanted):
    """How many numbers the parameters hold whose path is wanted."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(x.size for path, x in leaves if wanted(groups.name(path)))


# The same model in PyTorch, where a layer's parameters are apart and flat: matrices have two
# dimensions or, of experts, three; vectors one. (Class, changes to its config's defaults.)
SWITCH = {"feed_forward_proj": "relu", "num_sparse_encoder_layers": 6, "d_ff": 3072,
          "num_sparse_decoder_layers": 6, "num_layers": 12, "num_decoder_layers": 12}  # fmt: skip
PYTORCH = {
    "albert:base": ("AlbertForPreTraining", {"hidden_size": 768, "num_attention_heads": 12,
                    "intermediate_size": 3072}),
    "bert:base": ("BertForPreTraining", {}),
    "distilbert:base": ("DistilBertForMaskedLM", {}),
    "electra:base": ("ElectraForPreTraining", {"embedding_size": 768, "hidden_size": 768,
                     "intermediate_size": 3072, "num_attention_heads": 12}),
    "gpt2:124m": ("GPT2LMHeadModel", {}),
    "llama:1-7b": ("LlamaForCausalLM", {}),
    "mixtral:8x7b": ("MixtralForCausalLM", {}),
    "roberta:base": ("RobertaForMaskedLM", {"vocab_size": 50265, "type_vocab_size": 1,
                     "max_position_embeddings": 514}),
    "switch:base-8": ("SwitchTransformersForConditionalGeneration", SWITCH),
    "t5:base": ("T5ForConditionalGeneration", {"d_model": 768, "d_ff": 3072, "num_layers": 12,
                "num_heads": 12}),
}  # fmt: skip


def in_pytorch(case):
    """{name: tensor without values} of the same model in transformers, each tensor once."""
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    name, changes = PYTORCH[case]
    model_class = getattr(transformers, name)
    with torch.device("meta"):
        return dict(model_class(model_class.config_class(**changes)).named_parameters())


@pytest.mark.parametrize("case", PYTORCH)
def test_every_matrix_is_decayed_and_no_vector_is(case):
    config = configs.load("configs/{}.py:{}".format(*case.split(":")))
    params, group = tree_of(config)
    ours = lambda decayed: sizes(
        params, lambda p: bool(group[p].decay) == decayed and not p.startswith("generator/")
    )
    tensors = in_pytorch(case).values()
    assert ours(True) == sum(x.numel() for x in tensors if x.ndim > 1)
    assert ours(False) == sum(x.numel() for x in tensors if x.ndim < 2)


def test_mixtral_is_decayed():
    config = configs.load("configs/mixtral.py:8x7b")
    params, group = tree_of(config)
    assert sizes(params, lambda p: group[p].decay) > 0.9999 * sizes(params, lambda p: True)


# All that is a vector, one a layer, in any kind of attention and any family: what is added,
# scales each entry, or stands for a head.
VECTORS = """
    bias output_bias norm/scale attention_norm/scale cross_norm/scale mlp_norm/scale
    final_norm/scale query_norm/scale key_norm/scale latent_norm/scale
    attention/sinks attention/norm attention/scale attention/log_speed attention/skip
    attention/removal attention/replacement attention/ridge
    attention/bonus attention/norm_scale attention/norm_bias attention/gamma attention/beta
    attention/level_scale attention/scale_query attention/scale_key attention/bias_query
    attention/bias_key
    attention/lambda_q1 attention/lambda_k1 attention/lambda_q2 attention/lambda_k2
""".split()


@pytest.mark.parametrize("kind", every(3, attention.VARIANTS))
def test_of_every_kind_of_attention_all_but_vectors_is_decayed(kind):
    config = configs.base()
    config.model.update(attention=kind, embed_dim=32, num_heads=4, latent_query=8, num_experts=2)
    supports = attention.get(kind).supports
    config.model.kind = "decoder" if "causal" in supports else "encoder"
    config.model.positions = "rotary"
    config.model.update(qk_norm=True, output_gate=True, attention_sinks="sinks" in supports)
    params, group = tree_of(config)
    vectors = {path for path in group if path.endswith(tuple("/" + v for v in VECTORS))}
    assert vectors == {path for path in group if not group[path].decay}
    # Of these Muon sees what a layer has, on each side all that a token or a head has.
    config.optimizer.name = "muon"
    _, group = tree_of(config)
    seen = {path for path in group if group[path].optimizer == "muon"}
    assert seen == {path for path in group if "layers" in path} - vectors
    shapes = {groups.name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(params)}
    for path in seen:
        axes = optimizer._muon_axes(group[path])
        size = lambda axes: math.prod(shapes[path][i] for i in axes)  # noqa: B023
        sides = size(axes.reduction_axis), size(axes.output_axis)
        assert math.prod(sides) == math.prod(shapes[path][group[path].stacked :])
        if path.endswith("attention/out/kernel"):
            assert sides == (32, 32)
            assert shapes[path][1:] == (4, 8, 32)
        elif "/attention/" in path and path.endswith("kernel"):
            # Of what an input has, the first axis; of heads and their dimensions, the rest.
            assert sides == (shapes[path][1], math.prod(shapes[path][2:]))
        elif "/mlp/" in path and "router" not in path:
            assert sides == shapes[path][2:]


@pytest.mark.parametrize(("clip", "factor"), [(1.0, 1 / 5), (10.0, 1.0), (0.0, 1.0)])
def test_clipping_is_by_the_global_norm(clip, factor):
    config = configs.base()
    config.optimizer.clip_norm = clip
    grads = {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}
    params = jax.tree.map(lambda x: models.Param(x.shape, x.dtype, ("embed",)), grads)
    tx = optimizer.build(config, groups.of(config, params))
    assert optax.global_norm(grads) == 5
    _, state = tx.update(grads, tx.init(grads), grads)
    (adam,) = (s for s in state if isinstance(s, optax.ScaleByAdamState))
    np.testing.assert_allclose(adam.mu["bias"], (1 - config.optimizer.b1) * 4 * factor, rtol=1e-6)


# Two layers of each: a matrix from two axes to one, experts, a vector over heads; and a table.
AXES = {
    "layers/out": ("layers", "heads", "kv", "embed"),
    "layers/up": ("layers", "experts", "embed", "mlp"),
    "layers/bias": ("layers", "heads", "kv"),
    "table": ("vocab", "embed"),
}
SHAPES = {"layers/out": (2, 2, 3, 4), "layers/up": (2, 3, 4, 5), "layers/bias": (2, 2, 3),
          "table": (7, 4)}  # fmt: skip


def drawn(seed, shapes=SHAPES):
    """Random arrays {path: array}; layers and experts differ in size by a factor of ten."""
    rng = np.random.default_rng(seed)
    arrays = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    for path, x in arrays.items():
        stacked = groups_of(path)
        x *= 10.0 ** rng.uniform(-1, 0, (*x.shape[:stacked], *[1] * (x.ndim - stacked)))
    return arrays


def groups_of(path):
    return sum(axis in ("layers", "experts") for axis in AXES[path])


def nested(arrays):
    """The parameter tree of {path: array}."""
    tree = {"layers": {}}
    for path, x in arrays.items():
        *parents, last = path.split("/")
        (tree[parents[0]] if parents else tree)[last] = jnp.asarray(x, jnp.float32)
    return tree


def by_path(tree):
    return {groups.name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def group_of(config, params):
    """Groups of parameters by path, named as AXES names them."""
    named = lambda path, x: models.Param(x.shape, x.dtype, AXES[groups.name(path)])
    return groups.of(config, jax.tree_util.tree_map_with_path(named, params))


def one_by_one(function, path, *arrays):
    """function(*matrices [in, out] or vectors) of each layer and expert, put together again."""
    shape, stacked = arrays[0].shape, groups_of(path)
    one = (-1,) if AXES[path][-1] == "kv" else (math.prod(shape[stacked:-1]), shape[-1])
    separate = [x.reshape(-1, *shape[stacked:]) for x in arrays]
    done = [function(*(m.reshape(one) for m in parts)) for parts in zip(*separate, strict=True)]
    return np.stack(done).reshape(shape)


B1, B2, EPS, MOMENTUM = 0.6, 0.7, 0.3, 0.8


def averages(grads, decay):
    """Exponential moving averages that start at zero, after each of the gradients."""
    m = [np.zeros_like(grads[0])]
    for g in grads:
        m.append(decay * m[-1] + (1 - decay) * g)
    return m


def adamw(path, grads, param):
    t = len(grads)
    m, v = averages(grads, B1)[-1], averages([g * g for g in grads], B2)[-1]
    return m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)


def lion(path, grads, param):
    return np.sign(B1 * averages(grads, B2)[-2] + (1 - B1) * grads[-1])


def muon(path, grads, param):
    if path in ("table", "layers/bias"):
        return adamw(path, grads, param)
    t, b = len(grads), MOMENTUM
    ahead = b * averages(grads, b)[-1] / (1 - b ** (t + 1)) + (1 - b) * grads[-1] / (1 - b**t)

    def orthogonal(m):
        """Five steps of Jordan's quintic towards the nearest orthogonal matrix."""
        x = m / np.linalg.norm(m)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return 0.2 * math.sqrt(max(m.shape)) * x

    return one_by_one(orthogonal, path, ahead)


def adafactor(path, grads, param):
    """Shazeer and Stern 2018, algorithm 4; no side here is of 128, so that nothing is factored."""
    v, rms = 0, lambda x: np.sqrt(np.mean(x * x))
    for t, g in enumerate(grads, 1):
        v = (1 - t**-0.8) * v + t**-0.8 * g * g
    size = lambda u, p: max(1e-3, rms(p)) * u / max(1, rms(u))
    return one_by_one(size, path, grads[-1] / np.sqrt(v), param)


def test_betas_that_are_not_set_are_the_optimizers_own():
    """Chen 2023, 4.3: Lion's are 0.9 and 0.99; GPT-3's and LLaMA's Adam has 0.9 and 0.95."""
    expected = {"adamw": (0.9, 0.95), "muon": (0.9, 0.95), "lion": (0.9, 0.99)}
    for name, pair in expected.items():
        config = configs.base()
        config.optimizer.name = name
        assert optimizer.betas(config.optimizer) == pair
        config.optimizer.b2 = 0.5
        assert optimizer.betas(config.optimizer) == (0.9, 0.5)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor"])
def test_two_steps_by_hand(name):
    """Clip, direction, decay, rate: in this order, with constants that no default has."""
    config = configs.base()
    config.train.steps = 100
    config.optimizer.update(
        name=name, learning_rate=0.02, schedule="constant", warmup_steps=4, weight_decay=0.4,
        clip_norm=3.0, b1=B1, b2=B2, eps=EPS, muon_momentum=MOMENTUM,
        rate_factors=((".*/up", 0.5),), decay_factors=(("table", 0.25),),
    )  # fmt: skip
    grads, expected = [drawn(1), drawn(2)], drawn(0)
    params = nested(expected)
    tx = optimizer.build(config, group_of(config, params))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(nested(g), state, params)
        params = optax.apply_updates(params, updates)

    for g in grads:
        norm = np.sqrt(sum(np.sum(x * x) for x in g.values()))
        assert norm > 3.0
        for x in g.values():
            x *= 3.0 / norm
    rate_factor, decay_factor = {"layers/up": 0.5}, {"table": 0.25, "layers/bias": 0.0}
    for path, got in by_path(params).items():
        want = expected[path]
        for t, rate in enumerate((0.005, 0.010), 1):
            step = globals()[name](path, [g[path] for g in grads[:t]], want)
            step = step + 0.4 * decay_factor.get(path, 1.0) * want
            want = want - rate * rate_factor.get(path, 1.0) * step
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=path)


def test_adafactor_sees_each_layer_as_a_matrix_of_its_own():
    """Three layers of very different size, experts too, as so many runs of Optax's own."""
    shapes = {"layers/out": (3, 2, 64, 192), "layers/up": (3, 2, 160, 128)}
    shapes |= {"layers/bias": (3, 2, 64), "table": (140, 130)}
    config = configs.base()
    config.optimizer.update(
        name="adafactor", learning_rate=1.0, schedule="constant", warmup_steps=0,
        weight_decay=0.0, clip_norm=0.0,
    )  # fmt: skip
    alone = optax.adafactor(1.0)
    params, grads = nested(drawn(0, shapes)), [nested(drawn(s, shapes)) for s in (1, 2)]
    tx = optimizer.build(config, group_of(config, params))
    state, found = tx.init(params), params
    for g in grads:
        updates, state = jax.jit(tx.update)(g, state, found)
        found = optax.apply_updates(found, updates)

    def two_steps(param, *grads):
        param, state = jnp.asarray(param), alone.init(jnp.asarray(param))
        for g in grads:
            updates, state = alone.update(jnp.asarray(g), state, param)
            param = param + updates
        return param

    for path, got in by_path(found).items():
        arrays = [np.asarray(by_path(tree)[path]) for tree in (params, *grads)]
        want = one_by_one(two_steps, path, *arrays)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("case", ["t5:base", "switch:base-8"])
def test_adafactor_keeps_a_row_and_a_column_of_each_matrix(case):
    config = configs.load("configs/{}.py:{}".format(*case.split(":")))
    params, group = tree_of(config)
    state = jax.eval_shape(optimizer.build(config, group).init, params)
    kept = sum(x.size for x in jax.tree.leaves(state) if x.dtype == jnp.float32)

    def numbers(x):
        if x.ndim < 2 or min(x.shape[-2:]) < 128:
            return x.numel()
        return x.numel() // x.shape[-1] + x.numel() // x.shape[-2]

    assert abs(kept / sum(map(numbers, in_pytorch(case).values())) - 1) < 0.002


FROZEN = {"optimizer.rate_factors": (("embed/.*", 0.0), (".*/mlp/.*", 0), (".*/attention/.*", 0.5))}


def test_frozen_parameters_have_neither_gradient_nor_state(tiny, batch):
    config = tiny({"train.ema_decay": 0.5} | FROZEN)
    config.model = configs.resolve(config.model, 260)
    setup = Setup(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    like = setup.abstract_state()
    frozen = {p for p in setup.groups if p.startswith("embed/") or "/mlp/" in p}
    held = "".join(groups.name(p) for p, _ in jax.tree_util.tree_leaves_with_path(like.opt_state))
    assert {p for p in setup.groups if p not in held} == frozen

    seen = []

    def gradients(loss, params, batch, key, weights, microbatches):
        seen.extend(by_path(params))
        (total, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
            params, batch, key, weights
        )
        seen.extend(by_path(grads))
        return (total, metrics), grads

    before = setup.draw_state(jax.tree.map(lambda x: x.sharding, like))
    step = make_train_step(setup.model, setup.objective, setup.tx, config, gradients)
    after, _ = jax.jit(step)(before, batch(config))
    assert set(seen) == setup.groups.keys() - frozen
    old, new, ema = map(by_path, (before.params, after.params, after.ema))
    for path in setup.groups:
        assert np.array_equal(old[path], new[path]) == (path in frozen)
        np.testing.assert_allclose(ema[path], (old[path] + new[path]) / 2, rtol=1e-6)


def test_a_pattern_takes_whole_paths_the_first_that_matches_counts():
    config = configs.base()
    config.optimizer.rate_factors = (("layers/.*", 0.5), ("layers/up", 0.1), ("tab", 2))
    with pytest.raises(ConfigError, match="rate_factors: no parameter path matches 'tab'"):
        group_of(config, nested(drawn(0)))
    config.optimizer.rate_factors = config.optimizer.rate_factors[:2]
    rate = {path: group.rate for path, group in group_of(config, nested(drawn(0))).items()}
    assert rate == dict.fromkeys(AXES, 0.5) | {"table": 1.0}
    config.optimizer.rate_factors = ((".*", 0),)
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        group_of(config, nested(drawn(0)))


MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def setup_of(name, mesh, tiny, devices):
    config = tiny({"optimizer.name": name, "optimizer.warmup_steps": 0} | FROZEN | mesh)
    config.model = configs.resolve(config.model, 260)
    return Setup(config, sharding.make_mesh(config.mesh, devices))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_state_lies_like_its_parameters(name, tiny):
    """With frozen parameters too: what is as large as a parameter is split as it is."""
    setup = setup_of(name, MESH, tiny, jax.devices())
    like = setup.abstract_state()
    lies = {p: (x.shape, x.sharding.spec) for p, x in by_path(like.params).items()}
    moments = 0
    for path, x in jax.tree_util.tree_leaves_with_path(like.opt_state):
        (of,) = [p for p in lies if p in groups.name(path)] or [None]
        if of and x.shape == lies[of][0]:
            assert x.sharding.spec == lies[of][1], path
            moments += x.size
    trained = sizes(like.params, lambda p: setup.groups[p].rate > 0)
    assert moments >= trained * {"adamw": 2, "adafactor": 0}.get(name, 1)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["muon", slow("adamw"), slow("adafactor"), slow("lion")])
def test_a_step_on_a_mesh_is_that_of_one_device(name, tiny, batch):
    found = []
    for mesh, devices in (({}, jax.devices()[:1]), (MESH, jax.devices())):
        setup = setup_of(name, mesh, tiny, devices)
        place = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
        step = make_train_step(setup.model, setup.objective, setup.tx, setup.config)
        with sharding.activate(setup.mesh):
            rows = sharding.put(batch(setup.config), setup.mesh)
            state, _ = jax.jit(step, out_shardings=(place, None))(setup.draw_state(place), rows)
        found.append(jax.device_get(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *found)


def steps_of(count=1, start=0.0, **changes):
    """{path: the last of so many steps at rate 1, each parameter being `start`, each gradient 1}.

    A classifier of four layers, which take turns between two kinds of attention.
    """
    config = configs.base()
    config.model.update(
        kind="encoder", head="sequence", num_labels=2, num_layers=4, attention="dense,local",
        embed_dim=8, num_heads=2, type_vocab_size=2, pooler=True,
    )  # fmt: skip
    config.optimizer.update(
        name="lion", learning_rate=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0,
        clip_norm=0.0, **changes,
    )  # fmt: skip
    shapes, group = tree_of(config)
    full = lambda value: jax.tree.map(lambda p: jnp.full(p.shape, value), shapes)
    tx = optimizer.build(config, group)
    state, update = tx.init(full(start)), jax.jit(tx.update)
    for _ in range(count):
        updates, state = update(full(1.0), state, full(start))
    return {path: np.asarray(x) for path, x in by_path(updates).items()}


def by_layer(updates):
    """Each layer's own step, from the embeddings up to the head."""
    pair = [updates[f"encoder/stack/layers/block_{i}/mlp/up/kernel"] for i in (0, 1)]
    layers = np.stack(pair, 1)[..., 0, 0].ravel().tolist()
    embedding = {float(updates[p].max()) for p in updates if "embed" in p.split("/")[0]}
    embedding |= {float(updates[p].max()) for p in updates if "/embeddings/" in p}
    head = {float(updates[p].max()) for p in updates if p.split("/")[0] in ("pooler", "sequence")}
    assert len(embedding) == len(head) == 1
    return [-x for x in (*embedding, *layers, *head)]


def test_rates_fall_from_layer_to_layer():
    """Clark 2020: the head has the rate itself, each layer below a share of the one above."""
    assert by_layer(steps_of()) == [1] * 6
    assert by_layer(steps_of(layer_decay=0.5)) == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    own = steps_of(layer_decay=0.5, rate_factors=((".*/mlp/.*", 3.0),))
    assert by_layer(own)[1:5] == [3 / 16, 3 / 8, 3 / 4, 3 / 2]


@pytest.mark.parametrize("steps", [1, 3, 4, 11, 16])
def test_layers_learn_one_after_the_other_from_the_last_down(steps):
    """Howard and Ruder 2018: three steps of the head alone, then of a layer more."""
    learning = min(1 + (steps - 1) // 3, 6)
    found = by_layer(steps_of(steps, unfreeze_steps=3))
    assert found == [0] * (6 - learning) + [1] * learning


def test_l1_takes_from_matrices_what_is_left_of_them():
    """argmin |x - (w - g)|^2 / 2 + l1 |x|, by search; no bias is touched, and 0 is a number."""
    grid = np.linspace(-4, 4, 8001)
    for start in (2.0, 0.4, 1.1, -0.3):
        updates = steps_of(start=start, l1=0.25)
        cost = (grid - (start - 1)) ** 2 / 2 + 0.25 * np.abs(grid)
        for path, x in updates.items():
            matrix = path.endswith(("kernel", "embedding"))
            best = grid[cost.argmin()] if matrix else start - 1
            np.testing.assert_allclose(start + x, best, atol=2e-3, err_msg=path)
    exact = steps_of(start=1.125, l1=0.25)["sequence/kernel"]
    assert np.all(1.125 + exact == 0)
