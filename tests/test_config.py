"""Tests of loading, overriding and checking configs; errors name the key."""

import argparse
import json
import re

import pytest

from llm_jax import commands
from llm_jax import config as configs
from llm_jax.config import ConfigError, base, check, differences, flatten, load, resolve


def test_the_defaults_and_every_recipe_key_survive_json():
    config = load("configs/quickstart.py", ["tokenizer.specials=[MASK]", "optimizer.eps=1"])
    again = configs.from_dict(json.loads(configs.to_json(config)))
    assert flatten(again) == flatten(config)
    assert [type(v) for v in flatten(again).values()] == [type(v) for v in flatten(config).values()]
    json.loads(configs.to_json(config))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.num_layers=3", 3),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("model.scan=false", False),
        ("model.scan=True", True),
        ("data.train=12", "12"),
        ("data.train=a=b", "a=b"),
        ("sample.prompts=one", ("one",)),
        ("sample.prompts=('one', 'two')", ("one", "two")),
        ("sample.prompts=['one']", ("one",)),
    ],
)
def test_text_is_read_as_the_type_of_its_key(override, value):
    found = flatten(load("", [override]))[override.partition("=")[0]]
    assert found == value and type(found) is type(value)


REFUSED = {
    "model.num_layer=3": "unknown config key 'model.num_layer'; did you mean model.num_layers",
    "optimizer.lr=1": "'optimizer.lr'; known: optimizer.b1, .*optimizer.learning_rate",
    "model.layer=3": r"did you mean model.layers\?$",
    "learning_rate=1": "unknown config key.*did you mean.*optimizer.learning_rate",
    "model=1": "unknown config key 'model'",
    "zzz.qqq=1": "unknown config key 'zzz.qqq'; known: .*model.embed_dim",
    "model.num_layers": "expected --config.model.num_layers=VALUE",
    "model.num_layers=two": "model.num_layers='two': expected int like 4, got str",
    "model.num_layers=2.5": "model.num_layers=2.5: expected int like 4, got float",
    "model.num_layers=True": "model.num_layers=True: expected int",
    "model.scan=1": "model.scan=1: expected bool",
    "model.dropout=much": "model.dropout='much': expected float",
    "model.num_layers=0": "model.num_layers=0: must be at least 1",
    "train.steps=-5": "train.steps=-5: must be at least 1",
    "checkpoint.keep_best=-1": "checkpoint.keep_best=-1: must be at least 0",
    "optimizer.learning_rate=-1": "learning_rate=-1.0: must be at least 0",
    "seed=-1": "seed=-1: must be at least 0",
    "model.dropout=1": r"model.dropout=1.0: must be in \[0, 1\)",
    "optimizer.b2=1.0": r"optimizer.b2=1.0: must be in \[0, 1\)",
    "model.activation=swish": "model.activation='swish': allowed are .*swiglu",
    "optimizer.name=sgd": "optimizer.name='sgd': allowed are adamw",
    "seed=4294967296": "seed=4294967296: must be at least 0 and at most 4294967295",
    "model.norm_epsilon=-1": "model.norm_epsilon=-1.0: must be above 0",
    "model.norm_epsilon=0": "model.norm_epsilon=0.0: must be above 0",
    "model.num_layers=1000000": "model.num_layers=1000000: must be at least 1 and at most 10000",
    "optimizer.learning_rate=1e999": "learning_rate=inf: must be at least 0 and at most 1000",
    "optimizer.learning_rate=nan": "learning_rate='nan': expected float",
    "optimizer.eps=1e-50": "optimizer.eps=1e-50: must be at least 1e-20",
    "optimizer.warmup_steps=1.5": "warmup_steps=1.5: must be whole steps, .* or a share below 1",
    "optimizer.warmup_steps=-0.1": "warmup_steps=-0.1: must be whole steps",
    "optimizer.warmup_steps=1001": "warmup_steps=1001: longer than train.steps=1000",
    "model.window=8": "nothing reads it with model.attention='dense'; it requires "
    "model.attention=local | longformer | dilated | chunked",
    "model.num_heads=7": "num_heads=7: must divide model.embed_dim=256, or set model.head_dim",
    "model.num_kv_heads=3": "model.num_kv_heads=3: must divide model.num_heads=8",
    "train.microbatches=3": "train.microbatches=3: must divide data.batch_size=16",
    "model.layers=5 local, (dense": r"model.layers='5 local, \(dense': '\(' is not closed",
    "model.layers=rest local, rest dense": "only one item of a list can be the 'rest'",
    "model.layers=5 local, rest dense": "5 layers besides the 'rest', but the depth is 4",
    "model.layers=2 (rest local), dense": "'rest' inside counted parentheses",
    "model.layers=local dense": "attention is given twice, local and dense",
    "model.layers=0 local": "a count of 0 layers",
    "model.layers=99999 local": "99999 layers; at most 10000",
    "model.layers=local embed_dim=8": "'embed_dim' is not a layer key: num_heads, ",
    "model.layers=local window=0": "model.layers='local window=0': window=0: must be at least 1",
    "model.layers=dense window=7": "no such layer reads model.window; it requires model.att",
    "model.layers=num_kv_heads=3": "model.num_kv_heads=3: must divide model.num_heads=8",
    "model.layers=positions=none": "layers can differ between 'rotary' and 'none'",
    "model.layers=num_experts=4": "num_experts must be 0 or model.num_experts=0",
}


