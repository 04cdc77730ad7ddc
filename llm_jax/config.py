"""The configuration of a run: keys with defaults and ranges, loading, overrides, checks.

A recipe in configs/ starts from `base()` and changes what its paper changes. Nothing here
imports JAX, so a wrong config is refused before the accelerator is even looked for.
"""

import ast
import difflib
import functools
import importlib.util
import json
import logging
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax import pattern
from llm_jax.pattern import Scan, expand, parse, place

HERE = Path(__file__).parent
RECIPES = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"
log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A config that cannot run; the message names the key, its value, and what is allowed."""


@dataclass(frozen=True)
class When:
    """A condition on other keys, under which a key is read. Made by `given`, `kinds` …."""

    text: str
    keys: tuple[str, ...]
    holds: Callable[[dict[str, Any]], bool]  # of {"model.kind": "decoder", …}

    def __and__(self, other: "When") -> "When":
        both = lambda flat: self.holds(flat) and other.holds(flat)
        return When(f"{self.text} and {other.text}", self.keys + other.keys, both)

    def __or__(self, other: "When") -> "When":
        either = lambda flat: self.holds(flat) or other.holds(flat)
        return When(f"{self.text} or {other.text}", self.keys + other.keys, either)


def given(key: str, *values: Any) -> When:
    """The key, or one of several as in "a,b", has one of these values; none: is set, so not 0."""
    if not values:
        return When(f"{key} set", (key,), lambda flat: bool(flat[key]))
    among = lambda flat: any(word in values for word in _words(flat[key]))
    return When(f"{key}={' | '.join(map(str, values))}", (key,), among)


def absent(key: str, *values: Any) -> When:
    """The key, or one of several as in "a,b", has none of these values; none: is not set."""
    if not values:
        return When(f"no {key}", (key,), lambda flat: not flat[key])
    beside = lambda flat: any(word not in values for word in _words(flat[key]))
    return When(f"{key} other than {' | '.join(map(str, values))}", (key,), beside)


def _words(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else [value]


kinds = partial(given, "model.attention")
heads = partial(given, "model.head")
learns = partial(given, "objective.name")


def source(text: str, holds: Callable[[str], bool]) -> When:
    """A part of data.train, .validation or .test, which may name several, is such a source."""
    keys = ("data.train", "data.validation", "data.test")
    parts = lambda flat: ",".join(flat[key] for key in keys).split(",")
    test = lambda flat: any(holds(part.strip()) for part in parts(flat) if part.strip())
    return When(f"{text} in data.train", keys, test)


@dataclass(frozen=True)
class Key:
    """A key of the config: its default, the values it may have, and when something reads it."""

    default: Any
    allows: Callable[[Any], bool]  # of a value of the default's type
    allowed: str  # as a refusal says it
    when: When | None = None  # None: always


def one_of(default: str, *others: str, when: When | None = None) -> Key:
    """A word out of a list, the default first."""
    words = (default, *others)
    return Key(default, lambda v: v in words, f"allowed are {', '.join(words)}", when)


def flag(default: bool, when: When | None = None) -> Key:
    """True or False."""
    return Key(default, lambda v: True, "True or False", when)


def whole(default: int, least: int = 0, most: int = 2**24, when: When | None = None) -> Key:
    """An integer in [least, most]."""
    allowed = f"must be at least {least} and at most {most}"
    return Key(default, lambda v: least <= v <= most, allowed, when)


def number(
    default: float, least: float = 0.0, most: float = 1e6, *, over: float | None = None,
    when: When | None = None,
) -> Key:  # fmt: skip
    """A number in [least, most], or (over, most], that float32 holds as something else than 0."""
    enough = (lambda v: v >= least) if over is None else (lambda v: v > over)
    bound = f"at least {least:g}" if over is None else f"above {over:g}"
    allows = lambda v: enough(v) and v <= most and (v == 0 or abs(v) >= 2**-126)
    return Key(default, allows, f"must be {bound} and at most {most:g}", when)


def share(default: float, over: bool = False, when: When | None = None) -> Key:
    """A number in [0, 1); over: in (0, 1). Below 1 in float32 too."""
    allows = lambda v: (v == 0 and not over) or 2**-126 <= v <= 1 - 2**-24
    return Key(default, allows, f"must be in {'(' if over else '['}0, 1)", when)


def text(default: str, empty: bool = True, when: When | None = None) -> Key:
    """A text that UTF-8 and a file's name can hold."""
    allows = lambda v: _is_text(v) and (empty or bool(v.strip()))
    return Key(default, allows, "must be text" + " that is not empty" * (not empty), when)


def several(allows: Callable[[Any], bool], what: str, when: When | None = None) -> Key:
    """A tuple, empty by default, of values that are allowed one by one."""
    return Key((), lambda v: all(map(allows, v)), f"must be {what}", when)


def numbers(least: int = 1, when: When | None = None) -> Key:
    """A tuple of integers."""
    allows = lambda x: type(x) is int and least <= x <= 2**31 - 1
    return several(allows, f"integers of at least {least}", when)


def texts(empty: bool = True, when: When | None = None) -> Key:
    """A tuple of texts."""
    allows = lambda x: isinstance(x, str) and _is_text(x) and bool(empty or x)
    return several(allows, "texts" + " that are not empty" * (not empty), when)


def factors(when: When | None = None) -> Key:
    """A tuple of (regular expression, factor)."""
    pair = lambda x: isinstance(x, tuple) and len(x) == 2 and _is_pattern(x[0])
    allows = lambda x: pair(x) and _is_factor(x[1])
    return several(allows, 'pairs like ("encoder/.*", 0.1), factors of at least 0', when)


def devices(default: int) -> Key:
    """A size of the mesh: at least 1, or -1 for the devices that are left."""
    return Key(default, lambda v: v == -1 or 1 <= v <= 2**24, "must be positive, or -1")


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e6


def _is_pattern(value: Any) -> bool:
    try:
        return bool(re.compile(value)) and isinstance(value, str)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False


def _is_text(value: str) -> bool:
    return not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)


COUNT = 2**31 - 1  # steps are int32
BEYOND = 10**300  # more than any key's range
ROTARY = given("model.positions", "rotary")
SCALED = ROTARY & absent("model.rotary_scaling", "none")
YARN = ROTARY & given("model.rotary_scaling", "yarn")
STRETCHED = ROTARY & given("model.rotary_scaling", "yarn", "llama3")
EXPERTS = given("model.num_experts")
MASKING = learns("masked_lm", "bert", "albert", "replaced_token_detection", "span_corruption")
PROJECTIONS = (
    "query", "key", "value", "out", "gate", "up", "down", "query_down", "key_value_down"
)  # fmt: skip
VALUE_SIZED = (
    "retnet", "gated_linear", "gla", "hgrn2", "gsa", "based", "rebased", "log_linear",
)  # fmt: skip
STATE_SPACE = "mamba2", "mamba3"
DELTA = "deltanet", "gated_deltanet", "gated_deltaproduct", "kda"
WORDS_OUT = heads("lm", "mlm")
RECORDS = source("a file or set", lambda part: not part.startswith(("builtin:", "task:")))
SEVERAL = When("A,B in data.train", ("data.train",), lambda flat: "," in flat["data.train"])
PAIRS = learns("seq2seq", "completion") & RECORDS
CLASSES = learns("classification", "regression")
VECTORS = learns("contrastive", "similarity")
LABELLED = learns("classification", "tagging", "roles")
QUESTIONS = learns("question_answering")
PROMPTED = learns("seq2seq", "completion", "preference")
WRITES = learns("seq2seq", "completion", "chat")
AUGMENTATION = r"(delete|swap|synonyms:.+):(0?\.\d+|[01](\.0*)?)"
CLASSIFIES = learns("classification")
ADAM = given("optimizer.name", "adamw", "muon")
DECAYS = given("optimizer.schedule", "cosine", "linear", "wsd")
BETAS = ADAM | given("optimizer.name", "lion")
LORA = given("model.lora_rank")
NOT_LATENT = absent("model.attention", "latent")
AXIAL = given("model.positions", "axial")
RELATIVE = given("model.positions", "relative")


