"""Tests of Hugging Face folders written and read back, sharded, and invalid."""

import json
import math
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_jax import config as configs
from llm_jax import hub, models
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.hub.families import FAMILIES
from llm_jax.hub.family import plan, shapes_of, to_hf
from tests.slow import but, every

ENCODER = {
    "kind": "encoder", "norm_place": "post", "norm_epsilon": 1e-12, "embed_norm": True,
    "activation": "gelu",
}  # fmt: skip
MASKED = ENCODER | {"head": "mlm"}
PAIRS = {"head": "mlm,sequence", "pooler": True, "num_labels": 2, "type_vocab_size": 2}
RELATIVE = {"positions": "relative", "norm": "rmsnorm", "use_bias": False, "attention_scale": 1.0}
LLAMA = {"norm": "rmsnorm", "positions": "rotary", "use_bias": False, "activation": "swiglu",
         "num_kv_heads": 2, "head_dim": 6, "tie_embeddings": False}  # fmt: skip
LATENT = LLAMA | {"attention": "latent", "num_kv_heads": 4, "head_dim": 4, "latent_kv": 5,
                  "latent_rotary": 4, "rotary_interleaved": True,
                  "norm_epsilon": 1e-6}  # fmt: skip
DELTA = ("gated_deltanet num_heads=4 num_key_heads=2 head_dim=5 value_dim=7 short_conv=3 "
         "positions=none qk_norm=False")  # fmt: skip
MODELS = {  # but phi3, which has no model of its own
    "gpt2": {},
    "llama": LLAMA,
    "mistral": LLAMA | {"attention": "local", "window": 3},
    "mixtral": LLAMA | {"num_experts": 3},
    "qwen2": LLAMA | {"qkv_bias": True, "layers": "1 dense, 2 local", "window": 5},
    "qwen3": LLAMA | {"qk_norm": True},
    "olmo2": LLAMA | {"qk_norm": True, "qk_norm_joint": True, "norm_place": "reordered"},
    "gemma3_text": LLAMA | {
        "qk_norm": True, "norm_place": "sandwich", "norm_zero_centered": True,
        "scale_embeddings": True, "activation": "geglu_tanh", "rotary_base": 1e6,
        "layers": "2 local rotary_base=50.0 rotary_scaling=none, 1 dense", "num_layers": 4,
        "window": 5,
        "attention_scale": 0.2,
    },
    "gemma2": LLAMA | {
        "norm_place": "sandwich", "norm_zero_centered": True, "scale_embeddings": True,
        "activation": "geglu_tanh", "layers": "1 local, 1 dense", "window": 5,
        "attention_softcap": 5.0, "output_softcap": 3.0,
    },
    "olmo3": LLAMA | {
        "qk_norm": True, "qk_norm_joint": True, "norm_place": "reordered", "head_dim": 4,
        "layers": "2 local rotary_base=10000.0 rotary_scaling=none, 1 dense", "window": 5,
        "rotary_scaling": "yarn",
        "rotary_strength": 1.5,
    },
    "smollm3": LLAMA | {"head_dim": 4, "layers": "2 dense, 1 dense positions=none"},
    "qwen3_moe": LLAMA | {"qk_norm": True, "num_experts": 3,
                          "layers": "1 dense num_experts=0 mlp_dim=9, 2 dense"},
    "qwen3_next": LLAMA | {
        "qk_norm": True, "norm_zero_centered": True, "output_gate": True, "rotary_dim": 2,
        "num_experts": 3, "shared_experts": 2, "shared_gate": True,
        "layers": f"1 {DELTA}, 1 dense",
    },
    "gpt_oss": LLAMA | {
        "use_bias": True, "attention_sinks": True, "num_experts": 3, "expert_bias": True,
        "activation": "clamped_swiglu", "layers": "1 local, 1 dense", "window": 5,
        "rotary_scaling": "yarn", "rotary_truncate": False,
    },
    "deepseek_v3": LATENT | {
        "layers": "1 num_experts=0 mlp_dim=9, rest", "num_experts": 4, "shared_experts": 2,
        "latent_query": 6, "router_scores": "sigmoid", "router_bias": True, "router_scale": 2.0,
        "router_groups": 2, "router_top_groups": 1, "rotary_scaling": "yarn",
        "rotary_strength": 1.0, "attention_scale": 8**-0.5 * (0.1 * math.log(8.0) + 1) ** 2,
    },
    "deepseek_v2": LATENT | {"num_experts": 4, "shared_experts": 1, "router_normalized": False},
    "bert": ENCODER | PAIRS,
    "roberta": MASKED | {"position_offset": 2, "type_vocab_size": 1},
    "distilbert": MASKED,
    "electra": ENCODER | {"head": "detection", "embedding_dim": 10, "type_vocab_size": 2},
    "albert": ENCODER | PAIRS | {"embedding_dim": 10, "share_layers": True},
    "mamba2": {
        "attention": "mamba2", "feed_forward": False, "norm": "rmsnorm", "positions": "none",
        "use_bias": False, "head_dim": 5, "value_dim": 8, "num_key_heads": 2, "mlp_dim": 0,
        "short_conv": 4, "short_conv_bias": True,
    },
    "modernbert": {
        "kind": "encoder", "positions": "rotary", "embed_norm": True, "use_bias": False,
        "activation": "geglu", "head": "mlm", "num_layers": 4, "window": 4,
        "layers": "1 dense attention_norm=False, 2 local rotary_base=1000.0 rotary_scaling=none, "
                  "1 dense",
    },
    "t5": RELATIVE | {"kind": "encoder_decoder", "activation": "geglu_tanh",
                      "num_decoder_layers": 1, "tie_embeddings": False, "max_length": 512},
    "switch_transformers": RELATIVE | {
        "kind": "encoder_decoder", "activation": "relu", "num_layers": 4, "num_experts": 3,
        "experts_per_token": 1, "expert_every": 2, "expert_slots": 5, "scale_output": True,
    },
    "marian": {"kind": "encoder_decoder", "norm_place": "post", "positions": "sinusoidal",
               "activation": "relu", "scale_embeddings": True},
    "reformer": {"reversible": True, "attention_bias": False, "output_bias": True,
                 "tie_embeddings": False, "attention": "lsh,chunked,chunked", "lsh_buckets": (4,),
                 "positions": "axial", "axial_shape": (3, 4), "axial_dims": (6, 10)},
}  # fmt: skip


