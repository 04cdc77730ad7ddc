"""LLaMA and its descendants."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import pattern
from llm_jax.config import ConfigError
from llm_jax.hub.families import parts, rope
from llm_jax.hub.families.parts import GATED, block
from llm_jax.hub.family import SAME, Family, Key

SIZES = dict(
    vocab_size=32000, max_position_embeddings=2048, hidden_size=4096, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=None, head_dim=None, intermediate_size=11008,
    rms_norm_eps=1e-6, attention_dropout=0.0, initializer_range=0.02, tie_word_embeddings=False,
    hidden_act="silu",
)  # fmt: skip


def keys(activations: Mapping[str, str] = GATED, **defaults: Any) -> tuple[Key, ...]:
    """Keys of LLaMA and its descendants; see parts.keys."""
    return (*parts.keys(activations, **SIZES | defaults), *rope.KEYS)


def decoders(name: str) -> dict[str, str]:
    """transformers' classes for the heads of a decoder."""
    return {"lm": f"{name}ForCausalLM", "sequence": f"{name}ForSequenceClassification",
            "token": f"{name}ForTokenClassification"}  # fmt: skip


LLAMA = Family(
    name="llama",
    model={"norm": "rmsnorm", "positions": "rotary"},
    keys=(
        *keys(),
        Key("attention_bias", "use_bias", False),
        Key("mlp_bias", "use_bias", False),
    ),
    fixed=rope.FIXED,
    prefix="model.",
    modules={
        "embed": "model.embed_tokens",
        "decoder/final_norm": "model.norm",
        "output": "lm_head.weight",
    } | block(
        "decoder", "model.layers.{}",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
        "mlp.gate_proj mlp.up_proj mlp.down_proj", "input_layernorm post_attention_layernorm",
    ),
    by_head={"sequence": {"sequence": "score"}, "token": {"token": "score"}},
    classes=decoders("Llama"),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    dropped=(r".*\.rotary_emb\.inv_freq",),
    read=rope.read,
    write=rope.write_llama,
)  # fmt: skip

def in_layers(modules: dict[str, str]) -> dict[str, str]:
    """Adds further modules to each layer."""
    ours = "decoder/stack/layers/block/"
    return {f"{ours}{k}": f"model.layers.{{}}.{v}" for k, v in modules.items()}


LIKE_LLAMA = LLAMA.model | {"use_bias": False}
LAYERS = (Key("attention", "attention"), Key("layers", "layers"), Key("sliding_window", "window"))


def read_types(hf: dict, window: int | None, default: list[str]) -> list[str]:
    """Removes and returns layer_types; sets the window again if any layer uses it."""
    types, n = hf.pop("layer_types", None) or default, len(default)
    if not isinstance(types, list) or len(types) != n or not set(types) <= rope.KINDS.keys():
        raise ConfigError(f"config.json: layer_types={types!r}: must list 'full_attention' or "
                          f"'sliding_attention' for each of num_hidden_layers={n}")
    if "sliding_attention" in types:
        if window is None:
            raise ConfigError("config.json: layer_types has 'sliding_attention' without "
                              "sliding_window")
        hf["sliding_window"] = window
    return types


def layer_types(
    hf: dict, layers: int, window: int | None, full: Callable[[int], int | bool]
) -> list[str]:
    """`read_types` with a default number of layers, where layer i is full attention if full(i)."""
    n = depth(hf, layers)
    types = ["full_attention" if full(i) else "sliding_attention" for i in range(n)]
    return read_types(hf, hf.pop("sliding_window", window), types)


def read_layers(types: list[str], more: Sequence[str] = ()) -> dict[str, str]:
    """Converts layer_types to model.layers; more: further settings of each layer."""
    specs = [rope.KINDS[x] + y for x, y in itertools.zip_longest(types, more, fillvalue="")]
    return {"layers": pattern.write(specs)} if len(set(specs)) > 1 or any(more) else {
        "attention": specs[0]
    }


def depth(hf: dict, default: int) -> int:
    """Returns num_hidden_layers, checked."""
    return _allowed("num_hidden_layers", hf.get("num_hidden_layers", default), "num_layers")


def size(hf: dict, name: str, default: int, key: str) -> int:
    """Removes and returns an entry of config.json, checked as the layer key `key`."""
    return _allowed(name, hf.pop(name, default), key)


