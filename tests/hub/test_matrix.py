"""Tests of transformers folders with one setting varied at a time: same model, or a named error.

Each family has a tiny model with random weights. `python -m pytest -m slow` tests more values.
"""

import json
import logging
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file as load_torch  # noqa: E402
from safetensors.torch import save_file as save_torch  # noqa: E402

from llm_jax import hub, models  # noqa: E402
from llm_jax.config import ConfigError  # noqa: E402
from llm_jax.hub import family  # noqa: E402
from tests import parity  # noqa: E402

CASES = {
    "gpt2": "gpt2-a", "llama": "llama-gqa", "bert": "bert-a", "roberta": "roberta-a",
    "distilbert": "distilbert-a", "electra": "electra-a", "albert": "albert-a",
    "t5-1.0": "t5-v1.0-a", "t5-1.1": "t5-v1.1-a", "marian": "marian-a",
    "reformer": "reformer-lsh-a", "gemma2": "gemma2-a", "olmo3": "olmo3-a",
    "smollm3": "smollm3-a", "phi3": "phi3-a", "qwen3_moe": "qwen3-moe", "qwen3_next": "qwen3-next",
    "gpt_oss": "gpt-oss",
    "deepseek_v2": "deepseek-v2-groups", "deepseek_v3": "deepseek-v3", "switch": "switch",
    "modernbert": "modernbert-a", "mamba2": "mamba2-a",
}  # fmt: skip
SCORES = ("logits", "prediction_logits", "seq_relationship_logits", "sop_logits")
# Not of the model: the hashes that parity.rotations_of follows, and how outputs are handed over.
APART = {"model_type", "architectures", "hash_seed", "return_dict"}
CHANGED = {  # by the type of what an entry says
    bool: lambda x: [not x],
    int: lambda x: [x + 1 if x % 2 else x - 1, 0, "three", 2.5],
    float: lambda x: [0.37, "x", [x]],
    str: lambda x: ["gelu", "relu", "silu", "gelu_fast", "gelu_new", "mish", 5],
    type(None): lambda x: [3, True, {"a": 1}],
    list: lambda x: [[], x + x[:1], x[:-1], 3],
    tuple: lambda x: [[], list(x) + list(x[:1]), 3],
    dict: lambda x: [3, []],
}


class Folder:
    """One family's folder, and what both sides make of it."""

    def __init__(self, name, path):
        self.name, self.path, self.case = name, path, parity.CASES[CASES[name]]
        self.reference = parity.reference(self.case)
        self.reference.save_pretrained(path)
        self.about = json.loads((path / "config.json").read_text())
        self.model, self.params, _ = hub.load(path)
        self.inputs, self.batch = parity.batch(self.case, self.model)
        for label in ("labels", "next_sentence_label", "sentence_order_label"):
            self.inputs.pop(label, None)
        self.computed = {}

    def ours(self):
        """Scores of the folder as it is now; those of an equal config are computed once."""
        model, params, _ = hub.load(self.path)
        key = model.to_json(sort_keys=True)
        if key not in self.computed:
            model.scan = False
            with parity.rotations_of(self.case.config.get("hash_seed")):
                outputs = models.build(model).apply({"params": params}, self.batch)
            scores = [] if outputs.matrix is None else [models.logits(outputs)]
            scores += [x for name, x in outputs.heads.items() if name in ("detection", "sequence")]
            self.computed[key] = [np.asarray(x) for x in scores]
        return self.computed[key]

    def theirs(self):
        """Scores by transformers; ValueError where it finds the weights wanting."""
        key = type(self.reference.config).from_pretrained(self.path).to_json_string(use_diff=False)
        if key in self.computed:
            return self.computed[key]
        model, info = type(self.reference).from_pretrained(
            self.path, attn_implementation="eager", output_loading_info=True
        )
        if any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            raise ValueError(info)
        with torch.no_grad():
            out = model.eval()(**self.inputs)
        self.computed[key] = [out[name].numpy() for name in SCORES if name in out]
        return self.computed[key]

    @staticmethod
    def names(error, key):
        """Does an error name the entry of config.json, or the tensors of another size?"""
        return key in str(error) or "of its tensors" in str(error)

    def compare(self, **changes):
        """Writes config.json with changes (DELETE: without); returns what came of it."""
        about = {k: v for k, v in (self.about | changes).items() if v is not DELETE}
        (self.path / "config.json").write_text(json.dumps(about))
        try:
            ours = self.ours()
        except ConfigError as error:
            return "refused" if self.names(error, *changes) else f"refused: {error}"
        try:
            theirs = self.theirs()
        except Exception:  # whatever transformers raises: there is nothing to be equal to
            return "no reference"
        real = self.batch["segment_ids"] > 0
        pick = lambda x: x[real] if x.shape[:2] == real.shape else x
        worst = max(
            np.abs(pick(a) - pick(b)).max() / max(np.abs(b).max(), 1)
            for a, b in zip(ours, theirs, strict=True)
        )
        return "equal" if worst < 1e-4 else f"differs by {worst}"


