"""Tests that a Transformer encoder-decoder learns to reverse words, by greedy decoding."""

import jax
import numpy as np
import pytest

from llm_jax.config import base
from llm_jax.decode import generate
from llm_jax.train.loop import Trainer
from tests import making


class Silent:
    def start(self, facts, step, steps): ...
    def note(self, text): ...
    def progress(self, step, values): ...


@pytest.mark.slow
def test_reverses_words_it_has_not_seen(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 9))) for _ in range(6000)]
    words = sorted(set(words), key=words.index)
    for name, lines in (("in", words), ("out", [word[::-1] for word in words])):
        (tmp_path / name).write_text("\n".join(lines))
    c = base()
    c.data.train, c.data.validation_fraction = f"{tmp_path}/in,{tmp_path}/out", 0.05
    c.objective.name, c.tokenizer.name = "seq2seq", "chars"
    c.model.update({"kind": "encoder_decoder", "max_length": 40, "num_layers": 1})
    c.model.update({"embed_dim": 64, "num_heads": 4, "initializer_range": 0.1})
    c.data.batch_size = 32
    c.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 40, "b2": 0.99})
    c.train.update({"steps": 350, "log_every": 50})
    c.eval.every = 100
    c.checkpoint.every = 10_000
    trainer = Trainer(c, tmp_path / "run", Silent(), devices=jax.devices()[:1])
    trainer.run()
    
    pairs = [(doc["source"], doc["target"]) for doc in making.splits(c)["validation"]]
    tokenizer, eos = trainer.tokenizer, trainer.tokenizer.eos_id
    found = generate(
        trainer.setup.model,
        trainer.params(),
        [[tokenizer.bos_id]] * len(pairs),
        sources=[[*tokenizer.encode(source).tolist(), eos] for source, _ in pairs],
        max_new_tokens=12,
        eos_id=eos,
        temperature=0.0,
    )
    right = [tokenizer.decode(ids) == target for ids, (_, target) in zip(found, pairs, strict=True)]
    print(np.mean(right), len(right), trainer.metrics.last)
    assert all(right)
