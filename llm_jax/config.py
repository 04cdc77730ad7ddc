"""Run configuration: the keys with their defaults and ranges, loading, overrides and validation.

A recipe in configs/ starts from `base()` and sets the values of its paper. This module does not
import JAX, so an invalid config raises an error before JAX initialises any device.
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
    """An invalid config. The message names the key, its value and the allowed values."""


@dataclass(frozen=True)
class When:
    """A condition on other keys that decides whether a key is read; see `given` and `absent`."""

    text: str
    keys: tuple[str, ...]
    holds: Callable[[dict[str, Any]], bool]  # takes {"model.kind": "decoder", …}

    def __and__(self, other: "When") -> "When":
        both = lambda flat: self.holds(flat) and other.holds(flat)
        return When(f"{self.text} and {other.text}", self.keys + other.keys, both)

    def __or__(self, other: "When") -> "When":
        either = lambda flat: self.holds(flat) or other.holds(flat)
        return When(f"{self.text} or {other.text}", self.keys + other.keys, either)


def given(key: str, *values: Any) -> When:
    """True if the key, or any item of "a,b", has one of these values; without values: is not 0."""
    if not values:
        return When(f"{key} set", (key,), lambda flat: bool(flat[key]))
    among = lambda flat: any(word in values for word in _words(flat[key]))
    return When(f"{key}={' | '.join(map(str, values))}", (key,), among)


def absent(key: str, *values: Any) -> When:
    """True if the key, or any item of "a,b", has another value; without values: is 0 or empty."""
    if not values:
        return When(f"no {key}", (key,), lambda flat: not flat[key])
    other = lambda flat: any(word not in values for word in _words(flat[key]))
    return When(f"{key} other than {' | '.join(map(str, values))}", (key,), other)


def _words(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else [value]


kinds = partial(given, "model.attention")
heads = partial(given, "model.head")
learns = partial(given, "objective.name")


def source(text: str, holds: Callable[[str], bool]) -> When:
    """True if `holds` is true for any source in data.train, data.validation or data.test."""
    keys = ("data.train", "data.validation", "data.test")
    parts = lambda flat: ",".join(flat[key] for key in keys).split(",")
    test = lambda flat: any(holds(part.strip()) for part in parts(flat) if part.strip())
    return When(f"{text} in data.train", keys, test)


@dataclass(frozen=True)
class Key:
    """A config key: its default, its allowed values, and the condition under which it is read."""

    default: Any
    allows: Callable[[Any], bool]  # takes a value of the default's type
    allowed: str  # the allowed values, in words, for the error message
    when: When | None = None  # None: always


def one_of(default: str, *others: str, when: When | None = None) -> Key:
    """One of these words."""
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
    """A float in [least, most], or (over, most]; nonzero values must not underflow in float32."""
    enough = (lambda v: v >= least) if over is None else (lambda v: v > over)
    bound = f"at least {least:g}" if over is None else f"above {over:g}"
    allows = lambda v: enough(v) and v <= most and (v == 0 or abs(v) >= 2**-126)
    return Key(default, allows, f"must be {bound} and at most {most:g}", when)


def share(default: float, over: bool = False, when: When | None = None) -> Key:
    """A float in [0, 1), or in (0, 1) with `over`; it must not round to 1 in float32."""
    allows = lambda v: (v == 0 and not over) or 2**-126 <= v <= 1 - 2**-24
    return Key(default, allows, f"must be in {'(' if over else '['}0, 1)", when)


def text(default: str, empty: bool = True, when: When | None = None) -> Key:
    """A string that UTF-8 can encode, without null characters."""
    allows = lambda v: _is_text(v) and (empty or bool(v.strip()))
    return Key(default, allows, "must be text" + " that is not empty" * (not empty), when)


def several(allows: Callable[[Any], bool], what: str, when: When | None = None) -> Key:
    """A tuple, empty by default; `allows` checks each element."""
    return Key((), lambda v: all(map(allows, v)), f"must be {what}", when)


def numbers(least: int = 1, when: When | None = None) -> Key:
    """A tuple of integers."""
    allows = lambda x: type(x) is int and least <= x <= 2**31 - 1
    return several(allows, f"integers of at least {least}", when)


def texts(empty: bool = True, when: When | None = None) -> Key:
    """A tuple of strings."""
    allows = lambda x: isinstance(x, str) and _is_text(x) and bool(empty or x)
    return several(allows, "texts" + " that are not empty" * (not empty), when)


def factors(when: When | None = None) -> Key:
    """A tuple of (regular expression, factor)."""
    pair = lambda x: isinstance(x, tuple) and len(x) == 2 and _is_pattern(x[0])
    allows = lambda x: pair(x) and _is_factor(x[1])
    return several(allows, 'pairs like ("encoder/.*", 0.1), factors of at least 0', when)


def devices(default: int) -> Key:
    """The size of a mesh axis: at least 1, or -1 for all remaining devices."""
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


COUNT = 2**31 - 1  # step counters are int32
BEYOND = 10**300  # larger than the upper bound of any key
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
AUGMENTATION = r"(delete|swap|counterfactual|synonyms:.+):(0?\.\d+|[01](\.0*)?)"
CLASSIFIES = learns("classification")
GROUPED = CLASSIFIES & given("data.group_column")
ADAM = given("optimizer.name", "adamw", "muon")
DECAYS = given("optimizer.schedule", "cosine", "linear", "wsd")
BETAS = ADAM | given("optimizer.name", "lion")
LORA = given("model.lora_rank")
NOT_LATENT = absent("model.attention", "latent")
AXIAL = given("model.positions", "axial")
RELATIVE = given("model.positions", "relative")


class Layer:
    """Settings of a layer (config.model); model.layers can override them for single layers."""

    num_heads = whole(8, 1, 2**16)
    num_kv_heads = whole(0)  # 0: num_heads; fewer: grouped-query attention (GQA)
    head_dim = whole(0, 0, 2**16)  # 0: embed_dim / num_heads
    mlp_dim = whole(0)  # 0: 4 * embed_dim
    norm = one_of("layernorm", "rmsnorm")
    # The norm is applied to the sublayer's input | to the residual sum (2017) | to the sublayer's
    # input and output (Gemma 2) | to its output (OLMo 2).
    norm_place = one_of("pre", "post", "sandwich", "reordered")
    # False: no norm before attention (ModernBERT's first layer, which follows the embedding norm).
    attention_norm = flag(True, when=given("model.norm_place", "pre"))
    norm_zero_centered = flag(False)  # the scale is 1 + w, with w initialised to 0 (Gemma)
    norm_epsilon = number(1e-5, over=0, most=1)
    activation = one_of(
        "gelu_tanh", "gelu", "relu", "silu", "swiglu", "geglu", "geglu_tanh", "reglu",
        "clamped_swiglu",
    )  # fmt: skip
    use_bias = flag(True)  # biases in dense layers and LayerNorm
    attention_bias = flag(True, when=given("model.use_bias"))  # in attention projections
    # Biases in the query, key and value projections only (Qwen 2).
    qkv_bias = flag(False, when=(absent("model.use_bias") | absent("model.attention_bias"))
                    & NOT_LATENT)  # fmt: skip
    positions = one_of("learned", "axial", "sinusoidal", "rotary", "relative", "alibi", "none")
    rotary_base = number(10_000.0, over=1, most=1e15, when=ROTARY)
    rotary_scaling = one_of("none", "linear", "ntk", "yarn", "llama3", when=ROTARY)
    rotary_factor = number(8.0, 1, when=SCALED)
    rotary_original_length = whole(8192, 1, when=STRETCHED)  # context length before scaling
    rotary_truncate = flag(True, when=YARN)  # round the bounds of the ramp to whole dimensions
    # Factor on queries and keys; 0: 0.1 log(rotary_factor) + 1.
    rotary_strength = number(0.0, most=100, when=YARN)
    # Number of rotated dimensions per head (Qwen3-Next: a quarter); 0: all.
    rotary_dim = whole(0, 0, 2**16, when=ROTARY & NOT_LATENT)
    # Rotate pairs (2i, 2i + 1) (RoFormer) instead of (i, i + dim / 2).
    rotary_interleaved = flag(False, when=ROTARY)
    attention = text("dense", empty=False)  # name in attention.VARIANTS; "a,b": layers alternate
    # local, longformer, nsa: number of keys a query attends to backwards, itself included (also
    # forwards in encoders); dilated: the same, `stride` apart; chunked: chunk length.
    window = whole(128, 1, when=kinds("local", "longformer", "dilated", "chunked", "nsa"))
    stride = whole(16, 1, when=kinds("strided", "dilated"))  # distance between attended keys
    global_tokens = whole(1, when=kinds("longformer"))  # number of leading global tokens
    block = whole(64, 1, when=kinds("bigbird", "moba", "nsa"))  # block size in tokens
    # Blocks per query, including the fixed ones: its own block (moba); its own, the previous and
    # the first (nsa).
    selected_blocks = whole(16, 1, when=kinds("moba", "nsa"))
    index_topk = whole(2048, 1, when=kinds("dsa"))  # keys the indexer selects per query
    index_heads = whole(4, 1, when=kinds("dsa"))  # heads of the indexer
    index_dim = whole(64, 2, when=kinds("dsa"))  # dimensions of an indexer head
    random_blocks = whole(3, when=kinds("bigbird"))  # besides the window and global blocks
    random_features = whole(128, 1, when=kinds("performer"))
    landmarks = whole(64, 1, when=kinds("linformer", "nystrom"))  # projected length; landmarks
    latent_kv = whole(512, 1, when=kinds("latent"))  # rank of the key-value compression
    latent_query = whole(0, when=kinds("latent"))  # rank of the query compression; 0: none
    latent_rotary = whole(64, when=kinds("latent") & ROTARY)  # rotary dimensions added per head
    # Recurrent variants: value dimensions per head (0: head_dim), and the number of query and key
    # heads, with num_heads value heads (0: num_heads queries, num_kv_heads keys and values).
    value_dim = whole(0, 0, 2**16, when=kinds(*VALUE_SIZED, *STATE_SPACE, *DELTA, "mesa_net"))
    num_key_heads = whole(0, 0, 2**16, when=kinds(*STATE_SPACE, *DELTA, "mesa_net"))
    num_householder = whole(2, 1, 64, when=kinds("gated_deltaproduct"))  # steps per token
    negative_eigenvalues = flag(False, when=kinds(*DELTA))  # beta in (0, 2) instead of (0, 1)
    ttt_batch = whole(16, 1, 2**16, when=kinds("ttt_linear"))  # inner mini-batch size in tokens
    solver_steps = whole(30, 1, 1024, when=kinds("mesa_net"))  # conjugate gradient iterations
    slots = whole(64, 1, when=kinds("gsa"))  # memory slots
    forget_floor = share(0.0, when=kinds("hgrn2"))  # lower bound of the forget gate
    lsh_chunk = whole(64, 1, when=kinds("lsh"))  # tokens per chunk
    lsh_hashes = whole(1, 1, 1024, when=kinds("lsh"))  # hash rounds
    lsh_buckets = numbers(2, when=kinds("lsh"))  # even factors of their number; (): automatic
    # Factor on the attention scores; 0: head_dim^-0.5 (T5: 1).
    attention_scale = number(0.0, when=absent(
        "model.attention", *DELTA, "rwkv7", "mesa_net", "ttt_linear", "linear", *STATE_SPACE
    ))  # fmt: skip
    attention_softcap = number(0.0)  # soft cap c tanh(score / c) (Gemma 2: 50); 0: none
    attention_sinks = flag(False)  # one learned sink logit per head (gpt-oss)
    qk_norm = flag(False, when=NOT_LATENT)  # normalise the queries and keys of each head
    # Normalise over all heads together (OLMo 2).
    qk_norm_joint = flag(False, when=given("model.qk_norm") & NOT_LATENT)
    # Width of a causal depthwise convolution over queries, keys and values; 0: none.
    short_conv = whole(0, 0, 64)
    short_conv_bias = flag(False, when=given("model.short_conv"))  # its bias (Mamba-2)
    # Multiply attention's output by sigmoid(W x) of its input (most recurrent variants: SiLU).
    output_gate = flag(False)
    # Rank of W as a product of two matrices (Kimi Linear: head_dim); 0: full rank.
    output_gate_rank = whole(0, when=given("model.output_gate", True))
    feed_forward = flag(True)  # False: layers without a feed-forward network (Mamba-2)
    mlp_chunk = whole(0)  # positions per chunk of the feed-forward network; 0: no chunking
    num_experts = whole(0, 0, 2**16)  # of a mixture-of-experts layer; 0: a dense layer
    experts_per_token = whole(2, 1, when=EXPERTS)
    # Capacity factor: slots per expert / (tokens x experts_per_token / num_experts); 0: dropless.
    expert_capacity = number(0.0, most=1024, when=EXPERTS)
    expert_slots = whole(0, when=EXPERTS)  # capacity per expert and row, instead of a factor
    expert_bias = flag(False, when=EXPERTS)  # biases in the experts and the router (gpt-oss)
    shared_experts = whole(0, when=EXPERTS)  # number of shared experts (DeepSeekMoE)
    # Multiply the shared experts' output by sigmoid(w x) (Qwen2-MoE).
    shared_gate = flag(False, when=EXPERTS & given("model.shared_experts"))
    router_scores = one_of("softmax", "sigmoid", when=EXPERTS)  # sigmoid: DeepSeek-V3
    # A bias added to the scores for selecting experts, not in the gates (DeepSeek-V3, 2.1.2).
    router_bias = flag(False, when=EXPERTS)
    # Normalise the gates of the selected experts to sum to 1.
    router_normalized = flag(True, when=EXPERTS & absent("model.experts_per_token", 1))
    router_scale = number(1.0, over=0, when=EXPERTS)  # factor on the gates (DeepSeek)
    # Group-limited routing: select experts from the router_top_groups best of the router_groups
    # groups only (DeepSeek-V2, 2.2.2).
    router_groups = whole(1, 1, when=EXPERTS)
    router_top_groups = whole(1, 1, when=EXPERTS & absent("model.router_groups", 1))


class Model:
    """Model architecture (config.model), together with the keys of Layer."""

    kind = one_of("decoder", "encoder", "encoder_decoder")
    vocab_size = whole(0)  # 0: that of the tokenizer
    max_length = whole(256, 1)
    num_layers = whole(4, 1, 10_000)
    # Per-layer settings: "5 local window=1024, 1 dense" repeats, "3 num_experts=0, rest" does not
    # (syntax: llm_jax/pattern.py); "": all layers are alike.
    layers = text("")
    num_decoder_layers = whole(0, 0, 10_000, when=given("model.kind", "encoder_decoder"))  # 0: same
    embed_dim = whole(256, 1, 2**20)
    embedding_dim = whole(0)  # token embedding size, projected to embed_dim (ALBERT); 0: embed_dim
    axial_shape = numbers(when=AXIAL)  # (rows, columns), in row-major order
    axial_dims = numbers(when=AXIAL)  # sizes of the row and column embeddings
    # Number of unused rows at the start of the position table (RoBERTa: 2).
    position_offset = whole(0, when=given("model.positions", "learned"))
    relative_buckets = whole(32, 4, when=RELATIVE)
    relative_max_distance = whole(128, 2, when=RELATIVE)
    expert_every = whole(1, 1, when=EXPERTS)  # every n-th layer has experts (Switch: 2)
    router_balance = number(0.01, when=EXPERTS)  # weight of the load balancing loss (Switch)
    router_z = number(0.0, when=EXPERTS)  # weight of the router's z-loss (ST-MoE: 0.001)
    # Reversible residual layers, recomputed in the backward pass (Reformer). An untied "lm" head
    # reads both residual streams, any other head their mean.
    reversible = flag(False)
    share_layers = flag(False)  # all layers share their parameters (ALBERT)
    tie_embeddings = flag(True, when=WORDS_OUT | given("model.generator_fraction"))
    scale_embeddings = flag(False)  # multiply token embeddings by sqrt(embed_dim)
    dropout = share(0.0)  # after the embeddings and each sublayer
    attention_dropout = share(0.0)  # on attention probabilities
    mlp_dropout = share(0.0)  # in the feed-forward network, after the activation (T5)
    final_dropout = share(0.0)  # after the final norm (T5)
    init = one_of("normal", "fan_in")  # std: initializer_range | 1 / sqrt(fan in) (T5)
    initializer_range = number(0.02, over=0, most=100, when=given("model.init", "normal"))
    scale_residual_init = flag(False)  # divide residual projections by sqrt(2 num_layers) (GPT-2)
    embed_norm = flag(False)  # a norm after the sum of the embeddings (BERT)
    type_vocab_size = whole(0)  # number of segment (token type) embeddings (BERT)
    # Heads of models/heads.py: lm | mlm | detection | sequence | token | span | none; several as
    # "mlm,sequence".
    head = text("lm", empty=False)
    output_bias = flag(False, when=heads("lm"))  # added to the logits (mlm: always)
    # Divide by sqrt(embed_dim) before the tied output matrix (T5).
    scale_output = flag(False, when=WORDS_OUT | given("model.generator_fraction"))
    # Soft cap of the logits (Gemma 2: 30); 0: none.
    output_softcap = number(0.0, when=WORDS_OUT | given("model.generator_fraction"))
    # A dense layer over the first token (decoder: the last) before pooled heads (BERT).
    pooler = flag(False)
    pooler_activation = one_of("tanh", "relu", "gelu", when=given("model.pooler", True))
    num_labels = whole(0, when=heads("sequence", "token"))  # next sentence: 2; 0: from the data
    head_dropout = share(0.0, when=heads("detection", "sequence", "token", "span"))  # on its input
    generator_fraction = share(0.0)  # width of ELECTRA's generator / that of the model; 0: none
    dtype = one_of("float32", "bfloat16")  # of activations and matmuls; parameters are float32
    quantize = one_of("none", "int8", "fp8")  # of projection and feed-forward matmuls, by qwix
    # Rank of LoRA adapters, by qwix; 0: none. If optimizer.rate_factors is empty, only the adapters
    # (and a head that an import initialised) are trained; all other parameters are frozen.
    lora_rank = whole(0, 0, 4096)
    lora_alpha = number(16.0, over=0, when=LORA)  # adapters are scaled by lora_alpha / lora_rank
    lora_targets = texts(empty=False, when=LORA)  # some of PROJECTIONS; (): all; never experts
    # QLoRA: storage type of the frozen projection and feed-forward kernels, except experts.
    lora_quantize = one_of("none", "int8", "int4", "nf4", when=LORA)
    # Storage type of the projection and feed-forward kernels, except experts, in a compressed
    # model, which cannot be trained. With LoRA use lora_quantize.
    weights = one_of("float32", "int8", "int4", "nf4")
    scan = flag(True)  # nn.scan over layers: compile time does not grow with depth
    # Number of pipeline microbatches; 0: mesh.pipeline.
    pipeline_pieces = whole(0, when=absent("mesh.pipeline", 1))
    # Saved for the backward pass: everything | matmul outputs | layer inputs | layer inputs, in
    # host memory
    remat = one_of("none", "dots", "full", "offload")


class Objective:
    """Training objective (config.objective)."""

    name = text("causal_lm", empty=False)  # an objective of llm_jax/objectives/
    label_smoothing = share(0.0)
    focal_gamma = number(0.0, most=100, when=LABELLED)  # focal loss; 0: cross-entropy
    # Weight alpha of R-Drop's KL divergence between two passes with different dropout; 0: none.
    r_drop = number(0.0, when=CLASSIFIES)
    # Mixup of embeddings with coefficients from Beta(mixup, mixup); 0: none.
    mixup = number(0.0, when=CLASSIFIES & given("model.kind", "encoder"))
    z_loss = number(0.0)
    no_answer = flag(False, when=QUESTIONS)  # questions may be unanswerable (SQuAD 2.0)
    # Weight of each label in the loss; "balanced": inverse frequencies; (): all 1.
    class_weights = Key(
        (), lambda v: v == ("balanced",) or all(map(_is_factor, v)),
        'must be numbers of at least 0, or "balanced"', CLASSIFIES,
    )  # fmt: skip
    # Names of the groups in order; (): from the training set.
    groups = texts(empty=False, when=GROUPED)
    # Group DRO: step size of the groups' weights (Sagawa 2020); 0: equal weights.
    group_step = number(0.01, when=GROUPED)
    mask_rate = share(0.15, over=True, when=MASKING)  # fraction of tokens masked
    # Whole-word masking (albert: always).
    whole_word = flag(False, when=learns("masked_lm", "bert", "replaced_token_detection"))
    span_length = number(3.0, 1, when=learns("span_corruption"))  # mean length of a masked span
    prefix = text("", when=PROMPTED)  # before each source ("translate English to German: ")
    suffix = text("", when=PROMPTED)  # after each source ("\n")
    # DPO: strength of the KL penalty towards the reference model.
    beta = number(0.1, over=0, when=learns("preference"))
    pooling = one_of("mean", "cls", when=VECTORS)  # mean of the token vectors | the first one
    temperature = number(0.05, 1e-3, 100, when=VECTORS)  # divides cosine similarities
    # Weight of the discriminator's loss (ELECTRA).
    detection_weight = number(50.0, when=learns("replaced_token_detection"))


class Tokenizer:
    """Tokenizer (config.tokenizer)."""

    name = one_of("bpe", "bytes", "chars", "words", "wordpiece", "file", "sentencepiece")
    vocab_size = whole(4096, 1, when=given("tokenizer.name", "bpe", "wordpiece"))  # to train
    path = text("", when=given("tokenizer.name", "file", "sentencepiece"))  # .json | .model
    specials = texts(empty=False)  # further special tokens, such as ("[MASK]",)


class Data:
    """Data sources and batches (config.data)."""

    # A file or glob | tfds:name/config | task:name?option=value&… ; COLUMNS lists the columns.
    train = text("builtin:python", empty=False)
    # Mixing weights of several sources in train: shares of the documents.
    weights = several(
        lambda x: type(x) in (int, float) and 1e-9 < x < 1e9, "numbers above 0", SEVERAL
    )
    # Without weights: examples-proportional mixing, with source sizes capped at mixture_limit
    # (0: none) and raised to 1 / mixture_temperature (Raffel 2020, 3.5.2).
    mixture_temperature = number(1.0, 0.1, when=SEVERAL & absent("data.weights"))
    mixture_limit = whole(0, 0, COUNT, when=SEVERAL & absent("data.weights"))
    validation = text("")  # like train; empty: hold out validation_fraction of the documents
    validation_fraction = share(0.05, when=absent("data.validation") & absent("data.folds"))
    # Cross-validation: number of folds, split by content hash; fold number `fold` is held out.
    folds = whole(0, 0, 1000, when=absent("data.validation"))  # 0: none
    fold = whole(0, 0, 999, when=absent("data.validation") & given("data.folds"))
    test = text("")  # like train; empty and test_fraction 0: no test set
    test_fraction = share(0.0, when=absent("data.test"))
    # Augmentation, redrawn each epoch: "delete:0.1", "swap:0.1", "synonyms:FILE:0.1" (fractions of
    # words), "counterfactual:0.5" (of documents).
    augment = several(
        lambda x: isinstance(x, str) and re.fullmatch(AUGMENTATION, x) is not None,
        'like "delete:0.1", "swap:0.1", "synonyms:FILE:0.1" or "counterfactual:0.5"', CLASSES,
    )  # fmt: skip
    labels = texts(empty=False, when=LABELLED)  # label names in order; (): from the training set
    # Stride in tokens between the windows of a context longer than model.max_length.
    doc_stride = whole(128, 1, when=QUESTIONS)
    target_length = whole(0, when=learns("seq2seq"))  # decoder sequence length; 0: model.max_length
    # TFDS data directory; empty: its default.
    tfds_dir = text("", when=source("tfds:", lambda part: part.startswith("tfds:")))
    # Processes that pack a dataset too large for memory; 0: the training process packs it.
    workers = whole(0, 0, 1024)
    shards = whole(1, 1)  # data streams; with several machines, each packs those of its own rows
    # first_fit: several documents per row | none: one per row, batches padded to the longest
    packing = one_of("first_fit", "none")
    batch_size = whole(16, 1, 2**20)  # global batch size in sequences
    ramp_steps = whole(0, 0, COUNT)  # steps over which the batch grows from ramp_start
    ramp_start = whole(16, 1, when=given("data.ramp_steps"))


class Optimizer:
    """Optimizer and learning rate schedule (config.optimizer)."""

    name = one_of("adamw", "adafactor", "lion", "muon")
    learning_rate = number(1e-3, most=1000)  # peak value; import sets 5e-5 unless overridden
    schedule = one_of("cosine", "constant", "linear", "inverse_sqrt", "wsd")
    # Below 1: a fraction of train.steps.
    warmup_steps = Key(100.0, lambda v: 0 <= v < 1 or (1 <= v <= COUNT and v == int(v)),
                       f"must be whole steps, at most {COUNT}, or a share below 1")  # fmt: skip
    # Steps at the peak rate after the warm-up (T5: 10,000).
    hold_steps = whole(0, 0, COUNT, when=given("optimizer.schedule", "inverse_sqrt"))
    # Length of the decay; 0: the rest of train.steps (cosine, linear), a fifth of it (wsd).
    decay_steps = whole(0, 0, COUNT, when=DECAYS)
    final_fraction = number(0.1, most=1, when=DECAYS)  # last learning rate / learning_rate
    b1 = share(0.9, when=BETAS)
    b2 = share(0.0, when=BETAS)  # 0: Lion's 0.99 (Chen 2023, section 4.3), else 0.95
    eps = number(1e-8, 1e-20, 10, when=ADAM)  # bounded so that float32 can divide by it
    muon_momentum = share(0.95, when=given("optimizer.name", "muon"))
    weight_decay = number(0.1, most=1000)  # decoupled; applied to matrices and embeddings only
    clip_norm = number(1.0)  # maximum global gradient norm; 0: no clipping
    # Learning rate factors, (("encoder/.*", 0.1), …): the first pattern that matches the whole path
    # of a parameter counts; 0 freezes it. Empty with model.lora_rank: only adapters are trained.
    rate_factors = factors()
    # Likewise, factors on weight_decay and l1.
    decay_factors = factors(when=given("optimizer.weight_decay") | given("optimizer.l1"))
    layer_decay = number(1.0, over=0, most=1)  # layer-wise learning rate decay, from the top
    unfreeze_steps = whole(0, 0, 2**16)  # gradual unfreezing: steps per layer, from the top
    l1 = number(0.0, most=1000)  # L1 penalty, on the same parameters as weight_decay
    keep_zeros = flag(False)  # keep the zeros of matrices (pruned models)


class Train:
    """Training loop (config.train)."""

    steps = whole(1000, 1, COUNT)
    log_every = whole(10, 1, COUNT)
    microbatches = whole(1, 1)  # gradient accumulation: number of parts of the batch
    ema_decay = share(0.0)  # exponential moving average of the parameters; 0: none
    profile_steps = numbers(0)  # (start, stop): steps to profile, into the run folder's profile/
    max_nonfinite = whole(10, 1, COUNT)  # stop after this many non-finite steps in a row


class Privacy:
    """Differential privacy of training documents by DP-SGD (config.privacy; docs/privacy.md)."""

    clip = number(0.0)  # clipping norm of per-document gradients; 0: no differential privacy
    # Noise multiplier: standard deviation of the noise / clip; 0: derived from privacy.epsilon.
    noise = number(0.0, when=given("privacy.clip"))
    # Privacy budget of train.steps steps; 0: determined by privacy.noise.
    epsilon = number(0.0, when=given("privacy.clip") & absent("privacy.noise"))
    delta = share(1e-5, over=True, when=given("privacy.clip"))  # well below 1 / documents


class Distill:
    """Knowledge distillation (config.distill; docs/compress.md)."""

    teacher = text("")  # run folder of the teacher; empty: no distillation
    soft = number(0.5, most=1, when=given("distill.teacher"))  # weight of the soft-target loss
    # Divides the logits of teacher and student in the soft-target loss.
    temperature = number(2.0, 0.01, 100, when=given("distill.teacher"))
    # Weight of the cosine loss on the last hidden states (DistilBERT).
    hidden = number(0.0, when=given("distill.teacher"))


class Mesh:
    """Device mesh (config.mesh): the size of each axis; -1: all remaining devices."""

    data = devices(-1)  # splits the batch
    pipeline = devices(1)  # splits layers into stages; see model.pipeline_pieces
    fsdp = devices(1)  # splits the batch and every parameter
    tensor = devices(1)  # splits heads, feed-forward dimensions and vocabulary
    context = devices(1)  # splits the positions of a sequence
    expert = devices(1)  # splits experts; acts as a data axis for everything else


class Checkpoint:
    """Checkpoints (config.checkpoint)."""

    every = whole(500, 1, COUNT)  # steps
    keep_last = whole(2, 1)
    keep_best = whole(1)  # ranked by eval.metric


class Eval:
    """Validation during training (config.eval)."""

    every = whole(250, 1, COUNT)  # steps
    max_batches = whole(100, 0, COUNT)  # 0: the whole validation set
    metric = text("loss", empty=False)  # selects the best checkpoint: loss, f1 …, logged as eval_…
    patience = whole(0, 0, COUNT)  # early stopping: evaluations without improvement; 0: off
    # Metrics of generated text: bleu | chrf | rouge | distinct | exact_match; (): none.
    scores = texts(empty=False, when=WRITES)
    beams = whole(1, 1, 1024, when=WRITES)  # beam size; 1: greedy decoding
    length_penalty = number(0.6, when=WRITES)  # of beam search
    max_new_tokens = whole(0, when=WRITES)  # 0: data.target_length, or up to model.max_length


class Sample:
    """Text generated at the end of a run (config.sample)."""

    prompts = texts(when=WORDS_OUT)
    max_new_tokens = whole(64, 1, when=given("sample.prompts"))


# Document field -> (default column in a .jsonl, .csv, .conll … file or TFDS dataset, condition).
# A column is a name, or a number from 0 where a .csv, .tsv or .conll has no header. data/fields.py
# describes the fields. Parallel text files need no columns: data.train="train.en,train.de".
COLUMNS = {
    "text": ("text", RECORDS),
    "source": ("source", PAIRS), "target": ("target", PAIRS),
    "pair": ("", CLASSES | VECTORS),  # the second text; empty: single texts
    "negative": ("", learns("contrastive")),  # a hard negative; empty: none
    "group": ("", CLASSIFIES),  # of a group in group DRO; empty: none
    "label": ("label", CLASSES | learns("similarity")),
    "tokens": ("tokens", learns("tagging", "roles")),
    "tags": ("tags", learns("tagging", "roles")),
    "predicate": ("predicate", learns("roles")),  # index of a token
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
    # Hugging Face or run folder whose weights, tokenizer and architecture a new run starts from.
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
    """Returns the default config: a small pre-norm GPT on the built-in corpus."""
    return _tree({name: key.default for name, key in KEYS.items()})


def _tree(flat: dict[str, Any]) -> ConfigDict:
    config = ConfigDict({group: ConfigDict() for group in GROUPS})
    for name, value in flat.items():
        group, _, key = name.rpartition(".")
        (config[group] if group else config)[key] = value
    return config


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict:
    """Returns {"model.num_layers": 4, ...}; an empty group is kept as a value."""
    out = {}
    for key in config:
        value = config[key]
        name = f"{prefix}{key}"
        group = isinstance(value, (ConfigDict, dict)) and len(value) > 0
        out.update(flatten(value, name + ".") if group else {name: value})
    return out


def load(spec: str = "", overrides: Sequence[str] = (), by_hand: bool = True) -> ConfigDict:
    """Loads `path.py[:variant]` (empty: the defaults) and applies `key=value` overrides.

    by_hand: the user wrote the overrides: an override that nothing reads is an error.

    Raises:
      ConfigError: names the file or key, its value and the allowed values.
    """
    config = from_file(spec, "get_config") if spec else base()
    if config is None:
        raise ConfigError(f"--config={spec}: the file defines no get_config(variant)")
    check(config)
    _check_schedule(config, KEYS)
    change(config, overrides, by_hand)
    return config


def change(config: ConfigDict, overrides: Sequence[str], by_hand: bool = True) -> None:
    """Applies `key=value` overrides in place and validates the config; see `load`."""
    keys = []
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise ConfigError(f"--config.{override}: expected --config.{key}=VALUE")
        set_key(config, key, text)
        keys.append(key)
    check(config)
    if any(key.startswith(("optimizer.", "train.")) for key in keys):
        _check_schedule(config, keys)
    for key in keys if by_hand else ():
        if reason := unread(config, key):
            raise ConfigError(reason)


def unread(config: ConfigDict, key: str) -> str:
    """Returns the reason why this config does not use a key; "" if it does."""
    when, flat = KEYS[key].when, flatten(config)
    setting, specs = f"model.layers={config.model.layers!r}", _specs(config.model)
    readers = [spec for spec in specs if when is None or when.holds(flat | spec)]
    if any(key not in spec for spec in readers):
        return ""
    if readers:
        return f"{key}: no effect, {setting} overrides it in every layer that reads it"
    present = ", ".join(f"{k}={flat[k]!r}" for k in dict.fromkeys(when.keys))
    present += f", {setting}" * bool(config.model.layers)
    return f"{key}: nothing reads it with {present}; it requires {when.text}"


def depths(m: ConfigDict) -> dict[str, int]:
    """Returns the number of layers of each stack, {"encoder": …, "decoder": …} or one of them."""
    if m.kind != "encoder_decoder":
        return {m.kind: m.num_layers}
    return {"encoder": m.num_layers, "decoder": m.num_decoder_layers or m.num_layers}


def _specs(m: ConfigDict) -> list[dict[str, Any]]:
    """The distinct per-layer settings of model.layers, as {"model.window": 1024}; [{}]: none."""
    specs = [spec for depth in depths(m).values() for spec in _layer_settings(m.layers, depth)]
    return list({str(x): {f"model.{k}": v for k, v in x.items()} for x in specs}.values())


@functools.lru_cache(maxsize=64)
def _layer_settings(text: str, depth: int) -> tuple[dict[str, Any], ...]:
    """The settings that model.layers gives each of `depth` layers.

    Raises:
      ConfigError: a syntax error, a key that is not a layer's, or a value that is not allowed.
    """
    if not text.strip():
        return ({},) * depth
    setting, specs = f"model.layers={_shown(text)}", []
    try:
        for spec in expand(parse(text), depth):
            if unknown := spec.keys() - set(LAYER):
                raise ValueError(f"{min(unknown)!r} is not a layer key: {', '.join(LAYER)}")
            specs.append({key: _read(f"model.{key}", word) for key, word in spec.items()})
            for key, value in specs[-1].items():
                if not KEYS[f"model.{key}"].allows(value):
                    raise ValueError(f"{key}={value!r}: {KEYS[f'model.{key}'].allowed}")
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from error
    return tuple(specs)


def layers(model: ConfigDict | FrozenConfigDict, depth: int) -> tuple[FrozenConfigDict, ...]:
    """Returns the resolved config.model of each of `depth` layers; equal ones are one object.

    Each has a single attention variant; every expert_every-th layer has experts, unless
    model.layers overrides it.
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

    return tuple(made(i, spec) for i, spec in enumerate(_layer_settings(model.layers, depth)))


