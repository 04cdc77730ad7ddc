"""Tests that exported adapters in PEFT give the logits of the merged export."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from llm_jax import hub, models  # noqa: E402
from llm_jax.config import ConfigError  # noqa: E402
from llm_jax.hub import adapter  # noqa: E402
from tests.hub.test_hub import MODELS, make  # noqa: E402
from tests.slow import every  # noqa: E402

TOKENS = np.random.default_rng(0).integers(2, 19, (3, 9))
CLASSIFIES = {"head": "sequence", "num_labels": 3, "pooler": True}
CASES = {
    "gpt2": MODELS["gpt2"],
    "gpt2, a part of c_attn": MODELS["gpt2"] | {"lora_targets": ("query", "value", "down")},
    "gpt2, classifier": CLASSIFIES | {"pooler": False},
    "llama": MODELS["llama"] | {"head_dim": 4},
    "llama, tagger": MODELS["llama"] | {"head_dim": 4, "head": "token", "num_labels": 2},
    "bert, classifier": MODELS["bert"] | CLASSIFIES | {"lora_targets": ("down",)},
    "roberta, classifier": MODELS["roberta"] | CLASSIFIES | {"lora_targets": ("out", "up")},
    "albert, answers": MODELS["albert"] | {"head": "span", "pooler": False, "num_labels": 0},
    "bert, vectors": MODELS["bert"] | {"head": "none", "num_labels": 0},
    "distilbert": MODELS["distilbert"],
    "t5": MODELS["t5"] | {"head_dim": 4},
}


def outputs(model):
    inputs = {"input_ids": torch.tensor(TOKENS), "attention_mask": torch.ones(TOKENS.shape)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        return model.eval()(**inputs)[0].numpy()


def opened(folder):
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, name).from_pretrained(folder)
    model.config.pad_token_id = 1
    return model


@pytest.mark.parametrize("case", every(3, CASES))
def test_peft_makes_of_the_base_what_is_exported_merged(case, tmp_path):
    model, params = make(CASES[case] | {"lora_rank": 3, "lora_alpha": 2.0, "num_layers": 2})
    params = jax.tree.map(lambda x: 0.3 * x, params)
    family = case.partition(",")[0]
    paths = {path: x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    path = lambda keys: "/".join(key.key for key in keys)
    heads = {path(keys) for keys in paths if keys[0].key == model.head}
    trained = heads | {path(keys) for keys in paths if "_lora_" in path(keys)}
    plain, _ = models.merge(model, params)
    base = jax.tree_util.tree_map_with_path(
        lambda keys, x: 0 * x if path(keys) in heads else x, without_lora(params)
    )
    hub.save(plain, base, None, tmp_path / "base", family)
    hub.save(model, params, None, tmp_path / "merged", family)
    adapter.save(family, model, params, trained, tmp_path / "adapter", "base")

    found = peft.PeftModel.from_pretrained(opened(tmp_path / "base"), tmp_path / "adapter")
    kept = peft.get_peft_model_state_dict(found)
    assert kept.keys() == load_file(tmp_path / "adapter" / adapter.WEIGHTS).keys()
    expected = outputs(opened(tmp_path / "merged"))
    assert np.abs(outputs(opened(tmp_path / "base")) - expected).max() > 1e-2
    np.testing.assert_allclose(outputs(found), expected, atol=1e-4 * np.abs(expected).max())


def without_lora(tree):
    return {k: without_lora(x) if isinstance(x, dict) else x
            for k, x in tree.items() if "_lora_" not in k}  # fmt: skip


def test_what_is_no_adapter_is_refused(tmp_path):
    model, params = make({"lora_rank": 2})
    with pytest.raises(ConfigError, match="embed/embedding: trained in addition to LoRA"):
        adapter.save("gpt2", model, params, ["embed/embedding"], tmp_path / "to", "")
    model, params = make({})
    with pytest.raises(ConfigError, match="model.lora_rank=0: the run has no adapter"):
        adapter.save("gpt2", model, params, [], tmp_path / "to", "")
    assert not (tmp_path / "to").exists()
