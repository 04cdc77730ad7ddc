"""Folders of tokenizers with one setting varied at a time: read as AutoTokenizer reads them."""

import io
import json
import os
import subprocess

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
    """{name: {file: content}}: of each family by tokenizer.json, by its older files, and as
    save_pretrained leaves it."""
    root, out = tmp_path_factory.mktemp("bases"), {}
    for name, kind, specials in (("bert", "wordpiece", BERT), ("gpt2", "bytes", ["<|endoftext|>"]),
                                 ("roberta", "bytes", ROBERTA)):  # fmt: skip
        backend = trained(kind, specials)
        out[f"{name}-json"] = {"config.json": {"model_type": name},
                               "tokenizer.json": json.loads(backend.to_str())}  # fmt: skip
        (root / name).mkdir()
        backend.model.save(str(root / name))
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
    for name in ("bert", "gpt2", "roberta", "llama", "t5", "albert"):
        folder = root / f"{name}-saved"
        put(folder, out[f"{name}-old"])
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "new")
        saved = {p.name: json.loads(p.read_text("utf-8")) for p in (folder / "new").iterdir()}
        out[f"{name}-saved"] = {"config.json": {"model_type": name}} | saved
        plain = saved["tokenizer_config.json"] | {"tokenizer_class": "PreTrainedTokenizerFast"}
        out[f"{name}-plain"] = out[f"{name}-saved"] | {"tokenizer_config.json": plain}
    # LLaMA 3's: a byte-level BPE that calls itself what it likes.
    out["llama-json"] = out["gpt2-json"] | {"config.json": {"model_type": "llama"}}
    return out


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(folder, name, content)


NEW = {"content": "<new>", "lstrip": False, "rstrip": False, "normalized": False,
       "single_word": False}  # fmt: skip