class Layer:
    """Every layer, or as model.layers says some of them: config.model too."""

    num_heads = whole(8, 1, 2**16)
    num_kv_heads = whole(0)  # 0: num_heads; fewer: grouped-query attention
    head_dim = whole(0, 0, 2**16)  # 0: embed_dim / num_heads
    mlp_dim = whole(0)  # 0: 4 * embed_dim
    norm = one_of("layernorm", "rmsnorm")
    # Of a sublayer's input | the sum (2017) | input and output (Gemma 2) | output (OLMo 2).
    norm_place = one_of("pre", "post", "sandwich", "reordered")
    # Attention's input is normed; not in ModernBERT's first layer, behind the embeddings' norm.
    attention_norm = flag(True, when=given("model.norm_place", "pre"))
    norm_zero_centered = flag(False)  # the scale is 1 + w, and w starts at 0 (Gemma)
    norm_epsilon = number(1e-5, over=0, most=1)
    activation = one_of(
        "gelu_tanh", "gelu", "relu", "silu", "swiglu", "geglu", "geglu_tanh", "reglu",
        "clamped_swiglu",
    )  # fmt: skip
    use_bias = flag(True)  # in dense layers and LayerNorm
    attention_bias = flag(True, when=given("model.use_bias"))  # in attention's dense layers
    # In those of queries, keys and values, whatever else has none (Qwen 2).
    qkv_bias = flag(False, when=(absent("model.use_bias") | absent("model.attention_bias"))
                    & NOT_LATENT)  # fmt: skip
    positions = one_of("learned", "axial", "sinusoidal", "rotary", "relative", "alibi", "none")
    rotary_base = number(10_000.0, over=1, most=1e15, when=ROTARY)
    rotary_scaling = one_of("none", "linear", "ntk", "yarn", "llama3", when=ROTARY)
    rotary_factor = number(8.0, 1, when=SCALED)
    rotary_original_length = whole(8192, 1, when=STRETCHED)  # before it was stretched
    rotary_truncate = flag(True, when=YARN)  # the ramp begins and ends at whole dimensions
    rotary_strength = number(0.0, most=100, when=YARN)  # of queries, keys; 0: 0.1 log(factor) + 1
    rotary_dim = whole(0, 0, 2**16, when=ROTARY & NOT_LATENT)  # that turn (Qwen3-Next: 1/4); 0: all
    rotary_interleaved = flag(False, when=ROTARY)  # neighbours turn together (RoFormer), not halves
    attention = text("dense", empty=False)  # name in attention.VARIANTS; "a,b": layers alternate
    # local, longformer, nsa: keys that a query sees, itself and those before it; dilated: as many,
    # a stride apart; chunked: length of a chunk.
    window = whole(128, 1, when=kinds("local", "longformer", "dilated", "chunked", "nsa"))
    stride = whole(16, 1, when=kinds("strided", "dilated"))  # distance of the keys seen
    global_tokens = whole(1, when=kinds("longformer"))  # leading ones: see, and are seen by, all
    block = whole(64, 1, when=kinds("bigbird", "moba", "nsa"))  # tokens of a block
    # Of a query, those included that it has without a choice: its own (moba), its own, the one
    # before and the first (nsa).
    selected_blocks = whole(16, 1, when=kinds("moba", "nsa"))
    index_topk = whole(2048, 1, when=kinds("dsa"))  # keys that the indexer chooses for a query
    index_heads = whole(4, 1, when=kinds("dsa"))  # of the indexer
    index_dim = whole(64, 2, when=kinds("dsa"))  # of each of them
    random_blocks = whole(3, when=kinds("bigbird"))  # seen beside the neighbours and the ends
    random_features = whole(128, 1, when=kinds("performer"))
    landmarks = whole(64, 1, when=kinds("linformer", "nystrom"))  # compressed length; means
    latent_kv = whole(512, 1, when=kinds("latent"))  # width that keys and values are made of
    latent_query = whole(0, when=kinds("latent"))  # likewise of queries; 0: made of the input
    latent_rotary = whole(64, when=kinds("latent") & ROTARY)  # dimensions of a head added for it
    # Sizes of recurrent kinds: of a head's values (0: head_dim); how many heads queries and keys
    # have, where values have num_heads (0: queries num_heads, keys and values num_kv_heads).
    value_dim = whole(0, 0, 2**16, when=kinds(*VALUE_SIZED, *STATE_SPACE, *DELTA, "mesa_net"))
    num_key_heads = whole(0, 0, 2**16, when=kinds(*STATE_SPACE, *DELTA, "mesa_net"))
    num_householder = whole(2, 1, 64, when=kinds("gated_deltaproduct"))  # corrections of a token
    negative_eigenvalues = flag(False, when=kinds(*DELTA))  # beta up to 2: a key may be reflected
    ttt_batch = whole(16, 1, 2**16, when=kinds("ttt_linear"))  # tokens of an inner mini-batch
    solver_steps = whole(30, 1, 1024, when=kinds("mesa_net"))  # of conjugate gradients
    slots = whole(64, 1, when=kinds("gsa"))  # of the memory
    forget_floor = share(0.0, when=kinds("hgrn2"))  # least of the forget gate; rises with depth
    lsh_chunk = whole(64, 1, when=kinds("lsh"))  # tokens a chunk
    lsh_hashes = whole(1, 1, 1024, when=kinds("lsh"))  # rounds of hashing
    lsh_buckets = numbers(2, when=kinds("lsh"))  # even factors of their number; (): chosen
    # Of the scores; 0: head_dim^-0.5 (T5: 1).
    attention_scale = number(0.0, when=absent(
        "model.attention", *DELTA, "rwkv7", "mesa_net", "ttt_linear", "linear", *STATE_SPACE
    ))  # fmt: skip
    attention_softcap = number(0.0)  # scores held within plus and minus this (Gemma 2: 50); 0: free
    attention_sinks = flag(False)  # a learned score a head without a value (gpt-oss)
    qk_norm = flag(False, when=NOT_LATENT)  # a norm over each head's queries and keys
    qk_norm_joint = flag(False, when=given("model.qk_norm") & NOT_LATENT)  # one over all (OLMo 2)
    # Causal depthwise convolution of queries, keys and values over so many tokens; 0: none.
    short_conv = whole(0, 0, 64)
    short_conv_bias = flag(False, when=given("model.short_conv"))  # added behind it (Mamba-2)
    # Attention's output times a projection of its input, behind a sigmoid (most recurrent: SiLU).
    output_gate = flag(False)
    # Of two matrices that it is the product of (Kimi Linear: head_dim); 0: one matrix.
    output_gate_rank = whole(0, when=given("model.output_gate", True))
    feed_forward = flag(True)  # False: a layer is its attention alone (Mamba-2)
    mlp_chunk = whole(0)  # positions that the feed-forward layer takes at a time; 0: all
    num_experts = whole(0, 0, 2**16)  # a router chooses among them; 0: one feed-forward layer
    experts_per_token = whole(2, 1, when=EXPERTS)
    # Capacity factor: slots of an expert / (tokens x experts_per_token / num_experts); 0: dropless.
    expert_capacity = number(0.0, most=1024, when=EXPERTS)
    expert_slots = whole(0, when=EXPERTS)  # of an expert and row, instead of a factor
    expert_bias = flag(False, when=EXPERTS)  # in the experts and in the router (gpt-oss)
    shared_experts = whole(0, when=EXPERTS)  # as wide as so many, all tokens' own (DeepSeekMoE)
    # Times the sigmoid of a projection of their input to one number (Qwen2-MoE).
    shared_gate = flag(False, when=EXPERTS & given("model.shared_experts"))
    router_scores = one_of("softmax", "sigmoid", when=EXPERTS)  # sigmoid: DeepSeek-V3
    # A bias of each score by which experts are chosen, but not weighed (DeepSeek-V3, 2.1.2).
    router_bias = flag(False, when=EXPERTS)
    # Gates of the experts chosen add up to one.
    router_normalized = flag(True, when=EXPERTS & absent("model.experts_per_token", 1))
    router_scale = number(1.0, over=0, when=EXPERTS)  # times the gates (DeepSeek)
    # Experts lie in groups; only those of router_top_groups can be chosen (DeepSeek-V2, 2.2.2).
    router_groups = whole(1, 1, when=EXPERTS)
    router_top_groups = whole(1, 1, when=EXPERTS & absent("model.router_groups", 1))


