"""The tokenizer classes of transformers 5, as `tokenizers` objects made of a folder's files.

A class such as BertTokenizer takes from tokenizer.json the vocabulary and what is put around a
text, and makes the rest of tokenizer_config.json (do_lower_case, add_prefix_space, …); the class
TokenizersBackend, formerly PreTrainedTokenizerFast, takes tokenizer.json as it is. `CLASSES` has a
row for each, `read` makes what AutoTokenizer makes. What would need another class is refused.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from llm_jax import files
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import assembled, put_around

CONFIG, WHOLE = "tokenizer_config.json", "tokenizer.json"
# Files that a tokenizer is read from, or that say how.
VOCABULARIES = re.compile(r"vocab|tokenizer|merges|\.model$|\.spm$")
ROLES = tuple(f"{r}_token" for r in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
PLAIN = "TokenizersBackend"
SPELT = {"PreTrainedTokenizerFast": PLAIN, "PreTrainedTokenizer": PLAIN}
MARK = "\u2581"  # how sentencepiece writes a blank
# config.json's model_type -> class, where no file names one.
OF_FAMILY = {
    "albert": "AlbertTokenizer", "bert": "BertTokenizer", "distilbert": "BertTokenizer",
    "electra": "BertTokenizer", "gpt2": "GPT2Tokenizer", "marian": "MarianTokenizer",
    "reformer": "ReformerTokenizer", "roberta": "RobertaTokenizer", "t5": "T5Tokenizer",
}  # fmt: skip
# Entries that decide ids: of these types, or refused.
TYPES = {
    "do_lower_case": bool, "strip_accents": bool, "tokenize_chinese_chars": bool,
    "add_prefix_space": bool, "add_bos_token": bool, "add_eos_token": bool, "legacy": bool,
    "extra_ids": int, "keep_accents": bool, "trim_offsets": bool, "split_special_tokens": bool,
    "clean_up_tokenization_spaces": bool, "added_tokens_decoder": dict,
} | dict.fromkeys(ROLES, (str, dict))  # fmt: skip


class Vocabulary(NamedTuple):
    """Pieces with their ids (BPE, WordPiece) or scores (Unigram), merges, and normalisation."""

    pieces: Any
    merges: list[tuple[str, str]]
    charsmap: bytes | None = None
    added: tuple[AddedToken, ...] = ()  # a sentencepiece model's control and user-defined pieces


class Class(NamedTuple):
    """A row: the model inside, special tokens by default, the files, and how it is made."""

    model: str
    roles: Mapping[str, str]
    vocabulary: tuple[str, ...]
    make: Callable[[Vocabulary, Mapping[str, Any]], Tokenizer]
    around: Callable[[Tokenizer, Mapping[str, Any]], Any] | None = None


def _bert(v: Vocabulary, c: Mapping[str, Any]) -> Tokenizer:
    model = models.WordPiece(v.pieces, unk_token=_text(c["unk_token"]))
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=c.get("tokenize_chinese_chars", True),
        strip_accents=c.get("strip_accents"), lowercase=c.get("do_lower_case", True),
    )  # fmt: skip
    return assembled(model, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(), normalizer)


def _around_bert(backend: Tokenizer, c: Mapping[str, Any]):
    first, last = (_text(c[role]) for role in ("cls_token", "sep_token"))
    return put_around(backend, [first], [last])


def _gpt2(v: Vocabulary, c: Mapping[str, Any]) -> Tokenizer:
    split = pre_tokenizers.ByteLevel(add_prefix_space=c.get("add_prefix_space", False))
    return assembled(models.BPE(v.pieces, v.merges), split, decoders.ByteLevel())


def _around_roberta(backend: Tokenizer, c: Mapping[str, Any]):
    ends = [(_text(c[r]), backend.token_to_id(_text(c[r]))) for r in ("sep_token", "cls_token")]
    space, trim = c.get("add_prefix_space", False), c.get("trim_offsets", True)
    return processors.RobertaProcessing(*ends, trim, space)


def _llama(v: Vocabulary, c: Mapping[str, Any]) -> Tokenizer:
    model = models.BPE(v.pieces, v.merges, fuse_unk=True, byte_fallback=True)
    space = c.get("add_prefix_space", True)
    scheme = ("always" if c.get("legacy", False) else "first") if space else "never"
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * space)
    return assembled(model, pre_tokenizers.Metaspace(MARK, scheme, split=False), decoder)


def _unigram(v: Vocabulary, unknown: int, scheme: str, normalizer) -> Tokenizer:
    model = models.Unigram(v.pieces, unk_id=unknown, byte_fallback=False)
    splits = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(MARK, scheme)]
    decoder = decoders.Metaspace(MARK, scheme)
    return assembled(model, pre_tokenizers.Sequence(splits), decoder, normalizer)


def _t5(v: Vocabulary, c: Mapping[str, Any]) -> Tokenizer:
    return _unigram(v, 2, "always", normalizers.Precompiled(v.charsmap) if v.charsmap else None)


def _around_t5(backend: Tokenizer, c: Mapping[str, Any]):
    ends = [("</s>", backend.token_to_id(_text(c["eos_token"])))]
    return processors.TemplateProcessing(["$A", "</s>"], ["$A", "</s>", "$B", "</s>"], ends)


def _albert(v: Vocabulary, c: Mapping[str, Any]) -> Tokenizer:
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not c.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    steps += [normalizers.Lowercase()] * c.get("do_lower_case", True)
    steps += [normalizers.Precompiled(v.charsmap)] if v.charsmap else []
    scheme = "always" if c.get("add_prefix_space", True) else "never"
    backend = _unigram(v, 1, scheme, normalizers.Sequence(steps))
    ends = [(name, backend.token_to_id(_text(c[role])))
            for name, role in (("[CLS]", "cls_token"), ("[SEP]", "sep_token"))]  # fmt: skip
    backend.post_processor = processors.TemplateProcessing(
        "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", ends
    )
    return backend


def _reformer(v: Vocabulary, c: Mapping[str, Any]) -> Tokenizer:
    model = models.BPE(v.pieces, v.merges, unk_token=_text(c["unk_token"]), fuse_unk=True)
    normalizer = None
    if v.charsmap:
        steps = [normalizers.Precompiled(v.charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
        normalizer = normalizers.Sequence(steps)
    split, decoder = (of.Metaspace(MARK, "always") for of in (pre_tokenizers, decoders))
    return assembled(model, split, decoder, normalizer)


END = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>") | {"pad_token": None}
MARKS = {"unk_token": "<unk>", "eos_token": "</s>"}
BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]"}  # fmt: skip
ROBERTA = MARKS | {"bos_token": "<s>", "sep_token": "</s>", "cls_token": "<s>",
                   "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
ALBERT = BERT | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>",
                 "pad_token": "<pad>"}  # fmt: skip
PAIRS = ("vocab.json", "merges.txt")
CLASSES = {
    "AlbertTokenizer": Class("Unigram", ALBERT, ("spiece.model",), _albert),
    "BertTokenizer": Class("WordPiece", BERT, ("vocab.txt",), _bert, _around_bert),
    "GPT2Tokenizer": Class("BPE", END, PAIRS, _gpt2),
    "LlamaTokenizer": Class("BPE", MARKS | {"bos_token": "<s>"}, ("tokenizer.model",), _llama),
    "ReformerTokenizer": Class("BPE", MARKS, ("spiece.model",), _reformer),
    "RobertaTokenizer": Class("BPE", ROBERTA, PAIRS, _gpt2, _around_roberta),
    "T5Tokenizer": Class("Unigram", MARKS | {"pad_token": "<pad>"}, ("spiece.model",), _t5,
                         _around_t5),
}  # fmt: skip


class Read(NamedTuple):
    """What AutoTokenizer makes of a folder."""

    backend: Tokenizer
    roles: dict[str, str]  # of those that it has
    config: dict[str, Any]


def read(folder: Path, hf: Mapping[str, Any]) -> Read | None:
    """Returns the tokenizer of a folder with this config.json; None where it has no file of one.

    Raises:
      ConfigError: a class that is not in CLASSES, or a file that is damaged or of another kind.
    """
    config = _optional(folder / CONFIG)
    for name, kind in TYPES.items():
        value = config.get(name)
        if value is not None and (
            not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        ):
            raise ConfigError(f"{folder / CONFIG}: {name}={value!r} is of the wrong type")
    config = {k: v for k, v in config.items() if v is not None or k in ROLES}
    whole = files.read_json(folder / WHOLE) if (folder / WHOLE).is_file() else None
    if whole is None and not any(VOCABULARIES.search(path.name) for path in folder.iterdir()):
        return None  # whatever class the family has: there is nothing to read
    name = _class(folder, config, hf, whole)
    if whole is None and not _vocabulary_files(folder, name):
        return None
    if config.get("auto_map"):
        raise ConfigError(f"{folder / CONFIG}: auto_map: would run the folder's own code")
    if whole is not None:  # what is put around a text is in it
        config.pop("add_bos_token", None)
        config.pop("add_eos_token", None)
    try:
        made = _make(folder, name, config, whole)
        made.backend.encode("\u0378")  # of no vocabulary: fails where there is no unk_token for it
        return made
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(
            f"{folder}: its files make no {name} ({type(error).__name__}: {error})"
        ) from error


def _class(folder: Path, config: Mapping, hf: Mapping, whole: Mapping | None) -> str:
    """The name of the class: stated by tokenizer_config.json, config.json, or the family's own."""
    stated = config.get("tokenizer_class") or hf.get("tokenizer_class")
    own = OF_FAMILY.get(hf.get("model_type"), PLAIN)
    name = own
    if stated:
        name = SPELT.get(stated, str(stated).removesuffix("Fast"))
    if name == "LlamaTokenizer" and whole is not None and "'ByteLevel'" in str(whole):
        name = PLAIN  # LLaMA 3's
    if name != PLAIN and name not in CLASSES:
        raise ConfigError(
            f"{folder}: its tokenizer is a {name}, which llm_jax does not have; it has "
            f"{', '.join(CLASSES)}, and any tokenizer.json whose {CONFIG} says "
            f'"tokenizer_class": "PreTrainedTokenizerFast"'
        )
    return name