DELETE = object()
GOOD = {"equal", "refused", "no reference"}


QUICK = ("gpt2",)


@pytest.fixture(scope="module", params=[
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES
])  # fmt: skip
def folder(request, tmp_path_factory):
    logging.getLogger("llm_jax").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return Folder(request.param, tmp_path_factory.mktemp("hf"))


@pytest.fixture
def fresh(folder):
    """The folder as transformers wrote it."""
    for path in folder.path.iterdir():
        path.unlink()
    folder.reference.save_pretrained(folder.path)
    return folder


def test_what_is_left_out_is_the_familys_own_default(fresh):
    found = {key: fresh.compare(**{key: DELETE}) for key in fresh.about.keys() - APART}
    wrong = {k: v for k, v in found.items() if v not in GOOD}
    assert wrong == {}
    assert list(found.values()).count("equal") > len(found) / 3


WITH = {  # what the defaults of transformers lack
    "reformer": {"is_decoder": True},
    "switch_transformers": {"num_sparse_encoder_layers": 12, "num_sparse_decoder_layers": 12},
}


@pytest.mark.parametrize("name", hub.FAMILIES)
def test_a_config_that_says_nothing_is_transformers_default_in_every_key(name):
    """Also in those that an evaluation does not show, such as dropout."""
    told = {"model_type": name} | WITH.get(name, {})
    theirs = transformers.AutoConfig.for_model(**told).to_dict()
    model = lambda about: family.to_model(hub.families.get(name), about, ()).to_dict()
    assert model(dict(told)) == model(json.loads(json.dumps(theirs, default=str)) | told)


@pytest.mark.parametrize("told", [{"hidden_size": 128}, {"embedding_size": 4096}])
def test_a_default_of_albert_equals_what_is_told(told):
    """Its tables are 128 wide and its layers 4096, where config.json does not tell."""
    with pytest.raises(ConfigError, match="embedding_size=.* equals hidden_size"):
        family.to_model(hub.families.get("albert"), {"model_type": "albert"} | told, ())


@pytest.mark.slow
def test_any_value_is_read_as_transformers_reads_it_or_refused(fresh):
    said = fresh.reference.config.to_dict()
    cells = [(k, v) for k in said.keys() - APART for v in CHANGED[type(said[k])](said[k])]
    cells += [(k, None) for k in fresh.about.keys() - APART]
    found = {f"{k}={v!r}": fresh.compare(**{k: v}) for k, v in cells}
    assert {k: v for k, v in found.items() if v not in GOOD} == {}


def test_sizes_beyond_reason_are_refused_at_once(fresh):
    sizes = [k for k, v in fresh.about.items() if type(v) is int and not k.endswith("_token_id")]
    began = time.process_time()
    for key in sizes:
        for value in (10**6, 10**9, 10**18):
            (fresh.path / "config.json").write_text(json.dumps(fresh.about | {key: value}))
            try:
                params = hub.load(fresh.path)[1]
            except ConfigError as error:
                assert fresh.names(error, key)
            else:  # what shapes no parameter, as a length where positions are rotary
                jax.tree.map(np.testing.assert_array_equal, params, fresh.params)
    assert time.process_time() - began < 20


def cast(dtype):
    """Weights kept in another type."""
    return lambda tensors: {k: v.to(dtype) for k, v in tensors.items()}