def make(changes, vocab_size=19):
    """A config and random parameters for it."""
    model = configs.base().model
    sizes = {"num_layers": 3, "embed_dim": 16, "num_heads": 4, "max_length": 12, "mlp_dim": 20}
    model.update(sizes | changes)
    model = configs.resolve(model, vocab_size)
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
    return model, jax.tree.map(draw, shapes_of(model))


QUICK = ("gpt2", "llama", "t5", "qwen3_next")


@pytest.fixture(scope="module", params=[
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS
])  # fmt: skip
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "hf"
    model, params = make(MODELS[request.param])
    hub.save(model, params, None, folder, shard_bytes=5_000)
    return request.param, model, params, folder


@pytest.fixture
def gpt2(tmp_path):
    """A folder, and a function to write its tensors anew."""
    model, params = make({})
    hub.save(model, params, None, tmp_path / "hf")
    folder = tmp_path / "hf"

    def rewrite(change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return rewrite


def about(folder, **changes):
    """Changes entries of config.json."""
    found = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(found))
    return folder


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip(saved):
    name, model, params, folder = saved
    assert (folder / "model.safetensors.index.json").exists()
    found, again, tokenizer = hub.load(folder)
    assert tokenizer is None
    same(again, params)
    assert hub.family_of(model) == name
    free = ("init", "scan", *["pooler_activation"] * (not model.pooler))
    assert {k: v for k, v in found.items() if k not in free} == {
        k: v for k, v in model.items() if k not in free
    }


def test_every_parameter_has_one_place(saved):
    name, model, params, _ = saved
    pieces = [piece for part in plan(FAMILIES[name], model).values() for piece in part]
    assert len({(p.path, p.index) for p in pieces}) == len(pieces)
    size = sum(int(np.prod(p.ours)) for p in pieces)
    assert size == sum(x.size for x in jax.tree.leaves(params))


def test_one_file_when_small(tmp_path):
    model, params = make({})
    hub.save(model, params, None, tmp_path / "hf")
    assert {p.name for p in (tmp_path / "hf").iterdir()} == {"config.json", "model.safetensors"}
    same(hub.load(tmp_path / "hf")[1], params)
    assert len({p.stat().st_mode for p in (tmp_path / "hf").iterdir()}) == 1