def _vocabulary_files(folder: Path, name: str) -> list[Path]:
    names = CLASSES[name].vocabulary if name in CLASSES else ("tokenizer.model",)
    paths = [folder / file for file in names]
    return paths if all(path.is_file() for path in paths) else []


def _make(folder: Path, name: str, config: dict, whole: dict | None) -> Read:
    added = _added_tokens(folder, config, whole)
    row = CLASSES.get(name)
    extra = config.pop("additional_special_tokens", None) or []
    if row is not None:
        gaps = [f"<extra_id_{i}>" for i in range(config.get("extra_ids", 100))]
        gaps = gaps if name == "T5Tokenizer" else []
        config = {**row.roles, **config}
        vocabulary = _vocabulary(folder, name, row, whole, gaps[::-1])
        backend = row.make(vocabulary, config)
        extra = [*(vocabulary.added or extra), *gaps]
    elif whole is not None:
        backend = Tokenizer.from_str(json.dumps(whole))
    else:
        backend, roles, extra = of_sentencepiece(folder / "tokenizer.model", config)
        config = {**roles, **config}
    if whole is not None:
        backend.post_processor = _post_processor(whole) or backend.post_processor
        if whole.get("padding"):
            config.setdefault("pad_token", whole["padding"]["pad_token"])
    if isinstance(config.get("extra_special_tokens"), dict):
        config |= {f"{k}_token": v for k, v in config.pop("extra_special_tokens").items()}
    config.setdefault("extra_special_tokens", extra)
    explicit = "add_bos_token" in config or "add_eos_token" in config
    roles = {r: config[r] for r in ROLES if config.get(r) is not None}
    by_text = {token.content: token for token in added.values()}
    roles = {role: by_text.get(_text(token), token) for role, token in roles.items()}
    _add(backend, added, roles, config)
    if explicit or backend.post_processor is None:
        backend.post_processor = _ends(backend, roles, config)
    if row is not None and row.around:
        backend.post_processor = row.around(backend, config)
    backend.no_truncation()  # a published file may cut or pad every text to the length that it
    backend.no_padding()  # was exported with
    return Read(backend, {role: _text(token) for role, token in roles.items()}, config)