def test_there_are_no_more_groups_than_experts():
    with pytest.raises(ConfigError, match="model.router_groups=4: must divide model.num_experts=2"):
        load("", ["model.num_experts=2", "model.router_groups=4"])


@pytest.mark.parametrize("override", REFUSED)
def test_refused(override):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        load("", [override])


# By hand: the only keys that may be negative, 0, or empty where others of their type may not.
NEGATIVE = {f"mesh.{axis}" for axis in ("data", "pipeline", "fsdp", "tensor", "context", "expert")}
TEXTS = {"tokenizer.specials", "sample.prompts", "data.labels", "objective.groups", "eval.scores"}
NOT_ZERO = {
    # a divisor, or a size without which there is nothing
    "model.max_length", "model.num_layers", "model.embed_dim", "model.num_heads", "model.window",
    "model.norm_epsilon", "model.rotary_base", "model.rotary_factor", "model.initializer_range",
    "model.lora_alpha", "optimizer.layer_decay", "objective.temperature",
    "model.rotary_original_length", "model.relative_buckets", "model.relative_max_distance",
    "model.stride", "model.block", "model.random_features", "model.landmarks", "model.latent_kv",
    "model.lsh_chunk", "model.lsh_hashes", "model.expert_every", "model.experts_per_token",
    "model.slots", "model.num_householder", "model.solver_steps", "model.ttt_batch",
    "model.router_scale", "model.router_groups", "model.router_top_groups",
    "model.selected_blocks", "model.index_topk", "model.index_heads", "model.index_dim",
    "objective.mask_rate", "objective.span_length", "tokenizer.vocab_size", "data.batch_size",
    "data.shards", "data.ramp_start", "data.mixture_temperature", "data.doc_stride",
    "objective.beta", "eval.beams", "optimizer.eps", "train.steps", "train.log_every",
    "train.microbatches", "train.max_nonfinite", "checkpoint.every", "checkpoint.keep_last",
    "eval.every", "sample.max_new_tokens", "privacy.delta", "distill.temperature", *NEGATIVE,
}  # fmt: skip
MAY_BE_EMPTY = {
    "data.validation", "data.test", "data.tfds_dir", "tokenizer.path", "objective.prefix",
    "objective.suffix", "data.pair_column", "data.negative_column", "init_from",
    "data.group_column", "model.layers", "distill.teacher",
}  # fmt: skip


def accepted(key, text):
    """Whether a value is allowed, whatever reads it; what is refused names the key."""
    try:
        config = load("", [f"{key}={text}"], by_hand=False)
    except ConfigError as error:
        # By its name, or as what another key has to fit.
        assert key in str(error) and len(str(error)) < 2000
        return False
    again = configs.from_dict(json.loads(configs.to_json(config)))
    assert flatten(again) == flatten(config)
    return True


