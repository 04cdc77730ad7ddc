import importlib.util
import itertools
import json

import jax
import pytest

import launch
from llm_jax import sharding
from llm_jax.config import ConfigError
from llm_jax.models.flops import count_params
from llm_jax.pod import chips, plan, report, search
from llm_jax.sharding import hardware
from llm_jax.sharding.hardware import Chip
from tests import making

TINY = {"model.vocab_size": 512, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
OBJECTIVES = {
    "causal_lm": {},
    "prefix_lm": {"data.packing": "none"},
    "span_corruption": {"model.kind": "encoder_decoder"},
    "bert": {
        "model.kind": "encoder", "model.head": "mlm,sequence", "model.pooler": True,
        "model.num_labels": 2, "model.type_vocab_size": 2, "data.packing": "none",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def planned(tiny):
    return plan.make(tiny(TINY), "cpu:8")


def test_a_plan_of_simulated_devices(planned, tiny):
    setup = plan.prepare(tiny(TINY), jax.devices()[:8])
    state = setup.abstract_state()
    on_one = lambda tree: sum(
        x.dtype.itemsize * int(jax.numpy.prod(jax.numpy.array(x.sharding.shard_shape(x.shape))))
        for x in jax.tree.leaves(tree)
    )
    assert planned["devices"] == 8 and planned["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert planned["parameter_bytes"] == on_one(state.params)
    parts = ("parameter_bytes", "optimizer_bytes", "other_argument_bytes")
    assert planned["argument_bytes"] == pytest.approx(sum(planned[p] for p in parts), abs=64)
    assert planned["temp_bytes"] > 0 and planned["fits"]
    for time in ("compile_seconds", "compile_cpu_seconds"):
        assert 0 < planned[time] < 300
    assert sum(planned["ici_bytes"].values()) > 0 and not planned["dcn_bytes"]
    assert any("temporaries" in line for line in report.lines(planned))


def test_without_remat_the_program_has_the_products_that_mfu_counts(planned):
    assert planned["computed_flops"] * 8 == pytest.approx(planned["flops"], rel=1e-6)


def test_the_state_is_donated(planned):
    assert planned["output_bytes"] < planned["parameter_bytes"] / 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batches_have_the_shapes_of_the_pipeline(tiny, name):
    config = tiny(TINY | OBJECTIVES[name] | {"objective.name": name})
    like = plan.batch_like(plan.prepare(config, jax.devices()[:8]))
    documents = making.splits(config)["train"]
    tokenizer = making.build_tokenizer(config, documents)
    batch = next(making.train_iterator(config, tokenizer, documents))
    assert {k: (x.shape, x.dtype) for k, x in like.items()} == {
        k: (x.shape, x.dtype) for k, x in batch.items()
    }


def test_roofline_arithmetic():
    chip = Chip(flops=1e9, hbm=1e9, hbm_rate=1e9, ici_rate=1e8, dcn_rate=1e7)
    todo = {"tokens": 100.0, "flops": 4e9}
    moved = {"ici_bytes": {"all-gather": 1e8, "all-reduce": 1e8}, "dcn_bytes": {"all-reduce": 5e6},
             "hbm_traffic_bytes": 2e9, "unknown_loops": 0, "computed_flops": 3e9}  # fmt: skip
    found = plan.roofline(todo, moved, 2, chip)
    assert found["roofline_seconds"] == pytest.approx({"compute": 3, "HBM": 2, "network": 2})
    assert found["bound_by"] == "compute" and found["predicted_step_seconds"] == 3
    assert found["predicted_tokens_per_second"] == pytest.approx(100 / 3)
    assert found["predicted_mfu"] == pytest.approx(4 / 6)


def test_a_plan_is_told_in_milliseconds_and_gigabytes():
    plan = {"topology": "v5p:1", "slices": 1, "devices": 1, "chip": "v5p", "mesh": {}, "fits": True,
            "hbm_bytes": 2.5e9, "temp_bytes": 4e6, "flops": 1e9, "computed_flops": 2e9,
            "hbm_traffic_bytes": 1e9, "unknown_loops": 0, "ici_bytes": {}, "dcn_bytes": {},
            "roofline_seconds": {"compute": 0.0125, "HBM": 2.0}, "bound_by": "HBM",
            "predicted_step_seconds": 2.0, "predicted_tokens_per_second": 512.0,
            "predicted_mfu": 0.256, "compile_seconds": 7.0}  # fmt: skip
    text = "\n".join(report.lines(plan))
    for part in ("memory of 2.50 GB", " 4.00 MB", "1.00 GB in HBM", "compute 12.5 ms",
                 "at least 2,000.0 ms: at most 512 tokens/s, MFU 25.6%", "compiled in 7 s"):
        assert part in text  # fmt: skip


@pytest.mark.parametrize(
    ["changes", "topology", "message"],
    [
        ({}, "v9:4x4", "must be like v4:2x2x4"),
        ({}, "v5p:big", "must be like v4:2x2x4"),
        ({}, "h100:8", "must be nodes x GPUs per node: h100:8x8"),
        ({}, "cpu:9999", "this machine has 8"),
        ({"model.vocab_size": 0, "tokenizer.name": "bpe"}, "cpu:8", "model.vocab_size=0"),
        ({"mesh.data": 3}, "cpu:8", "multiply to 12"),
        ({"data.batch_size": 6}, "cpu:8", "data.batch_size=6"),
    ],
)
def test_refusals(tiny, changes, topology, message):
    with pytest.raises(ConfigError, match=message):
        plan.make(tiny(TINY | changes), topology)


@pytest.mark.parametrize(
    ("topology", "file"),
    [("v5p:4x4x4", "requirements-plan.txt"), ("h100:8x8", "requirements-plan-gpu.txt")],
)
def test_without_a_compiler_it_says_what_to_install(topology, file, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"pip install -r {file}"):
        chips.devices(topology)


def test_nodes_of_gpus_are_no_slices():
    with pytest.raises(ConfigError, match="--slices=2: .* 1 for GPUs, whose nodes are in"):
        chips.devices("h100:8x8", slices=2)


def test_what_does_not_fit_says_what_would_help(tiny, monkeypatch):
    small = Chip(flops=1, hbm=1e5, hbm_rate=1, ici_rate=1, dcn_rate=1)
    monkeypatch.setattr(hardware, "chip", lambda device: small)
    found = plan.make(tiny(TINY), "cpu:8")
    assert not found["fits"] and found["failed"]
    assert any("model.remat=full" in text for text in found["advice"])
    assert "does not fit" in report.lines(found)
    # Bytes that are held are known, and here too many, before anything is compiled.
    monkeypatch.setattr(hardware, "chip", lambda device: small._replace(hbm=1))
    averaged = plan.make(tiny(TINY | {"train.ema_decay": 0.5}), "cpu:8")
    more = averaged["other_argument_bytes"] - found["other_argument_bytes"]
    assert more == found["parameter_bytes"]


@pytest.mark.parametrize(
    ["refusal", "wanted"],
    [
        ("HLO temporaries (17.50G) exceeds available HBM (15.75G).", 17.5 * 2**30),
        ("Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.", 17.5 * 2**30 - 3),
        ("RESOURCE_EXHAUSTED", None),
    ],
)
def test_what_xla_refuses_is_read(refusal, wanted):
    assert plan._needed(refusal, {"parameter_bytes": 1, "optimizer_bytes": 2}) == wanted


def test_the_command_prints_json(capsys, overrides):
    keys = [f"--config.{o}" for o in overrides(TINY | {"data.train": "nowhere.txt"})]
    config = "--config=configs/quickstart.py"
    assert launch.main(["plan", config, "--topology=cpu:8", "--json", *keys]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"argument_bytes", "temp_bytes", "devices", "compile_seconds"} <= set(found)


@pytest.mark.slow
def test_search_compiles_few_and_ranks_them(tiny, monkeypatch):
    chip = Chip(flops=1e9, hbm=1e9, hbm_rate=1e9, ici_rate=1e8, dcn_rate=1e7)
    monkeypatch.setattr(hardware, "chip", lambda device: chip)
    told = []
    found = search.search(tiny(TINY), "cpu:8", 1, 2, told.append)
    times = [p["predicted_step_seconds"] for p in found["ranked"]]
    assert found["compiled"] == 2 and times == sorted(times) and len(told) == 3
    with_more = {s["setting"]["mesh.fsdp"] for s in found["ranked"]}
    assert with_more <= {1, 2, 4, 8}
    # A mesh that the config names, and that does not divide, is not the search's.
    small = tiny(TINY | {"data.batch_size": 4, "mesh.data": -1, "mesh.tensor": 1})
    with pytest.raises(ConfigError, match="data.batch_size=3 .* do not divide over 8 devices"):
        search.search(tiny(TINY | {"data.batch_size": 3}), "cpu:8", 1, 1, told.append)
    monkeypatch.setattr(hardware, "chip", lambda device: chip._replace(hbm=1e3))
    assert search.search(small, "cpu:8", 1, 1, told.append)["failed"]
    assert "none of which fits: mesh.data=" in told[-1]


def test_candidates_are_all_meshes_that_divide_devices_heads_and_batch(tiny):
    config = tiny(TINY | {"data.batch_size": 24, "model.num_heads": 4, "model.num_kv_heads": 2})
    found = [tuple(x.values()) for x in search.candidates(config, 8)]
    sizes = [(d, f, t) for d, f, t in itertools.product((1, 2, 4, 8), repeat=3) if d * f * t == 8]
    expected = {
        (d, f, t, parts, remat)
        for d, f, t in sizes for parts in (1, 2, 4, 8) for remat in ("none", "dots", "full")
        if t <= 2 and 24 % (d * f * parts) == 0
    }  # fmt: skip
    assert set(found) == expected and len(found) == len(expected)


def test_an_estimate_of_time_is_that_of_products_or_of_the_network(tiny):
    """Products divide over all axes; replicas add float32 gradients in a ring, once a step."""
    config = plan.prepare(tiny(TINY), jax.devices()[:8]).config
    weights = count_params(config.model)

    def seconds(*sizes, **rates):
        setting = dict(zip(search.KEYS, (*sizes, 1, "none"), strict=True))
        return search.estimate(config, setting, weights, Chip(hbm=1e9, hbm_rate=1e9, dcn_rate=1e7,
                                                              **rates))["seconds"]  # fmt: skip

    alone = seconds(1, 1, 1, flops=1, ici_rate=1e30)
    for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)):
        assert seconds(*sizes, flops=1, ici_rate=1e30) == pytest.approx(alone / 8)
    sent = 2 * 7 / 8 * 4 * weights
    assert seconds(8, 1, 1, flops=1e30, ici_rate=1) == pytest.approx(sent)


def test_an_estimate_holds_what_a_device_does(tiny):
    """Parameters, moments and a gradient as they lie; with remat a vector for each token and layer
    of its own side.
    """
    chip = Chip(flops=1e9, hbm=1e9, hbm_rate=1e9, ici_rate=1e8, dcn_rate=1e7)

    def held(setup, *sizes):
        setting, config = dict(zip(search.KEYS, sizes, strict=True)), setup.config
        return search.estimate(config, setting, count_params(config.model), chip)["bytes"]

    whole = {"model.embed_dim": 256, "mesh.data": 1, "mesh.fsdp": 8, "mesh.tensor": 1}
    setup = plan.prepare(tiny(TINY | whole), jax.devices()[:8])
    state = setup.abstract_state()
    exact = 2 * plan._bytes(state.params) + plan._bytes(state.opt_state)
    assert held(setup, 1, 8, 1, 1, "full") == pytest.approx(exact, rel=0.03)
    pairs = {"model.kind": "encoder_decoder", "objective.name": "seq2seq"}
    pairs |= {"model.num_layers": 2, "model.num_decoder_layers": 3}
    pairs |= dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), 1)
    many, few = (
        held(plan.prepare(tiny(TINY | pairs | {"data.batch_size": n}), jax.devices()[:1]),
             1, 1, 1, 1, "full")
        for n in (24, 16)
    )  # fmt: skip
    # Eight rows more, of 16 positions on either side, 16 wide, in float32.
    assert many - few == pytest.approx(8 * (2 * 16 + 3 * 16) * 16 * 4)


