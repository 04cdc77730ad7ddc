"""Tests of transformers' tokenizers in run folders, and of exported tokenizers."""

import io
import json
import os
import socket
import subprocess
import sys

import pytest

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.hub import families, text

transformers = pytest.importorskip("transformers")

LINES = [
    "The cat sat on the mat; the dog didn't, it's said.", "Größe matters, naïve café!",
    "the end . of ? it", "我喜欢自然语言处理", "low lower lowest newer wider",
    "a b c 1 2 3 ( ) \" '",
] * 30  # fmt: skip
NASTY = [
    "", " ", "a", "The cat", "naïve café GRÖSSE", "🙂 emoji 🤖🔥", "我喜欢 自然语言",
    "  two  blanks  ",
    " leading", "trailing ", "a\nb\n\nc\t d\r\n", "it 's a dog , isn't it ?", "``quoted''", "ﬁ ① Ⅷ",
    "<s>the</s> <pad><unk><mask>", "[CLS] the [MASK] cat [SEP][PAD][UNK]", "<|endoftext|>the",
    "the <extra_id_0> cat <extra_id_1>", "x<new>y <New> z", "▁the ▁ cat", "\u0301e\u200b\x00\ufffd",
]  # fmt: skip


def trained(kind, specials, **options):
    """A `tokenizers` object on LINES: wordpiece, bytes (byte-level BPE)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials)
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials,
                                      initial_alphabet=alphabet)  # fmt: skip
    backend.train_from_iterator(LINES, trainer)
    return backend


def sentencepiece_model(**options):
    sentencepiece = pytest.importorskip("sentencepiece")
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=buffer, minloglevel=2, **options
    )
    return buffer.getvalue()


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BPE = {"model_type": "bpe", "normalization_rule_name": "identity", "vocab_size": 340,
       "hard_vocab_limit": False, "remove_extra_whitespaces": False,
       "byte_fallback": True}  # fmt: skip
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 120,
      "hard_vocab_limit": False}


def write(folder, name, content):
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{name: {file: content}}: of each family by its older files (old), as save_pretrained leaves
    it (saved), and as what it saved under no class of its own (plain)."""
    root, out = tmp_path_factory.mktemp("bases"), {}
    for name, kind, specials in (("bert", "wordpiece", BERT), ("gpt2", "bytes", ["<|endoftext|>"]),
                                 ("roberta", "bytes", ROBERTA)):  # fmt: skip
        (root / name).mkdir()
        trained(kind, specials).model.save(str(root / name))
        older = {p.name: p.read_text("utf-8") for p in (root / name).iterdir()}
        out[f"{name}-old"] = {"config.json": {"model_type": name}} | older
    llama, t5 = sentencepiece_model(**BPE), sentencepiece_model(**T5)
    as_llama = {"tokenizer_class": "LlamaTokenizer"}
    out["llama-old"] = {"config.json": {"model_type": "llama"}, "tokenizer.model": llama,
                        "tokenizer_config.json": as_llama}  # fmt: skip
    out["t5-old"] = {"config.json": {"model_type": "t5"}, "spiece.model": t5}
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
    albert = sentencepiece_model(vocab_size=120, hard_vocab_limit=False, **ids,
                                 control_symbols="[CLS],[SEP],[MASK]")  # fmt: skip
    out["albert-old"] = {"config.json": {"model_type": "albert"}, "spiece.model": albert}
    for name in ("bert", "gpt2", "llama", "t5", "albert"):
        folder = root / f"{name}-saved"
        put(folder, out[f"{name}-old"])
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "new")
        saved = {p.name: json.loads(p.read_text("utf-8")) for p in (folder / "new").iterdir()}
        out[f"{name}-saved"] = {"config.json": {"model_type": name}} | saved
    plain = out["llama-saved"][CONFIG] | {"tokenizer_class": "PreTrainedTokenizerFast"}
    out["llama-plain"] = out["llama-saved"] | {CONFIG: plain}
    return out


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(folder, name, content)


NEW = {"content": "<new>", "lstrip": False, "rstrip": False, "normalized": False,
       "single_word": False}  # fmt: skip