def test_bfloat16(tmp_path):
    import ml_dtypes

    model, params = make({})
    hub.save(model, params, None, tmp_path / "hf", dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    same(hub.load(tmp_path / "hf")[1], rounded)


def test_wrong_tensors_are_all_named_at_once(gpt2):
    def change(tensors):
        tensors["transformer.h.1.ln_1.scale"] = tensors.pop("transformer.h.1.ln_1.weight")
        tensors["transformer.wpe.weight"] = np.zeros((11, 16), np.float32)
        tensors["transformer.ln_f.bias"] = np.zeros(16, np.int32)

    with pytest.raises(ConfigError) as error:
        hub.load(gpt2(change))
    text = str(error.value)
    assert "missing: transformer.h.1.ln_1.weight" in text
    assert "unexpected: transformer.h.1.ln_1.scale" in text
    assert "transformer.wpe.weight is (11, 16), but (12, 16) by config.json" in text
    assert "not floating-point: transformer.ln_f.bias is I32" in text


def test_wrong_tensors_are_named_as_their_file_does(tmp_path):
    model, params = make(ENCODER | {"head": "none", "type_vocab_size": 2})
    hub.save(model, params, None, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["embeddings.LayerNorm.extra"] = tensors.pop("embeddings.LayerNorm.weight")
    save_file(tensors, file)
    with pytest.raises(ConfigError) as error:
        hub.load(tmp_path / "hf")
    assert "missing: embeddings.LayerNorm.weight" in str(error.value)
    assert "unexpected: embeddings.LayerNorm.extra" in str(error.value)


def test_harmless_extras_and_true_copies(gpt2):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 12, 12), np.uint8)
        tensors["transformer.h.0.attn.masked_bias"] = np.array(-1e4, np.float32)

    same(hub.load(gpt2(change))[1], make({})[1])


def test_a_copy_that_differs(gpt2):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1

    with pytest.raises(ConfigError, match="not tied: lm_head.weight differs from transformer.wte"):
        hub.load(gpt2(change))


def test_a_copy_stands_in_for_the_original(gpt2):
    def change(tensors):
        tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")

    same(hub.load(gpt2(change))[1], make({})[1])


def test_without_prefix_and_with_old_names(gpt2):
    def change(tensors):
        for name in list(tensors):
            new = name.removeprefix("transformer.")
            if ".ln_1." in new:
                new = new.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[new] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    same(hub.load(gpt2(change))[1], make({})[1])


@pytest.mark.parametrize(
    "changes, head, pooler, classes",
    [
        (PAIRS, "mlm,sequence", True, 2),
        ({"head": "mlm", "type_vocab_size": 2}, "mlm", False, 0),
        ({"head": "none", "type_vocab_size": 2, "pooler": True}, "none", True, 0),
        ({"head": "none", "type_vocab_size": 2}, "none", False, 0),
    ],
)
def test_heads_are_those_in_the_file(changes, head, pooler, classes, tmp_path):
    model, params = make(ENCODER | changes)
    hub.save(model, params, None, tmp_path / "hf")
    found, again, _ = hub.load(tmp_path / "hf")
    assert (found.head, found.pooler, found.num_labels) == (head, pooler, classes)
    same(again, params)
    bare = not any("bert." in name for name in load_file(tmp_path / "hf" / "model.safetensors"))
    assert bare == (head == "none")


def test_marian_has_an_output_bias_where_it_is_not_zero(tmp_path):
    model, params = make(MODELS["marian"] | {"output_bias": True})
    hub.save(model, params, None, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    assert tensors["final_logits_bias"].shape == (1, 19)
    found, again, _ = hub.load(tmp_path / "hf")
    assert found.output_bias
    same(again, params)
    save_file(tensors | {"final_logits_bias": np.zeros((1, 19), np.float32)}, file)
    assert not hub.load(tmp_path / "hf")[0].output_bias


@pytest.mark.parametrize(
    "name, changes",
    every(3, [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("reformer", {"lsh_num_chunks_before": 2}),
        ("reformer", {"local_num_chunks_after": 1}),
        ("gpt2", {"activation_function": "mish"}),
        ("gpt2", {"add_cross_attention": True}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"hidden_act": "quick_gelu"}),
        ("bert", {"is_decoder": True}),
        ("roberta", {"hidden_act": "relu"}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}),
        ("llama", {"attention_bias": True}),
        ("llama", {"quantization_config": {"bits": 4}}),
        ("albert", {"num_hidden_groups": 2}),
        ("albert", {"embedding_size": 16}),
        ("marian", {"decoder_ffn_dim": 24}),
        ("marian", {"normalize_before": True}),
        ("t5", {"feed_forward_proj": "gated-mish"}),
        ("gpt2", {"model_type": "gptj"}),
        ("gpt2", {"n_layer": "three"}),
    ]),
)
def test_configs_that_cannot_be_expressed(name, changes, tmp_path):
    model, params = make(MODELS[name])
    hub.save(model, params, None, tmp_path / "hf")
    with pytest.raises(ConfigError) as error:
        hub.load(about(tmp_path / "hf", **changes))
    text = str(error.value)
    key, value = next(iter(changes.items()))
    if isinstance(value, dict) and "rope" in key:
        key, value = "rope_type", value.get("type", value.get("rope_type"))
    assert key in text and str(value) in text


