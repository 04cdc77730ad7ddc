"""Ablation of the numbers of query and key-value heads, at equal parameters.

python launch.py sweep --config=configs/ablations/heads.py --workdir=runs/heads

Multi-head attention with head sizes 16, 32 and 64, grouped-query (Ainslie 2023) and multi-query
attention (Shazeer 2019); saved parameters go to the feed-forward layers.

6 variants, 3 seeds; a run takes about two minutes on one CPU core.
"""

from configs.ablations import small
from llm_jax.sweep import Sweep


def get_config():
    return small()


def get_sweep():
    heads = {
        "4 heads of 32": {},
        "8 heads of 16": {"model.num_heads": 8},
        "2 heads of 64": {"model.num_heads": 2},
        "8 heads of 32": {"model.num_heads": 8, "model.head_dim": 32},
        "4 heads, 2 of keys": {"model.num_kv_heads": 2},
        "4 heads, 1 of keys": {"model.num_kv_heads": 1},
    }
    return Sweep(axes=(heads,), match="params")