CONFIG = "tokenizer_config.json"
CLEAN = "clean_up_tokenization_spaces"
# {cell: {file: entries to be merged, or the content, or None to take it away}}: what there is in a
# tokenizer of transformers besides its `tokenizers` object, and what changes that object.
VARIED = {
    "as it is": {},
    **{f"{key}={value}": {CONFIG: {key: value}} for key, value in [
        (CLEAN, True), (CLEAN, False), ("split_special_tokens", True), ("model_max_length", 3),
        ("add_bos_token", True), ("add_eos_token", True), ("do_lower_case", False),
        ("bos_token", "<s>"), ("eos_token", "the"), ("pad_token", "<new>"), ("pad_token", None),
        ("unk_token", "the"), ("cls_token", "<|endoftext|>"), ("sep_token", "</s>"),
        ("mask_token", NEW | {"lstrip": True, "special": True, "__type": "AddedToken"}),
        ("extra_special_tokens", ["<new>"]), ("image_token", "<new>"),
        ("added_tokens_decoder", {"500": NEW | {"special": True}}),
        ("added_tokens_decoder", {"3": NEW | {"special": False, "normalized": True}}),
        ("tokenizer_class", "BartTokenizer"), ("tokenizer_class", "XLNetTokenizer"),
        ("tokenizer_class", "ByT5Tokenizer"), ("tokenizer_class", "NoSuchTokenizer"),
        ("chat_template", "{{ messages }}"),
        ("chat_template", [{"name": n, "template": n} for n in ("default", "tools")]),
        ("auto_map", {"AutoTokenizer": [None, "x.Y"]}), ("legacy", "yes"), ("bos_token", 5),
    ]},
    "clean-up of BPE": {CONFIG: {CLEAN: True, text.CLEAN_BPE: True}},
    "jinja": {"chat_template.jinja": "{{ x }}", CONFIG: {"chat_template": "{{ y }}"}},
    "config.json: ids": {"config.json": {"eos_token_id": 5, "bos_token_id": 6}},
    "map": {"special_tokens_map.json": {"eos_token": "the", "mask_token": NEW}},
    "added": {"added_tokens.json": {"<new>": 600, "the": 601}},
    "no config": {CONFIG: None},
    "json: truncation": {"tokenizer.json": {"truncation": {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}}},
    "json: padding": {"tokenizer.json": {"padding": {
        "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<pad>"}}},
    "json: no post-processor": {"tokenizer.json": {"post_processor": None}},
    "json: of nothing": {"tokenizer.json": {"model": {}}},
    "no vocabulary": dict.fromkeys(["tokenizer.json", "tokenizer.model", "spiece.model",
                                    "vocab.json", "vocab.txt", "merges.txt"]),
    **{f"{name}: {content[:2]}": {name: content} for content in ("{", "[]", "", "[" * 100_000)
       for name in (CONFIG, "tokenizer.json", "special_tokens_map.json", "added_tokens.json")},
}  # fmt: skip


def varied(files, change):
    files = dict(files)
    for name, entries in change.items():
        if entries is None:
            files.pop(name, None)
        elif isinstance(entries, str):
            files[name] = entries
        elif name != "tokenizer.json" or name in files:
            files[name] = files.get(name, {}) | entries
    return files


ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
BASES = ["bert-saved", "gpt2-saved", "roberta-old", "llama-old", "llama-plain", "t5-old",
         "albert-old"]  # fmt: skip


def differences(theirs, ours):
    """What the two make of NASTY, of special tokens and of chats, where they differ."""
    wrong = []
    for prompt in NASTY:
        plain = theirs(prompt, add_special_tokens=False)["input_ids"]
        framed = theirs(prompt)["input_ids"]
        before, behind = ours.around("decoder")
        read = ours.read(prompt)
        for what, a, b in (("ids", plain, read), ("framed", framed, [*before, *read, *behind])):
            if a != b:
                wrong.append((what, prompt, a, b))
        decoded = theirs.decode(framed, skip_special_tokens=True)
        if ours.decode(framed) != decoded:
            wrong.append(("text", prompt, decoded, ours.decode(framed)))
    for role in ROLES:
        a, b = getattr(theirs, role), ours.roles.get(role)
        if a != b or b is not None and getattr(theirs, role + "_id") != ours.specials[b]:
            wrong.append((role, a, b))
    if theirs.chat_template != ours.chat_template:
        wrong.append(("chat", theirs.chat_template, ours.chat_template))
    return wrong


def load(folder):
    """Our tokenizer of a folder, or the refusal."""
    hf = json.loads((folder / "config.json").read_text())
    try:
        return text.load(folder, hf, families.get(hf["model_type"]))
    except ConfigError as error:
        return error


@pytest.fixture
def offline(monkeypatch):
    """Whoever asks for an address or connects is in the list."""
    asked = []
    for function in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, function, lambda *args, **_: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: asked.append(args))
    return asked


