"""Ablation of sequence mixers in a small decoder, each at its best learning rate.

python launch.py sweep --config=configs/ablations/mixers.py --workdir=runs/mixers
python launch.py sweep --config=configs/ablations/mixers.py:hybrids --workdir=runs/hybrids
python launch.py sweep --config=configs/ablations/mixers.py:recall --workdir=runs/recall

All attention variants for decoders, at equal parameters; each uses the one of three learning rates
with the lowest validation loss of seed 0, and is evaluated on test with all seeds. Linear variants
have short convolutions, as in their papers (Yang 2024 and 2025, Dao & Gu 2024, Kimi 2025), and no
rotary positions, which recurrent states do not need (RetNet has them; Mamba-3 has no convolutions).

:hybrids has softmax attention in none, 1 of 8, 1 of 4, 1 of 2 and all of the layers, the others are
Gated DeltaNet (Qwen3-Next and Kimi Linear: 1 of 4). :main has one variant of each group. :all has
about 40 variants, with 5 runs of one to three minutes on a CPU core each.

:recall, :hybrid_recall, :needle, :parity and :s3 are synthetic tasks, which two layers of width 64
learn in less than a minute; :bytes is :main with two layers. There, all variants have short
convolutions and no positions, so that only the mixer differs, and two heads of 16: a state of 512
numbers, too small for all pairs of :recall. experiments/mixers has the results.
"""

from configs.ablations import small, tasks
from llm_jax.sweep import Sweep

SOFTMAX = {
    "softmax": {"model.attention": "flash"},
    "window 32": {"model.attention": "local", "model.window": 32},
    "strided 16": {"model.attention": "strided", "model.stride": 16},
    "longformer": {"model.attention": "longformer", "model.window": 32},
    "bigbird": {"model.attention": "bigbird", "model.block": 16, "model.random_blocks": 1},
    "lsh": {"model.attention": "lsh", "model.lsh_chunk": 32},
    "moba": {"model.attention": "moba", "model.block": 16, "model.selected_blocks": 4},
    "nsa": {"model.attention": "nsa", "model.block": 16, "model.selected_blocks": 4,
            "model.window": 32},
    "dsa": {"model.attention": "dsa", "model.index_topk": 64, "model.index_dim": 16},
    "talking heads": {"model.attention": "talking_heads"},
    "sigmoid": {"model.attention": "sigmoid"},
    "differential": {"model.attention": "differential"},
    "latent": {"model.attention": "latent", "model.latent_kv": 64, "model.latent_rotary": 16},
    "forgetting": {"model.attention": "forgetting", "model.positions": "none"},
    "path": {"model.attention": "path", "model.positions": "none"},
    "stick breaking": {"model.attention": "stick_breaking", "model.positions": "none"},
}  # fmt: skip
LINEAR = (
    "linear", "performer", "based", "rebased", "retnet", "gated_linear", "gla", "hgrn2", "gsa",
    "rwkv6", "mamba2", "mamba3", "log_linear", "deltanet", "gated_deltanet",
    "gated_deltaproduct", "kda", "rwkv7", "mesa_net", "ttt_linear",
)  # fmt: skip
OWN = {"performer": {"model.random_features": 64}, "gsa": {"model.slots": 32},
       "mamba2": {"model.num_key_heads": 1}, "retnet": {"model.positions": "rotary"},
       "mamba3": {"model.num_key_heads": 1, "model.short_conv": 0}}  # fmt: skip
KINDS = SOFTMAX | {
    name: {"model.attention": name, "model.positions": "none", "model.short_conv": 4}
    | OWN.get(name, {})
    for name in LINEAR
}
MAIN = ("softmax", "window 32", "nsa", "forgetting", "linear", "gla", "mamba2", "gated_deltanet",
        "kda", "rwkv7")  # fmt: skip
STATE = "gated_deltanet positions=none short_conv=4"
LAYERS = {
    "all softmax": "flash",
    "1 softmax of 2": f"1 {STATE}, 1 flash",
    "1 softmax of 4": f"3 {STATE}, 1 flash",
    "1 softmax of 8": f"7 {STATE}, 1 flash",
    "no softmax": STATE,
}
HYBRIDS = {name: {"model.layers": text} for name, text in LAYERS.items()}
HYBRIDS_OF_4 = {name: keys for name, keys in HYBRIDS.items() if name != "1 softmax of 8"}
NEEDLE = {name: KINDS[name] for name in ("softmax", "window 32", "gated_deltanet")}
NEEDLE |= {"window 32, sink": KINDS["window 32"] | {"model.attention_sinks": True}}
REFLECTED = {"model.negative_eigenvalues": True}
TRACKING = {name: KINDS[name] for name in ("softmax", "linear", "gla", "mamba2", "rwkv7")}
for _name in ("deltanet", "gated_deltanet", "gated_deltaproduct"):
    TRACKING |= {_name: KINDS[_name], f"{_name}, to -1": KINDS[_name] | REFLECTED}
# Variants, task, row length, batch size, steps.
RECALL = "recall?pairs=32&min_pairs=2&queries=32&vocab=64&length=128&power=1", 128, 8, 600
TASKS = {
    "recall": (KINDS, *RECALL),
    "hybrid_recall": (HYBRIDS_OF_4, *RECALL),
    "needle": (NEEDLE, "needle?length=256", 256, 16, 400),
    "parity": (TRACKING, "permutations?n=2&length=18", 68, 24, 400),
    "s3": (TRACKING, "permutations?n=3&length=18", 68, 24, 400),
}
MAIN_KINDS = {name: KINDS[name] for name in MAIN}
VARIANTS = {"all": KINDS, "main": MAIN_KINDS, "bytes": MAIN_KINDS, "hybrids": HYBRIDS}
VARIANTS |= {name: kinds for name, (kinds, *_) in TASKS.items()}
RATES = {f"rate {rate}": {"optimizer.learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)}


def task(name):
    """Returns a config of two layers of width 64 for a synthetic task."""
    _, spec, length, rows, steps = TASKS[name]
    c = tasks.get_config()
    c.data.train = f"task:{spec}"
    c.data.batch_size = rows
    c.model.max_length = length
    c.model.num_layers = 4 if name == "hybrid_recall" else 2
    c.model.num_heads, c.model.head_dim = 2, 16
    c.model.mlp_dim = 128
    c.model.positions = "none"
    c.model.short_conv = 4
    c.model.use_bias = False
    c.train.steps = steps
    c.eval.every = 50
    return c


def get_config(variant="all"):
    if variant in TASKS:
        return task(variant)
    c = small()
    c.data.test_fraction = 0.03
    if variant == "bytes":
        c.model.num_layers = 2
        c.data.batch_size = 4
    if variant == "hybrids":
        c.model.num_layers = 8
        c.model.embed_dim = 96
    return c


def get_sweep(variant="all"):
    return Sweep(axes=(VARIANTS[variant],), tune=RATES, match="params")
