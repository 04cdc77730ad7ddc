"""Two tiny runs: a byte-level GPT, and a text classifier decided by one word."""

import numpy as np
import pytest

from llm_jax import commands

WORDS = "the film was quite very a story of people and she he".split()


@pytest.fixture(scope="session")
def gpt(tmp_path_factory, text_file, overrides):
    """The folder of a trained decoder."""
    folder = tmp_path_factory.mktemp("audit") / "gpt"
    changes = {"model.max_length": 64, "model.num_layers": 2, "train.steps": 8,
               "data.validation_fraction": 0.3, "checkpoint.every": 8}  # fmt: skip
    keys = [f"--config.{x}" for x in overrides(changes)]
    assert commands.main(["train", f"--workdir={folder}", *keys]) == 0
    return folder


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """The folder of a trained classifier that is always right."""
    folder, rng = tmp_path_factory.mktemp("audit"), np.random.default_rng(0)

    def line(good):
        some = [str(x) for x in rng.choice(WORDS, rng.integers(3, 7))]
        some.insert(rng.integers(0, len(some) + 1), "fine" if good else "dull")
        return f"{' '.join(some)}\t{int(good)}"

    for name, count in (("train", 160), ("dev", 40)):
        rows = [line(i % 2) for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]))
    keys = {
        "data.train": folder / "train.tsv", "data.validation": folder / "dev.tsv",
        "tokenizer.name": "words", "model.max_length": 16, "model.embed_dim": 16,
        "model.num_heads": 2, "model.dropout": 0, "model.attention_dropout": 0,
        "model.head_dropout": 0, "train.steps": 60, "optimizer.learning_rate": 1e-2,
        "eval.every": 60, "data.batch_size": 16,
    }  # fmt: skip
    keys = [f"--config.{name}={value}" for name, value in keys.items()]
    recipe = "--config=configs/finetune/classify.py"
    assert commands.main(["train", recipe, f"--workdir={folder / 'run'}", *keys]) == 0
    return folder / "run"