class Model:
    """The architecture: config.model, with what Layer has."""

    kind = one_of("decoder", "encoder", "encoder_decoder")
    vocab_size = whole(0)  # 0: the tokenizer's
    max_length = whole(256, 1)
    num_layers = whole(4, 1, 10_000)
    # Layers that differ: "5 local window=1024, 1 dense" is repeated, "3 num_experts=0, rest" is
    # not (llm_jax/pattern.py has the words); "": all as model.* says.
    layers = text("")
    num_decoder_layers = whole(0, 0, 10_000, when=given("model.kind", "encoder_decoder"))  # 0: same
    embed_dim = whole(256, 1, 2**20)
    embedding_dim = whole(0)  # of the token table, projected up to embed_dim (ALBERT); 0: embed_dim
    axial_shape = numbers(when=AXIAL)  # rows and columns, filled by row
    axial_dims = numbers(when=AXIAL)  # of a row's, a column's vector
    # The table's first rows that are never used (RoBERTa: 2).
    position_offset = whole(0, when=given("model.positions", "learned"))
    relative_buckets = whole(32, 4, when=RELATIVE)
    relative_max_distance = whole(128, 2, when=RELATIVE)
    expert_every = whole(1, 1, when=EXPERTS)  # every n-th layer has experts (Switch: 2)
    router_balance = number(0.01, when=EXPERTS)  # load balancing loss, a mean over layers (Switch)
    router_z = number(0.0, when=EXPERTS)  # weight of the router's z-loss (ST-MoE: 0.001)
    # Two residual streams, recomputed in the backward pass instead of stored (Reformer); an untied
    # "lm" head sees both, any other their mean.
    reversible = flag(False)
    share_layers = flag(False)  # ALBERT: one layer's parameters for all
    tie_embeddings = flag(True, when=WORDS_OUT | given("model.generator_fraction"))
    scale_embeddings = flag(False)  # multiply token embeddings by sqrt(embed_dim)
    dropout = share(0.0)  # after the embeddings and each sub-layer
    attention_dropout = share(0.0)  # on attention probabilities
    mlp_dropout = share(0.0)  # in the feed-forward layer, behind its activation (T5)
    final_dropout = share(0.0)  # behind the last norm (T5)
    init = one_of("normal", "fan_in")  # normal: initializer_range | fan_in: T5's, 1 / sqrt(inputs)
    initializer_range = number(0.02, over=0, most=100, when=given("model.init", "normal"))
    scale_residual_init = flag(False)  # GPT-2: projections into the residual / sqrt(2 num_layers)
    embed_norm = flag(False)  # BERT: a norm after the sum of embeddings
    type_vocab_size = whole(0)  # BERT: kinds of segments, each with an embedding
    # Names in models/heads.py: lm | mlm | detection | sequence | token | span, several as in
    # "mlm,sequence"; or none.
    head = text("lm", empty=False)
    output_bias = flag(False, when=heads("lm"))  # added to the logits (mlm: always)
    # T5: hidden / sqrt(embed_dim) before the tied output matrix.
    scale_output = flag(False, when=WORDS_OUT | given("model.generator_fraction"))
    # Logits are held within it (Gemma 2: 30); 0: free.
    output_softcap = number(0.0, when=WORDS_OUT | given("model.generator_fraction"))
    # BERT: a dense layer over the first token (decoder: the last) for heads that are pooled.
    pooler = flag(False)
    pooler_activation = one_of("tanh", "relu", "gelu", when=given("model.pooler", True))
    num_labels = whole(0, when=heads("sequence", "token"))  # next sentence: 2; 0: the data's
    head_dropout = share(0.0, when=heads("detection", "sequence", "token", "span"))  # before them
    generator_fraction = share(0.0)  # ELECTRA: a generator of this share of the width; 0: none
    dtype = one_of("float32", "bfloat16")  # of activations and products; parameters are float32
    quantize = one_of("none", "int8", "fp8")  # projections' and feed-forward products, by qwix
    # Low-rank adapters beside projections, by qwix; 0: none. With them, and optimizer.rate_factors
    # empty, they alone are trained (and a head that an import drew); all else is frozen.
    lora_rank = whole(0, 0, 4096)
    lora_alpha = number(16.0, over=0, when=LORA)  # times it / rank
    lora_targets = texts(empty=False, when=LORA)  # of PROJECTIONS; (): all; experts get none
    # QLoRA: how the frozen kernels of projections and feed-forward layers are held, but experts'.
    lora_quantize = one_of("none", "int8", "int4", "nf4", when=LORA)
    # How the kernels of projections and feed-forward layers are held, but experts', never to be
    # trained: a compressed model's. With LoRA: lora_quantize.
    weights = one_of("float32", "int8", "int4", "nf4")
    scan = flag(True)  # one compiled layer, looped: compile time does not grow with depth
    # Pipeline microbatches; 0: as many as mesh.pipeline has stages.
    pipeline_pieces = whole(0, when=absent("mesh.pipeline", 1))
    # none | dots: keeps products | full: layers' inputs | offload: those, on the host
    remat = one_of("none", "dots", "full", "offload")


