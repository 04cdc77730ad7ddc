"""Ablation of attention variants in a small decoder, at equal parameters.

python launch.py sweep --config=configs/ablations/attention.py --workdir=runs/attention

Full softmax attention, windows (Child 2019; Brown 2020), dilation (Beltagy 2020), blocks (Zaheer
2020) and hashing (Kitaev 2020); modified softmax (talking heads, sigmoid, differential, soft cap,
sink); latent attention (DeepSeek-V2); and linear attention with a state (Katharopoulos 2020,
Choromanski 2021, Yang 2024 and 2025).

18 variants, 3 seeds; a run takes one to three minutes on a CPU core. experiments/attention has the
report of `:main`, the 14 variants that differ most.
"""

from configs.ablations import small
from llm_jax.sweep import Sweep

KINDS = {
    "softmax": {"model.attention": "flash"},
    "window 32": {"model.attention": "local", "model.window": 32},
    "softmax, window 32": {"model.attention": "flash,local", "model.window": 32},
    "strided, window 16": {"model.attention": "strided,local", "model.window": 16},
    "longformer": {"model.attention": "longformer", "model.window": 32},
    "bigbird": {"model.attention": "bigbird", "model.block": 16, "model.random_blocks": 1},
    "lsh": {"model.attention": "lsh", "model.lsh_chunk": 32},
    "talking heads": {"model.attention": "talking_heads"},
    "sigmoid": {"model.attention": "sigmoid"},
    "differential": {"model.attention": "differential"},
    "latent": {"model.attention": "latent", "model.latent_kv": 64, "model.latent_rotary": 16},
    "softcap": {"model.attention": "flash", "model.attention_softcap": 30.0},
    "sinks": {"model.attention": "flash", "model.attention_sinks": True},
    "gated output": {"model.attention": "flash", "model.output_gate": True},
    "linear": {"model.attention": "linear"},
    "performer": {"model.attention": "performer", "model.random_features": 64},
    "gated linear": {"model.attention": "gated_linear"},
    "delta": {"model.attention": "gated_deltanet"},
}
MAIN = (
    "softmax", "window 32", "strided, window 16", "bigbird", "lsh", "talking heads", "sigmoid",
    "differential", "latent", "gated output", "linear", "performer", "gated linear", "delta",
)  # fmt: skip
VARIANTS = {"all": tuple(KINDS), "main": MAIN}


def get_config(variant="all"):
    return small()


def get_sweep(variant="all"):
    return Sweep(axes=({name: KINDS[name] for name in VARIANTS[variant]},), match="params")