def rounded(x, dtype):
    return torch.tensor(x).to(dtype).float().numpy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types(fresh, dtype):
    file = fresh.path / "model.safetensors"
    save_torch(cast(dtype)(load_torch(file)), file)
    found = hub.load(fresh.path)[1]
    expected = jax.tree.map(lambda x: rounded(np.array(x), dtype), fresh.params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_shards_tied_copies_and_bare_names(fresh):
    """Ways in which transformers itself writes the same weights."""
    file, index = fresh.path / "model.safetensors", fresh.path / "model.safetensors.index.json"
    whole, expected = load_file(file), fresh.theirs()
    fresh.reference.save_pretrained(fresh.path, max_shard_size="10KB")
    assert index.exists()
    again = lambda: jax.tree.map(
        np.testing.assert_array_equal, hub.load(fresh.path)[1], fresh.params
    )
    again()
    # Where a whole file lies beside an index, transformers reads the file.
    for shard in set(json.loads(index.read_text())["weight_map"].values()):
        stale = load_file(fresh.path / shard)
        save_file({k: v + 1 for k, v in stale.items()}, fresh.path / shard)
    save_file(whole, file, {"format": "pt"})
    again()
    fresh.computed.clear()
    np.testing.assert_allclose(fresh.theirs()[0], expected[0], atol=1e-6)
    state, copies = fresh.reference.state_dict(), fresh.reference.all_tied_weights_keys
    tied = {k: np.array(state[k].detach()) for k in copies}
    save_file(whole | tied, file, {"format": "pt"})
    again()
    prefix = fresh.reference.base_model_prefix + "."
    if any(k.startswith(prefix) for k in whole):
        save_file({k.removeprefix(prefix): v for k, v in whole.items()}, file, {"format": "pt"})
        again()


def test_damaged_weight_files_are_refused_by_name(fresh):
    file, index = fresh.path / "model.safetensors", fresh.path / "model.safetensors.index.json"
    whole, content = load_file(file), file.read_bytes()
    last = next(name for name in whole if ".0." in name and whole[name].ndim == 2)

    def refused(*words):
        with pytest.raises(ConfigError) as error:
            hub.load(fresh.path)
        assert all(word in str(error.value) for word in words), error.value

    for damaged in (b"", content[:7], content[: len(content) // 2], content[:-1], b"x" * 4000):
        file.write_bytes(damaged)
        refused("model.safetensors", "not a readable")
    save_file({k: v for k, v in whole.items() if k != last}, file)
    refused("missing", last.split(".")[-2])
    save_file(whole | {"other.weight": whole[last]}, file)
    refused("unexpected", "other.weight")
    save_file(whole | {last: whole[last].astype(np.int32)}, file)
    refused("not floating-point", "I32")
    save_file(whole | {last: whole[last][:-1]}, file)
    refused("shape mismatch", str(whole[last].shape[0]))
    file.unlink()
    refused("no model.safetensors")
    for weight_map in ({}, [], {"a": 3}, {last: "model-00001-of-00002.safetensors"}, {"a": "../x"}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(index.name)
    index.unlink()
    for name, words in PICKLES.items():
        (fresh.path / name).write_bytes(b"")
        refused(name, *words)
        (fresh.path / name).unlink()


PICKLES = {
    "pytorch_model.bin": ("PyTorch and transformers:", ".from_pretrained("),
    "pytorch_model-00001-of-00002.bin": ("PyTorch and transformers:",),
    "tf_model.h5": ("transformers<5", "from_tf=True"),
    "flax_model.msgpack": ("transformers<5", "from_flax=True"),
    "consolidated.00.pth": ("rename", ".from_pretrained("),
}


def test_the_advice_on_pickles_works(fresh, tmp_path):
    """What the refusal of a pytorch_model.bin prints is run as it stands."""
    file = fresh.path / "model.safetensors"
    torch.save(load_torch(file), fresh.path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(ConfigError) as error:
        hub.load(fresh.path)
    code = str(error.value).partition("transformers: ")[2]
    exec(code.replace("NEW_FOLDER", repr(str(tmp_path))))
    jax.tree.map(np.testing.assert_array_equal, hub.load(tmp_path)[1], fresh.params)