class Objective:
    """What is learned: config.objective."""

    name = text("causal_lm", empty=False)  # a record of llm_jax/objectives/
    label_smoothing = share(0.0)
    focal_gamma = number(0.0, most=100, when=LABELLED)  # focal loss; 0: cross-entropy
    # R-Drop's alpha: two passes with other dropout are to agree.
    r_drop = number(0.0, when=CLASSIFIES)
    # Mixup of embeddings: a row's share is of Beta(mixup, mixup); 0: none.
    mixup = number(0.0, when=CLASSIFIES & given("model.kind", "encoder"))
    z_loss = number(0.0)
    no_answer = flag(False, when=QUESTIONS)  # may be the answer (SQuAD 2.0), as training has it
    # Weight of each label in the loss; "balanced": inverse frequencies; (): all are 1.
    class_weights = Key(
        (), lambda v: v == ("balanced",) or all(map(_is_factor, v)),
        'must be numbers of at least 0, or "balanced"', CLASSIFIES,
    )  # fmt: skip
    mask_rate = share(0.15, over=True, when=MASKING)  # of the tokens
    # Masked LM: whole-word masking (albert: always).
    whole_word = flag(False, when=learns("masked_lm", "bert", "replaced_token_detection"))
    span_length = number(3.0, 1, when=learns("span_corruption"))  # mean
    prefix = text("", when=PROMPTED)  # before each source ("translate English to German: ")
    suffix = text("", when=PROMPTED)  # behind it ("\n")
    # DPO: strength of the KL penalty to the reference model; smaller: the model may move further.
    beta = number(0.1, over=0, when=learns("preference"))
    pooling = one_of("mean", "cls", when=VECTORS)  # of tokens' vectors: their mean | the first
    temperature = number(0.05, 1e-3, 100, when=VECTORS)  # by which cosines are divided
    # Of the discriminator's loss.
    detection_weight = number(50.0, when=learns("replaced_token_detection"))


class Tokenizer:
    """How text becomes ids: config.tokenizer."""

    name = one_of("bpe", "bytes", "chars", "words", "wordpiece", "file", "sentencepiece")
    vocab_size = whole(4096, 1, when=given("tokenizer.name", "bpe", "wordpiece"))  # to be trained
    path = text("", when=given("tokenizer.name", "file", "sentencepiece"))  # its .json | .model
    specials = texts(empty=False)  # further special tokens, such as ("[MASK]",)


class Data:
    """Text and batches: config.data."""

    # A file or glob | tfds:name/config | task:name?option=value&… ; columns are COLUMNS below.
    train = text("builtin:python", empty=False)
    # Of several sources in train, the share of each among the documents, whatever its size.
    weights = several(
        lambda x: type(x) in (int, float) and 1e-9 < x < 1e9, "numbers above 0", SEVERAL
    )
    # Without weights: examples-proportional, a source counting for at most so many (0: all), to the
    # power of 1 / temperature. 1 and 0: documents of all as they are.
    mixture_temperature = number(1.0, 0.1, when=SEVERAL & absent("data.weights"))
    mixture_limit = whole(0, 0, COUNT, when=SEVERAL & absent("data.weights"))
    validation = text("")  # like train; empty: a held-out share of the documents
    validation_fraction = share(0.05, when=absent("data.validation") & absent("data.folds"))
    # Cross-validation: of so many parts of the documents, by content, part `fold` is held out.
    folds = whole(0, 0, 1000, when=absent("data.validation"))  # 0: none
    fold = whole(0, 0, 999, when=absent("data.validation") & given("data.folds"))
    test = text("")  # likewise; empty and test_fraction 0: no test set
    test_fraction = share(0.0, when=absent("data.test"))
    # In training each time anew: "delete:0.1", "swap:0.1", "synonyms:FILE:0.1" of the words.
    augment = several(
        lambda x: isinstance(x, str) and re.fullmatch(AUGMENTATION, x) is not None,
        'like "delete:0.1", "swap:0.1" or "synonyms:FILE:0.1"', CLASSES,
    )  # fmt: skip
    labels = texts(empty=False, when=LABELLED)  # in order; (): those of the training set
    # Tokens between the beginnings of two windows of a context that is longer than a row.
    doc_stride = whole(128, 1, when=QUESTIONS)
    target_length = whole(0, when=learns("seq2seq"))  # of the decoder's rows; 0: max_length
    # Empty: TFDS's own default.
    tfds_dir = text("", when=source("tfds:", lambda part: part.startswith("tfds:")))
    workers = whole(0, 0, 1024)  # processes that pack a set too large for memory; 0: the trainer
    shards = whole(1, 1)  # streams of such a set; of several machines each packs its rows' own
    # first_fit: several documents a row | none: one, in rows as long as the batch needs
    packing = one_of("first_fit", "none")
    batch_size = whole(16, 1, 2**20)  # sequences a step, over all chips
    ramp_steps = whole(0, 0, COUNT)  # in which the batch grows from ramp_start to batch_size
    ramp_start = whole(16, 1, when=given("data.ramp_steps"))


class Optimizer:
    """The update and its rate: config.optimizer."""

    name = one_of("adamw", "adafactor", "lion", "muon")
    learning_rate = number(1e-3, most=1000)  # import sets 5e-5 where nothing else is told
    schedule = one_of("cosine", "constant", "linear", "inverse_sqrt", "wsd")
    # Below 1: that share of train.steps.
    warmup_steps = Key(100.0, lambda v: 0 <= v < 1 or (1 <= v <= COUNT and v == int(v)),
                       f"must be whole steps, at most {COUNT}, or a share below 1")  # fmt: skip
    # Steps at the peak rate after the warm-up (T5: 10,000).
    hold_steps = whole(0, 0, COUNT, when=given("optimizer.schedule", "inverse_sqrt"))
    # cosine, linear: length of the decay; 0: the rest of train.steps | wsd: of the final one; 0: a
    # fifth of train.steps.
    decay_steps = whole(0, 0, COUNT, when=DECAYS)
    final_fraction = number(0.1, most=1, when=DECAYS)  # last learning rate / learning_rate
    b1 = share(0.9, when=BETAS)
    b2 = share(0.0, when=BETAS)  # 0: Lion's 0.99 (Chen 2023, section 4.3), else 0.95
    eps = number(1e-8, 1e-20, 10, when=ADAM)  # float32 must be able to divide by it
    muon_momentum = share(0.95, when=given("optimizer.name", "muon"))
    weight_decay = number(0.1, most=1000)  # on matrices and embeddings only
    clip_norm = number(1.0)  # 0: no clipping
    # Of the learning rate, (("encoder/.*", 0.1), …): that of the first pattern that matches a
    # parameter's whole path; none: 1; 0: frozen. Empty, with model.lora_rank: LoRA's arrays alone.
    rate_factors = factors()
    # Likewise of weight_decay and l1.
    decay_factors = factors(when=given("optimizer.weight_decay") | given("optimizer.l1"))
    layer_decay = number(1.0, over=0, most=1)  # of the rate from a layer to the one below
    unfreeze_steps = whole(0, 0, 2**16)  # after which a further layer learns, from the last down
    l1 = number(0.0, most=1000)  # on what weight_decay is on
    keep_zeros = flag(False)  # entries of matrices that are 0 stay 0, as of a pruned model