def scans(model: ConfigDict | FrozenConfigDict, depth: int) -> list[Scan]:
    """Returns the nn.scan groups of a stack of `depth` layers; see llm_jax.pattern.scans."""
    return pattern.scans([id(layer) for layer in layers(model, depth)])


def numbers(model: ConfigDict | FrozenConfigDict, path: str) -> range | None:
    """Returns the layer numbers, from 0, along the leading axis of a stacked parameter.

    path: as "decoder/stack/layers_1/block_0/mlp/up/kernel". Returns None outside a stack.
    """
    if (room := place(path)) is None:
        return None
    stack, name, block = room
    sizes = depths(model)
    found = next(x for x in scans(model, sizes[stack or model.kind]) if x.name == name)
    first = found.start + found.blocks().index(block)
    return range(first, found.start + found.period * found.count, found.period)


def _check_schedule(config: ConfigDict, by_hand: Iterable[str]) -> None:
    """Checks that the schedule fits in train.steps; only warns if the user shortened the run."""
    steps, flat = config.train.steps, flatten(config)
    keys = [f"optimizer.{part}_steps" for part in ("warmup", "hold", "decay")]
    parts = {key: flat[key] for key in keys if flat[key] and not unread(config, key)}
    if sum(x * (steps if x < 1 else 1) for x in parts.values()) > steps:
        named = " + ".join(f"{key}={length:g}" for key, length in parts.items())
        if not parts.keys().isdisjoint(by_hand):
            raise ConfigError(f"{named}: longer than train.steps={steps}")
        log.warning(
            "%s: longer than train.steps=%s, so the run ends before its schedule does; set fewer",
            named, steps,
        )  # fmt: skip


