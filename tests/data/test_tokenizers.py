import json
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from llm_jax.config import ConfigError, base
from llm_jax.data import tokenizers

TEXT = Path(tokenizers.__file__).read_text()
STRANGE = "naïve 漢字 🙂\n\ttabs  and\r\nlines <|endoftext|> [MASK] </s>"


@pytest.fixture(scope="module")
def spm_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_prefix=str(folder / "m"), vocab_size=500,
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "m.model"


@pytest.fixture
def build(config, spm_path, tmp_path):
    """Builds a tokenizer by name on the text of one Python file."""

    def build(name):
        t = config.tokenizer
        t.name, t.vocab_size, t.specials = name, 400, ("[MASK]", "<extra_id_0>")
        if name == "sentencepiece":
            t.path = str(spm_path)
        if name == "file":
            t.name = "wordpiece"
            tokenizers.build(t, [TEXT]).save(tmp_path / "wordpiece")
            t.name, t.path = "file", str(tmp_path / "wordpiece" / "tokenizer.json")
        return tokenizers.build(t, [TEXT])

    return build


KINDS = ["bytes", "chars", "bpe", "wordpiece", "file", "sentencepiece"]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_keeps_the_interface(build, name, tmp_path):
    tokenizer = build(name)
    text = "class Bytes(Tokenizer):\n    return [1, 2]"
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert 0 <= ids.min() and ids.max() < tokenizer.vocab_size
    assert not set(ids.tolist()) & set(tokenizer.specials.values())
    if name in ("wordpiece", "file"):  # these lose case and spaces
        assert "".join(tokenizer.decode(ids).split()) == "".join(text.lower().split())
    elif name == "sentencepiece":  # this one folds white space
        assert tokenizer.decode(ids) == " ".join(text.split())
    else:
        assert tokenizer.decode(ids) == text
    framed = [tokenizer.bos_id, *ids.tolist(), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(framed) == tokenizer.decode(ids)
    assert len({tokenizer.special("[MASK]"), tokenizer.special("<extra_id_0>")}) == 2
    with pytest.raises(ConfigError, match="tokenizer.specials"):
        tokenizer.special("[NONE]")
    batch = tokenizer.encode_batch([text, "", STRANGE])
    for got, one in zip(batch, [text, "", STRANGE], strict=True):
        assert np.array_equal(got, tokenizer.encode(one))

    tokenizer.save(tmp_path / "saved")
    again = tokenizers.load(tmp_path / "saved")
    names = ("vocab_size", "bos_id", "eos_id", "pad_id", "specials")
    assert all(getattr(again, n) == getattr(tokenizer, n) for n in names)
    for one in (text, STRANGE):
        assert np.array_equal(again.encode(one), tokenizer.encode(one))
    again.save(tmp_path / "saved")  # onto itself
    assert not list((tmp_path / "saved").glob("*.tmp"))


@pytest.mark.parametrize("name", KINDS)
def test_no_text_and_no_ids_are_refused(build, name):
    tokenizer = build(name)
    assert tokenizer.encode("").shape == (0,)
    tokenizer.encode(STRANGE + "\ud800")
    assert isinstance(tokenizer.decode(range(-3, tokenizer.vocab_size + 3)), str)
    rng = np.random.default_rng(0)
    assert isinstance(tokenizer.decode(rng.integers(0, tokenizer.vocab_size, 500)), str)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_bytes_lose_nothing(build, name):
    tokenizer = build(name)
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe", "sentencepiece"])
def test_bytes_of_tokens_add_up_to_those_of_the_text(build, name):
    tokenizer = build(name)
    text = STRANGE if name in ("bytes", "bpe") else "class 12 (Tokenizer): return"
    if name == "sentencepiece":
        text = " naïve 漢字 🙂 class"  # with the blank that it puts first
    counts = tokenizers.token_bytes(tokenizer)
    assert counts[tokenizer.encode(text.lstrip(" "))].sum() == len(text.encode())
    assert not counts[list(tokenizer.specials.values())].any()


@pytest.mark.parametrize("name", ["wordpiece", "file"])
def test_tokens_that_do_not_spell_the_text_have_no_bytes(build, name):
    assert tokenizers.token_bytes(build(name)) is None


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_training_repeats(build, name, tmp_path):
    for folder in ("a", "b"):
        build(name).save(tmp_path / folder)
    first, second = (tmp_path / folder / "tokenizer.json" for folder in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.read_text())["model"]["vocab"]


def test_specials_in_text_are_text(build):
    tokenizer, text = build("bpe"), "a<|endoftext|>b"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.eos_id in tokenizer.read(text)  # of a prompt
    assert tokenizer.eos_id not in tokenizer.encode(text)  # and afterwards as before


@pytest.mark.parametrize("size", [2, 255, 2**16, 2**16 + 1, 2**17, 250_000])
def test_stored_ids_do_not_wrap_round(size):
    tokenizer = tokenizers.Words([str(i) for i in range(size - 4)])
    last = np.arange(tokenizer.vocab_size, dtype=np.int64)[-1]
    assert tokenizer.vocab_size == max(size, 4) and last.astype(tokenizer.dtype) == last


def test_vocab_size_is_met_or_logged(build, config, caplog):
    assert build("bpe").vocab_size == 400
    config.tokenizer.vocab_size = 9000
    assert tokenizers.build(config.tokenizer, ["a short text"]).vocab_size < 9000
    assert "tokenizer.vocab_size" in caplog.text


def test_characters(config):
    config.tokenizer.name = "chars"
    tokenizer = tokenizers.build(config.tokenizer, ["hello", "world"])
    assert tokenizer.vocab_size == len(set("helloworld")) + 4
    assert tokenizer.encode("h🙂é")[1:].tolist() == [tokenizer.unk_id] * 2
    assert tokenizer.decode(tokenizer.encode("h🙂")) == "h\ufffd"
    long = "hello world" * 100_000
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        tokenizer.encode(long)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.05


@pytest.mark.parametrize(
    ("beside", "expected"),
    [({}, ("<pad>", "</s>", "<pad>")), ({"bos_token": "<s>", "eos_token": {"content": "<e>"}},
                                       ("<s>", "<e>", "<pad>"))],
)  # fmt: skip
def test_specials_of_a_file_are_inferred(tmp_path, config, beside, expected):
    from tokenizers import Tokenizer, models

    hf = Tokenizer(models.BPE())
    hf.add_tokens(["a", "b"])
    hf.add_special_tokens(["</s>", "<pad>", "<e>"] + (["<s>"] if beside else []))
    hf.enable_truncation(2)
    hf.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(beside))
    config.tokenizer.name, config.tokenizer.path = "file", str(tmp_path / "tokenizer.json")
    tokenizer = tokenizers.build(config.tokenizer, [])
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert ids == tuple(tokenizer.specials[name] for name in expected)
    assert len(tokenizer.encode("abab")) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("file", None, "tokenizer.path: .* needs a tokenizer.json; tokenizer.name=bpe"),
        ("file", "{}", "is not a tokenizer.json"),
        ("sentencepiece", "text", "is not a sentencepiece"),
    ],
)
def test_bad_tokenizers_are_named(tmp_path, config, name, content, message):
    config.tokenizer.name, config.tokenizer.path = name, str(tmp_path / "t")
    if content is not None:
        (tmp_path / "t").write_text(content)
    with pytest.raises(ConfigError, match=message):
        tokenizers.build(config.tokenizer, ["text"])