def _added_tokens(folder: Path, config: dict, whole: dict | None) -> dict[int, AddedToken]:
    """Tokens beside the vocabulary by id; special_tokens_map.json's roles go into `config`.

    The newer added_tokens_decoder of tokenizer_config.json stands for all older files.
    """
    if config.get("additional_special_tokens") and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    if "added_tokens_decoder" in config:
        return {int(i): _token(t) for i, t in config["added_tokens_decoder"].items()}
    for role, token in _optional(folder / "special_tokens_map.json").items():
        if role in ROLES and token is not None:
            config[role] = _token(token, special=True) if isinstance(token, dict) else token
        elif role in ("additional_special_tokens", "extra_special_tokens") and token:
            config[role] = token
    special = {_text(config[r]) for r in ROLES if config.get(r)}
    special |= {_text(token) for token in config.get("extra_special_tokens") or ()}
    added = {}
    for text, i in _optional(folder / "added_tokens.json").items():
        is_special = text in special
        added[i] = AddedToken(text, normalized=not is_special, special=is_special)
    if whole is not None:
        for token in whole.get("added_tokens", []):
            token = dict(token)
            added[token.pop("id")] = _token(token)
    return added


def _add(backend: Tokenizer, added: Mapping, roles: Mapping, config: Mapping) -> None:
    """Adds the tokens that the backend has not, in the order of their ids, then the roles'."""
    there = backend.get_added_tokens_decoder().values()
    known = {repr(token) for token in there}
    tokens = [token for _, token in sorted(added.items()) if repr(token) not in known]
    names = {token.content for token in (*there, *tokens)}
    own = [v for k, v in config.items() if k.endswith("_token") and k not in ROLES]
    named = [*roles.values(), *(token for token in own if isinstance(token, str))]
    special = {_text(token) for token in named}
    for token in (*named, *(config["extra_special_tokens"] or ())):
        if _text(token) not in names:
            token = _token(token)
            token = AddedToken(token, special=True) if isinstance(token, str) else token
            tokens.append(token)
            names.add(token.content)
    for token in tokens:
        token.special |= token.content in special
    backend.add_tokens(tokens)


