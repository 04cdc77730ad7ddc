"""Tests of recipes against the training settings in papers or released code.

Each number is given with its source. `None`: the source does not state it; the recipe's docstring
says what is used.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import models
from llm_jax.data.batches import batch_size
from llm_jax.train import optimizer


class Paper(NamedTuple):
    """The optimizer of a paper; rates {step: learning rate}, tokens and steps of the whole run."""

    source: str
    rates: dict[int, float]
    name: str = "adamw"
    b1: float | None = 0.9
    b2: float | None = 0.999
    eps: float | None = 1e-6
    weight_decay: float = 0.01
    clip: float | None = None
    batch: int | None = None  # sequences
    steps: int | None = None
    tokens: float | None = None  # of the run, in 10^9


def tenth(peak, warmup, last, fraction=0.1):
    """Rates of a warm-up's end, of a cosine's middle and of its end."""
    middle = (warmup + last) // 2
    return {warmup: peak, middle: peak * (1 + fraction) / 2, last: peak * fraction}


def vaswani(width, warmup=4000):
    rate = lambda step: width**-0.5 * min(step**-0.5, step * warmup**-1.5)
    return {step: rate(step) for step in (1, 400, 4000, 16000, 100_000)}


def line(peak, warmup, last):
    """Rates of a linear warm-up and a linear decay to zero."""
    return {warmup // 2: peak / 2, warmup: peak, (warmup + last) // 2: peak / 2, last: 0.0}


T5 = "Raffel 2020, 3.1.2: 'a constant learning rate of 0.01 for the first 10^4 steps', 1/sqrt(n)"
T5_RATES = {1: 0.01, 100: 0.01, 9_999: 0.01, 10_000: 0.01, 40_000: 0.005, 2**19: 2**-9.5}
ADAFACTOR = {"name": "adafactor", "b1": None, "b2": None, "eps": None, "weight_decay": 0.0}
LLAMA = {"b2": 0.95, "eps": 1e-5, "weight_decay": 0.1, "clip": 1.0}
LLAMA_1 = "Touvron 2023a, 2.3 and table 2; epsilon: 2023b, 2.2"
GPT_3 = {"b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "tokens": 300}
ELECTRA = "Clark 2020, table 6; google-research/electra, configure_pretraining.py; steps unverified"

PAPERS = {
    "transformer:base": Paper(
        "Vaswani 2017, 5.3, equation 3", vaswani(512), b2=0.98, eps=1e-9, weight_decay=0.0,
        clip=0.0, steps=100_000,
    ),
    "transformer:big": Paper(
        "Vaswani 2017, 5.3, equation 3", vaswani(1024), b2=0.98, eps=1e-9, weight_decay=0.0,
        clip=0.0, steps=300_000,
    ),
    "bert:base": Paper(
        "Devlin 2019, A.2; epsilon and clip: google-research/bert, optimization.py",
        line(1e-4, 10_000, 1_000_000), clip=1.0, batch=256, steps=1_000_000,
    ),
    "roberta:base": Paper(
        "Liu 2019, table 9", line(6e-4, 24_000, 500_000), b2=0.98, clip=0.0, batch=8192,
        steps=500_000,
    ),
    "roberta:large": Paper(
        "Liu 2019, table 9", line(4e-4, 30_000, 500_000), b2=0.98, clip=0.0, batch=8192,
        steps=500_000,
    ),
    "electra:small": Paper(
        ELECTRA, line(5e-4, 10_000, 1_000_000), clip=1.0, batch=128,
        steps=1_000_000,
    ),
    "electra:base": Paper(
        ELECTRA, line(2e-4, 10_000, 766_000), clip=1.0, batch=256, steps=766_000
    ),
    "electra:large": Paper(
        ELECTRA, line(2e-4, 10_000, 400_000), clip=1.0, batch=2048, steps=400_000
    ),
    "albert:base": Paper(
        "Lan 2020, 4.1: batch 4096, LAMB at 0.00176, 125,000 steps", line(1.76e-3, 3125, 125_000),
        batch=4096, steps=125_000,
    ),
    "gpt2:124m": Paper(
        "Radford 2019, 2.3: batch 512; else GPT-3's", tenth(6e-4, 2000, 600_000), b2=0.95,
        eps=1e-8, weight_decay=0.1, clip=1.0, batch=512,
    ),
    "gpt3:125m": Paper("Brown 2020, table 2.1 and appendix B", {}, **GPT_3),
    "gpt3:1.3b": Paper("Brown 2020, table 2.1 and appendix B", {}, **GPT_3),
    "gpt3:13b": Paper("Brown 2020, table 2.1 and appendix B", {}, **GPT_3),
    "gpt3:175b": Paper("Brown 2020, table 2.1 and appendix B", {}, **GPT_3),
    "llama:1-7b": Paper(LLAMA_1, {2000: 3e-4}, tokens=1000, **LLAMA),
    "llama:1-13b": Paper(LLAMA_1, {2000: 3e-4}, tokens=1000, **LLAMA),
    "llama:1-33b": Paper(LLAMA_1, {2000: 1.5e-4}, tokens=1400, **LLAMA),
    "llama:1-65b": Paper(LLAMA_1, {2000: 1.5e-4}, tokens=1400, **LLAMA),
    "llama:2-7b": Paper("Touvron 2023b, 2.2, table 1", {2000: 3e-4}, tokens=2000, **LLAMA),
    "llama:2-70b": Paper("Touvron 2023b, 2.2, table 1", {2000: 1.5e-4}, tokens=2000, **LLAMA),
    "llama:405b": Paper(
        "Grattafiori 2024, 3.4.1: to 8e-7 over 1,200,000 steps (unverified: from memory)",
        tenth(8e-5, 8000, 1_200_000, 0.01), steps=1_200_000, **LLAMA,
    ),
    "llama:8b": Paper(
        "Grattafiori 2024, 3.4: 'similar recipes', table 3",
        tenth(3e-4, 8000, 1_200_000, 0.01), **LLAMA,
    ),
    "mixtral:8x7b": Paper("as LLAMA 2's", {2000: 3e-4}, tokens=2000, **LLAMA),
    "mixtral:8x22b": Paper("as LLAMA 2's", {2000: 1.5e-4}, tokens=2000, **LLAMA),
    "t5:small": Paper(T5, T5_RATES, clip=0.0, batch=128, steps=2**19, **ADAFACTOR),
    "t5:v1.1-xxl": Paper(T5, T5_RATES, clip=0.0, **ADAFACTOR),
    "switch:base-8": Paper(T5, T5_RATES, clip=0.0, **ADAFACTOR),
    "shakespeare:large": Paper(
        "nanoGPT, config/train_shakespeare_char.py", tenth(1e-3, 100, 5000), b2=0.99, eps=1e-8,
        weight_decay=0.1, clip=1.0, batch=64, steps=5000,
    ),
}  # fmt: skip


def load(case):
    return configs.load("configs/{}.py:{}".format(*case.split(":")))


@pytest.mark.parametrize("case", PAPERS)
def test_optimizer_is_the_papers(case):
    config, paper = load(case), PAPERS[case]
    o, said = config.optimizer, {"steps": paper.steps, "batch": paper.batch}
    has = {"steps": config.train.steps, "batch": config.data.batch_size}
    for key in ("name", "b1", "b2", "eps", "weight_decay"):
        said[key], has[key] = getattr(paper, key), o[key]
    said["clip"], has["clip"] = paper.clip, o.clip_norm
    assert {k: v for k, v in has.items() if said[k] is not None} == {
        k: v for k, v in said.items() if v is not None
    }
    rate = optimizer.schedule(config)
    for step, expected in paper.rates.items():
        # The first step is step 1 in papers, 0 here. One step more or less is their rounding.
        near = [float(rate(s)) for s in (step - 1, step)]
        slack = 2e-3 * max(paper.rates.values()) * (expected < max(paper.rates.values()))
        assert min(abs(r - expected) for r in near) <= max(2e-6 * expected, slack), (step, near)
    if paper.tokens:
        row, d = config.model.max_length, config.data
        ramp = sum(batch_size(d, step) for step in range(d.ramp_steps))
        read = ramp + (config.train.steps - d.ramp_steps) * d.batch_size
        assert read * row / 1e9 == pytest.approx(paper.tokens, rel=1e-3)


@pytest.mark.parametrize("variant", ["125m", "760m", "1.3b", "6.7b", "13b", "175b"])
def test_gpt3_counts_in_tokens(variant):
    """Brown 2020, appendix B: 375 million of warm-up, a cosine to a tenth at 260 billion; the
    batch from 32,000 tokens to all over 4 to 12 billion; table 2.1's batch and rate."""
    million, peak = {
        "125m": (0.5, 6e-4), "760m": (0.5, 2.5e-4), "1.3b": (1, 2e-4), "6.7b": (2, 1.2e-4),
        "13b": (2, 1e-4), "175b": (3.2, 0.6e-4),
    }[variant]  # fmt: skip
    config = load(f"gpt3:{variant}")
    d, rate = config.data, optimizer.schedule(config)
    assert d.batch_size * 2048 / 1e6 == pytest.approx(million, rel=0.05)
    sizes = np.full(config.train.steps, d.batch_size)
    sizes[: d.ramp_steps] = [batch_size(d, step) for step in range(d.ramp_steps)]
    read = np.cumsum(sizes * 2048)
    at = lambda tokens: float(rate(int(np.searchsorted(read, tokens))))
    assert at(375e6) == pytest.approx(peak, rel=1e-3)
    assert at(50e6) < 0.6 * peak  # linear in steps, which are small at first
    assert at(259e9) == pytest.approx(0.1 * peak, rel=1e-2)
    assert at(261e9) == at(299e9) == pytest.approx(0.1 * peak, rel=1e-6)
    assert at(130e9) == pytest.approx(0.55 * peak, rel=0.05)
    assert batch_size(d, 0) * 2048 == pytest.approx(32_000, rel=0.05)
    full = int(np.argmax(sizes == d.batch_size))
    assert 4e9 < read[full] < 12e9


