"""Tests of every family against PyTorch: outputs, gradients, training, round trip."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # noqa: E402
import transformers  # noqa: E402

from llm_jax import decode, hub, models  # noqa: E402
from tests import parity as measure  # noqa: E402
from tests.slow import but  # noqa: E402

# One of each way to build a model; the others, and second sizes, are slow.
COMPARED = ("gpt2-b", "bert-a", "t5-v1.1-a", "llama-gqa", "albert-a", "gpt-oss", "deepseek-v3",
            "mamba2-a", "modernbert-a")  # fmt: skip


@pytest.mark.parametrize("name", but(COMPARED, measure.CASES))
def test_same_model_as_the_reference(name, tmp_path):
    found = measure.compare(name, tmp_path)
    outputs = ("loss", "logits", "features", "encoded", "pooled", "sequence")
    differences = {k: found[k] for k in outputs if k in found}
    assert differences.keys() >= {"loss", "features"}
    assert max(differences.values()) < 1e-4, differences
    assert found["gradient"] < 1e-3, found["worst_gradient"]
    assert found["round_trip"]


NEW = ("mistral-a", "mixtral", "qwen2-windows", "qwen3-a", "olmo2-a", "gemma3-a", "gpt-oss",
       "deepseek-v3")  # fmt: skip
LATER = ("gemma2-a", "olmo3-a", "smollm3-a", "phi3-a", "qwen3-moe", "deepseek-v2", "mamba2-a",
         "qwen3-next")  # fmt: skip

# One of each family; experiments/parity/run.py trains them all.
TRAINED = [name for name in measure.TRAINED if name not in ("electra-generator-a", "t5-v1.0-a")]
# Of outputs and gradients all are held above; what AdamW makes of them, by one of each kind.
QUICK = ("gpt2-a",)
TRAINED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED
]


@pytest.mark.parametrize("name", TRAINED)
def test_same_losses_over_many_steps(name, tmp_path):
    ours, theirs = measure.train(name, tmp_path, 30)
    each = theirs.reshape(-1, measure.BATCHES)
    assert (each[-1] < each[0]).all()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_reformer_takes_the_same_first_steps(tmp_path):
    np.testing.assert_allclose(
        *measure.train("reformer-local-a", tmp_path / "local", 10), rtol=0, atol=1e-5
    )
    ours, theirs, other = measure.train_hashed("reformer-lsh-a", tmp_path / "lsh", 10)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert not other.any()


@pytest.mark.parametrize(
    "name", but(("gpt2-b", "gemma3-a"), ("gpt2-b", "llama-gqa", *NEW, *LATER))
)
def test_same_greedy_continuations(name, tmp_path):
    theirs = measure.reference(measure.CASES[name])
    theirs.save_pretrained(tmp_path)
    model, params, _ = hub.load(tmp_path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, model.vocab_size, n).tolist() for n in (9, 1, 6)]
    ours = decode.generate(models.build(model), params, prompts, max_new_tokens=12, temperature=0)
    for prompt, row in zip(prompts, ours, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert row == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["t5-v1.1-a", "marian-a", "switch"])
def test_same_greedy_answers(name, tmp_path):
    case = measure.CASES[name]
    theirs = measure.reference(case)
    theirs.save_pretrained(tmp_path)
    model, params, _ = hub.load(tmp_path)
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, model.vocab_size, n).tolist() for n in (9, 2, 6)]
    start = case.config["decoder_start_token_id"]
    ours = decode.generate(
        models.build(model), params, [[start]] * 3, sources=sources, max_new_tokens=8, temperature=0
    )
    for source, row in zip(sources, ours, strict=True):
        expected = theirs.generate(
            torch.tensor([source]), attention_mask=torch.ones((1, len(source)), dtype=torch.long),
            max_new_tokens=8, do_sample=False, eos_token_id=None, forced_eos_token_id=None,
            bad_words_ids=None,
        )  # fmt: skip
        assert row == expected[0, 1:].tolist()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 300.0, "rope_scaling": None},
        {"rope_theta": 500.0, "rope_scaling": {
            k: v for k, v in measure.LLAMA3.items() if k != "rope_theta"}},
    ],
)  # fmt: skip
def test_rope_as_it_was_written_before_transformers_5(rope, tmp_path):
    case = measure.CASES["llama-a"]
    theirs = measure.reference(case)
    theirs.save_pretrained(tmp_path)
    about = hub.files.read_json(tmp_path / "config.json")
    del about["rope_parameters"]
    hub.files.write_json(tmp_path / "config.json", about | rope)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    model, params, _ = hub.load(tmp_path)
    inputs, ours = measure.batch(case, model)
    outputs = jax.jit(models.build(model).apply)({"params": params}, ours)
    expected = theirs(**inputs, output_hidden_states=True).hidden_states[-1].detach().numpy()
    real = ours["segment_ids"] > 0
    np.testing.assert_allclose(outputs.features[real], expected[real], rtol=1e-4, atol=1e-4)
