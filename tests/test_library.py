"""Tests of llm_jax.load against transformers, and of the code in docs/library.md."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import llm_jax
from llm_jax.config import ConfigError

TEXT = (Path(__file__).parent.parent / "docs" / "library.md").read_text()
IDS = np.array([[5, 9, 2, 7, 11], [3, 4, 8, 0, 0]])
REAL = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SIZES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 16, "n_layer": 3, "n_head": 2}),
    "llama": (
        "LlamaConfig", "LlamaForCausalLM",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "bert": (
        "BertConfig", "BertForMaskedLM",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
         "num_attention_heads": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", SIZES)
def test_hidden_states_and_attention_weights_are_those_of_transformers(family, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, model, sizes = SIZES[family]
    config = getattr(transformers, config)(
        vocab_size=20, max_position_embeddings=8, attn_implementation="eager", **sizes
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, model)(config).eval()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        found = theirs(
            torch.tensor(IDS), attention_mask=torch.tensor(REAL), output_hidden_states=True,
            output_attentions=True,
        )  # fmt: skip
    lm = llm_jax.load(tmp_path)
    batch = {"tokens": IDS, "segment_ids": REAL}
    real = REAL.astype(bool)
    near = lambda ours, reference: np.testing.assert_allclose(ours, reference, atol=2e-5)
    near(np.asarray(lm.logits(batch))[real], found.logits.numpy()[real])
    ours = np.asarray(lm.hidden_states(batch))
    assert len(ours) == len(found.hidden_states) == 4
    for a, b in zip(ours, found.hidden_states, strict=True):
        near(a[real], b.numpy()[real])
    for a, b in zip(np.asarray(lm.attention_weights(batch)), found.attentions, strict=True):
        rows = lambda w: np.moveaxis(np.asarray(w), 1, 2)[real]  # of queries that are real
        near(rows(a), rows(b))


def test_a_kind_without_weights_says_so():
    from llm_jax import config as configs
    from llm_jax.library import Pretrained
    from tests.tiny_models import tiny_model

    model, params = tiny_model(attention="kda", num_kv_heads=0, positions="none")
    lm = Pretrained(configs.base(), model, params, None)
    with pytest.raises(ConfigError, match="kda"):
        lm.attention_weights({"tokens": IDS % 11})
    assert lm.hidden_states({"tokens": IDS % 11}).shape == (3, 2, 5, 16)


def test_layers_of_a_pattern_come_in_their_order():
    """The same layers as one kind and as two equal ones in turns, which lie otherwise."""
    from llm_jax import config as configs
    from llm_jax.library import Pretrained
    from tests.tiny_models import tiny_model

    (one, params), (two, _) = (
        tiny_model(num_layers=4, attention=kinds) for kinds in ("dense", "dense,blockwise")
    )
    block = params["decoder"]["stack"]["layers"]["block"]
    layers = {f"block_{i}": {k: jax.tree.map(lambda x: x[i::2], x) for k, x in block.items()}  # noqa: B023
              for i in range(2)}  # fmt: skip
    turned = params | {"decoder": params["decoder"] | {"stack": {"layers": layers}}}
    expected, found = (
        Pretrained(configs.base(), model, p, None).hidden_states({"tokens": IDS % 11})
        for model, p in ((one, params), (two, turned))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_either_side_has_states_of_its_own():
    from llm_jax import config as configs
    from llm_jax.library import Pretrained
    from tests.tiny_models import tiny_model

    model, params = tiny_model(kind="encoder_decoder", num_layers=1, num_decoder_layers=3)
    lm = Pretrained(configs.base(), model, params, None)
    batch = {"encoder_tokens": IDS % 11, "encoder_segment_ids": REAL, "tokens": IDS[:, :4] % 11}
    encoder, decoder = lm.hidden_states(batch, "encoder"), lm.hidden_states(batch, "decoder")
    assert encoder.shape == (2, 2, 5, 16) and decoder.shape == (4, 2, 4, 16)
    last = lm.outputs(batch)
    np.testing.assert_allclose(encoder[-1], last.encoded, atol=1e-5)
    np.testing.assert_allclose(decoder[-1], last.features, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("decoder", {"tokens": [257, 97, 98]}),
        ("encoder", {"tokens": [257, 97, 98, 258]}),
        ("encoder_decoder", {"encoder_tokens": [97, 98, 258], "tokens": [257, 99]}),
    ],
)
def test_texts_have_the_special_tokens_of_training(kind, read):
    """GPT's begin, BERT's [CLS] and [SEP], T5's end of a source; begin 257 and end 258 here."""
    from llm_jax.data.tokenizers import Bytes
    from llm_jax.library import Pretrained

    model = SimpleNamespace(cfg=SimpleNamespace(kind=kind, max_length=8))
    batch = Pretrained(None, model, None, Bytes()).batch(["ab"], ["c"])
    assert {name: x.tolist() for name, x in batch.items() if "tokens" in name} == {
        name: [ids] for name, ids in read.items()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    from llm_jax.train.loop import Trainer
    from tests.conftest import Silent

    folder = tmp_path_factory.mktemp("run") / "run"
    config = tiny({"train.steps": 2, "model.max_length": 32, "data.validation_fraction": 0.0,
                   "checkpoint.every": 1})  # fmt: skip
    Trainer(config, folder, Silent(), jax.devices()[:1]).run()
    return folder


def test_the_code_in_the_docs_runs(run):
    names = {"folder": run}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, names)  # noqa: S102
    T = names["batch"]["tokens"].shape[1]
    assert names["hidden"].shape == (3, 2, T, 16)
    assert names["weights"].shape == (2, 2, 4, T, T)
    assert isinstance(names["text"], str)
    first = names["lm"].params["decoder"]["final_norm"]["scale"]
    assert not np.array_equal(first, names["params"]["decoder"]["final_norm"]["scale"])


def test_a_step_is_the_checkpoint_of_that_step(run):
    first, last, newest = (llm_jax.load(run, step).params["embed"] for step in (1, 2, None))
    assert np.array_equal(last["embedding"], newest["embedding"])
    assert not np.array_equal(first["embedding"], newest["embedding"])


def test_padding_changes_nothing(run):
    lm = llm_jax.load(run)
    alone = lm.logits(lm.batch(["A dog"]))
    padded = lm.logits(lm.batch(["A dog", "a longer text than that"]))
    np.testing.assert_allclose(alone[0], padded[0, : alone.shape[1]], atol=1e-5)


def test_what_is_not_a_list_of_texts_or_says_no_words_is_refused(run):
    from llm_jax import config as configs
    from llm_jax.library import Pretrained
    from tests.tiny_models import tiny_model

    lm = llm_jax.load(run)
    for wrong in ("one text", []):
        with pytest.raises(ConfigError, match="a list of at least one text"):
            lm.batch(wrong)
    with pytest.raises(ConfigError, match="a list of prompts"):
        lm.generate("The cat")
    model, params = tiny_model(kind="encoder", head="sequence", num_labels=3)
    judge = Pretrained(configs.base(), model, params, None)
    with pytest.raises(ConfigError, match="heads has sequence"):
        judge.logits({"tokens": IDS % 11})
