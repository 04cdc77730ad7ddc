"""Tests of designs: checked before any run, matched, and compared with a started sweep."""

import dataclasses
import re
from pathlib import Path

import pytest

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.sweep import Sweep, design, execute, results

HEADS = {"dense": {}, "one key head": {"model.num_kv_heads": 1}, "lsh": {"model.attention": "lsh"}}
WIDE = {"model.embed_dim": 64, "model.mlp_dim": 256}


@pytest.mark.parametrize("how", ["params", "flops"])
def test_matching_comes_within_one_percent(how, overrides):
    found = design.make(Sweep(axes=(HEADS,), match=how), "", overrides(WIDE))
    name = {"params": "parameters", "flops": "flops_per_token"}[how]
    base, *others = found["variants"].values()
    assert base["config"]["model"]["mlp_dim"] == 256
    assert others[0]["keys"]["model.mlp_dim"] > 256
    for variant in others:
        assert variant["config"]["model"]["mlp_dim"] % 8 == 0
        assert variant[name] == pytest.approx(base[name], rel=0.01)
    assert len(results.describe_match(found)) == 3


def test_what_is_equal_already_keeps_its_size(overrides):
    axis = {"a": {}, "b": {"model.positions": "alibi"}}
    found = design.make(Sweep(axes=(axis,), match="params"), "", overrides({"model.mlp_dim": 61}))
    assert "model.mlp_dim" not in found["variants"]["b"]["keys"]


BAD = {
    "attention": ({"model.attention": "hydra"}, "variant 'x': model.attention='hydra': 'hydra' is"),
    "ability": (
        {"model.attention": "lsh", "model.positions": "alibi"},
        "variant 'x': model.attention='lsh': 'lsh' does not support model.positions='alibi'",
    ),
    "heads": ({"model.num_heads": 3}, "variant 'x': model.num_heads=3: must divide"),
    "key": ({"model.windw": 3}, "variant 'x': unknown config key 'model.windw'"),
    "no validation": ({"data.validation_fraction": 0.0}, "'x': data.validation_fraction=0.0"),
    "vocabulary": ({"model.vocab_size": 100}, "'x': model.vocab_size=100: is smaller"),
    "matching": ({"model.embed_dim": 128}, "variant 'x': .*not within 1%; use --match=none"),
    "its own size": ({"model.mlp_dim": 8}, "variant 'x': model.mlp_dim: cannot be set"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_variant_that_cannot_run_is_named(name, overrides):
    changes, message = BAD[name]
    with pytest.raises(ConfigError) as error:
        design.make(Sweep(axes=({"a": {}, "x": changes},), match="params"), "", overrides())
    assert re.search(message, str(error.value)), str(error.value)


LOCAL = {"model.attention": "local"}


@pytest.mark.parametrize(
    ("axis", "keys", "message"),
    [
        ({"a": {}, "x": {"model.window": 8}}, {}, "'x': model.window: nothing reads it with"),
        ({"a": {}, "x": {"model.norm": "rmsnorm"}}, {"model.window": 8}, "^model.window: nothing"),
        ({"a": {}, "x": LOCAL | {"model.window": 8}}, {"model.window": 4}, None),
    ],
)
def test_a_key_that_nothing_reads(axis, keys, message, overrides):
    """An axis's by its variant; what all share by none of them."""
    make = lambda axis: design.make(Sweep(axes=(axis,)), "", overrides(keys))
    if message:
        with pytest.raises(ConfigError, match=message):
            make(axis)
    else:
        made = make(axis)
        run = lambda label: execute.arguments(made, results.Run(label, 0, Path("r"), 1))
        assert "--config.model.window=4" not in run("a")
        assert run("x").index("--config.model.window=8") > run("x").index(
            "--config.model.window=4"
        )


def test_what_cannot_be_is_left_out_and_said(overrides):
    """A cell of a crossing; but neither the baseline nor all that there is beside it."""
    kinds = {"dense": {}, "lsh": {"model.attention": "lsh"}}
    places = {"rotary": {}, "alibi": {"model.positions": "alibi"}}
    made = design.make(Sweep(axes=(kinds, places)), "", overrides())
    assert list(made["variants"]) == ["dense, rotary", "dense, alibi", "lsh, rotary"]
    assert "'lsh' does not support model.positions='alibi'" in made["impossible"]["lsh, alibi"]
    for baseline, without, message in (
        ("lsh, alibi", (), "variant 'lsh, alibi': .*does not support"),
        ("", ("dense, alibi", "lsh, rotary"), "variant 'lsh, alibi': .*does not support"),
        ("", ("lsh",), "--without=lsh: allowed are 'dense, rotary'"),
    ):
        with pytest.raises(ConfigError, match=message):
            design.make(Sweep(axes=(kinds, places), baseline=baseline, without=without),
                        "", overrides())  # fmt: skip


def test_a_variant_may_be_taken_out(sweep, overrides, tmp_path):
    design.commit(design.make(sweep, "", overrides()), tmp_path)
    less = design.make(dataclasses.replace(sweep, without=("window",)), "", overrides())
    assert list(design.commit(less, tmp_path)["variants"]) == ["dense", "wide"]


def test_tuning_wants_a_test_split(sweep, overrides):
    rates = {"fast": {"optimizer.learning_rate": 0.1}, "slow": {"optimizer.learning_rate": 0.01}}
    sweep = dataclasses.replace(sweep, tune=rates)
    with pytest.raises(ConfigError, match="data.test_fraction=0.0: .* by their test loss"):
        design.make(sweep, "", overrides())
    made = design.make(sweep, "", overrides({"data.test_fraction": 0.1}))
    assert results.grouped(made)["window"] == ["window, fast", "window, slow"]


def test_the_seed_is_the_sweeps(sweep, overrides):
    with pytest.raises(ConfigError, match="--config.seed: --seeds=N"):
        design.make(sweep, "", overrides({"seed": 3}))


@pytest.mark.slow
def test_another_sweep_in_the_folder(sweep, overrides, tmp_path):
    make = lambda sweep, keys=None: design.make(sweep, "", overrides(keys))
    first = design.commit(make(sweep), tmp_path)
    assert first["begun"]["command"]
    more = dataclasses.replace(sweep, seeds=4)
    assert design.commit(make(more), tmp_path)["begun"] == first["begun"]
    for other, keys, message in (
        (sweep, None, "seeds: 4 there, 3 here"),
        (more, {"model.num_layers": 1}, "variant 'wide', model.num_layers: 2 there, 1 here"),
        (dataclasses.replace(more, baseline="wide"), None, "baseline: 'dense' there, 'wide' here"),
        (dataclasses.replace(more, axes=({"dense": {}},)), None, "variant 'window': not here"),
    ):
        with pytest.raises(ConfigError, match=message):
            design.commit(make(other, keys), tmp_path)


def test_a_designed_config_is_that_of_the_command(sweep, overrides):
    """What is checked and counted is what the run's own command makes."""
    found = design.make(sweep, "", overrides())["variants"]["window"]
    config = configs.load("", [*overrides(), *(f"{k}={v}" for k, v in found["keys"].items())])
    config.model = configs.resolve(config.model, 259)
    assert config.to_dict() == found["config"]
