"""Tests that `Key.when` matches the programs and batches that a config makes.

A key is read if another value of it makes another program, another batch, or an error.
"""

import json

import jax
import numpy as np
import pytest

from llm_jax import attention, objectives
from llm_jax import config as configs
from llm_jax.config import KEYS
from llm_jax.data import pipeline
from llm_jax.pod import plan
from llm_jax.train.state import init_state, make_train_step

TINY = {
    "model.num_layers": 2, "model.embed_dim": 16, "model.num_heads": 4, "model.max_length": 16,
    "model.vocab_size": 400, "model.head_dim": 4, "model.dropout": 0.1, "tokenizer.name": "bytes",
    "data.batch_size": 4, "data.validation_fraction": 0.2, "optimizer.warmup_steps": 4,
    "train.steps": 12,
}  # fmt: skip
ENCODER = {"model.kind": "encoder", "model.head": "mlm", "objective.name": "masked_lm"}
BOTH = {"model.kind": "encoder_decoder"}
CASES = {
    "gpt": {},
    "no bias": {"model.use_bias": False, "model.norm": "rmsnorm", "model.init": "fan_in"},
    "rotary": {"model.positions": "rotary", "model.qk_norm": True},
    "linear": {"model.positions": "rotary", "model.rotary_scaling": "linear"},
    "yarn": {"model.positions": "rotary", "model.rotary_scaling": "yarn"},
    "relative": {"model.positions": "relative"},
    "axial": {"model.positions": "axial", "model.axial_shape": (4, 4), "model.axial_dims": (8, 8)},
    "rotary latent": {"model.positions": "rotary", "model.attention": "latent"},
    "blocks": {"model.attention": "bigbird", "model.block": 2},
    "gated": {"model.output_gate": True},
    "convolution": {"model.short_conv": 2},
    "lora": {"model.lora_rank": 2},
    "experts": {"model.num_experts": 4, "model.expert_capacity": 1.0, "model.expert_every": 2,
                "model.router_groups": 2, "model.shared_experts": 1},
    "reversible": {"model.reversible": True, "model.attention": "lsh", "model.lsh_chunk": 4},
    "bert": ENCODER | {"objective.name": "bert", "data.packing": "none", "model.pooler": True,
                       "model.type_vocab_size": 2, "model.head": "mlm,sequence",
                       "model.num_labels": 2},
    "masked": ENCODER,
    "electra": ENCODER | {"objective.name": "replaced_token_detection", "model.head": "detection",
                          "model.generator_fraction": 0.5},
    "spans": BOTH | {"objective.name": "span_corruption"},
    "pairs": BOTH | {"objective.name": "seq2seq"},
    "prefix": {"objective.name": "prefix_lm", "data.packing": "none"},
    "completion": {"objective.name": "completion", "tokenizer.name": "words",
                   "data.train": "task:recall?pairs=2&queries=2&length=16"},
    "classes": ENCODER | {"objective.name": "classification", "model.head": "sequence",
                          "model.num_labels": 2, "data.packing": "none"},
    "groups": ENCODER | {"objective.name": "classification", "model.head": "sequence",
                         "model.num_labels": 2, "data.packing": "none",
                         "data.group_column": "group", "objective.groups": ("a", "b")},
    "answers": ENCODER | {"objective.name": "question_answering", "model.head": "span",
                          "model.type_vocab_size": 2, "data.packing": "none",
                          "data.doc_stride": 4},
    "tags": ENCODER | {"objective.name": "tagging", "model.head": "token",
                       "model.num_labels": 2, "data.labels": ("O", "B-A"), "data.packing": "none"},
    "vectors": ENCODER | {"objective.name": "contrastive", "model.head": "none",
                          "data.packing": "none", "data.pair_column": "source",
                          "data.negative_column": "target"},
    "preference": {"objective.name": "preference", "data.packing": "none"},
    "lion": {"optimizer.name": "lion", "optimizer.schedule": "constant"},
    "adafactor": {"optimizer.name": "adafactor", "optimizer.schedule": "inverse_sqrt"},
    "muon": {"optimizer.name": "muon", "optimizer.schedule": "wsd"},
    "line": {"optimizer.schedule": "linear", "data.packing": "none", "data.ramp_steps": 2,
             "data.ramp_start": 2},
    "limited": {"data.train": "{text},{more}", "data.mixture_limit": 20},
    "folds": {"data.folds": 3},
    "bpe": {"tokenizer.name": "bpe", "tokenizer.vocab_size": 300},
    "file": {"tokenizer.name": "file", "tokenizer.path": "{tokenizer}"},
}  # fmt: skip
OTHER_FIELDS = ("predicate", "messages")  # of no case here
KINDS = {
    name: ({} if "causal" in kind.supports else ENCODER)
    | ({} if "packing" in kind.supports else {"data.packing": "none"})
    | {"model.attention": name}
    | ({"model.block": 4, "model.selected_blocks": 2} if name == "moba" else {})
    for name, kind in attention.VARIANTS.items()
}
OTHERS = {  # where the next number or word would not do
    "model.axial_shape": (8, 2), "model.axial_dims": (4, 12), "model.lsh_buckets": (4,),
    "model.expert_every": 1, "model.random_blocks": 0, "model.block": 4, "model.window": 3,
    "model.stride": 3, "model.landmarks": 4, "model.lsh_chunk": 8, "model.latent_rotary": 2,
    "model.index_topk": 4, "model.ttt_batch": 4,
    "model.rotary_original_length": 4, "model.relative_max_distance": 20,
    "model.relative_buckets": 8, "objective.mask_rate": 0.5, "objective.span_length": 2.0,
    "optimizer.decay_factors": ((".*", 0.5),), "optimizer.rate_factors": ((".*", 0.5),),
    "model.lora_targets": ("up",), "tokenizer.vocab_size": 290, "data.ramp_start": 1,
    "optimizer.decay_steps": 3, "data.weights": (1, 2), "objective.class_weights": (1.0, 2.0),
    "data.augment": ("delete:0.5",),
}  # fmt: skip
# Read by the loop or what comes after it, not by the program, a batch or the tokenizer.
LOOP = (
    "train.", "mesh.", "checkpoint.", "eval.", "sample.", "data.workers", "data.shards",
    "data.tfds_dir", "model.pipeline_pieces", "objective.no_answer", "init_from",
    "privacy.", "distill.",
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Returns keys -> the config of a tiny run."""
    folder = tmp_path_factory.mktemp("readers")
    words = ["the cat", "a dog sat", "on it", "we ran far", "no one", "yes", "so it is", "end"]
    rows = [
        {x: f"{words[i % 8]} {words[i // 8]} {i} {x}" for x in ("text", "source", "target")}
        | {"label": "ab"[i % 2], "group": "ab"[i // 2 % 2]}
        for i in range(60)
    ]
    for row in rows:
        answer = {"text": row["text"][:3], "answer_start": 0}
        row |= {"context": row["text"], "question": "?", "answers": [answer]}
        row |= {"prompt": "?", "chosen": row["text"][:5], "rejected": row["text"][5:9]}
        row |= {"tokens": row["text"].split(), "tags": ["O"] * len(row["text"].split())}
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    files = {"text": folder / "text.jsonl", "more": folder / "more.jsonl"}
    files |= {"tokenizer": folder / "tokenizer.json"}

    def make(changes):
        c = configs.base()
        default = {"data.train": str(folder / "text.jsonl")}
        for key, value in (TINY | default | changes).items():
            configs.set_key(c, key, str(value).format(**files))
        configs.check(c)
        return c

    bpe = make(CASES["bpe"])
    objective = objectives.get(bpe.objective.name)
    objective.build_tokenizer(bpe, objective.splits(bpe)["train"]).save(folder)
    return make


def batches(c, splits, tokenizer):
    examples = objectives.get(c.objective.name).examples(tokenizer, c)
    return pipeline.train_iterator(examples, splits["train"])


@pytest.fixture(scope="module")
def made(config):
    """Returns keys -> the text of all that such a run makes; refusals are part of it."""

    def program(c):
        setup = plan.prepare(c, jax.devices()[:1])
        state, batch = setup.abstract_state(), plan.batch_like(setup)
        step = make_train_step(setup.model, setup.objective, setup.tx, setup.config)
        draw = lambda: init_state(setup.model, setup.tx, setup.config)
        yield jax.jit(step).lower(state, batch).as_text()
        yield jax.jit(draw).lower().as_text()

    def data(c):
        objective = objectives.get(c.objective.name)
        splits = objective.splits(c)
        tokenizer = objective.build_tokenizer(c, splits["train"])
        yield str(tokenizer.pieces())
        # Of a synthetic task, which is endless, the first documents.
        yield str([[part[i] for i in range(min(len(part), 100))] for part in splits.values()])
        each = batches(c, splits, tokenizer)
        yield str([{k: v.tolist() for k, v in next(each).items()} for _ in range(2)])

    def make(changes):
        try:
            c = config(changes)
            return [*program(c), *data(c)]
        except Exception as error:
            return [f"refused: {error}"]

    return make


def another(key, value):
    """Another value that the key may have."""
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if KEYS[key].allows(value + 1) else value - 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, tuple):
        return ("<other>",)
    words = KEYS[key].allowed.removeprefix("allowed are ").split(", ")
    return next((w for w in words if len(words) > 1 and w != value), "other")


def field(key):
    return key.removeprefix("data.").removesuffix("_column")


def columns(c):
    """The fields of documents that a run's objective reads."""
    return objectives.get(c.objective.name).examples.columns(c)


def flat(changes):
    return {key: key_.default for key, key_ in KEYS.items()} | TINY | changes


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *KINDS])
def test_what_is_said_to_be_unread_changes_nothing(name, made):
    changes = (CASES | KINDS)[name]
    values = flat({"data.train": "a file"} | changes)
    unread = [key for key in KEYS if KEYS[key].when and not KEYS[key].when.holds(values)]
    assert len(unread) > 5
    before = made(changes)
    assert not before[0].startswith("refused"), before[0]
    assert made(changes | {key: another(key, values[key]) for key in unread}) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", [key for key in KEYS if not key.startswith(LOOP) and field(key) not in OTHER_FIELDS]
)
def test_what_is_said_to_be_read_changes_something(key, made, config, results={}):  # noqa: B006
    cases = CASES | KINDS
    values = {name: flat({"data.train": "a file"} | cases[name]) for name in cases}
    when = KEYS[key].when
    names = [n for n in cases if when is None or when.holds(values[n])]
    if key.endswith("_column"):
        names = [n for n in names if field(key) in columns(config(cases[n] | {key: "other"}))]
    for name in names[:3]:
        if name not in results:
            results[name] = made(cases[name])
        before = results[name]
        if made(cases[name] | {key: another(key, values[name][key])}) != before:
            return
    raise AssertionError(f"no other program or batch in {names[:3]}")