@pytest.mark.parametrize("base", BASES)
def test_a_folder_kept_in_a_run_is_what_transformers_makes_of_it(
    base, bases, tmp_path, offline, capfd
):
    equal, wrong = 0, []
    for number, (cell, change) in enumerate(VARIED.items()):
        folder = tmp_path / str(number)
        put(folder, varied(bases[base], change))
        capfd.readouterr()
        ours = load(folder)
        assert capfd.readouterr() == ("", "") and not offline, cell
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception:
            theirs = None
        if isinstance(ours, ConfigError):
            readable = theirs is not None and theirs.is_fast
            told = any(part in str(ours) for part in ("none of its files", "its tokenizer has no"))
            if str(folder) not in str(ours) or (readable and not told):
                wrong.append((cell, str(ours)))
        elif ours is None:
            assert cell == "no vocabulary"
        else:
            equal += 1
            ours.save(tmp_path / "run")
            kept = tokenizers.load(tmp_path / "run")
            wrong += [(cell, *what) for what in differences(theirs, kept)]
    assert not wrong
    assert equal > 25


@pytest.mark.parametrize("lacking", ["[CLS]", "[SEP]", "[CLS] [SEP]"])
@pytest.mark.parametrize("config", [None, {"tokenizer_class": "PreTrainedTokenizerFast",
                                           "pad_token": "[PAD]", "unk_token": "[UNK]"}])
def test_a_vocabulary_without_what_an_encoder_reads_around_texts(lacking, config, tmp_path):
    there = [name for name in BERT if name not in lacking]
    put(tmp_path, {"tokenizer.json": trained("wordpiece", there).to_str(),
                   "config.json": {"model_type": "bert"}})  # fmt: skip
    if config:  # what there is has its role
        roles = {f"{name[1:-1].lower()}_token": name for name in there}
        put(tmp_path, {CONFIG: config | roles})
    refused = str(load(tmp_path))
    for name in ("cls_token", "sep_token"):
        missing = f"[{name[:3].upper()}]" in lacking
        assert (name in refused.partition("which")[0]) == missing
    assert refused.startswith(f"{tmp_path}: its tokenizer has no ")