def _ends(backend: Tokenizer, roles: Mapping, config: Mapping):
    """What add_bos_token and add_eos_token put around a text."""
    has = lambda end: config.get(f"add_{end}_token", False) and f"{end}_token" in roles
    bos, eos = ([_text(roles[f"{end}_token"])] if has(end) else [] for end in ("bos", "eos"))
    return put_around(backend, bos, eos, again=bos)


def _post_processor(whole: Mapping[str, Any]):
    """tokenizer.json's own, made with a vocabulary of nothing."""
    empty = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    bare = {"version": "1.0", "model": empty, "post_processor": whole.get("post_processor")}
    return Tokenizer.from_str(json.dumps(bare | {"added_tokens": []})).post_processor


def _vocabulary(
    folder: Path, name: str, row: Class, whole: dict | None, extra: list[str]
) -> Vocabulary:
    if whole is not None:
        model = whole.get("model", {})
        kind = model.get("type", row.model)
        if kind != row.model:
            raise ConfigError(f"{folder / WHOLE}: holds a {kind} model, but a {name} is a "
                              f"{row.model}")
        pieces, merges = model["vocab"], model.get("merges", [])
        if isinstance(pieces, list):
            pieces = [tuple(piece) for piece in pieces]
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
        return Vocabulary(pieces, merges, _charsmap(whole.get("normalizer")))
    paths = _vocabulary_files(folder, name)
    if name == "BertTokenizer":
        return Vocabulary(models.WordPiece.read_file(str(paths[0])), [])
    if row.vocabulary == PAIRS:
        return Vocabulary(*models.BPE.read_file(*map(str, paths)))
    return _of_sentencepiece(paths[0], row.model, extra)