@pytest.mark.parametrize("name", [n for n in CASES if "objective.name" in CASES[n]])
def test_batches_are_known_before_there_are_any(name, config):
    """Of every objective, in shapes: what a plan compiles for."""
    c = config(CASES[name])
    splits = objectives.get(c.objective.name).splits(c)
    tokenizer = objectives.get(c.objective.name).build_tokenizer(c, splits["train"])
    known = plan.batch_like(plan.prepare(c, jax.devices()[:1]))
    c.model = configs.resolve(c.model, tokenizer.vocab_size)
    real = next(batches(c, splits, tokenizer))
    assert {k: v.shape for k, v in known.items()} == {k: v.shape for k, v in real.items()}


def test_kinds_of_attention_read_what_the_config_says():
    """Variant.reads is what keys with a condition on the kind name, in both directions."""
    said = set()
    for key in KEYS:
        when = KEYS[key].when
        if when and "model.attention" in when.keys and "other than" not in when.text:
            for name in attention.VARIANTS:
                if when.holds(flat({"model.attention": name, "model.positions": "rotary"})):
                    said.add((key.removeprefix("model."), name))
    read = {(key, name) for name, kind in attention.VARIANTS.items() for key in kind.reads}
    always = {(key, name) for key, name in read if KEYS[f"model.{key}"].when is None}
    assert {key for key, _ in always} == {"max_length", "norm_epsilon"}
    projections = {("latent_kv", "latent"), ("latent_query", "latent")}  # of its layer
    assert said == (read - always) | projections