def _allowed(name: str, value: int, key: str) -> int:
    value, known = _count(name, value), configs.KEYS[f"model.{key}"]
    if not known.allows(value):
        raise ConfigError(f"config.json: {name}={value}: {known.allowed}")
    return value


def count(hf: dict, name: str, default: int) -> int:
    """Removes and returns an entry of config.json, which must be 1 to 2^24."""
    return _count(name, hf.pop(name, default))


def _count(name: str, value: int) -> int:
    if not 1 <= (value := configs.typed(f"config.json: {name}", 0, value)) <= 2**24:
        raise ConfigError(f"config.json: {name}={value}: must be 1 to {2**24}")
    return value


def write_layers(hf: dict, model: ConfigDict) -> tuple[dict, list[str], int | None]:
    """Converts model.layers: returns config.json, layer_types and the window."""
    layers = configs.layers(model, model.num_layers)
    types = [
        "full_attention" if layer.attention in SAME else "sliding_attention" for layer in layers
    ]
    local = [layer for layer in layers if layer.attention not in SAME]
    if any(layer.attention != "local" or layer.window != local[0].window for layer in local):
        raise ConfigError(f"model.attention={model.attention!r}, model.layers={model.layers!r}: "
                          f"{hf['model_type']} supports dense layers, and local ones of one window")
    window = local[0].window if local else None
    ours = {key.theirs for key in LAYERS}
    return {k: v for k, v in hf.items() if k not in ours}, types, window


def read_mistral(hf: dict, names: Collection[str], window: int | None = 4096,
                  theta: float = 10_000.0) -> dict:  # fmt: skip
    """Reads config.json of a model with the same window, or none, in all layers.

    Args:
      window, theta: defaults of sliding_window and rope_theta.
    """
    window = hf.pop("sliding_window", window)
    hf.pop("layer_types", None)  # unused by transformers
    kind = "full_attention" if window is None else "sliding_attention"
    types = read_types(hf, window, [kind])
    return rope.read(hf | read_layers(types), names, theta)


def write_mistral(hf: dict, model: ConfigDict) -> dict:
    """Inverse of `read_mistral`; raises ConfigError if the layers' windows differ."""
    hf, types, window = write_layers(hf, model)
    if len(set(types)) > 1:
        raise ConfigError(f"model.layers={model.layers!r}: {hf['model_type']} needs the same kind "
                          "of attention in all layers")
    return rope.write(hf, model) | {"sliding_window": window}


MISTRAL = dataclasses.replace(
    LLAMA,
    name="mistral",
    model=LIKE_LLAMA,
    keys=(*keys(num_key_value_heads=8, intermediate_size=14336,
                       max_position_embeddings=4096 * 32), *LAYERS),
    nulls=("sliding_window",),
    classes=decoders("Mistral"),
    read=read_mistral,
    write=write_mistral,
)  # fmt: skip


def _read_qwen(hf: dict, names: Collection[str]) -> dict:
    """Layers after the first max_window_layers use the window, if there is one."""
    window = hf.pop("sliding_window", 4096)
    window = window if hf.pop("use_sliding_window", False) else None
    first, n = hf.pop("max_window_layers", 28), depth(hf, 32)
    configs.typed("config.json: max_window_layers", 0, first)
    full = n if window is None else min(first, n)
    types = ["full_attention"] * full + ["sliding_attention"] * (n - full)
    return rope.read(hf | read_layers(read_types(hf, window, types)), names)