class Train:
    """The run: config.train."""

    steps = whole(1000, 1, COUNT)
    log_every = whole(10, 1, COUNT)
    microbatches = whole(1, 1)  # gradient accumulation: the batch in this many parts
    ema_decay = share(0.0)  # 0: no average of the parameters
    profile_steps = numbers(0)  # (start, stop): profile these, into the run folder's profile/
    max_nonfinite = whole(10, 1, COUNT)  # stop after this many non-finite steps in a row


class Privacy:
    """Differential privacy of training documents, by DP-SGD (docs/privacy.md): config.privacy."""

    clip = number(0.0)  # largest norm of the gradient of a document; 0: no DP
    # Standard deviation of the noise / clip; 0: what privacy.epsilon asks for.
    noise = number(0.0, when=given("privacy.clip"))
    # What train.steps steps may spend; 0: whatever privacy.noise does.
    epsilon = number(0.0, when=given("privacy.clip") & absent("privacy.noise"))
    delta = share(1e-5, over=True, when=given("privacy.clip"))  # well below 1 / documents


class Distill:
    """What a student learns from a teacher (docs/compress.md): config.distill."""

    teacher = text("")  # the run folder of another model, which stays as it is; empty: none
    soft = number(0.5, most=1, when=given("distill.teacher"))  # share of the loss: its logits
    # By which both models' logits are divided there.
    temperature = number(2.0, 0.01, 100, when=given("distill.teacher"))
    # Weight of 1 - cosine of the last hidden vectors (DistilBERT).
    hidden = number(0.0, when=given("distill.teacher"))


class Mesh:
    """How devices share the work: config.mesh. -1: the rest of the devices."""

    data = devices(-1)
    pipeline = devices(1)  # layers, in stages; see model.pipeline_pieces
    fsdp = devices(1)  # the batch and each parameter
    tensor = devices(1)  # heads, feed-forward and vocabulary
    context = devices(1)  # positions of a row
    expert = devices(1)  # experts; all else is split over it as over data


class Checkpoint:
    """What is saved, in steps and checkpoints: config.checkpoint."""

    every = whole(500, 1, COUNT)
    keep_last = whole(2, 1)
    keep_best = whole(1)  # by eval.metric


class Eval:
    """Validation while training: config.eval."""

    every = whole(250, 1, COUNT)
    max_batches = whole(100, 0, COUNT)  # 0: all of the validation set
    metric = text("loss", empty=False)  # by which checkpoints are best: loss, f1 …, as eval_… logs
    patience = whole(0, 0, COUNT)  # evaluations without a better one that end a run; 0: no end
    # Of texts that the model writes: bleu | chrf | rouge | distinct | exact_match; (): none.
    scores = texts(empty=False, when=WRITES)
    beams = whole(1, 1, 1024, when=WRITES)  # 1: greedy
    length_penalty = number(0.6, when=WRITES)  # of beams
    max_new_tokens = whole(0, when=WRITES)  # 0: data.target_length, or what model.max_length holds


class Sample:
    """What the model writes at the end of a run: config.sample."""

    prompts = texts(when=WORDS_OUT)
    max_new_tokens = whole(64, 1, when=given("sample.prompts"))


# Field of a document: its column in a table (.jsonl, .csv, .conll …) or TFDS set, by name, or by
# number, from 0, where a .csv, .tsv or .conll has no header; and when it is read. data/fields.py
# says what each holds. Parallel text files go without: data.train="train.en,train.de".
COLUMNS = {
    "text": ("text", RECORDS),
    "source": ("source", PAIRS), "target": ("target", PAIRS),
    "pair": ("", CLASSES | VECTORS),  # the second text; empty: there is one text
    "negative": ("", learns("contrastive")),  # a hard one; empty: none
    "label": ("label", CLASSES | learns("similarity")),
    "tokens": ("tokens", learns("tagging", "roles")),
    "tags": ("tags", learns("tagging", "roles")),
    "predicate": ("predicate", learns("roles")),  # a place among the tokens
    "context": ("context", learns("question_answering")),
    "question": ("question", learns("question_answering")),
    "answers": ("answers", learns("question_answering")),
    "messages": ("messages", learns("chat")),
    "prompt": ("prompt", learns("preference")),
    "chosen": ("chosen", learns("preference")), "rejected": ("rejected", learns("preference")),
}  # fmt: skip


GROUPS = {
    "model": Model, "objective": Objective, "tokenizer": Tokenizer, "data": Data,
    "optimizer": Optimizer, "train": Train, "privacy": Privacy,
    "distill": Distill, "mesh": Mesh,
    "checkpoint": Checkpoint, "eval": Eval, "sample": Sample,
}  # fmt: skip
KEYS: dict[str, Key] = {
    "seed": whole(0, 0, 2**32 - 1),
    # A Hugging Face folder or a run's: a new run begins with its weights, tokenizer, architecture.
    "init_from": text(""),
} | {
    f"{group}.{name}": key
    for group, keys in (("model", Layer), *GROUPS.items())
    for name, key in vars(keys).items()
    if isinstance(key, Key)
} | {
    f"data.{field}_column": text(column, empty=not column, when=when)
    for field, (column, when) in COLUMNS.items()
}


LAYER = tuple(name for name, key in vars(Layer).items() if isinstance(key, Key))


def base() -> ConfigDict:
    """Returns the default of every key: a small pre-norm GPT on the built-in corpus."""
    return _tree({name: key.default for name, key in KEYS.items()})


def _tree(flat: dict[str, Any]) -> ConfigDict:
    config = ConfigDict({group: ConfigDict() for group in GROUPS})
    for name, value in flat.items():
        group, _, key = name.rpartition(".")
        (config[group] if group else config)[key] = value
    return config


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict:
    """Returns {"model.num_layers": 4, ...}; an empty group is a value of its own."""
    out = {}
    for key in config:
        value = config[key]
        name = f"{prefix}{key}"
        group = isinstance(value, (ConfigDict, dict)) and len(value) > 0
        out.update(flatten(value, name + ".") if group else {name: value})
    return out


def load(spec: str = "", overrides: Sequence[str] = (), by_hand: bool = True) -> ConfigDict:
    """Loads `path.py[:variant]` (empty: the defaults), applies `key=value` overrides, checks all.

    by_hand: the overrides are somebody's: one that nothing reads is refused.

    Raises:
      ConfigError: naming the file or key, its value, and what is allowed.
    """
    config = from_file(spec, "get_config") if spec else base()
    if config is None:
        raise ConfigError(f"--config={spec}: the file defines no get_config(variant)")
    check(config)
    _check_schedule(config, KEYS)
    change(config, overrides, by_hand)
    return config


def change(config: ConfigDict, overrides: Sequence[str], by_hand: bool = True) -> None:
    """Applies `key=value` overrides and checks the whole, as `load` does."""
    keys = []
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise ConfigError(f"--config.{override}: expected --config.{key}=VALUE")
        set_key(config, key, text)
        keys.append(key)
    check(config)
    _check_schedule(config, keys)
    for key in keys if by_hand else ():
        if reason := unread(config, key):
            raise ConfigError(reason)