def test_heads_that_are_rotated_in_part(tmp_path):
    model, params = make(MODELS["llama"])
    hub.save(model, params, None, tmp_path / "hf")
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError, match="partial_rotary_factor=0.5"):
        hub.load(about(tmp_path / "hf", rope_parameters=rope))


def test_an_epsilon_that_a_family_cannot_say(tmp_path):
    """DistilBERT's config.json has none: transformers would take its own."""
    model, params = make(MODELS["distilbert"] | {"norm_epsilon": 1e-3})
    with pytest.raises(ConfigError, match="model.norm_epsilon=0.001"):
        hub.save(model, params, None, tmp_path / "hf", "distilbert")


def test_llama3_frequencies_other_than_published(tmp_path):
    model, params = make(MODELS["llama"] | {"rotary_scaling": "llama3"})
    hub.save(model, params, None, tmp_path / "hf")
    rope = json.loads((tmp_path / "hf" / "config.json").read_text())["rope_parameters"]
    assert (rope["low_freq_factor"], rope["high_freq_factor"]) == (1.0, 4.0)
    with pytest.raises(ConfigError, match="high_freq_factor=8"):
        hub.load(about(tmp_path / "hf", rope_parameters=rope | {"high_freq_factor": 8.0}))


@pytest.mark.parametrize(
    "family, changes, key",
    [
        ("gpt2", {"positions": "alibi"}, "model.positions='alibi'"),
        ("gpt2", {"use_bias": False}, "cannot express the param|use_bias"),
        ("gpt2", {"num_kv_heads": 2}, "model.num_kv_heads=2"),
        ("gpt2", {"kind": "encoder"}, "kind"),
        ("llama", {"num_experts": 2}, "model.num_experts=2"),
        *(
            pytest.param(
                family, changes, re.escape("model.{}={!r}".format(*next(iter(changes.items())))),
                marks=[pytest.mark.slow] * (family == "gpt2" or i % 3 > 0),
            )
            for family in ("gpt2", "llama")
            for i, changes in enumerate((
                {"attention": "local"},
                {"attention": "dense,local"},
                {"attention": "sigmoid"},
                {"attention": "latent", "num_kv_heads": 4, "latent_kv": 8, "latent_rotary": 2},
                {"attention_sinks": True},
                {"attention_softcap": 30.0},
                {"attention_scale": 0.5},
                {"qk_norm": True},
                {"output_gate": True},
                {"router_z": 0.1, "num_experts": 2},
            ))
        ),
    ],
)
def test_models_that_no_family_has(family, changes, key, tmp_path):
    """Or, of LLaMA's relatives, not the one that is named."""
    model, params = make(MODELS[family] | changes)
    relatives = {"attention=local": "mistral", "attention=dense,local": "smollm3",
                 "num_experts=2": "mixtral", "qk_norm=True": "qwen3"}  # fmt: skip
    relative = relatives.get(",".join(f"{k}={v}" for k, v in changes.items()))
    relative = relative if family == "llama" else None
    if relative:
        assert hub.family_of(model) == relative
    for named in (family,) if relative else (None, family):
        with pytest.raises(ConfigError, match=key):
            hub.save(model, params, None, tmp_path / "hf", named)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("family", but(["llama"], ["gpt2", "llama"]))
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "flash"},
        {"attention": "blockwise", "window": 3, "latent_kv": 8, "lsh_hashes": 2, "stride": 2},
        {"attention": "dense,flash,blockwise", "experts_per_token": 1, "router_z": 0.1},
    ],
)
def test_exact_attention_by_another_route_is_saved_as_itself(family, changes, tmp_path):
    model, params = make(MODELS[family] | changes)
    assert hub.save(model, params, None, tmp_path / "hf") == family
    found, again, _ = hub.load(tmp_path / "hf")
    batch = {"tokens": np.arange(12)[None]}
    run = lambda model, params: models.build(model).apply({"params": params}, batch)
    ours, theirs = models.logits(run(model, params)), models.logits(run(found, again))
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())


