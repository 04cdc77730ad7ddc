"""Configs: how they are loaded and changed, and that what cannot run is refused by name."""

import json

import pytest

from llm_jax import config as configs
from llm_jax.config import ConfigError, base, check, differences, flatten, load, resolve


def test_the_defaults_and_every_recipe_key_survive_json():
    config = load("configs/quickstart.py", ["tokenizer.specials=[MASK]", "optimizer.eps=1"])
    again = configs.from_json(configs.to_json(config))
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
    "model.layers=3": r"did you mean model.num_layers\?$",
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
    "optimizer.eps=1e-50": "optimizer.eps=1e-50: must be above 0",
    "optimizer.warmup_steps=1001": "warmup_steps=1001: longer than train.steps=1000",
    "model.window=8": "nothing reads it with model.attention='dense'; it is read with "
    "model.attention=local | longformer | dilated | chunked",
    "model.num_heads=7": "num_heads=7: must divide model.embed_dim=256, or set model.head_dim",
    "model.num_kv_heads=3": "model.num_kv_heads=3: must divide model.num_heads=8",
    "train.microbatches=3": "train.microbatches=3: must divide data.batch_size=16",
    "model.attention=dense,dense,dense": "its 3 kinds must divide model.num_layers=4",
}


@pytest.mark.parametrize("override", REFUSED)
def test_refused(override):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        load("", [override])


def test_rotary_needs_an_even_head():
    with pytest.raises(ConfigError, match="needs an even head_dim, got 5"):
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
        "no variant 'huge' in .*there are: small, large",
    ),
    "no variants": ("def get_config():\n    pass\n", ":small", "no variant.*there are: none"),
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


def test_a_recipe_that_is_not_there_lists_those_that_are():
    with pytest.raises(ConfigError, match="no file 'configs/gtp2.py'; there are: .*quickstart.py"):
        load("configs/gtp2.py:124m")


def test_sizes_that_are_derived_are_filled_in():
    config = base()
    config.model.update({"embed_dim": 48, "num_heads": 6})
    m = resolve(config.model, vocab_size=99)
    assert (m.vocab_size, m.head_dim, m.num_kv_heads, m.mlp_dim) == (99, 8, 6, 192)
    assert config.model.vocab_size == 0
    config.model.vocab_size = 128
    assert resolve(config.model, 99).vocab_size == 128


def test_what_makes_another_run():
    old, new = base(), base()
    new.train.steps, new.mesh.fsdp, new.model.remat, new.eval.every = 7, 2, "full", 3
    assert differences(old, new) == []
    new.model.num_layers, new.data.batch_size = 5, 32
    assert sorted(differences(old, new)) == [
        "data.batch_size: 16 there, 32 here",
        "model.num_layers: 4 there, 5 here",
    ]
