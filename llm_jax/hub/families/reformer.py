"""Reformer."""

from collections.abc import Collection

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.hub.families.parts import block, keys
from llm_jax.hub.family import Family, Key

_LOCAL, _LSH = "chunked", "lsh"
_DEFAULT = ["local", "lsh"] * 3


def _read_reformer(hf: dict, names: Collection[str]) -> dict:
    """Reads the list of layers as a pattern; drops the axial shape if positions are not axial."""
    kinds = hf.get("attn_layers", _DEFAULT)
    if not kinds or not isinstance(kinds, list) or not {"local", "lsh"}.issuperset(kinds):
        raise ConfigError(f"config.json: attn_layers={kinds!r}: must list 'local' and 'lsh' layers")
    layers = [{"local": _LOCAL}.get(kind, kind) for kind in kinds]
    n = len(layers)
    period = next(p for p in range(1, n + 1) if layers == layers[:p] * (n // p))
    if hf.get("num_hidden_layers", n) != n:
        raise ConfigError(f"config.json: num_hidden_layers={hf['num_hidden_layers']!r} and the {n} "
                          "entries of attn_layers differ")
    hf |= {"attention": ",".join(layers[:period]), "attn_layers": n}
    hf.setdefault("is_decoder", False)
    buckets = hf.get("num_buckets", ())
    buckets = (buckets,) if isinstance(buckets, int) else buckets
    hf["num_buckets"] = configs.typed("config.json: num_buckets", (), buckets)
    if not hf.get("axial_pos_embds", True):
        hf |= {"axial_pos_shape": (), "axial_pos_embds_dim": ()}
    return hf


def _write_reformer(hf: dict, model: ConfigDict) -> dict:
    kinds, n = hf.pop("attention").split(","), hf.pop("attn_layers")
    if not {_LOCAL, _LSH}.issuperset(kinds):
        raise ConfigError(f"model.attention={','.join(kinds)!r}: reformer supports {_LOCAL} and "
                          f"{_LSH} layers")
    hf["attn_layers"] = [{_LOCAL: "local"}.get(kind, kind) for kind in kinds] * (n // len(kinds))
    buckets = list(hf.pop("num_buckets"))
    hf["num_buckets"] = buckets[0] if len(buckets) == 1 else buckets or None
    axes = ("axial_pos_shape", "axial_pos_embds_dim")
    axial = hf["axial_pos_embds"]
    return {k: v for k, v in hf.items() if axial or k not in axes}


REFORMER = Family(
    name="reformer",
    model={
        "reversible": True,
        "attention_bias": False,
        "output_bias": True,
        "tie_embeddings": False,
    },
    keys=(
        *keys(
            vocab_size=320, max_position_embeddings=4096, hidden_size=256, num_attention_heads=12,
            attention_head_size=64, feed_forward_size=512, hidden_act="relu", layer_norm_eps=1e-12,
            hidden_dropout_prob=0.05, local_attention_probs_dropout_prob=0.05,
            initializer_range=0.02,
        ),
        Key("hidden_dropout_prob", "mlp_dropout", 0.05),
        Key("hidden_dropout_prob", "final_dropout", 0.05),
        Key("attn_layers", "num_layers"),
        Key("attention", "attention"),
        Key("local_attn_chunk_length", "window", 64),
        Key("lsh_attn_chunk_length", "lsh_chunk", 64),
        Key("num_hashes", "lsh_hashes", 1),
        Key("num_buckets", "lsh_buckets", ()),
        Key("axial_pos_embds", "positions", True, {True: "axial", False: "learned"}),
        Key("axial_pos_shape", "axial_shape", (64, 64)),
        Key("axial_pos_embds_dim", "axial_dims", (64, 192)),
    ),
    fixed={
        "is_decoder": (True,),
        "tie_word_embeddings": (False,),
        "local_num_chunks_before": (1,),
        "local_num_chunks_after": (0,),
        "lsh_num_chunks_before": (1,),
        "lsh_num_chunks_after": (0,),
    },
    prefix="reformer.",
    modules={
        "embed": "reformer.embeddings.word_embeddings",
        "decoder/embeddings/positions": "reformer.embeddings.position_embeddings.embedding",
        "decoder/embeddings/rows/embedding": "reformer.embeddings.position_embeddings.weights.0",
        "decoder/embeddings/columns/embedding":
            "reformer.embeddings.position_embeddings.weights.1",
        "decoder/final_norm": "reformer.encoder.layer_norm",
        "output": "lm_head.decoder.weight",
        "output_bias": "lm_head.decoder.bias",
    } | block(
        "decoder", "reformer.encoder.layers.{}",
        "attention.self_attention.query attention.self_attention.key "
        "attention.self_attention.value attention.output.dense",
        "feed_forward.dense.dense feed_forward.output.dense",
        "attention.layer_norm feed_forward.layer_norm",
    ),
    by_kind={"lsh": {
        "decoder/stack/layers/block/attention/query":
            "reformer.encoder.layers.{}.attention.self_attention.query_key",
    }},
    units={
        "reformer.embeddings.position_embeddings.weights.0": 1,
        "reformer.embeddings.position_embeddings.weights.1": 0,
    },
    classes={"lm": "ReformerModelWithLMHead"},
    # transformers 4 has one bias with two names; version 5 has two biases and adds the decoder's.
    aliases={"lm_head.bias": "lm_head.decoder.bias"},
    dropped=(r".*\.(self_)?mask_value_float(16|32)",),
    read=_read_reformer,
    write=_write_reformer,
)  # fmt: skip