CONFIG = "tokenizer_config.json"
# {cell: {file: entries to be merged, or a function of the content, or None to take it away}}.
VARIED = {
    "as it is": {},
    **{f"{key}={value}": {CONFIG: {key: value}} for key, value in [
        ("do_lower_case", False), ("do_lower_case", True), ("strip_accents", False),
        ("strip_accents", True), ("tokenize_chinese_chars", False), ("add_prefix_space", True),
        ("add_prefix_space", False), ("add_bos_token", True), ("add_bos_token", False),
        ("add_eos_token", True), ("legacy", True), ("legacy", False), ("extra_ids", 0),
        ("extra_ids", 7), ("extra_ids", 120), ("keep_accents", True), ("trim_offsets", False),
        ("clean_up_tokenization_spaces", True), ("clean_up_tokenization_spaces", False),
        ("model_max_length", 3), ("sp_model_kwargs", {}), ("split_special_tokens", True),
        ("padding_side", "left"), ("bos_token", "<s>"), ("eos_token", "the"),
        ("pad_token", "<new>"), ("unk_token", "<unk>"), ("unk_token", "the"),
        ("mask_token", NEW | {"lstrip": True, "special": True, "__type": "AddedToken"}),
        ("cls_token", "<|endoftext|>"), ("sep_token", "</s>"), ("pad_token", None),
        ("extra_special_tokens", ["<new>"]), ("additional_special_tokens", ["<new>"]),
        ("extra_special_tokens", {"image_token": "<new>"}), ("image_token", "<new>"),
        ("tokenizer_class", "PreTrainedTokenizerFast"), ("tokenizer_class", "BertTokenizer"),
        ("tokenizer_class", "BertTokenizerFast"), ("tokenizer_class", "GPT2Tokenizer"),
        ("tokenizer_class", "LlamaTokenizerFast"), ("tokenizer_class", "T5Tokenizer"),
        ("tokenizer_class", "BartTokenizer"), ("tokenizer_class", "XLNetTokenizer"),
        ("tokenizer_class", "NoSuchTokenizer"), ("tokenizer_class", None),
        ("added_tokens_decoder", {"500": NEW | {"special": True}}),
        ("added_tokens_decoder", {"3": NEW | {"special": False, "normalized": True}}),
        ("added_tokens_decoder", {}),
        ("chat_template", "{{ messages }}"), ("do_lower_case", "yes"), ("legacy", None),
        ("auto_map", {"AutoTokenizer": [None, "x.Y"]}),
    ]},
    "config.json: eos": {"config.json": {"eos_token_id": 5, "bos_token_id": 6}},
    "config.json: class": {"config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "map: eos": {"special_tokens_map.json": {"eos_token": "the"}},
    "map: mask": {"special_tokens_map.json": {"mask_token": NEW | {"lstrip": True}}},
    "map: more": {"special_tokens_map.json": {"additional_special_tokens": ["<new>", "the"]}},
    "map against config": {"special_tokens_map.json": {"eos_token": "the"},
                           CONFIG: {"eos_token": "cat"}},
    "added": {"added_tokens.json": {"<new>": 600, "the": 601}},
    "added and map": {"added_tokens.json": {"<new>": 600},
                      "special_tokens_map.json": {"pad_token": "<new>"}},
    "no config": {CONFIG: None},
    "json: truncation": {"tokenizer.json": {"truncation": {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}}},
    "json: padding": {"tokenizer.json": {"padding": {
        "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<pad>"}}},
    "json: no normalizer": {"tokenizer.json": {"normalizer": None}},
    "json: lowercase": {"tokenizer.json": {"normalizer": {"type": "Lowercase"}}},
    "json: no post-processor": {"tokenizer.json": {"post_processor": None}},
    "json: byte-level post-processor": {"tokenizer.json": {"post_processor": {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}}},
    "json: no added tokens": {"tokenizer.json": {"added_tokens": []}},
    "json: split on blanks": {"tokenizer.json": {"pre_tokenizer": {"type": "WhitespaceSplit"}}},
    "json: no decoder": {"tokenizer.json": {"decoder": None}},
    "damaged config": {CONFIG: "{"},
    "config is a list": {CONFIG: "[]"},
    "damaged json": {"tokenizer.json": "{}"},
    "map is a list": {"special_tokens_map.json": "[]"},
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


ROLES = tuple(f"{r}_token" for r in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
QUICK = ["bert-saved", "gpt2-saved", "roberta-old", "llama-old", "llama-plain", "t5-old"]
SLOW = ["bert-json", "bert-old", "bert-plain", "gpt2-json", "gpt2-old", "gpt2-plain",
        "roberta-json", "roberta-saved", "roberta-plain", "llama-json", "llama-saved", "t5-saved",
        "t5-plain", "albert-old", "albert-saved", "albert-plain"]  # fmt: skip
BASES = QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]
# What we refuse although transformers reads it.
REFUSED = ("which llm_jax does not have", "would run the folder's own code", "wrong type",
           "model, but a", "Missing [UNK] token from the vocabulary")  # fmt: skip


def differences(theirs, ours):
    """What the two make of NASTY and of special tokens, where they differ."""
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
        a = getattr(theirs, role + "_id")
        name = (ours.roles or {}).get(role)
        b = None if name is None else ours._tokenizer.token_to_id(name)
        if a != b:
            wrong.append((role, getattr(theirs, role), a, b))
    return wrong


def both(folder):
    """(theirs or None, ours or the refusal) of a folder."""
    hf = json.loads((folder / "config.json").read_text())
    try:
        ours = text.load(folder, hf, families.get(hf["model_type"]))
    except ConfigError as error:
        ours = error
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception:
        theirs = None
    return theirs, ours


@pytest.mark.parametrize("base", BASES)
def test_each_setting_means_what_it_means_to_transformers(base, bases, tmp_path):
    equal, wrong = 0, []
    for number, (cell, change) in enumerate(VARIED.items()):
        folder = tmp_path / str(number)
        put(folder, varied(bases[base], change))
        theirs, ours = both(folder)
        if isinstance(ours, ConfigError):
            if theirs is not None and not any(reason in str(ours) for reason in REFUSED):
                wrong.append((cell, str(ours)))
        elif theirs is not None and ours is not None:
            equal += 1
            wrong += [(cell, *what) for what in differences(theirs, ours)]
    assert not wrong
    assert equal > 50


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
    for base in (*QUICK, "t5-saved", "albert-saved"):
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