def _write_qwen(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = write_layers(hf, model)
    return rope.write(hf, model) | {
        "layer_types": types,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": types.count("full_attention"),
    }


_QWEN = {"vocab_size": 151936, "max_position_embeddings": 32768, "intermediate_size": 22016}
QWEN2 = dataclasses.replace(
    LLAMA,
    name="qwen2",
    model=LIKE_LLAMA | {"qkv_bias": True},
    keys=(*keys(**_QWEN, num_key_value_heads=32), *LAYERS),
    classes=decoders("Qwen2"),
    read=_read_qwen,
    write=_write_qwen,
)
QK_NORMS = {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
QWEN3 = dataclasses.replace(
    QWEN2,
    name="qwen3",
    model=LIKE_LLAMA | {"qk_norm": True},
    keys=(*keys(**_QWEN, num_key_value_heads=32, head_dim=128), *LAYERS),
    fixed=rope.FIXED | {"attention_bias": (False,)},
    modules=LLAMA.modules | in_layers(QK_NORMS),
    classes=decoders("Qwen3"),
)
OLMO2 = dataclasses.replace(
    LLAMA,
    name="olmo2",
    model=LIKE_LLAMA | {"qk_norm": True, "qk_norm_joint": True, "norm_place": "reordered"},
    keys=keys(vocab_size=50304, rms_norm_eps=1e-5),
    fixed=rope.FIXED | {"attention_bias": (False,)},
    modules=LLAMA.modules | in_layers(QK_NORMS | {
        "attention_norm": "post_attention_layernorm",
        "mlp_norm": "post_feedforward_layernorm",
    }),
    classes={"lm": "Olmo2ForCausalLM"},
    write=rope.write,
)  # fmt: skip


def _read_olmo3(hf: dict, names: Collection[str]) -> dict:
    types = layer_types(hf, 32, 4096, lambda i: (i + 1) % 4 == 0)
    hf, local = rope.read_by_type(hf, names, 5e5, "", 5e5)
    return hf | read_layers(types, [local * (kind == "sliding_attention") for kind in types])


def _write_olmo3(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = write_layers(hf, model)
    hf = rope.write_by_type(hf, model, types)
    return hf | {"layer_types": types, "sliding_window": window or 4096}


OLMO3 = dataclasses.replace(
    OLMO2,
    name="olmo3",
    keys=(*OLMO2.keys, *LAYERS),
    fixed=OLMO2.fixed | {"rope_parameters.truncate": (True,)},  # unused
    classes=decoders("Olmo3"),
    read=_read_olmo3,
    write=_write_olmo3,
)


def _read_smollm3(hf: dict, names: Collection[str]) -> dict:
    """Layers with a 1 in no_rope_layers have rotary positions."""
    n, period = depth(hf, 36), count(hf, "no_rope_layer_interval", 4)
    rotary = hf.pop("no_rope_layers", None) or [(i + 1) % period for i in range(n)]
    if not isinstance(rotary, list) or len(rotary) != n:
        raise ConfigError(f"config.json: no_rope_layers={rotary!r}: must list 0 or 1 for each of "
                          f"num_hidden_layers={n}")
    window = hf.pop("sliding_window", None)
    window = window if hf.pop("use_sliding_window", False) else None
    slides = [window is not None and not turns for turns in rotary]
    types = ["sliding_attention" if x else "full_attention" for x in slides]
    if window is None:
        hf.pop("layer_types", None)  # ignored then
    types = read_types(hf, window, types)
    return rope.read(hf | read_layers(types, ["" if x else " positions=none" for x in rotary]),
                     names, 2e6)  # fmt: skip


def _write_smollm3(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = write_layers(hf, model)
    rotary = [int(x.positions == "rotary") for x in configs.layers(model, model.num_layers)]
    return rope.write(hf, model) | {
        "layer_types": types, "no_rope_layers": rotary, "sliding_window": window,
        "use_sliding_window": window is not None,
    }  # fmt: skip


SMOLLM3 = dataclasses.replace(
    LLAMA,
    name="smollm3",
    model=LIKE_LLAMA,
    keys=(*keys(
        vocab_size=128256, hidden_size=2048, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=True,
    ), *LAYERS),
    fixed=rope.FIXED | {"attention_bias": (False,), "mlp_bias": (False,)},
    classes=decoders("SmolLM3"),
    read=_read_smollm3,
    write=_write_smollm3,
)  # fmt: skip


def _read_phi3(hf: dict, names: Collection[str]) -> dict:
    hf.pop("original_max_position_embeddings", None)  # for longrope
    return read_mistral(hf, names, None)


_JOINED = dict.fromkeys(("attention/query", "attention/key", "attention/value"),
                        "self_attn.qkv_proj") | dict.fromkeys(("mlp/gate", "mlp/up"),
                                                              "mlp.gate_up_proj")  # fmt: skip
PHI3 = dataclasses.replace(
    MISTRAL,
    name="phi3",
    keys=(
        *keys(vocab_size=32064, hidden_size=3072, intermediate_size=8192, rms_norm_eps=1e-5,
              max_position_embeddings=4096, resid_pdrop=0.0, embd_pdrop=0.0), *LAYERS,
    ),
    fixed=rope.FIXED | {"rope_parameters.rope_type": ("default",)},
    modules=LLAMA.modules | in_layers(_JOINED),
    classes=decoders("Phi3"),
    read=_read_phi3,
)  # fmt: skip
