"""What a run is: every key with its default, how a config is loaded, and what is refused.

A recipe in configs/ starts from `base()` and changes what its paper changes. Nothing here
imports JAX, so a wrong config is refused before the accelerator is even looked for.
"""

import ast
import difflib
import importlib.util
import json
import math
from pathlib import Path

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A config that cannot run; the message names the key, its value, and what is allowed."""


def base() -> ConfigDict:
    """Returns the default of every key: a small pre-norm GPT on the built-in corpus."""
    c = ConfigDict()
    c.seed = 0

    m = c.model = ConfigDict()
    m.kind = "decoder"  # decoder | encoder | encoder_decoder
    m.vocab_size = 0  # 0: the tokenizer's
    m.max_length = 256
    m.num_layers = 4
    m.num_decoder_layers = 0  # encoder_decoder only; 0: as many as num_layers
    m.embed_dim = 256
    m.embedding_dim = 0  # of the token table, projected up to embed_dim (ALBERT); 0: embed_dim
    m.num_heads = 8
    m.num_kv_heads = 0  # 0: num_heads; fewer: grouped-query attention
    m.head_dim = 0  # 0: embed_dim / num_heads
    m.mlp_dim = 0  # 0: 4 * embed_dim
    m.norm = "layernorm"  # layernorm | rmsnorm
    m.norm_place = "pre"  # pre | post
    m.norm_epsilon = 1e-5
    m.activation = "gelu_tanh"  # gelu | gelu_tanh | relu | silu | swiglu | geglu[_tanh] | reglu
    m.use_bias = True  # in dense layers and LayerNorm
    m.attention_bias = True  # in attention's dense layers, given use_bias
    m.positions = "learned"  # learned | axial | sinusoidal | rotary | relative | alibi | none
    m.axial_shape = ()  # axial: rows and columns that positions fill row by row
    m.axial_dims = ()  # axial: widths of a row's and of a column's vector
    m.rotary_base = 10_000.0
    m.rotary_scaling = "none"  # none | linear | ntk | yarn | llama3
    m.rotary_factor = 8.0
    m.rotary_original_length = 8192  # yarn, llama3: the length before it was stretched
    m.position_offset = 0  # learned: the table's first rows that are never used (RoBERTa: 2)
    m.relative_buckets = 32
    m.relative_max_distance = 128
    m.attention = "dense"  # name in llm_jax.attention.VARIANTS; "a,b": layers alternate
    m.window = 128  # local, longformer: keys a query sees back, itself included | dilated: of
    # those its stride leaves | chunked: length of a chunk
    m.stride = 16  # strided, dilated: a query sees keys so many apart
    m.global_tokens = 1  # longformer: leading tokens that see, and are seen by, all
    m.block = 64  # bigbird: tokens of a block
    m.random_blocks = 3  # bigbird: blocks seen beside the neighbours and the ends
    m.random_features = 128  # performer
    m.landmarks = 64  # linformer: compressed length | nystrom: means that stand for all
    m.latent_kv = 512  # latent: width of the vector that keys and values are made of
    m.latent_query = 0  # latent: likewise of queries; 0: made of the input
    m.latent_rotary = 64  # latent: further dimensions of a head that hold rotary positions
    m.lsh_chunk = 64  # lsh: tokens a chunk
    m.lsh_hashes = 1  # lsh: rounds of hashing
    m.lsh_buckets = ()  # lsh: even factors of the number of buckets; (): about two a chunk
    m.attention_scale = 0.0  # of the scores; 0: head_dim^-0.5 (T5: 1)
    m.attention_softcap = 0.0  # scores held within plus and minus this (Gemma 2: 50); 0: free
    m.attention_sinks = False  # a learned score a head without a value (gpt-oss)
    m.qk_norm = False  # a norm over each head's queries and keys
    m.output_gate = False  # attention's output times sigmoid of a projection of its input
    m.mlp_chunk = 0  # positions that the feed-forward layer takes at a time; 0: all
    m.num_experts = 0  # feed-forward layers among which a router chooses; 0: one, without
    m.expert_every = 1  # of so many layers the last has experts (Switch: 2)
    m.experts_per_token = 2
    m.expert_capacity = 0.0  # an expert's room, in even shares of a row's tokens; 0: for all
    m.router_balance = 0.01  # of the loss that keeps experts equally busy (Switch)
    m.router_z = 0.0  # of the loss that keeps the router's logits small (ST-MoE: 0.001)
    m.reversible = False  # two residual streams, recomputed on the way back instead of stored;
    # an untied "lm" head sees both, any other their mean
    m.share_layers = False  # ALBERT: one layer's parameters for all
    m.tie_embeddings = True
    m.scale_embeddings = False  # multiply token embeddings by sqrt(embed_dim)
    m.dropout = 0.0  # after the embeddings and each sub-layer
    m.attention_dropout = 0.0  # on attention probabilities
    m.init = "normal"  # normal: initializer_range | fan_in: T5's, 1 / sqrt(inputs)
    m.initializer_range = 0.02
    m.scale_residual_init = False  # GPT-2: projections into the residual / sqrt(2 num_layers)
    m.embed_norm = False  # BERT: a norm after the sum of embeddings
    m.type_vocab_size = 0  # BERT: kinds of segments, each with an embedding
    m.head = "lm"  # lm | mlm: dense, activation, norm, bias | detection: ELECTRA's | none
    m.output_bias = False  # added to the logits (mlm: always)
    m.scale_output = False  # T5: hidden / sqrt(embed_dim) before the tied output matrix
    m.pooler = False  # BERT: tanh dense over the first token
    m.num_classes = 0  # of a classifier over the pooled vector (next sentence: 2)
    m.generator_fraction = 0.0  # ELECTRA: a generator of this share of the width; 0: none
    m.dtype = "float32"  # of activations and matrix products; parameters are float32
    m.quantize = "none"  # int8 | fp8: matrix products of projections and feed-forward, through qwix
    m.scan = True  # one compiled layer, looped: compile time does not grow with depth
    m.pipeline_pieces = 0  # in which a batch goes through mesh.pipeline's stages; 0: as many
    m.remat = "none"  # none | dots: keeps products | full: layers' inputs | offload: on the host

    o = c.objective = ConfigDict()
    o.name = "causal_lm"
    o.label_smoothing = 0.0
    o.z_loss = 0.0
    o.mask_rate = 0.15  # of the tokens: masked models, span_corruption
    o.whole_word = False  # masked models: words are masked whole (albert: always)
    o.span_length = 3.0  # span_corruption: mean of the spans
    o.prefix = ""  # seq2seq: put before each source ("translate English to German: ")
    o.detection_weight = 50.0  # replaced_token_detection: of the discriminator's loss

    t = c.tokenizer = ConfigDict()
    t.name = "bpe"  # bytes | chars | words | bpe | wordpiece | file | sentencepiece
    t.vocab_size = 4096  # of a tokenizer trained here
    t.path = ""  # tokenizer.json (file) or .model (sentencepiece)
    t.specials = ()  # further special tokens, such as ("[MASK]",)

    d = c.data = ConfigDict()
    d.train = "builtin:python"  # a file or glob | tfds:name/config | task:name?option=value&...
    d.validation = ""  # like train; empty: a held-out share of the documents
    d.validation_fraction = 0.05
    d.test = ""  # likewise; empty and test_fraction 0: no test set
    d.test_fraction = 0.0
    d.text_column = "text"  # of JSONL and TFDS records
    d.label_column = "label"
    d.source_column = "source"  # of pairs (seq2seq, completion), in JSONL and TFDS records;
    d.target_column = "target"  # parallel text files go without: data.train="train.en,train.de"
    d.target_length = 0  # seq2seq: of the decoder's rows; 0: model.max_length
    d.tfds_dir = ""  # empty: TFDS's own default
    d.workers = 0  # processes that pack a set too large for memory; 0: the one that trains
    d.shards = 1  # streams of such a set; of several machines each packs those of its own rows
    d.packing = "first_fit"  # first_fit: several documents a row | none: one a row
    d.batch_size = 16  # sequences a step, over all chips
    d.ramp_steps = 0  # steps in which the batch grows from ramp_start to batch_size (GPT-3)
    d.ramp_start = 16

    p = c.optimizer = ConfigDict()
    p.name = "adamw"  # adamw | adafactor | lion | muon
    p.learning_rate = 1e-3
    p.schedule = "cosine"  # constant | cosine | linear | inverse_sqrt | wsd
    p.warmup_steps = 100
    p.decay_steps = 0  # wsd: length of the final decay; 0: a fifth of train.steps
    p.final_fraction = 0.1  # last learning rate / learning_rate
    p.b1 = 0.9
    p.b2 = 0.95
    p.eps = 1e-8
    p.muon_momentum = 0.95
    p.weight_decay = 0.1  # on matrices and embeddings only
    p.clip_norm = 1.0  # 0: no clipping

    r = c.train = ConfigDict()
    r.steps = 1000
    r.log_every = 10
    r.microbatches = 1  # gradient accumulation: the batch in this many parts
    r.ema_decay = 0.0  # 0: no average of the parameters
    r.profile_steps = ()  # (start, stop): profile these steps, into the run folder's profile/
    r.max_nonfinite = 10  # stop after this many non-finite steps in a row

    x = c.mesh = ConfigDict()
    x.data = -1  # -1: the rest of the devices
    x.pipeline = 1  # layers, in stages; see model.pipeline_pieces
    x.fsdp = 1  # the batch and each parameter
    x.tensor = 1  # heads, feed-forward and vocabulary
    x.context = 1  # positions of a row
    x.expert = 1  # experts; all else is split over it as over data

    k = c.checkpoint = ConfigDict()
    k.every = 500
    k.keep_last = 2
    k.keep_best = 1

    e = c.eval = ConfigDict()
    e.every = 250
    e.max_batches = 100  # 0: all of the validation set

    g = c.sample = ConfigDict()
    g.prompts = ()  # shown at the end of a run
    g.max_new_tokens = 64
    return c


CHOICES = {
    "model.kind": ("decoder", "encoder", "encoder_decoder"),
    "model.norm": ("layernorm", "rmsnorm"),
    "model.norm_place": ("pre", "post"),
    "model.activation": (
        "gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu", "geglu_tanh", "reglu"
    ),
    "model.positions": (
        "learned", "axial", "sinusoidal", "rotary", "relative", "alibi", "none"
    ),
    "model.rotary_scaling": ("none", "linear", "ntk", "yarn", "llama3"),
    "model.init": ("normal", "fan_in"),
    "model.head": ("lm", "mlm", "detection", "none"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "offload", "dots"),
    "model.quantize": ("none", "int8", "fp8"),
    "tokenizer.name": (
        "bytes", "chars", "words", "bpe", "wordpiece", "file", "sentencepiece"
    ),
    "data.packing": ("first_fit", "none"),
    "objective.name": (
        "causal_lm", "prefix_lm", "completion", "masked_lm", "bert", "albert",
        "replaced_token_detection", "span_corruption", "seq2seq",
    ),
    "optimizer.name": ("adamw", "adafactor", "lion", "muon"),
    "optimizer.schedule": ("constant", "cosine", "linear", "inverse_sqrt", "wsd"),
}

POSITIVE = (
    "model.max_length", "model.num_layers", "model.embed_dim", "model.num_heads",
    "model.window", "model.stride", "model.block", "model.random_features", "model.landmarks",
    "model.latent_kv", "model.expert_every", "model.lsh_chunk", "model.lsh_hashes",
    "tokenizer.vocab_size", "data.batch_size", "data.shards", "train.steps", "train.log_every",
    "train.microbatches", "train.max_nonfinite", "checkpoint.every", "checkpoint.keep_last",
    "eval.every", "sample.max_new_tokens",
)

NOT_NEGATIVE = (
    "seed", "data.workers", "model.vocab_size", "model.num_decoder_layers", "model.num_kv_heads",
    "model.head_dim", "model.mlp_dim", "model.attention_softcap", "model.global_tokens",
    "model.random_blocks", "model.latent_query", "model.num_experts", "model.expert_capacity",
    "model.router_balance", "model.router_z", "model.pipeline_pieces", "objective.z_loss",
    "optimizer.learning_rate",
    "optimizer.warmup_steps", "optimizer.decay_steps", "optimizer.final_fraction",
    "optimizer.eps", "optimizer.weight_decay", "optimizer.clip_norm", "checkpoint.keep_best",
    "eval.max_batches",
)

FRACTION = (
    "optimizer.b1", "optimizer.b2", "optimizer.muon_momentum",
    "model.dropout", "model.attention_dropout", "objective.label_smoothing", "train.ema_decay",
    "data.validation_fraction", "data.test_fraction", "objective.mask_rate",
    "model.generator_fraction",
)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict:
    """Returns {"model.num_layers": 4, ...}; an empty group is a value of its own."""
    out = {}
    for key in config:
        value = config[key]
        name = f"{prefix}{key}"
        group = isinstance(value, (ConfigDict, dict)) and len(value) > 0
        out.update(flatten(value, name + ".") if group else {name: value})
    return out


def load(spec: str = "", overrides: list[str] | tuple[str, ...] = ()) -> ConfigDict:
    """Loads `path.py[:variant]` (empty: the defaults), applies `key=value` overrides, checks all.

    Raises:
      ConfigError: naming the file or key, its value, and what is allowed.
    """
    config = from_file(spec, "get_config") if spec else base()
    if config is None:
        raise ConfigError(f"--config={spec}: the file defines no get_config(variant)")
    change(config, overrides)
    return config


def change(config: ConfigDict, overrides: list[str] | tuple[str, ...]) -> None:
    """Applies `key=value` overrides and checks the whole, as `load` does."""
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise ConfigError(f"--config.{override}: expected --config.{key}=VALUE")
        set_key(config, key, text)
    check(config)


def from_file(spec: str, function: str):
    """Returns what `path.py[:variant]` makes of `function(variant)`; None where it has none.

    Raises:
      ConfigError: no such file or variant, or the file fails.
    """
    path, _, variant = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        known = sorted(str(p) for p in Path("configs").glob("**/*.py") if p.stem != "__init__")
        raise ConfigError(f"--config={spec}: no file {path!r}; there are: {', '.join(known)}")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        variants = getattr(module, "VARIANTS", ())
        if variant and variant not in variants:
            raise ConfigError(
                f"--config={spec}: no variant {variant!r} in {path}; "
                f"there are: {', '.join(variants) or 'none'}"
            )
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
    known = flatten(config)
    if key not in known:
        raise _unknown(key, known)
    old = known[key]
    value = text
    if not isinstance(old, str):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, tuple) and not isinstance(value, (tuple, list)):
        value = (value,)
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    with config.unlocked():
        config[last] = typed(key, old, value)


def typed(key: str, default, value):
    """Returns value as the type of default; an int may stand for a float, nothing else converts."""
    if isinstance(default, bool) or isinstance(value, bool):
        ok = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        ok = isinstance(value, (int, float))
        value = float(value) if ok else value
    elif isinstance(default, (tuple, list)):
        ok = isinstance(value, (tuple, list))
        value = tuple(value) if ok else value
    else:
        ok = isinstance(value, type(default))
    if not ok:
        raise ConfigError(
            f"{key}={value!r}: expected {type(default).__name__} like {default!r}, "
            f"got {type(value).__name__}"
        )
    return value


def _unknown(key: str, known) -> ConfigError:
    # By the last word: a group that two keys share makes them no more alike.
    words = {k: k.rsplit(".", 1)[-1] for k in known}
    found = difflib.get_close_matches(key.rsplit(".", 1)[-1], words.values(), n=1, cutoff=0.65)
    near = [k for k in known if words[k] in found]
    group = [k for k in known if k.startswith(key.rsplit(".", 1)[0] + ".")]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(group or known)}"
    return ConfigError(f"unknown config key {key!r}; {hint}")


def check(config: ConfigDict) -> None:
    """Refuses a config that cannot run, before anything is loaded or compiled.

    Raises:
      ConfigError: naming the key, its value, what is allowed and, where there is one, the fix.
    """
    known = flatten(base())
    given = flatten(config)
    for key, value in given.items():
        if key not in known:
            raise _unknown(key, known)
        typed(key, known[key], value)
    for key in known:
        if key not in given:
            raise ConfigError(f"config key {key!r} is missing; start from llm_jax.config.base()")
    for key, allowed in CHOICES.items():
        if given[key] not in allowed:
            raise ConfigError(f"{key}={given[key]!r}: allowed are {', '.join(allowed)}")
    for key in POSITIVE:
        if given[key] < 1:
            raise ConfigError(f"{key}={given[key]}: must be at least 1")
    for key in NOT_NEGATIVE:
        if not given[key] >= 0:
            raise ConfigError(f"{key}={given[key]}: must be at least 0")
    for key in FRACTION:
        if not 0 <= given[key] < 1:
            raise ConfigError(f"{key}={given[key]}: must be in [0, 1)")
    _check_model(config.model)
    d = config.data
    if d.ramp_steps and (d.ramp_start < 1 or d.batch_size % d.ramp_start):
        raise ConfigError(
            f"data.ramp_start={d.ramp_start}: must divide data.batch_size={d.batch_size}"
        )
    if d.shards > d.batch_size:
        raise ConfigError(f"data.shards={d.shards}: at most data.batch_size={d.batch_size}")
    steps = config.train.profile_steps
    if steps and not (len(steps) == 2 and 0 <= steps[0] < steps[1]):
        raise ConfigError(f"train.profile_steps={steps}: must be (start, stop) with start < stop")
    if config.data.batch_size % config.train.microbatches:
        raise ConfigError(
            f"train.microbatches={config.train.microbatches}: must divide "
            f"data.batch_size={config.data.batch_size}"
        )


def _check_model(m: ConfigDict) -> None:
    if not m.head_dim and m.embed_dim % m.num_heads:
        raise ConfigError(
            f"model.num_heads={m.num_heads}: must divide model.embed_dim={m.embed_dim}, "
            "or set model.head_dim"
        )
    kv_heads = m.num_kv_heads or m.num_heads
    if kv_heads < 1 or m.num_heads % kv_heads:
        raise ConfigError(
            f"model.num_kv_heads={m.num_kv_heads}: must divide model.num_heads={m.num_heads} "
            "(0 means one for each head)"
        )
    head_dim = m.head_dim or m.embed_dim // m.num_heads
    if m.positions == "rotary" and head_dim % 2:
        raise ConfigError(f"model.positions='rotary': needs an even head_dim, got {head_dim}")
    if m.head == "lm" and m.tie_embeddings and m.embedding_dim not in (0, m.embed_dim):
        raise ConfigError(
            f"model.embedding_dim={m.embedding_dim}: a tied output of model.head='lm' needs "
            f"model.embed_dim={m.embed_dim}; use head='mlm' or tie_embeddings=False"
        )
    if m.positions == "axial":
        if len(m.axial_shape) != 2 or math.prod(m.axial_shape) < m.max_length:
            raise ConfigError(
                f"model.axial_shape={m.axial_shape}: needs rows and columns for at least "
                f"model.max_length={m.max_length} positions"
            )
        width = m.embedding_dim or m.embed_dim
        if len(m.axial_dims) != 2 or sum(m.axial_dims) != width:
            raise ConfigError(
                f"model.axial_dims={m.axial_dims}: needs two widths that add up to {width}"
            )
    if m.reversible and (m.norm_place != "pre" or m.remat != "none"):
        raise ConfigError(
            f"model.reversible=True with model.norm_place={m.norm_place!r}, model.remat="
            f"{m.remat!r}: only norm_place='pre' can be undone, and nothing is left to remat"
        )
    if any(part < 2 or part % 2 for part in m.lsh_buckets) or math.prod(m.lsh_buckets) > 65536:
        raise ConfigError(
            f"model.lsh_buckets={m.lsh_buckets}: even factors with a product of at most 65536"
        )
    pattern = m.attention.split(",")
    if m.num_experts and not 1 <= m.experts_per_token <= m.num_experts:
        raise ConfigError(
            f"model.experts_per_token={m.experts_per_token}: must be 1 to "
            f"model.num_experts={m.num_experts}"
        )
    if m.num_experts and (m.reversible or m.mlp_chunk):
        raise ConfigError(
            f"model.num_experts={m.num_experts}: not with model.reversible={m.reversible} or "
            f"model.mlp_chunk={m.mlp_chunk}"
        )
    if m.quantize != "none" and m.num_experts:
        raise ConfigError(
            f"model.quantize={m.quantize!r}: not with model.num_experts={m.num_experts}, whose "
            "products it does not reach"
        )
    if m.quantize != "none" and importlib.util.find_spec("qwix") is None:
        raise ConfigError(f"model.quantize={m.quantize!r}: needs `pip install qwix`")
    if m.num_experts and m.num_layers % math.lcm(len(pattern), m.expert_every):
        raise ConfigError(
            f"model.expert_every={m.expert_every}: must divide model.num_layers={m.num_layers}, "
            f"together with the {len(pattern)} kinds of model.attention"
        )
    if m.num_layers % len(pattern):
        raise ConfigError(
            f"model.attention={m.attention!r}: its {len(pattern)} kinds must divide "
            f"model.num_layers={m.num_layers}"
        )


def resolve(model: ConfigDict, vocab_size: int) -> ConfigDict:
    """Returns a copy of config.model with every 0-means-derived size filled in."""
    m = ConfigDict(model.to_dict())
    m.vocab_size = m.vocab_size or vocab_size
    m.num_decoder_layers = m.num_decoder_layers or m.num_layers
    m.num_kv_heads = m.num_kv_heads or m.num_heads
    m.head_dim = m.head_dim or m.embed_dim // m.num_heads
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
        raise ConfigError(
            f"{named}: the sizes multiply to {fixed}, which must "
            f"{'divide' if free else 'equal'} the {devices} devices"
            f"{'' if free else '; set one to -1 to take the rest'}"
        )
    return sizes | dict.fromkeys(free, devices // fixed)


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns 'key: old there, new here' for each key that makes it another run."""
    a, b = flatten(old), flatten(new)
    return [
        f"{key}: {a.get(key)!r} there, {b.get(key)!r} here"
        for key in a | b
        if a.get(key) != b.get(key) and not key.startswith(CHANGEABLE)
    ]


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON, keys in alphabetical order."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote, onto today's defaults, and checks it."""
    return from_dict(json.loads(text))


def from_dict(content: dict) -> ConfigDict:
    """Reads what `config.to_dict()` gave, onto today's defaults, and checks it.

    Raises:
      ConfigError: a key that is not known, or a value of another type.
    """
    config = base()
    known = flatten(config)
    for key, value in flatten(content).items():
        if key not in known:
            raise _unknown(key, known)
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = typed(key, known[key], value)
    check(config)
    return config