def test_an_end_that_is_no_id_of_the_vocabulary_is_none(tmp_path):
    put(tmp_path, {"tokenizer.json": trained("wordpiece", ["[UNK]"]).to_str(),
                   CONFIG: {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"},
                   "config.json": {"model_type": "gpt2", "eos_token_id": 50256}})  # fmt: skip
    assert "no file names an end-of-text token" in str(load(tmp_path))


SLOW = {
    "byt5": ({"model_type": "t5"}, {"tokenizer_class": "ByT5Tokenizer"}, {}),
    "marian": ({"model_type": "marian"}, {"source_lang": "en", "target_lang": "de"},
               {"vocab.json": {"</s>": 0, "<unk>": 1, "a": 2, "<pad>": 3}}),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_what_is_in_python_alone_is_refused_with_advice_that_works(name, bases, tmp_path, recwarn):
    about, config, files = SLOW[name]
    files = files | {"config.json": about, CONFIG: config}
    if name == "marian":
        files |= dict.fromkeys(["source.spm", "target.spm"], bases["t5-old"]["spiece.model"])
    put(tmp_path, files)
    refused = str(load(tmp_path))
    assert not recwarn.list
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).__class__.__name__ in refused
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in refused
    whole = bases["t5-saved"]["tokenizer.json"]
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    put(tmp_path, {"tokenizer.json": whole, CONFIG: fast})
    assert load(tmp_path).encode("the cat").size


# Hides PyTorch, then opens a folder; anything that is said, or asked of a network, is seen.
BARE = """
import importlib.util, socket, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "torch" else found(name, *args)
sys.modules["torch"] = None
socket.socket.connect = socket.getaddrinfo = lambda *args: print("network", args)
from pathlib import Path
from llm_jax.hub import families, text
tokenizer = text.load(Path(sys.argv[1]), {"model_type": "t5"}, families.get("t5"))
print(tokenizer.encode("the cat").tolist())
"""


@pytest.mark.slow
def test_opened_without_pytorch_and_without_a_word(bases, tmp_path):
    put(tmp_path, bases["t5-old"])
    done = subprocess.run(
        [sys.executable, "-c", BARE, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert (done.stdout, done.stderr) == (f"{load(tmp_path).encode('the cat').tolist()}\n", "")


# Prints what the transformers of another Python makes of NASTY in each folder.
IDS = """
import json, sys, transformers
assert transformers.__version__.startswith("4."), transformers.__version__
out = {}
for folder in json.loads(sys.argv[1]):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    roles = {name: getattr(theirs, name + "_token_id") for name in ("bos", "eos", "pad", "mask")}
    rows = [theirs(text)["input_ids"] for text in json.loads(sys.argv[2])]
    decoded = [theirs.decode(row, skip_special_tokens=True) for row in rows]
    out[folder] = [rows, decoded, roles, theirs.chat_template]
print(json.dumps(out))
"""
OWN = ("bytes", "chars", "words", "bpe", "wordpiece", "sentencepiece-bpe", "sentencepiece-unigram")
MASKS = ("[MASK]", "<extra_id_0>")


def own(kind, folder):
    """A tokenizer as tokenizer.name=kind makes it of LINES."""
    name, _, model = kind.partition("-")
    config = {"name": name, "vocab_size": 330, "specials": MASKS, "path": str(folder / "own.model")}
    if model:
        options = BPE if model == "bpe" else {"vocab_size": 120, "hard_vocab_limit": False}
        (folder / "own.model").write_bytes(sentencepiece_model(**options))
    return tokenizers.build(configs.ConfigDict(config), LINES)


@pytest.fixture(scope="module")
def written(bases, tmp_path_factory):
    """{name: (our tokenizer, model.kind, the folder that was written)}."""
    out, root = {}, tmp_path_factory.mktemp("written")
    for kind in OWN:
        for family, which in (("gpt2", "decoder"), ("bert", "encoder"), ("t5", "encoder_decoder")):
            folder = root / f"{kind}-{family}"
            put(folder, {"config.json": {"model_type": family}})
            out[folder.name] = own(kind, folder), which, folder
    template = {"chat_template": "{{ messages[0]['content'] }}"}
    for base in (*BASES, "t5-saved", "albert-saved"):
        files = varied(bases[base], {CONFIG: template})
        put(root / base, files)
        family = families.get(files["config.json"]["model_type"])
        ours = text.load(root / base, files["config.json"], family)
        put(root / f"{base}-again", {"config.json": files["config.json"]})
        which = family.model.get("kind", "decoder")
        out[base] = ours, which, root / f"{base}-again"
    for ours, which, folder in out.values():
        model = configs.base().model
        model.kind = which
        text.save(ours, folder, model)
    return out


def as_written(ours, which, theirs):
    """Where another's (rows, texts, ids of roles, chat template) are not ours."""
    rows, decoded, roles, template = theirs
    before, behind = ours.around(which)
    wrong = []
    for prompt, ids, plain in zip(NASTY, rows, decoded, strict=True):
        right = [*before, *ours.read(prompt), *behind]
        if ids != right:
            wrong.append((prompt, ids, right))
        shown = ours.decode(right)
        if ours.kind == "sentencepiece":  # which drops the blank before the first word it knows
            shown, plain = shown.lstrip(), plain.lstrip()
        if "\ufffd" not in shown and shown != plain:  # transformers leaves the unknown out
            wrong.append((prompt, plain, shown))
    if template != ours.chat_template:
        wrong.append(template)
    if ours.roles is None:  # one of our own: an end, and something to pad with, is always there
        ids = {"eos": ours.eos_id, "pad": ours.pad_id, "mask": ours.specials["[MASK]"]}
        ids |= {} if which == "encoder" else {"bos": ours.bos_id}
        named = set(text.roles(ours, which))
        wrong += [(name, i, roles) for name, i in ids.items()
                  if roles[name] != i and (which != "encoder" or f"{name}_token" in named)]
    return wrong


def test_what_is_written_reads_alike(written):
    wrong = []
    for name, (ours, which, folder) in written.items():
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        rows = [theirs(prompt)["input_ids"] for prompt in NASTY]
        decoded = [theirs.decode(row, skip_special_tokens=True) for row in rows]
        ids = {role: getattr(theirs, f"{role}_token_id") for role in ("bos", "eos", "pad", "mask")}
        wrong += [(name, *what) for what in as_written(
            ours, which, (rows, decoded, ids, theirs.chat_template))]  # fmt: skip
    assert not wrong


def test_what_is_written_reads_alike_in_transformers_4(written):
    python = os.environ.get("LLM_JAX_TRANSFORMERS_4")
    if not python:
        pytest.skip("LLM_JAX_TRANSFORMERS_4 names no Python that has transformers 4")
    folders = json.dumps([str(folder) for _, _, folder in written.values()])
    command = [python, "-c", IDS, folders, json.dumps(NASTY)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    made = json.loads(result.stdout.splitlines()[-1])
    assert not [(name, wrong) for name, (ours, which, folder) in written.items()
                if (wrong := as_written(ours, which, made[str(folder)]))]  # fmt: skip