def _charsmap(normalizer: Mapping[str, Any] | None) -> bytes | None:
    """The compiled normalisation of a sentencepiece model, kept in tokenizer.json."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    maps = (step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled")
    text = next((text for text in maps if text), None)
    return base64.b64decode(text) if text else None


def _of_sentencepiece(path: Path, model: str, extra: list[str]) -> Vocabulary:
    proto = _proto(path)
    charsmap, added = proto.normalizer_spec.precompiled_charsmap or None, _control(proto)
    if model == "Unigram":
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        return Vocabulary(pieces + [(text, 0.0) for text in extra], [], charsmap, added)
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    # A pair of pieces makes a third: the earlier that is, the earlier they merge.
    merges = sorted(_splits(ids), key=lambda pair: (ids[pair[0] + pair[1]], *map(len, pair)))
    return Vocabulary(ids, merges, charsmap, added)


def of_sentencepiece(
    path: Path, config: Mapping[str, Any]
) -> tuple[Tokenizer, dict[str, str], tuple[AddedToken, ...]]:
    """A sentencepiece .model as its own normaliser settings say; its roles and added tokens."""
    proto = _proto(path)
    spec, how = proto.trainer_spec, proto.normalizer_spec
    kinds = {1: "unigram", 2: "bpe"}
    if spec.model_type not in kinds:
        raise ConfigError(f"{path}: its model_type={spec.model_type} is neither unigram nor bpe")
    own = [piece.piece for piece in proto.pieces if piece.type == USER]
    if kinds[spec.model_type] == "unigram":
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        model = models.Unigram(pieces, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    else:
        ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        score = {p.piece: (-p.score, i) for i, p in enumerate(proto.pieces) if p.type == NORMAL}
        merges = sorted(_splits(score), key=lambda pair: (*score[pair[0] + pair[1]], *pair))
        model = models.BPE(
            ids, merges, unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback,
            ignore_merges=bool(own),
        )  # fmt: skip
    steps, legacy = [], config.get("legacy", True)
    if how.precompiled_charsmap:
        steps.append(normalizers.Precompiled(how.precompiled_charsmap))
    if how.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""),
                  normalizers.Replace(Regex(" {2,}"), " ")]  # fmt: skip
    if how.escape_whitespaces:
        steps.append(normalizers.Replace(" ", MARK))
    if how.add_dummy_prefix and legacy:  # a Metaspace puts none before a mark
        steps.append(normalizers.Replace(Regex(rf"\A{MARK}"), MARK * 2))
    normalizer = normalizers.Sequence(steps)
    scheme = "always" if legacy else "first"
    splits = [pre_tokenizers.Metaspace(MARK, scheme, split=False)] * how.add_dummy_prefix
    if own:
        pattern = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
        splits.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    split = pre_tokenizers.Sequence(splits) if splits else None
    steps = [decoders.Replace(MARK, " ")] + [decoders.ByteFallback()] * spec.byte_fallback
    steps += [decoders.Fuse()] * (how.add_dummy_prefix or spec.byte_fallback)
    decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * how.add_dummy_prefix)
    roles = {f"{name}_token": getattr(spec, f"{name}_piece")
             for name in ("bos", "eos", "unk") if getattr(spec, f"{name}_id") >= 0}  # fmt: skip
    return assembled(model, split, decoder, normalizer), roles, _control(proto)


NORMAL, CONTROL, USER = 1, 3, 4  # types of a sentencepiece model's pieces


def _proto(path: Path):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    return proto


def _control(proto) -> tuple[AddedToken, ...]:
    return tuple(
        AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
        for piece in proto.pieces if piece.type in (CONTROL, USER)
    )  # fmt: skip


def _splits(pieces: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every way to make one of the pieces of two others."""
    pairs = ((text[:n], text[n:]) for text in pieces for n in range(1, len(text)))
    return [pair for pair in pairs if pair[0] in pieces and pair[1] in pieces]


def _optional(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}


def _text(token: str | dict | AddedToken) -> str:
    if isinstance(token, dict):
        return token["content"]
    return token.content if isinstance(token, AddedToken) else token


def _token(token: str | dict | AddedToken, **flags: bool) -> AddedToken | str:
    if not isinstance(token, dict):
        return token
    return AddedToken(**{k: v for k, v in token.items() if k != "__type"} | flags)