# Rates of dropout: after the embeddings and each sub-layer, on attention's weights, inside the
# feed-forward layer, behind the last norm.
DROPOUT = {
    "transformer:base": (0.1, 0.0, 0.0, 0.0),  # Vaswani 2017, 5.4
    "transformer:big": (0.3, 0.0, 0.0, 0.0),  # Vaswani 2017, table 3
    "bert:base": (0.1, 0.1, 0.0, 0.0),  # Devlin 2019, A.2; bert_config.json
    "roberta:base": (0.1, 0.1, 0.0, 0.0),  # Liu 2019, table 9
    "electra:base": (0.1, 0.1, 0.0, 0.0),  # Clark 2020, table 6
    "albert:xxlarge": (0.0, 0.0, 0.0, 0.0),  # Lan 2020, 4.9; albert_v2's config.json
    "gpt2:124m": (0.1, 0.1, 0.0, 0.0),  # Radford 2018, 4.1: residual, embedding, attention
    "llama:8b": (0.0, 0.0, 0.0, 0.0),  # none told, none in the released code
    "t5:small": (0.1, 0.1, 0.1, 0.1),  # Raffel 2020, 2.1 and 3.1.2
    "t5:v1.1-small": (0.0, 0.0, 0.0, 0.0),  # released_checkpoints.md: off in pre-training
    "switch:base-8": (0.1, 0.1, 0.1, 0.1),  # Fedus 2021, table 4: T5's in pre-training
    "shakespeare:large": (0.2, 0.2, 0.0, 0.0),  # nanoGPT, config/train_shakespeare_char.py
}