def unread(config: ConfigDict, key: str) -> str:
    """Returns why nothing reads a key of this config, in words; "" where something does."""
    when, flat = KEYS[key].when, flatten(config)
    said, specs = f"model.layers={config.model.layers!r}", _specs(config.model)
    readers = [spec for spec in specs if when is None or when.holds(flat | spec)]
    if any(key not in spec for spec in readers):
        return ""
    if readers:
        return f"{key}: each layer that reads it has its own in {said}"
    present = ", ".join(f"{k}={flat[k]!r}" for k in dict.fromkeys(when.keys))
    present += f", {said}" * bool(config.model.layers)
    return f"{key}: nothing reads it with {present}; it is read with {when.text}"


def depths(m: ConfigDict) -> dict[str, int]:
    """The number of layers of each stack that a model has, "encoder" or "decoder" or both."""
    if m.kind != "encoder_decoder":
        return {m.kind: m.num_layers}
    return {"encoder": m.num_layers, "decoder": m.num_decoder_layers or m.num_layers}


def _specs(m: ConfigDict) -> list[dict[str, Any]]:
    """What model.layers says of layers, as {"model.window": 1024}, each once; [{}]: nothing."""
    specs = [spec for depth in depths(m).values() for spec in _said(m.layers, depth)]
    return list({str(x): {f"model.{k}": v for k, v in x.items()} for x in specs}.values())


@functools.lru_cache(maxsize=64)
def _said(text: str, depth: int) -> tuple[dict[str, Any], ...]:
    """The settings of each of so many layers, as model.layers has them.

    Raises:
      ConfigError: words that are no list of layers, or a key or value that no layer has.
    """
    if not text.strip():
        return ({},) * depth
    said, specs = f"model.layers={_shown(text)}", []
    try:
        for spec in expand(parse(text), depth):
            if unknown := spec.keys() - set(LAYER):
                raise ValueError(f"{min(unknown)!r} is none of a layer's: {', '.join(LAYER)}")
            specs.append({key: _read(f"model.{key}", word) for key, word in spec.items()})
            for key, value in specs[-1].items():
                if not KEYS[f"model.{key}"].allows(value):
                    raise ValueError(f"{key}={value!r}: {KEYS[f'model.{key}'].allowed}")
    except ValueError as error:
        raise ConfigError(f"{said}: {error}") from error
    return tuple(specs)


def layers(model: ConfigDict | FrozenConfigDict, depth: int) -> tuple[FrozenConfigDict, ...]:
    """Returns config.model, resolved, as each of so many layers has it; equal ones are one object.

    Each has one kind of attention, and every expert_every-th has experts, if model.layers does not
    say otherwise.
    """
    frozen = isinstance(model, FrozenConfigDict)
    return _layers(model if frozen else FrozenConfigDict(model), depth)


@functools.lru_cache(maxsize=64)
def _layers(model: FrozenConfigDict, depth: int) -> tuple[FrozenConfigDict, ...]:
    flat, kinds, found = resolve(model, 0).to_dict(), model.attention.split(","), {}

    def made(i: int, spec: dict[str, Any]) -> FrozenConfigDict:
        experts = model.num_experts if (i + 1) % model.expert_every == 0 else 0
        own = flat | {"attention": kinds[i % len(kinds)], "num_experts": experts} | spec
        key = tuple(own[name] for name in LAYER)
        if key not in found:
            found[key] = FrozenConfigDict(resolve(ConfigDict(own), 0))
        return found[key]

    return tuple(made(i, spec) for i, spec in enumerate(_said(model.layers, depth)))


def scans(model: ConfigDict | FrozenConfigDict, depth: int) -> list[Scan]:
    """Returns the scans that so many layers fall into."""
    return pattern.scans([id(layer) for layer in layers(model, depth)])


def numbers(model: ConfigDict | FrozenConfigDict, path: str) -> range | None:
    """Returns the layers of a stack, counted from 0, that a parameter's leading axis stands for.

    path: as in "decoder/stack/layers_1/block_0/mlp/up/kernel"; of no stack: None.
    """
    if (room := place(path)) is None:
        return None
    stack, name, block = room
    sizes = depths(model)
    found = next(x for x in scans(model, sizes[stack or model.kind]) if x.name == name)
    first = found.start + found.blocks().index(block)
    return range(first, found.start + found.period * found.count, found.period)


def _check_schedule(config: ConfigDict, by_hand: Iterable[str]) -> None:
    """Refuses a schedule longer than the run; of a run cut short by hand it is only told."""
    steps, flat = config.train.steps, flatten(config)
    keys = [f"optimizer.{part}_steps" for part in ("warmup", "hold", "decay")]
    parts = {key: flat[key] for key in keys if flat[key] and not unread(config, key)}
    if sum(x * (steps if x < 1 else 1) for x in parts.values()) > steps:
        named = " + ".join(f"{key}={length:g}" for key, length in parts.items())
        if not parts.keys().isdisjoint(by_hand):
            raise ConfigError(f"{named}: longer than train.steps={steps}")
        log.warning(
            "%s: longer than train.steps=%s; the run ends before its schedule does; set less",
            named, steps,
        )  # fmt: skip


def from_file(spec: str, function: str):
    """Returns what `path.py[:variant]` makes of `function(variant)`; None where it has none.

    Raises:
      ConfigError: no such file or variant, or the file fails.
    """
    path, _, variant = spec.partition(":")
    own = RECIPES / path.removeprefix("configs/").removesuffix(".py")
    # As it is given; else one of the project's: configs/gpt2.py, gpt2.py or gpt2.
    candidates = Path(path), own.with_name(f"{own.name}.py")
    file = next((x for x in candidates if path and x.is_file()), None)
    if file is None:
        inside = (p.relative_to(RECIPES) for p in RECIPES.glob("**/*.py") if p.stem != "__init__")
        known = ", ".join(sorted(f"configs/{p}" for p in inside))
        raise ConfigError(f"--config={spec}: no file {path!r}; there are: {known}")
    if "configs" not in sys.modules:  # where recipes find each other, from whatever folder
        sys.modules["configs"] = types.ModuleType("configs")
        sys.modules["configs"].__path__ = [str(RECIPES)]
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        variants = getattr(module, "VARIANTS", ())
        if variant and variant not in variants:
            raise ConfigError(f"--config={spec}: no variant {variant!r} in {path}; there are: "
                              f"{', '.join(variants) or 'none'}")
        if not hasattr(module, function):
            return None
        call = getattr(module, function)
        return call(variant) if variant else call()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={spec}: {path} fails: {error!r}") from error


def set_key(config: ConfigDict, key: str, text: str) -> None:
    """Sets one dotted key from text, read as the type that the key already has.

    Raises:
      ConfigError: unknown key (with the nearest known ones) or a value of another type.
    """
    if key not in KEYS:
        raise _unknown(key)
    value = _read(key, text)
    *groups, last = key.split(".")
    for group in groups:
        config = config[group]
    with config.unlocked():
        config[last] = value


