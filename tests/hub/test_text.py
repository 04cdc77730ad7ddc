"""Tests that exported tokenizers give the same ids in transformers."""

import io
import json

import jax
import pytest

from llm_jax import config as configs
from llm_jax import hub, models
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.decode import complete
from tests.hub.test_hub import MODELS, make

TEXT = ["the cat sat on the mat and the dog sat on the cat", "a dog, a mat; the end"] * 20
SENTINELS = ("<extra_id_0>", "<extra_id_1>")
NEW = 6


def tamed(path, x):
    """Small biases, scales near 1: what is written depends on what was read."""
    name = path[-1].key
    return 1 + 0.1 * x if name == "scale" else (0.1 if name == "bias" else 0.6) * x


def export(folder, family, kind="bpe", specials=(), changes=None, path=""):
    """A tiny random model and its tokenizer, exported: (model, parameters, tokenizer)."""
    c = configs.ConfigDict({"name": kind, "vocab_size": 290, "specials": specials, "path": path})
    tokenizer = tokenizers.build(c, TEXT)
    size = {"max_length": 64} if MODELS[family].get("positions") != "axial" else {}
    model, params = make(MODELS[family] | size | (changes or {}), tokenizer.vocab_size)
    params = jax.tree_util.tree_map_with_path(tamed, params)
    assert hub.save(model, params, tokenizer, folder, family) == family
    return models.build(model), params, tokenizer


def ids_of(folder, text):
    """What transformers' tokenizer makes of a text."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


# Each family and each kind once; the other pairs are slow.
QUICK = {"t5": "bpe", "marian": "wordpiece", "gpt2": "bytes", "llama": "bpe"}
PAIRS = [
    pytest.param(family, kind, marks=() if kind == quick else pytest.mark.slow)
    for family, quick in QUICK.items() for kind in ("bpe", "wordpiece", "bytes")
]  # fmt: skip


@pytest.mark.parametrize("family, kind", PAIRS)
def test_the_same_text_gives_the_same_ids(family, kind, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    decoder = family in ("gpt2", "llama")
    specials = () if decoder else SENTINELS
    model, params, tokenizer = export(tmp_path / "hf", family, kind, specials)
    prompts = ["the cat", "the dog sat, é"]
    prompts += [] if decoder else ["the <extra_id_0> sat on <extra_id_1>"]
    how = {"max_new_tokens": NEW, "temperature": 0.0}
    ours = [sample["tokens"] for sample in complete(model, params, tokenizer, prompts, **how)]

    assert len(set(map(tuple, ours))) > 1
    before, behind = tokenizer.around(model.cfg.kind)
    auto = transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForSeq2SeqLM
    theirs = auto.from_pretrained(tmp_path / "hf").eval()
    encode = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for prompt, right in zip(prompts, ours, strict=True):
        batch = encode(prompt, return_tensors="pt")
        ids = [*before, *tokenizer.read(prompt), *behind]
        assert batch["input_ids"].tolist() == [ids]
        with torch.no_grad():
            found = theirs.generate(**batch, max_new_tokens=NEW, do_sample=False)
        skip = batch["input_ids"].shape[1] if decoder else 1
        assert found[0, skip:].tolist()[: len(right)] == right


LLAMA2 = {"model_type": "bpe", "normalization_rule_name": "identity"}
LLAMA2 |= {"remove_extra_whitespaces": False, "byte_fallback": True, "vocab_size": 285}
T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 24}


@pytest.mark.parametrize("family, options", [("llama", LLAMA2), ("t5", T5_IDS)])
def test_sentencepiece_models_as_published(family, options, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=buffer, minloglevel=2, **options
    )
    (tmp_path / "x.model").write_bytes(buffer.getvalue())
    specials = hub.FAMILIES[family].specials
    path = str(tmp_path / "x.model")
    model, _, tokenizer = export(tmp_path / "hf", family, "sentencepiece", specials, path=path)
    before, behind = tokenizer.around(model.cfg.kind)
    text = "the <extra_id_0> and <extra_id_1>" if specials else "the cat and a dog"
    ids = [*before, *tokenizer.read(text), *behind]
    assert ids_of(tmp_path / "hf", text) == ids


@pytest.mark.parametrize("family, kind", [("gpt2", "bpe"), ("bert", "wordpiece"), ("t5", "bpe")])
def test_exported_again_it_is_the_same(family, kind, tmp_path):
    _, _, tokenizer = export(tmp_path / "a", family, kind)
    model, params, again = hub.load(tmp_path / "a")
    assert again.around(model.kind) == tokenizer.around(model.kind)
    hub.save(model, params, again, tmp_path / "b")
    a, b = ((tmp_path / f / "tokenizer.json").read_text() for f in "ab")
    assert a == b


def test_an_imported_gpt2_that_adds_nothing_goes_on_so(tmp_path):
    model, params, tokenizer = export(tmp_path / "a", "gpt2")
    file = tmp_path / "a" / "tokenizer.json"
    plain = json.loads(file.read_text()) | {"post_processor": None}
    file.write_text(json.dumps(plain))
    cfg, _, tokenizer = hub.load(tmp_path / "a")
    tokenizer.save(tmp_path / "kept")
    tokenizer = tokenizers.load(tmp_path / "kept")
    assert tokenizer.around("decoder") == ([], [])
    how = {"max_new_tokens": 2, "temperature": 0.0}
    assert complete(model, params, tokenizer, ["", "the"], **how)[0]["tokens"]
    hub.save(cfg, params, tokenizer, tmp_path / "b")
    assert ids_of(tmp_path / "b", "the cat") == tokenizer.encode("the cat").tolist()


@pytest.mark.parametrize("options", [{"model_type": "word"}, {"treat_whitespace_as_suffix": True}])
def test_sentencepiece_models_that_transformers_has_no_tokenizer_for(options, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=buffer, minloglevel=2, vocab_size=24,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    (tmp_path / "x.model").write_bytes(buffer.getvalue())
    with pytest.raises(ConfigError, match="transformers encodes differently"):
        export(tmp_path / "hf", "llama", "sentencepiece", path=str(tmp_path / "x.model"))


def test_bert_has_neither_bos_nor_eos(tmp_path):
    export(tmp_path / "hf", "bert", "wordpiece")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    about = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert not {"bos_token_id", "eos_token_id"} & set(config)
    assert not {"bos_token", "eos_token"} & set(about)
    assert about["cls_token"] == "[CLS]"
