"""Tests of sweep specifications: products of axes, folder names, errors."""

import subprocess
import sys

import numpy as np
import pytest

from llm_jax.config import ConfigError
from llm_jax.sweep import Sweep, spec

NORMS = {name: {"model.norm": name} for name in ("layernorm", "rmsnorm")}
PLACES = {name: {"model.norm_place": name} for name in ("pre", "post")}


def test_variants_are_the_product_of_the_axes():
    found = Sweep(axes=(NORMS, PLACES), baseline="rmsnorm, pre").variants()
    assert list(found) == ["rmsnorm, pre", "layernorm, pre", "layernorm, post", "rmsnorm, post"]
    changes = {"model.norm": "layernorm", "model.norm_place": "post"}
    assert found["layernorm, post"] == {"layernorm, post": changes}


def test_what_is_tuned_makes_runs_of_a_variant():
    rates = spec.axis("optimizer.learning_rate=1e-3,1e-2", "tune")
    found = Sweep(axes=(NORMS,), tune=rates).variants()
    assert list(found["rmsnorm"]) == ["rmsnorm, learning_rate 1e-3", "rmsnorm, learning_rate 1e-2"]
    with pytest.raises(ConfigError, match="is set by two axes"):
        Sweep(axes=(NORMS,), tune=NORMS).variants()


def test_a_crossed_sweep_keeps_its_baseline():
    found = Sweep(axes=(NORMS,), baseline="rmsnorm").crossed([spec.axis("model.num_heads=4,2")])
    assert next(iter(found.variants())) == "rmsnorm, num_heads 4"


def test_commas_within_quotes_and_brackets_belong_to_a_value():
    assert list(spec.axis("model.attention='dense,local',lsh").values()) == [
        {"model.attention": "dense,local"},
        {"model.attention": "lsh"},
    ]
    assert list(spec.axis("model.lsh_buckets=(2, 4),()")) == [
        "lsh_buckets (2, 4)",
        "lsh_buckets ()",
    ]


@pytest.mark.parametrize(
    ("label", "folder"), [("window 64", "window-64"), ("a, b=0.5", "a-b-0.5"), ("../x", "x")]
)
def test_slug(label, folder):
    assert spec.slug(label) == folder


BAD = {
    "nothing": (Sweep(), "nothing to compare"),
    "empty axis": (Sweep(axes=({},)), "nothing to compare"),
    "seeds": (Sweep(axes=(NORMS,), seeds=0), "--seeds=0: must be at least 1"),
    "match": (Sweep(axes=(NORMS,), match="time"), "--match=time: allowed are none, params, flops"),
    "baseline": (Sweep(axes=(NORMS,), baseline="x"), "--baseline=x: allowed are 'layernorm', 'rms"),
    "twice": (Sweep(axes=(NORMS, NORMS)), "'layernorm, layernorm', model.norm: is set by two axes"),
    "seed": (Sweep(axes=({"a": {"seed": 1}},)), "variant 'a', seed: is set by --seeds"),
    "folders": (Sweep(axes=({"a b": {}, "a-b": {}},)), "'a b': its folder name 'a-b'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sweeps(name):
    sweep, message = BAD[name]
    with pytest.raises(ConfigError) as error:
        sweep.variants()
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["model.norm", "model.norm=", "=a,b"])
def test_bad_axes(text):
    with pytest.raises(ConfigError, match="expected --axis=KEY=V1,V2"):
        spec.axis(text)


@pytest.mark.parametrize("text", ["512,x", "0", "512,"])
def test_bad_lengths(text):
    with pytest.raises(ConfigError, match="expected numbers of tokens"):
        spec.lengths(text)


def test_a_config_file_defines_a_sweep(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(
        "from llm_jax.config import base as get_config\n"
        "from llm_jax.sweep import Sweep\n"
        "def get_sweep():\n    return Sweep(axes=({'a': {}, 'b': {'model.num_heads': 4}},))\n"
    )
    found = spec.load(str(file), ["model.norm=layernorm,rmsnorm"], seeds=5, match=None)
    assert len(found.variants()) == 4 and found.seeds == 5 and found.match == "none"
    file.write_text("get_config = get_sweep = dict\n")
    with pytest.raises(ConfigError, match="get_sweep must return"):
        spec.load(str(file))


def test_recipes_expand_and_reports_are_written_without_jax():
    code = (
        "import sys; from llm_jax.sweep import execute, report, spec\n"
        "for name in ('attention', 'positions', 'norms', 'heads', 'tasks', 'mixers'):\n"
        "    assert len(spec.load(f'configs/ablations/{name}.py').variants()) >= 4\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lengths_double_since_the_report_fits_an_exponent_to_them():
    assert np.diff(np.log2(spec.LENGTHS)).tolist() == [1] * (len(spec.LENGTHS) - 1)