def _read(key: str, text: str) -> Any:
    """The value of a key that text says."""
    default = KEYS[key].default
    value = text if isinstance(default, str) else _literal(text)
    if isinstance(default, tuple):
        value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        allows = KEYS[key].allows
        if not text.startswith(("(", "[")) and not allows(value) and allows((text,)):
            value = (text,)  # a prompt such as "1, 2"
    return typed(key, default, value)


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
        str(value)  # refuses a number of thousands of digits
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def typed(key: str, default, value):
    """Returns value as the type of default; an int may stand for a float, nothing else converts."""
    if isinstance(default, bool) or isinstance(value, bool):
        ok = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        ok = isinstance(value, (int, float))
        value = float(max(-BEYOND, min(value, BEYOND))) if type(value) is int else value
    elif isinstance(default, (tuple, list)):
        ok = isinstance(value, (tuple, list))
        value = tuple(tuple(x) if type(x) is list else x for x in value) if ok else value
    else:
        ok = isinstance(value, type(default))
    if not ok:
        raise ConfigError(f"{key}={_shown(value)}: expected {type(default).__name__} like "
                          f"{default!r}, got {type(value).__name__}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _unknown(key: str) -> ConfigError:
    # By the last word: keys of one group are not alike for that.
    words = {k: k.rsplit(".", 1)[-1] for k in sorted(KEYS)}
    nearest = difflib.get_close_matches(key.rsplit(".", 1)[-1], words.values(), n=1, cutoff=0.65)
    near = [k for k in words if words[k] in nearest]
    group = [k for k in words if k.startswith(key.rsplit(".", 1)[0] + ".")]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(group or words)}"
    return ConfigError(f"unknown config key {key!r}; {hint}")


def check(config: ConfigDict) -> None:
    """Refuses a config that cannot run, before anything is loaded or compiled.

    Raises:
      ConfigError: naming the key, its value, what is allowed and, where there is one, the fix.
    """
    flat = flatten(config)
    for key in flat:
        if key not in KEYS:
            raise _unknown(key)
    for name, key in KEYS.items():
        if name not in flat:
            raise ConfigError(f"config key {name!r} is missing; start from llm_jax.config.base()")
        if not key.allows(typed(name, key.default, flat[name])):
            raise ConfigError(f"{name}={_shown(flat[name])}: {key.allowed}")
    m, batches = config.model, _batch_conflicts(config.data, config.train)
    for conflict in (*_attention_conflicts(m), *_stack_conflicts(m), *_list_conflicts(flat, m),
                     *batches):
        raise ConfigError(conflict)
    if config.optimizer.keep_zeros and m.lora_rank:
        raise ConfigError(f"optimizer.keep_zeros=True: not with model.lora_rank={m.lora_rank}, "
                          "whose matrices begin at 0 and, merged, fill a pruned model's zeros; set "
                          "one")


def _batch_conflicts(d: ConfigDict, t: ConfigDict) -> Iterator[str]:
    """Yields each key that others do not go with, why, and the fix."""
    if d.ramp_steps and d.batch_size % d.ramp_start:
        yield f"data.ramp_start={d.ramp_start}: must divide data.batch_size={d.batch_size}"
    if d.folds == 1 or (d.folds and d.fold >= d.folds):
        yield f"data.folds={d.folds}: must be 0, or at least 2 and above data.fold={d.fold}"
    if d.shards > d.batch_size:
        yield f"data.shards={d.shards}: at most data.batch_size={d.batch_size}"
    steps = t.profile_steps
    if steps and not (len(steps) == 2 and steps[0] < steps[1]):
        yield f"train.profile_steps={steps}: must be (start, stop) with start < stop"
    if d.batch_size % t.microbatches:
        yield f"train.microbatches={t.microbatches}: must divide data.batch_size={d.batch_size}"


def _attention_conflicts(m: ConfigDict) -> Iterator[str]:
    """Heads and positions."""
    kv_heads = m.num_kv_heads or m.num_heads
    head_dim = m.head_dim or m.embed_dim // m.num_heads
    rotary, pattern = m.positions == "rotary", m.attention.split(",")
    if not m.head_dim and m.embed_dim % m.num_heads:
        yield (f"model.num_heads={m.num_heads}: must divide model.embed_dim={m.embed_dim}, "
               "or set model.head_dim")
    if m.num_heads % kv_heads:
        yield (f"model.num_kv_heads={m.num_kv_heads}: must divide model.num_heads={m.num_heads} "
               "(0 means one for each head)")
    if rotary and head_dim % 2:
        yield f"model.positions='rotary': needs an even model.head_dim, got {head_dim}"
    if rotary and pattern != ["latent"] and (m.rotary_dim % 2 or m.rotary_dim > head_dim):
        yield f"model.rotary_dim={m.rotary_dim}: must be even, and at most head_dim={head_dim}"
    if rotary and m.rotary_scaling == "ntk" and head_dim < 4:
        yield f"model.rotary_scaling='ntk': needs a head_dim of at least 4, got {head_dim}"
    if rotary and "latent" in pattern and m.latent_rotary % 2:
        yield f"model.latent_rotary={m.latent_rotary}: must be even"
    if rotary and "dsa" in pattern and m.index_dim % 2:
        yield f"model.index_dim={m.index_dim}: must be even with rotary positions"
    if m.short_conv and (m.kind != "decoder" or "latent" in pattern):
        yield (f"model.short_conv={m.short_conv}: only in model.kind='decoder' (it is causal, and "
               f"not across), got {m.kind!r}; not with attention='latent'")
    if m.num_key_heads and m.num_heads % m.num_key_heads:
        yield f"model.num_key_heads={m.num_key_heads}: must divide model.num_heads={m.num_heads}"
    # A causal stack has all buckets on one side; half of a side are exact distances.
    exact = m.relative_buckets // (4 if m.kind == "encoder" else 2)
    if m.positions == "relative" and m.relative_max_distance <= exact:
        yield (f"model.relative_max_distance={m.relative_max_distance}: must be above the {exact} "
               f"distances that model.relative_buckets={m.relative_buckets} tell apart")
    if m.positions == "axial":
        width = m.embedding_dim or m.embed_dim
        if len(m.axial_shape) != 2 or math.prod(m.axial_shape) < m.max_length:
            yield (f"model.axial_shape={m.axial_shape}: needs rows and columns for at least "
                   f"model.max_length={m.max_length} positions")
        if len(m.axial_dims) != 2 or sum(m.axial_dims) != width:
            yield (f"model.axial_dims={m.axial_dims}: needs two widths that add up to "
                   f"model.embed_dim={width}")
    if any(part % 2 for part in m.lsh_buckets) or math.prod(m.lsh_buckets) > 65536:
        yield f"model.lsh_buckets={m.lsh_buckets}: even factors with a product of at most 65536"


def _list_conflicts(flat: dict[str, Any], m: ConfigDict) -> Iterator[str]:
    """What model.layers says of single layers."""
    said = f"model.layers={m.layers!r}"
    for spec in _specs(m):
        own = flat | spec
        for key in spec:
            if KEYS[key].when and not KEYS[key].when.holds(own):
                yield f"{said}: no such layer reads {key}; it is read with {KEYS[key].when.text}"
        ways = {m.positions, own["model.positions"]}
        if len(ways) > 1 and ways != {"rotary", "none"}:
            yield (f"{said}: positions={own['model.positions']} with model.positions="
                   f"{m.positions!r}; layers can differ between 'rotary' and 'none'")
        if "model.num_heads" in spec and m.positions in ("relative", "alibi"):
            yield f"{said}: num_heads with model.positions={m.positions!r}, a bias of all layers"
        if own["model.num_experts"] not in (0, m.num_experts):
            yield f"{said}: num_experts can be 0 or model.num_experts={m.num_experts}"
        if own["model.norm_place"] != m.norm_place and m.reversible:
            yield f"{said}: norm_place with model.reversible=True"
    if m.layers and m.generator_fraction:
        yield f"{said}: not with model.generator_fraction={m.generator_fraction}"
    for layer in {id(x): x for x in layers(m, m.num_layers)}.values() if m.layers else ():
        yield from _attention_conflicts(layer)
        yield from _expert_conflicts(layer)