def from_file(spec: str, function: str):
    """Calls `function(variant)` of the file in `path.py[:variant]`; None if it does not define it.

    Raises:
      ConfigError: the file or variant does not exist, or the file raises an exception.
    """
    path, _, variant = spec.partition(":")
    own = RECIPES / path.removeprefix("configs/").removesuffix(".py")
    # The path as given, or one of the project's recipes: configs/gpt2.py, gpt2.py or gpt2.
    candidates = Path(path), own.with_name(f"{own.name}.py")
    file = next((x for x in candidates if path and x.is_file()), None)
    if file is None:
        inside = (p.relative_to(RECIPES) for p in RECIPES.glob("**/*.py") if p.stem != "__init__")
        hint = _hint(Path(path).stem, {f"configs/{p}": p.stem for p in sorted(inside)})
        raise ConfigError(f"--config={spec}: no file {path!r}; {hint}")
    if "configs" not in sys.modules:  # lets recipes import each other from any working directory
        sys.modules["configs"] = types.ModuleType("configs")
        sys.modules["configs"].__path__ = [str(RECIPES)]
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        variants = getattr(module, "VARIANTS", ())
        if variant and variant not in variants:
            hint = _hint(variant, {name: name for name in variants})
            raise ConfigError(f"--config={spec}: no variant {variant!r} in {path}; {hint}")
        if not hasattr(module, function):
            return None
        call = getattr(module, function)
        return call(variant) if variant else call()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={spec}: error in {path}: {error!r}") from error


