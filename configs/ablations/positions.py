"""Ablation of position encodings in a decoder, within and beyond the training length.

python launch.py sweep --config=configs/ablations/positions.py --workdir=runs/positions

No positions (the causal mask provides some information), sinusoidal (Vaswani 2017, with the
embedding scale of section 3.4), learned, rotary (Su 2021), T5's relative bias (Raffel 2020) and
ALiBi (Press 2022).

6 variants, 3 seeds; a run takes about two minutes on one CPU core.
"""

from configs.ablations import small
from llm_jax.sweep import Sweep

SCHEMES = ("rotary", "none", "sinusoidal", "learned", "relative", "alibi")
MORE = {"sinusoidal": {"model.scale_embeddings": True}}


def get_config():
    return small()


def get_sweep():
    schemes = {name: {"model.positions": name} | MORE.get(name, {}) for name in SCHEMES}
    return Sweep(axes=(schemes,), match="params")