def _stack_conflicts(m: ConfigDict) -> Iterator[str]:
    """Layers, their output and what is put around them."""
    if "lm" in m.head.split(",") and m.tie_embeddings and m.embedding_dim not in (0, m.embed_dim):
        yield (f"model.embedding_dim={m.embedding_dim}: a tied output of model.head='lm' needs "
               f"model.embed_dim={m.embed_dim}; use head='mlm' or tie_embeddings=False")
    if not m.feed_forward and (m.reversible or m.num_experts):
        yield (f"model.feed_forward=False: not with model.reversible={m.reversible} or "
               f"model.num_experts={m.num_experts}")
    if m.reversible and (m.norm_place != "pre" or m.remat != "none"):
        yield (f"model.reversible=True with model.norm_place={m.norm_place!r}, model.remat="
               f"{m.remat!r}: only norm_place='pre' can be undone, and nothing is left to remat")
    off = {"quantize": "none", "lora_rank": 0, "weights": "float32"}
    adapted = [key for key, value in off.items() if m[key] != value]
    if len(adapted) > 1:
        first, second = (f"model.{key}={m[key]!r}" for key in adapted[:2])
        yield f"{first}: not with {second}; set one"
    if adapted and importlib.util.find_spec("qwix") is None:
        yield f"model.{adapted[0]}={m[adapted[0]]!r}: needs `pip install qwix`"
    if m.reversible and m.lora_rank and m.lora_quantize != "none":
        yield (f"model.lora_quantize={m.lora_quantize!r}: not with model.reversible=True, whose "
               "backward pass knows no kernels that are integers")
    if unknown := set(m.lora_targets) - set(PROJECTIONS):
        yield (f"model.lora_targets={m.lora_targets}: no projection {min(unknown)!r}; allowed are "
               f"{', '.join(PROJECTIONS)}")
    if m.share_layers and any(len(scans(m, depth)) > 1 for depth in depths(m).values()):
        yield (f"model.share_layers=True: model.attention={m.attention!r}, model.layers="
               f"{m.layers!r}: needs one pattern that model.num_layers={m.num_layers} repeats")
    yield from _expert_conflicts(m)


def _expert_conflicts(m: ConfigDict) -> Iterator[str]:
    if not m.num_experts:
        return
    if m.experts_per_token > m.num_experts:
        yield (f"model.experts_per_token={m.experts_per_token}: must be 1 to "
               f"model.num_experts={m.num_experts}")
    if m.expert_slots and m.expert_capacity:
        yield f"model.expert_slots={m.expert_slots}: not with expert_capacity={m.expert_capacity}"
    groups, size = m.router_groups, m.num_experts // m.router_groups
    least = 2 if m.router_scores == "sigmoid" else 1  # experts that stand for their group
    if groups > 1 and (m.num_experts % groups or size < least):
        yield (f"model.router_groups={groups}: must divide model.num_experts={m.num_experts} into "
               f"groups of at least {least}")
    elif groups > 1 and not m.experts_per_token / size <= m.router_top_groups <= groups:
        yield (f"model.router_top_groups={m.router_top_groups}: at most model.router_groups="
               f"{groups}, with {size} experts each, of at least model.experts_per_token="
               f"{m.experts_per_token}")
    if m.reversible or m.mlp_chunk:
        yield (f"model.num_experts={m.num_experts}: not with model.reversible={m.reversible} or "
               f"model.mlp_chunk={m.mlp_chunk}")


def resolve(model: ConfigDict, vocab_size: int) -> ConfigDict:
    """Returns a copy of config.model with every 0-means-derived size filled in."""
    m = ConfigDict(model.to_dict())
    m.vocab_size = m.vocab_size or vocab_size
    both = m.kind == "encoder_decoder"
    m.num_decoder_layers = (both and m.num_decoder_layers) or m.num_layers
    m.num_kv_heads = m.num_kv_heads or m.num_heads
    m.head_dim = m.head_dim or m.embed_dim // m.num_heads
    m.value_dim = m.value_dim or m.head_dim
    m.embedding_dim = m.embedding_dim or m.embed_dim
    m.mlp_dim = m.mlp_dim or 4 * m.embed_dim
    return m


# What a resumed run may change: how long, how often, on what devices, by what route.
CHANGEABLE = (
    "train.steps", "train.log_every", "train.max_nonfinite", "train.profile_steps", "mesh.",
    "checkpoint.", "eval.", "sample.", "model.scan", "model.remat", "data.tfds_dir",
    "data.workers",
)


def mesh_sizes(mesh: ConfigDict, devices: int) -> dict[str, int]:
    """Returns config.mesh with its -1 filled in; ConfigError if so many devices cannot be it."""
    sizes = mesh.to_dict()
    named = ", ".join(f"mesh.{axis}={n}" for axis, n in sizes.items())
    free = [axis for axis, n in sizes.items() if n == -1]
    if len(free) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
        raise ConfigError(f"{named}: sizes must be positive, and at most one may be -1")
    fixed = math.prod(n for n in sizes.values() if n != -1)
    if devices % fixed or (not free and fixed != devices):
        raise ConfigError(f"{named}: the sizes multiply to {fixed}, which must "
                          f"{'divide' if free else 'equal'} the {devices} devices"
                          f"{'' if free else '; set one to -1 to take the rest'}")
    return sizes | dict.fromkeys(free, devices // fixed)


def differences(
    old: ConfigDict, new: ConfigDict, changeable: tuple[str, ...] = CHANGEABLE
) -> list[str]:
    """Returns 'key: old there, new here' of each key that makes it another run."""
    a, b = flatten(old), flatten(new)
    return [
        f"{key}: {a.get(key)!r} there, {b.get(key)!r} here"
        for key in a | b
        if a.get(key) != b.get(key) and not key.startswith(changeable)
    ]


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON, keys in alphabetical order."""
    return json.dumps(config.to_dict(), indent=2)


def from_dict(tree: dict[str, Any]) -> ConfigDict:
    """Returns the config of what `ConfigDict.to_dict` gave, onto today's defaults, checked.

    Raises:
      ConfigError: not a dict of groups of keys, an unknown key, or a value that is not allowed.
    """
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"holds no config: {str(tree)[:40]!r} where groups of keys should be")
    flat = {name: key.default for name, key in KEYS.items()}
    for name, value in flatten({k: x for k, x in tree.items() if x != {}}).items():
        if name not in KEYS:
            raise _unknown(name)
        flat[name] = typed(name, flat[name], value)
    config = _tree(flat)
    check(config)
    return config
