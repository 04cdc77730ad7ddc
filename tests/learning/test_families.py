"""Tests that each family, tiny, learns real text far better than word counts."""

import jax
import numpy as np
import pytest

from llm_jax.config import base
from llm_jax.train.loop import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.data]


class Silent:
    def start(self, facts, step, steps): ...
    def note(self, text): ...
    def progress(self, step, values): ...


def _config(text, **model):
    c = base()
    c.data.train, c.tokenizer.name = str(text), "chars"
    c.model.update({"num_layers": 2, "embed_dim": 64, "num_heads": 4, "max_length": 64} | model)
    c.data.batch_size = 32
    c.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 40, "b2": 0.99})
    c.train.update({"steps": 300, "log_every": 100})
    c.eval.update({"every": 300, "max_batches": 20})
    c.checkpoint.every = 10_000
    return c


def _encoder(text, objective, **model):
    # Few tokens are predicted, and positions are learned: more and shorter rows, larger draws.
    c = _config(text, **{"kind": "encoder", "head": "mlm", "initializer_range": 0.1} | model)
    c.model.max_length, c.data.batch_size = 32, 64
    c.objective.name = objective
    return c


def _bert(text, objective="bert", **model):
    heads = {"head": "mlm,sequence", "pooler": True, "num_labels": 2, "type_vocab_size": 2}
    c = _encoder(text, objective, embed_norm=True, norm_place="post", **heads, **model)
    c.data.packing = "none"
    return c


def _t5(text):
    c = _config(
        text, kind="encoder_decoder", norm="rmsnorm", positions="relative", use_bias=False,
        activation="relu", attention_scale=1.0, init="fan_in", scale_output=True,
    )  # fmt: skip
    c.objective.name, c.train.steps = "span_corruption", 400
    return c


def _electra(text):
    # With learned positions the generator has only begun to learn after 400 steps: 0.92 of the
    # entropy with positions of its own, 0.90 with shared ones, 0.85 without the discriminator's
    # loss; 0.83 after 800. With rotary ones it is at 0.72 after 200.
    shape = {"generator_fraction": 0.5, "embed_norm": True, "positions": "rotary"}
    c = _encoder(text, "replaced_token_detection", **shape)
    c.model.head, c.train.steps = "detection", 200
    return c


LLAMA = {
    "norm": "rmsnorm",
    "activation": "swiglu",
    "positions": "rotary",
    "use_bias": False,
    "tie_embeddings": False,
    "num_kv_heads": 2,
    "mlp_dim": 160,
}
REFORMER = {
    "attention": "chunked,lsh",
    "window": 16,
    "lsh_chunk": 16,
    "lsh_hashes": 2,
    "reversible": True,
    "positions": "axial",
    "axial_shape": (8, 8),
    "axial_dims": (16, 48),
    "activation": "relu",
    "attention_bias": False,
    "output_bias": True,
    "tie_embeddings": False,
}
# Share of the entropy that a few hundred steps get below.
BELOW = {"gpt2": 0.75, "llama": 0.65, "reformer": 0.75, "bert": 0.85, "albert": 0.9, "t5": 0.97}
FAMILIES = {
    "gpt2": _config,
    "llama": lambda text: _config(text, **LLAMA),
    "reformer": lambda text: _config(text, **REFORMER),
    "bert": _bert,
    "albert": lambda text: _bert(text, "albert", share_layers=True, embedding_dim=32),
    "electra": _electra,
    "t5": _t5,
}


def _entropy(trainer):
    """Nats a target by the counts of the evaluation's targets, specials known for nothing."""
    counts = np.zeros(trainer.tokenizer.vocab_size)
    for batch in trainer.held_out:
        kind = "masked_" if "masked_targets" in batch else ""
        np.add.at(counts, batch[f"{kind}targets"], batch[f"{kind}weights"])
    ordinary = counts.copy()
    ordinary[list(trainer.tokenizer.specials.values())] = 0
    p = ordinary[ordinary > 0] / ordinary.sum()
    return -(p * np.log(p)).sum() * ordinary.sum() / counts.sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_shakespeare(family, shared_data, tmp_path):
    config = FAMILIES[family](shared_data / "tiny_shakespeare" / "input.txt")
    trainer = Trainer(config, tmp_path, Silent(), devices=jax.devices()[:1])
    trainer.run()
    last, entropy = trainer.metrics.last, _entropy(trainer)
    if family == "electra":
        assert last["eval_generator_loss"] < 0.8 * entropy
        p = last["eval_replaced"]
        assert last["eval_loss"] < 0.97 * -(p * np.log(p) + (1 - p) * np.log(1 - p))
    else:
        assert last["eval_loss"] < BELOW[family] * entropy