def test_family_by_name(tmp_path):
    model, params = make(MASKED | {"type_vocab_size": 2})
    assert hub.family_of(model) == "bert"
    assert hub.save(model, params, None, tmp_path / "a", "electra") == "electra"
    same(hub.load(tmp_path / "a")[1], params)
    with pytest.raises(ConfigError, match="^albert cannot express this model"):
        hub.save(model, params, None, tmp_path / "b", "albert")


def test_routes_to_the_same_numbers_are_no_difference():
    model, _ = make({"remat": "full", "scan": False, "dtype": "bfloat16", "dropout": 0.3})
    assert hub.family_of(model) == "gpt2"
    assert to_hf(FAMILIES["gpt2"], model)["resid_pdrop"] == 0.3


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_pickles_are_refused(name, tmp_path):
    model, params = make({})
    hub.save(model, params, None, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / name)
    with pytest.raises(ConfigError, match="safetensors only.*save_pretrained"):
        hub.load(tmp_path / "hf")


def test_broken_folders(saved, tmp_path):
    _, _, _, folder = saved
    with pytest.raises(ConfigError, match="no such folder"):
        hub.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no config.json"):
        hub.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        hub.load(tmp_path)
    for file in folder.iterdir():
        if "00001-of" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="model-00001-of"):
        hub.load(tmp_path)
    first = next(folder.glob("model-00001-of*"))
    (tmp_path / first.name).write_bytes(first.read_bytes()[:100])
    with pytest.raises(ConfigError, match="not a readable safetensors"):
        hub.load(tmp_path)


def test_an_index_may_not_point_elsewhere(saved, tmp_path):
    _, _, _, folder = saved
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../" + folder.name + "/x.safetensors"}}))
    with pytest.raises(ConfigError, match="missing files"):
        hub.load(tmp_path)


def test_a_full_folder_is_left_alone(tmp_path):
    model, params = make({})
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="not empty"):
        hub.save(model, params, None, tmp_path)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "sentencepiece"])
def test_tokenizers_come_back(kind, tmp_path):
    text = ["the cat sat on the mat and the dog sat on the cat " * 3] * 20
    path = ""
    if kind == "sentencepiece":
        import io

        import sentencepiece

        buffer = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=buffer, vocab_size=17, minloglevel=2
        )
        (tmp_path / "x.model").write_bytes(buffer.getvalue())
        path = str(tmp_path / "x.model")
    c = configs.ConfigDict({"name": kind, "vocab_size": 60, "specials": (), "path": path})
    tokenizer = tokenizers.build(c, text)
    model, params = make({}, tokenizer.vocab_size)
    hub.save(model, params, tokenizer, tmp_path / "hf")
    again = hub.load(tmp_path / "hf")[2]
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert again.encode("the mat").tolist() == tokenizer.encode("the mat").tolist()
    found = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert found["eos_token_id"] == tokenizer.eos_id
    if kind == "sentencepiece":
        assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == buffer.getvalue()


@pytest.mark.parametrize("broken", ["", "scales"])
def test_mxfp4(broken, tmp_path):
    """As transformers undoes it; scales of another shape are refused by name."""
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    model, params = make(MODELS["gpt_oss"] | {"embed_dim": 32, "mlp_dim": 32, "num_layers": 2})
    hub.save(model, params, None, tmp_path)
    file, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    tensors, expected = load_file(file), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16)).astype(np.uint8)
        scales = rng.integers(120, 130, blocks.shape[:-1]).astype(np.uint8)
        as_torch = torch.tensor(blocks), torch.tensor(scales)
        undone = mxfp4.convert_moe_packed_tensors(*as_torch, dtype=torch.float32)
        expected[name] = undone.numpy()
        scales = scales[:, 1:] if broken else scales
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, file)
    about(tmp_path, quantization_config={"quant_method": "mxfp4"})
    if broken:
        with pytest.raises(ConfigError, match="shape mismatch: .*experts.gate_up_proj"):
            hub.load(tmp_path)
        return
    block = hub.load(tmp_path)[1]["decoder"]["stack"]["layers"]
    for i in range(2):
        found, name = block[f"block_{i}"]["mlp"], f"model.layers.{i}.mlp.experts."
        for part, at in (("gate", 0), ("up", 1)):
            both = expected[f"{name}gate_up_proj"]
            np.testing.assert_array_equal(found[part][0], both[..., at::2])
        np.testing.assert_array_equal(found["down"][0], expected[f"{name}down_proj"])