SMALL = (0, 0.0, 2.0**-126, 1e-20, 1, 1.0, 1.001, 2, 4)
NUMBERS = [k for k in KEYS if type(KEYS[k].default) in (int, float) and not k.startswith(LOOP)]


@pytest.mark.slow
@pytest.mark.parametrize("key", NUMBERS)
def test_the_smallest_value_that_is_allowed_trains(key, config):
    """Two steps with finite numbers, where something reads the key."""
    kind, when = type(KEYS[key].default), KEYS[key].when
    least = next(x for x in SMALL if type(x) is kind and KEYS[key].allows(x))
    cases = CASES | KINDS
    name = next(n for n in cases if when is None or when.holds(flat(cases[n])))
    try:
        c = config(cases[name] | {key: least})
        setup = plan.prepare(c, jax.devices()[:1])
        objective = objectives.get(c.objective.name)
        splits = objective.splits(c)
        each = batches(c, splits, objective.build_tokenizer(c, splits["train"]))
        batch = next(each)
    except configs.ConfigError as error:
        assert key in str(error)
        return
    state = jax.jit(lambda: init_state(setup.model, setup.tx, setup.config))()
    step = jax.jit(make_train_step(setup.model, setup.objective, setup.tx, setup.config))
    for _ in range(2):
        state, metrics = step(state, batch)
        batch = next(each)
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]), metrics