@pytest.mark.parametrize("case", DROPOUT)
def test_dropout_is_the_papers(case):
    """The rates, and that as many places drop values as the rates are of."""
    config = load(case)
    m = configs.resolve(config.model, 64)
    rates = m.dropout, m.attention_dropout, m.mlp_dropout, m.final_dropout
    assert rates == DROPOUT[case]
    small = {"vocab_size": 64, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8,
             "mlp_dim": 24, "embedding_dim": 16, "max_length": 16, "attention": "dense",
             "num_layers": 2 * m.expert_every, "num_decoder_layers": 2 * m.expert_every,
             "generator_fraction": 0.0, "dtype": "float32", "remat": "none"}  # fmt: skip
    m.update(small)
    model = models.build(m)
    params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
    tokens = np.ones((1, 8), np.int32)
    batch = {"tokens": tokens, "encoder_tokens": tokens}
    run = lambda params, key: model.apply(
        {"params": params}, batch, deterministic=False, rngs={"dropout": key}
    )
    drawn = drops(jax.make_jaxpr(run)(params, jax.random.key(0)).jaxpr)
    rate, attention, mlp, final = rates
    stacks = {"encoder": [2], "decoder": [2], "encoder_decoder": [2, 3]}[m.kind]
    period = m.expert_every if m.num_experts else 1
    expected = 0
    for sublayers in stacks:  # a layer's are counted once for each of a period
        a_layer = sublayers * (rate > 0) + (sublayers - 1) * (attention > 0) + (mlp > 0)
        expected += (rate > 0) + period * a_layer + (final > 0)
    assert drawn == expected