def set_key(config: ConfigDict, key: str, text: str) -> None:
    """Sets a dotted key from text, parsed as the type of the key's default.

    Raises:
      ConfigError: an unknown key (the message suggests similar keys) or a value of another type.
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
    """Parses the text of a key's value."""
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
        str(value)  # raises for integers of thousands of digits
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def typed(key: str, default, value):
    """Returns value as the type of default. The only conversion is from int to float."""
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
    # Compare last components only: a common group prefix does not make keys similar.
    room, _, last = key.rpartition(".")
    words = {k: k.rsplit(".", 1)[-1] for k in sorted(KEYS)}
    group = [k for k in words if k.startswith(f"{room}.")]
    return ConfigError(f"unknown config key {key!r}; {_hint(last, words, group)}")


def _hint(word: str, known: dict[str, str], shown: Iterable[str] = ()) -> str:
    """Suggests the nearest names, of {name: its part to compare}; else lists `shown`, or all."""
    nearest = difflib.get_close_matches(word, known.values(), n=1, cutoff=0.65)
    if near := [name for name, part in known.items() if part in nearest]:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(shown or known) or 'none'}"


def check(config: ConfigDict) -> None:
    """Validates a config before anything is loaded or compiled.

    Raises:
      ConfigError: names the key, its value, the allowed values and, where known, the fix.
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
        raise ConfigError("optimizer.keep_zeros=True: incompatible with "
                          f"model.lora_rank={m.lora_rank}: LoRA matrices start at 0, and merging "
                          "them fills the zeros of a pruned model; set one of the two")


def _batch_conflicts(d: ConfigDict, t: ConfigDict) -> Iterator[str]:
    """Yields an error message for each conflict between keys of data and train."""
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
    """Yields conflicts between the keys of heads and position encodings."""
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
        yield (f"model.short_conv={m.short_conv}: requires model.kind='decoder' (the convolution "
               f"is causal), got {m.kind!r}; incompatible with attention='latent'")
    if m.num_key_heads and m.num_heads % m.num_key_heads:
        yield f"model.num_key_heads={m.num_key_heads}: must divide model.num_heads={m.num_heads}"
    # A causal stack uses all buckets for one direction; half of a direction are exact distances.
    exact = m.relative_buckets // (4 if m.kind == "encoder" else 2)
    if m.positions == "relative" and m.relative_max_distance <= exact:
        yield (f"model.relative_max_distance={m.relative_max_distance}: must be above {exact}, the "
               f"distances that model.relative_buckets={m.relative_buckets} represents exactly")
    if m.positions == "axial":
        width = m.embedding_dim or m.embed_dim
        if len(m.axial_shape) != 2 or math.prod(m.axial_shape) < m.max_length:
            yield (f"model.axial_shape={m.axial_shape}: needs rows and columns for at least "
                   f"model.max_length={m.max_length} positions")
        if len(m.axial_dims) != 2 or sum(m.axial_dims) != width:
            yield (f"model.axial_dims={m.axial_dims}: must be two sizes that sum to "
                   f"model.embed_dim={width}")
    if any(part % 2 for part in m.lsh_buckets) or math.prod(m.lsh_buckets) > 65536:
        yield f"model.lsh_buckets={m.lsh_buckets}: must be even, with a product of at most 65536"


def _list_conflicts(flat: dict[str, Any], m: ConfigDict) -> Iterator[str]:
    """Yields conflicts of the settings that model.layers gives to single layers."""
    setting = f"model.layers={m.layers!r}"
    for spec in _specs(m):
        own = flat | spec
        for key in spec:
            if KEYS[key].when and not KEYS[key].when.holds(own):
                yield f"{setting}: no such layer reads {key}; it requires {KEYS[key].when.text}"
        ways = {m.positions, own["model.positions"]}
        if len(ways) > 1 and ways != {"rotary", "none"}:
            yield (f"{setting}: positions={own['model.positions']} with model.positions="
                   f"{m.positions!r}; layers can differ between 'rotary' and 'none'")
        if "model.num_heads" in spec and m.positions in ("relative", "alibi"):
            yield (f"{setting}: num_heads cannot differ with model.positions={m.positions!r}, a "
                   "bias shared by all layers")
        if own["model.num_experts"] not in (0, m.num_experts):
            yield f"{setting}: num_experts must be 0 or model.num_experts={m.num_experts}"
        if own["model.norm_place"] != m.norm_place and m.reversible:
            yield f"{setting}: norm_place cannot differ with model.reversible=True"
    if m.layers and m.generator_fraction:
        yield f"{setting}: incompatible with model.generator_fraction={m.generator_fraction}"
    for layer in {id(x): x for x in layers(m, m.num_layers)}.values() if m.layers else ():
        yield from _attention_conflicts(layer)
        yield from _expert_conflicts(layer)


def _stack_conflicts(m: ConfigDict) -> Iterator[str]:
    """Yields conflicts between the keys of the stack, its output and adapters."""
    if "lm" in m.head.split(",") and m.tie_embeddings and m.embedding_dim not in (0, m.embed_dim):
        yield (f"model.embedding_dim={m.embedding_dim}: a tied output of model.head='lm' needs "
               f"model.embed_dim={m.embed_dim}; use head='mlm' or tie_embeddings=False")
    if not m.feed_forward and (m.reversible or m.num_experts):
        yield (f"model.feed_forward=False: incompatible with model.reversible={m.reversible} or "
               f"model.num_experts={m.num_experts}")
    if m.reversible and (m.norm_place != "pre" or m.remat != "none"):
        yield (f"model.reversible=True with model.norm_place={m.norm_place!r}, model.remat="
               f"{m.remat!r}: reversible layers need norm_place='pre' and remat='none'")
    off = {"quantize": "none", "lora_rank": 0, "weights": "float32"}
    adapted = [key for key, value in off.items() if m[key] != value]
    if len(adapted) > 1:
        first, second = (f"model.{key}={m[key]!r}" for key in adapted[:2])
        yield f"{first}: incompatible with {second}; set one of the two"
    if adapted and importlib.util.find_spec("qwix") is None:
        yield f"model.{adapted[0]}={m[adapted[0]]!r}: needs `pip install qwix`"
    if m.reversible and m.lora_rank and m.lora_quantize != "none":
        yield (f"model.lora_quantize={m.lora_quantize!r}: incompatible with model.reversible=True, "
               "whose backward pass does not support integer kernels")
    if unknown := set(m.lora_targets) - set(PROJECTIONS):
        yield (f"model.lora_targets={m.lora_targets}: no projection {min(unknown)!r}; allowed are "
               f"{', '.join(PROJECTIONS)}")
    if m.share_layers and any(len(scans(m, depth)) > 1 for depth in depths(m).values()):
        yield (f"model.share_layers=True: model.attention={m.attention!r}, model.layers="
               f"{m.layers!r}: the pattern must divide model.num_layers={m.num_layers}")
    yield from _expert_conflicts(m)


def _expert_conflicts(m: ConfigDict) -> Iterator[str]:
    if not m.num_experts:
        return
    if m.experts_per_token > m.num_experts:
        yield (f"model.experts_per_token={m.experts_per_token}: must be 1 to "
               f"model.num_experts={m.num_experts}")
    if m.expert_slots and m.expert_capacity:
        yield (f"model.expert_slots={m.expert_slots}: incompatible with "
               f"model.expert_capacity={m.expert_capacity}")
    groups, size = m.router_groups, m.num_experts // m.router_groups
    least = 2 if m.router_scores == "sigmoid" else 1  # experts whose scores rank a group
    if groups > 1 and (m.num_experts % groups or size < least):
        yield (f"model.router_groups={groups}: must divide model.num_experts={m.num_experts} into "
               f"groups of at least {least}")
    elif groups > 1 and not m.experts_per_token / size <= m.router_top_groups <= groups:
        yield (f"model.router_top_groups={m.router_top_groups}: must be at most model.router_groups"
               f"={groups}, and its groups of {size} experts must hold at least model."
               f"experts_per_token={m.experts_per_token}")
    if m.reversible or m.mlp_chunk:
        yield (f"model.num_experts={m.num_experts}: incompatible with model.reversible="
               f"{m.reversible} or model.mlp_chunk={m.mlp_chunk}")


def resolve(model: ConfigDict, vocab_size: int) -> ConfigDict:
    """Returns a copy of config.model with the sizes that default to 0 derived from the others."""
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


# Keys that may change when a run is resumed: length, frequencies, devices, execution strategy.
CHANGEABLE = (
    "train.steps", "train.log_every", "train.max_nonfinite", "train.profile_steps", "mesh.",
    "checkpoint.", "eval.", "sample.", "model.scan", "model.remat", "data.tfds_dir",
    "data.workers",
)


def mesh_sizes(mesh: ConfigDict, devices: int) -> dict[str, int]:
    """Returns config.mesh with -1 replaced; ConfigError if it does not fit the device count."""
    sizes = mesh.to_dict()
    named = ", ".join(f"mesh.{axis}={n}" for axis, n in sizes.items())
    free = [axis for axis, n in sizes.items() if n == -1]
    if len(free) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
        raise ConfigError(f"{named}: sizes must be positive, and at most one may be -1")
    fixed = math.prod(n for n in sizes.values() if n != -1)
    if devices % fixed or (not free and fixed != devices):
        raise ConfigError(f"{named}: the sizes multiply to {fixed}, which must "
                          f"{'divide' if free else 'equal'} the {devices} devices"
                          f"{'' if free else '; set one to -1 to use all remaining devices'}")
    return sizes | dict.fromkeys(free, devices // fixed)


def differences(
    old: ConfigDict, new: ConfigDict, changeable: tuple[str, ...] = CHANGEABLE
) -> list[str]:
    """Returns 'key: old there, new here' for each key whose change makes it a different run."""
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
    """Returns the validated config of a `ConfigDict.to_dict` tree; missing keys get their defaults.

    Raises:
      ConfigError: not a dict of groups of keys, an unknown key, or a value that is not allowed.
    """
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"not a config: expected groups of keys, got {str(tree)[:40]!r}")
    flat = {name: key.default for name, key in KEYS.items()}
    for name, value in flatten({k: x for k, x in tree.items() if x != {}}).items():
        if name not in KEYS:
            raise _unknown(name)
        flat[name] = typed(name, flat[name], value)
    config = _tree(flat)
    check(config)
    return config
