"""Ablation of LayerNorm and RMSNorm, pre-norm and post-norm.

python launch.py sweep --config=configs/ablations/norms.py --workdir=runs/norms

LayerNorm (Ba 2016) and RMSNorm (Zhang and Sennrich 2019), each pre- and post-norm (Xiong 2020);
without biases both norms have the same parameters.

4 variants, 3 seeds; a run takes about two minutes on one CPU core.
"""

from configs.ablations import small
from llm_jax.sweep import Sweep


def get_config():
    return small()


def get_sweep():
    norms = {name: {"model.norm": name} for name in ("layernorm", "rmsnorm")}
    places = {name: {"model.norm_place": name} for name in ("pre", "post")}
    return Sweep(axes=(norms, places))