def drops(jaxpr):
    """How many arrays of random bits a jaxpr draws; a scan's once."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "random_bits"
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            count += drops(inner) if hasattr(inner, "eqns") else 0
    return count


LEARNED = {
    "bert:base": {"mask_rate": 0.15},  # Devlin 2019, 3.1
    "roberta:base": {"mask_rate": 0.15},  # as BERT (Liu 2019, 4.1)
    "albert:base": {"mask_rate": 0.15},  # as BERT (Lan 2020, 4.1)
    "modernbert:base": {"mask_rate": 0.3},  # Warner 2024, 2.2.1
    "electra:small": {"mask_rate": 0.15, "detection_weight": 50.0},  # Clark 2020, table 6
    "electra:large": {"mask_rate": 0.25, "detection_weight": 50.0},
    "t5:small": {"mask_rate": 0.15, "span_length": 3.0},  # Raffel 2020, 3.1.4
    "switch:base-8": {"mask_rate": 0.15, "span_length": 3.0},  # Fedus 2021: as T5
    # Defaults, where a task's paper tells one: Rafailov 2023, B; Gao 2021, 3.
    "gpt2:124m": {"beta": 0.1, "temperature": 0.05},
}


@pytest.mark.parametrize("case", LEARNED)
def test_what_is_masked_and_weighed_is_the_papers(case):
    objective = load(case).objective
    assert {key: objective[key] for key in LEARNED[case]} == LEARNED[case]


# Standard deviations at the start, of parameters by the end of their path.
STARTS = {
    "bert:base": {"embed/embedding": 0.02, "query/kernel": 0.02, "mlp/down/kernel": 0.02},
    "roberta:base": {"embed/embedding": 0.02, "mlp/up/kernel": 0.02},  # as BERT (Liu 2019, 3.1)
    "electra:small": {"query/kernel": 0.02, "mlp/down/kernel": 0.02},  # as BERT
    # Radford 2018, 4.1: N(0, 0.02); 2019, 2.3: residual layers scaled by 1 / sqrt(N), N = 2 x 12.
    "gpt2:124m": {
        "query/kernel": 0.02, "mlp/up/kernel": 0.02, "positions/embedding": 0.02,
        "attention/out/kernel": 0.02 / 24**0.5, "mlp/down/kernel": 0.02 / 24**0.5,
    },
    # Mesh TensorFlow: query (d_model d_kv)^-0.5, others fan-in, embeddings 1.
    "t5:small": {
        "embed/embedding": 1.0, "query/kernel": (512 * 64) ** -0.5, "key/kernel": 512**-0.5,
        "attention/out/kernel": 512**-0.5, "mlp/up/kernel": 512**-0.5,
        "mlp/down/kernel": 2048**-0.5, "relative_bias/embedding": 512**-0.5,
    },
    # tensor2tensor: the table is width^-0.5 and scaled by width^0.5 as it is read.
    "transformer:base": {"embed/embedding": 512**-0.5},
}  # fmt: skip


AS_BERT = ("roberta:base", "electra:small")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in AS_BERT else c for c in STARTS]
)
def test_standard_deviations_at_the_start(case):
    m = load(case).model
    # As deep where depth counts, as wide where width does, and otherwise small.
    small = {"num_layers": 1} if m.init == "fan_in" else {"embed_dim": 192, "num_heads": 12}
    m.update(small | {"vocab_size": 64, "embedding_dim": 0})
    m = configs.resolve(m, 64)
    init = jax.jit(lambda: models.init_params(models.build(m), jax.random.key(0)))
    stds = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(x.std())
        for path, x in jax.tree_util.tree_leaves_with_path(init())
    }
    for end, expected in STARTS[case].items():
        found = [s for path, s in stds.items() if path.endswith(end) and "generator/" not in path]
        assert found, end
        for std in found:
            tolerance = 0.08 if "relative" in end else 0.02
            assert math.isclose(std, expected, rel_tol=tolerance), (end, std, expected)


def test_mixtral_balances_as_transformers_does():
    """router_balance is `router_aux_loss_coef` of the released config.json."""
    from transformers import MixtralConfig

    assert load("mixtral:8x7b").model.router_balance == 0.02  # Mixtral-8x7B-v0.1
    assert load("mixtral:8x22b").model.router_balance == MixtralConfig().router_aux_loss_coef
    assert load("switch:base-8").model.router_balance == 0.01  # Fedus 2021, equation 4