def test_load_needs_a_saved_tokenizer(tmp_path):
    with pytest.raises(ConfigError, match="holds no readable tokenizer"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize("name", ["bytes", "chars", "words", "bpe", "wordpiece"])
def test_a_fingerprint_outlives_saving_and_tells_tokenizers_apart(name, tmp_path):
    config = base().tokenizer
    config.name, config.vocab_size = name, 300
    made = [tokenizers.build(config, docs) for docs in (["some text"] * 9, ["other words"] * 9)]
    made[0].save(tmp_path)
    assert tokenizers.load(tmp_path).fingerprint() == made[0].fingerprint()
    assert (made[0].fingerprint() == made[1].fingerprint()) == (name == "bytes")
    # What it puts around a prompt, and all that decoding reads, is kept; it encodes alike.
    about = {"frame": [[1], []], "roles": {"eos_token": "[EOS]"}, "chat_template": "{{ x }}é",
             "generation": {"eos_token_id": [1, 2]}}  # fmt: skip
    for name, value in about.items():
        setattr(made[0], name, value)
    made[0].save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.fingerprint() == made[0].fingerprint() == made[0].fingerprint()
    assert {name: getattr(again, name) for name in about} == about
    assert again.around("encoder") == ([1], [])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", [TEXT[:300], STRANGE, "", "  two  words "])
def test_where_each_token_stands(build, name, text):
    tokenizer = build(name)
    ids, spans = tokenizer.aligned(text)
    assert np.array_equal(ids, tokenizer.encode(text)) and spans.shape == (len(ids), 2)
    assert (spans[:, 0] <= spans[:, 1]).all() and (spans >= 0).all() and (spans <= len(text)).all()
    assert (np.diff(spans[:, 0]) >= 0).all()
    covered = np.zeros(len(text), bool)
    for start, end in spans:
        covered[start:end] = True
    left = [c for c, there in zip(text, covered, strict=True) if not there]
    assert not "".join(left).strip()  # but for blanks, all of the text is some token's


@pytest.mark.parametrize("kind", ["bert", "roberta", "none"])
def test_what_stands_between_two_texts_is_the_librarys(kind):
    hf = pytest.importorskip("tokenizers")
    backend = hf.Tokenizer(hf.models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, "a"))
    ends = ("</s>", 2), ("<s>", 1)
    if kind != "none":
        backend.post_processor = getattr(hf.processors, f"{kind.title()}Processing")(*ends)
    tokenizer = tokenizers.HuggingFace(backend, 1, 2, None)
    between = {"bert": [2], "roberta": [2, 2], "none": [2]}[kind]
    assert tokenizer.between() == between
    if kind != "none":
        assert backend.encode("a", "a").ids == [1, 0, *between, 0, 2]