def test_a_tpu_is_compiled_for_where_its_compiler_is(tiny):
    pytest.importorskip("libtpu")
    found = plan.make(tiny(TINY | {"model.dtype": "bfloat16"}), "v5p:2x2x2")
    assert found["devices"] == 8 and found["fits"] and 0 < found["predicted_mfu"] < 1
    assert found["temp_bytes"] > 0 and sum(found["ici_bytes"].values()) > 0
    two = plan.make(tiny(TINY | {"model.dtype": "bfloat16"}), "v5p:2x2x1", slices=2)
    assert two["devices"] == 8 and sum(two["dcn_bytes"].values()) > 0
    split = tiny({"mesh.data": 2, "mesh.fsdp": 32}).mesh  # neither is a product of whole sides
    assert sharding.make_mesh(split, chips.devices("v5p:4x4x4")).size == 64
    with pytest.raises(ConfigError, match="libtpu does not support this shape"):
        chips.devices("v5p:3x5x7")


@pytest.mark.parametrize("name", chips.GPUS)
def test_a_gpu_is_compiled_for_where_its_compiler_is(tiny, name):
    pytest.importorskip("jax_plugins.xla_cuda12")
    devices = chips.devices(f"{name}:2x4")
    assert [chips.slice_of(d) for d in devices] == [0] * 4 + [1] * 4
    assert hardware.chip(devices[0]).hbm_rate
    if name != "h100":
        return
    keys = {"model.dtype": "bfloat16", "model.attention": "flash", "model.num_heads": 2}
    found = plan.make(tiny(TINY | keys), f"{name}:2x4")
    assert found["fits"] and found["temp_bytes"] > 0
    assert sum(found["ici_bytes"].values()) > sum(found["dcn_bytes"].values()) > 0
    # Of attention half is masked and its backward has 5 products, not 4; small ones are padded.
    assert 0.9 < found["computed_flops"] * 8 / found["flops"] < 1.3
    assert any("NVLink" in line for line in report.lines(found))