@pytest.mark.parametrize("key", configs.KEYS)
def test_odd_values(key):
    default = configs.KEYS[key].default
    no = ["{}", "{1: 2}", "b'x'", "None", "lambda: 0"] * (not isinstance(default, str | tuple))
    if isinstance(default, bool):
        no += ["0", "1", "''", "yes"]
    elif isinstance(default, int | float):
        no += ["nan", "inf", "-inf", "1e999", "-1e999", "1e300", "9" * 30, "0x" + "f" * 9000, "'1'"]
        no += ["True", "()", "", "1j", "-0.5", "-2"]
        no += ["1.0", "1e3"] * isinstance(default, int)
        no += ["-1"] * (key not in NEGATIVE) + ["0", "0.0"] * (key in NOT_ZERO)
        if key not in NOT_ZERO:
            assert accepted(key, "0")
    elif isinstance(default, str):
        no += ["a\0b", "\ud800"] + ["", " "] * (key not in MAY_BE_EMPTY)
    else:
        texts = key in TEXTS
        no += ["('a\\0',)", "('\\ud800',)", "(('a',),)", "(None,)", "[-1]"]
        no += ["(1.0,)"] * (key not in ("objective.class_weights", "data.weights") and not texts)
        no += ["('',)"] * (key != "sample.prompts")  # a prompt may be empty: a text from nothing
        no += [] if texts else ["(-1,)", "(True,)", "('1',)", "(1e999,)", "x"]
    assert [text for text in no if accepted(key, text)] == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "null", '"model"', "[" * 10**5, "{}", '{"model": 3}',
     '{"model": {"window": {}}}', '{"model": {"window": null}}', '{"modle": {}}',
     '{"model": {"windw": 3}}', '{"seed": [1]}',
     '{"model": {"norm_epsilon": NaN}}', '{"model": {"num_layers": 1e400}}',
     '{"model": {"norm": "x"}}', '{"model": {"num_layers": true}}', '{"": {"": 1}}'],
)  # fmt: skip
def test_a_saved_config_that_is_none(text, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        commands.verb.config_of(argparse.Namespace(workdir=tmp_path, config=""), [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.positions=relative", "model.relative_max_distance=16"], "must be above 16, the"),
        (["model.positions=rotary", "model.rotary_scaling=ntk", "model.head_dim=2"], "at least 4"),
        (["model.attention=latent", "model.positions=rotary", "model.latent_rotary=3"], "be even"),
        (["model.layers=local window=4", "model.window=8"], "overrides it in every layer"),
        (["model.layers=dense", "model.window=8"], "nothing reads it with .*model.layers='dense'"),
        (["model.share_layers=True", "model.layers=3 local, dense"], "must divide model.num"),
        (["train.profile_steps=(3, 2)"], "start < stop"),
        (["optimizer.schedule=wsd", "optimizer.decay_steps=2000"], "longer than train.steps=1000"),
        (["optimizer.warmup_steps=600", "optimizer.decay_steps=401"],
         r"warmup_steps=600 \+ optimizer.decay_steps=401: longer than train.steps=1000"),
        (["optimizer.schedule=inverse_sqrt", "optimizer.hold_steps=901"],
         r"warmup_steps=100 \+ optimizer.hold_steps=901: longer than train.steps=1000"),
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load("", overrides)


def test_a_run_cut_short_by_hand_is_told_that_its_warm_up_is_longer(caplog, tmp_path):
    load("configs/quickstart.py", ["train.steps=20"])
    assert "warmup_steps=50: longer than train.steps=20" in caplog.text
    recipe = "from llm_jax.config import base\ndef get_config():\n    c = base()\n"
    (tmp_path / "r.py").write_text(recipe + "    c.train.steps = 20\n    return c\n")
    with pytest.raises(ConfigError, match="warmup_steps=100: longer than train.steps=20"):
        load(str(tmp_path / "r.py"))


def test_parameter_groups_are_pairs_of_pattern_and_factor():
    config = load("", ['optimizer.rate_factors=(("encoder/.*", 0.1), ("embed/.*", 0))'])
    assert config.optimizer.rate_factors == (("encoder/.*", 0.1), ("embed/.*", 0))
    again = configs.from_dict(json.loads(configs.to_json(config)))
    assert configs.differences(config, again) == []
    wrong = "encoder/.*", '(("(", 1),)', '(("a", -1),)', '(("a", "b"),)', '("a", 0.1)', "(1,)"
    for value in wrong:
        with pytest.raises(ConfigError, match=r"rate_factors=.*must be pairs like"):
            load("", [f"optimizer.rate_factors={value}"])


def test_rotary_needs_an_even_head():
    with pytest.raises(ConfigError, match="needs an even model.head_dim, got 5"):
        load("", ["model.positions=rotary", "model.head_dim=5"])


def test_keys_added_or_removed_in_python_are_found():
    config = base()
    config.optimizer.lr = 0.1
    with pytest.raises(ConfigError, match="unknown config key 'optimizer.lr'"):
        check(config)
    config = base()
    del config.optimizer.b1
    with pytest.raises(ConfigError, match="'optimizer.b1' is missing"):
        check(config)


RECIPES = {
    "syntax": ("def get_config(:\n", "", "SyntaxError"),
    "nothing": ("x = 1\n", "", "defines no get_config"),
    "raises": ("def get_config():\n    return 1 / 0\n", "", "ZeroDivisionError"),
    "variant": (
        "VARIANTS = ('small', 'large')\ndef get_config(variant='small'):\n    pass\n",
        ":huge",
        "no variant 'huge' in .*known: small, large",
    ),
    "no variants": ("def get_config():\n    pass\n", ":small", "no variant.*known: none"),
    "import": ("import torchh\n", "", "No module named 'torchh'"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_cannot_be_loaded(name, tmp_path):
    text, variant, message = RECIPES[name]
    path = tmp_path / "recipe.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load(f"{path}{variant}")
    assert f"--config={path}{variant}" in str(error.value)


def test_a_recipe_that_is_not_there_names_the_nearest():
    with pytest.raises(ConfigError, match="no file 'configs/gtp2.py'; did you mean configs/gpt2"):
        load("configs/gtp2.py:124m")


def test_sizes_that_are_derived_are_filled_in():
    config = base()
    config.model.update({"embed_dim": 48, "num_heads": 6})
    m = resolve(config.model, vocab_size=99)
    assert (m.vocab_size, m.head_dim, m.num_kv_heads, m.mlp_dim) == (99, 8, 6, 192)
    config.model.head_dim = 16  # the feed-forward layer goes by the stream's width
    assert resolve(config.model, 99).mlp_dim == 192
    assert config.model.vocab_size == 0
    config.model.vocab_size = 128
    assert resolve(config.model, 99).vocab_size == 128


def test_of_kinds_that_alternate_one_that_reads_a_key_is_enough():
    config, reads = base(), {}
    for kinds in ("dense", "kda", "linear", "kda,linear", "dense,kda", "local,dense"):
        config.model.attention = kinds
        reads[kinds] = {k for k in ("attention_scale", "window") 
                        if not configs.unread(config, f"model.{k}")}  # fmt: skip
    scale, window = {"attention_scale"}, {"window"}
    assert reads == {
        "dense": scale, "kda": set(), "linear": set(), "kda,linear": set(),
        "dense,kda": scale, "local,dense": scale | window,
    }  # fmt: skip


def test_what_makes_another_run():
    old, new = base(), base()
    new.train.steps, new.mesh.fsdp, new.model.remat, new.eval.every = 7, 2, "full", 3
    assert differences(old, new) == []
    new.model.num_layers, new.data.batch_size = 5, 32
    assert sorted(differences(old, new)) == [
        "data.batch_size: 16 there, 32 here",
        "model.num_layers: 4 there, 5 here",
    ]
