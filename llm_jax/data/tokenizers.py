"""Tokenizers: bytes, characters, words, BPE, WordPiece, and published files."""

import hashlib
import logging
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from llm_jax import files
from llm_jax.config import ConfigError

log = logging.getLogger(__name__)

# Maximum training text: more improves a tokenizer little, and is held in memory.
TRAINING_CHARACTERS = 2**26
ABOUT = "tokenizer_kind.json"
UNTRAINED = ("bytes", "file", "sentencepiece")  # tokenizer.name values that need no training
# Special tokens that replace text, including the space before it.
MASKS = ("[MASK]", "<mask>")
SENTINEL = "<extra_id_"
IMPORTED = {"frame": list, "roles": dict, "generation": dict, "chat_template": (str, dict),
            "clean_up": bool, "split_specials": bool}  # fmt: skip
# Spaces that clean_up removes from decoded text.
CLEAN = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m",
         " 's": "'s", " 've": "'ve", " 're": "'re"}  # fmt: skip


class Tokenizer(ABC):
    """Interface of all tokenizers.

    Attributes:
      vocab_size: all ids are below it.
      bos_id, eos_id, pad_id: beginning-of-text, end-of-text and padding ids, not always distinct.
      specials: {name: id} of all special tokens.

    Additionally, for imported tokenizers (None: not set):
      frame: ids added before and after a text.
      roles: transformers' names of special tokens: {"mask_token": "<mask>", ...}.
      generation: content of generation_config.json.
      chat_template: a Jinja template, or {name: template}.
      clean_up: decoding removes spaces before punctuation.
      split_specials: special tokens in a prompt are tokenised as text.
    """

    frame: tuple[list[int], list[int]] | None = None
    roles: dict[str, str] | None = None
    generation: dict[str, Any] | None = None
    chat_template: str | dict[str, str] | None = None
    clean_up: bool | None = None
    split_specials: bool | None = None
    _aligner: Any = None  # a `tokenizers` object for token offsets
    kind: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    specials: dict[str, int]

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, int32 [n]; neither adds nor recognises special tokens."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without special tokens; invalid UTF-8 becomes U+FFFD."""

    @abstractmethod
    def pieces(self) -> list[str]:
        """Returns the vocabulary entry of each id ('##ing'); '' for unused ids."""

    @abstractmethod
    def backend(self):
        """Returns an equivalent `tokenizers` object, or the path of a sentencepiece model."""

    @abstractmethod
    def _write(self, folder: Path) -> dict:
        """Writes the files of this kind to `folder`, and returns further settings for `_open`."""

    @classmethod
    @abstractmethod
    def _open(cls, folder: Path, about: dict) -> "Tokenizer":
        """Opens the files of `_write`."""

    def aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of `text` and their character offsets [n, 2], (start, end).

        A space before a word may belong to its first token.
        """
        if self._aligner is None:
            self._aligner = self.backend()
            self._aligner.encode_special_tokens = True
        encoding = self._aligner.encode(_valid(text), add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, int).reshape(-1, 2)

    def between(self) -> list[int]:
        """Returns the ids between the two texts of a pair."""
        return [self.eos_id]

    def around(self, kind: str) -> tuple[list[int], list[int]]:
        """Returns the ids before and after an input text for this model.kind."""
        bos, eos = [self.bos_id], [self.eos_id]
        usual = {"encoder": (bos, eos), "encoder_decoder": ([], eos)}.get(kind, (bos, []))
        return tuple(self.frame or usual)

    def read(self, text: str) -> list[int]:
        """Returns the ids of a prompt, in which special tokens are recognised."""
        names = sorted(self.specials, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        ids: list[int] = []
        for i, part in enumerate(parts):
            ids += [self.specials[part]] if i % 2 else self.encode(part).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts, in parallel if the tokenizer supports it."""
        return [self.encode(text) for text in texts]

    @property
    def dtype(self) -> type[np.integer]:
        """The smallest integer dtype for all ids."""
        return np.uint16 if self.vocab_size <= 2**16 else np.int32

    def fingerprint(self) -> str:
        """Returns a digest of the saved files: tokenizers with equal digests encode alike."""
        with tempfile.TemporaryDirectory() as folder:
            about = self._write(Path(folder))
            digest = hashlib.blake2b(repr((self.kind, about)).encode(), digest_size=16)
            for file in sorted(Path(folder).iterdir()):
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()

    def special(self, name: str) -> int:
        """Returns the id of a special token such as '[MASK]'; ConfigError if there is none."""
        if name not in self.specials:
            fix = "add it to tokenizer.specials" if self.roles is None else "its folder has none"
            raise ConfigError(f"tokenizer.specials: this {self.kind} tokenizer has no {name!r}, "
                              f"only {sorted(self.specials)}; {fix}")
        return self.specials[name]

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer to `folder`; each file is written atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"kind": self.kind, **self._write(folder)}
        about |= {name: value for name in IMPORTED if (value := getattr(self, name)) is not None}
        files.write_json(folder / ABOUT, about)


def load(folder: str | Path) -> Tokenizer:
    """Opens a tokenizer saved by `Tokenizer.save`; raises ConfigError if there is none."""
    folder = Path(folder)
    try:
        about = files.read_json(folder / ABOUT)
        tokenizer = _KINDS[about["kind"]]._open(folder, about)
        for name in about.keys() & IMPORTED:
            if not isinstance(about[name], IMPORTED[name]):
                raise ValueError(f"{ABOUT}: {name}={about[name]!r}")
            setattr(tokenizer, name, about[name])
        return tokenizer
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder} holds no readable tokenizer ({error}); "
                          "it must be a folder written by Tokenizer.save") from error


def build(
    config: ConfigDict, train_documents: Sequence[str], needed: Sequence[str] = ()
) -> Tokenizer:
    """Trains or opens the tokenizer of config.tokenizer; training is deterministic.

    Trains on the training documents only, evenly spaced ones if there are very many. Adds special
    tokens of the objective, except to a published tokenizer.json.
    """
    specials = list(config.get("specials", ()))
    if config.name != "file":
        specials += [name for name in needed if name not in specials]
    match config.name:
        case "bytes":
            return Bytes(specials)
        case "chars":
            return Chars(sorted(set().union(*_sample(train_documents))), specials)
        case "words":
            words = set().union(*(text.split() for text in _sample(train_documents)))
            return Words(sorted(words), specials)
        case "bpe" | "wordpiece":
            train = _train_bpe if config.name == "bpe" else _train_wordpiece
            tokenizer = train(_sample(train_documents), config.vocab_size, specials)
            if tokenizer.vocab_size != config.vocab_size:
                log.warning("tokenizer.vocab_size: the training text gives %d tokens, not %d",
                            tokenizer.vocab_size, config.vocab_size)
            return tokenizer
        case "file":
            return _open_file(_file(config), specials)
        case "sentencepiece":
            return SentencePiece(_file(config), specials)


class Listed(Tokenizer):
    """Base class of fixed vocabularies: units of text, whose indices are their ids, then specials.

    Args:
      units: the vocabulary; other units become [UNK].
    """

    NAMES = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
    stored = ""  # key of the units in the saved file; "": not saved
    blank = ""  # separator of units in decoding

    def __init__(self, units: Sequence[str], specials: Sequence[str] = ()):
        names, n = [*self.NAMES, *specials], len(units)
        self.units, self.vocab_size = units, n + len(names)
        self.specials = {name: n + i for i, name in enumerate(names)}
        self.pad_id, self.bos_id, self.eos_id = range(n, n + 3)
        self.unk_id = self.specials.get("[UNK]")
        self._text = dict(enumerate(units)) | {self.unk_id: "\ufffd"}

    def decode(self, ids: Iterable[int]) -> str:
        return self.blank.join(self._text[i] for i in map(int, ids) if i in self._text)

    def pieces(self) -> list[str]:
        return [*self.units, *self.specials]

    def backend(self):
        from tokenizers import AddedToken

        backend = assembled(*self._parts())
        names = [AddedToken(n, special=True, normalized=False) for n in self.specials]
        backend.add_special_tokens(names)
        return backend

    @abstractmethod
    def _parts(self) -> tuple:
        """Model, pre-tokenizer and decoder: see `assembled`."""

    def _word_level(self):
        from tokenizers import models

        return models.WordLevel({piece: i for i, piece in enumerate(self.pieces())}, "[UNK]")

    def _write(self, folder: Path) -> dict:
        units = {self.stored: self.units} if self.stored else {}
        return units | {"specials": list(self.specials)[len(self.NAMES) :]}

    @classmethod
    def _open(cls, folder: Path, about: dict) -> "Listed":
        units = [about[cls.stored]] if cls.stored else []
        return cls(*units, about["specials"])


class Bytes(Listed):
    """UTF-8 bytes, then [PAD], [BOS], [EOS] and further special tokens."""

    kind = "bytes"
    NAMES = Listed.NAMES[:3]

    def __init__(self, specials: Sequence[str] = ()):
        super().__init__([chr(byte) for byte in range(256)], specials)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")

    def _parts(self):
        from tokenizers import decoders, models, pre_tokenizers

        # GPT-2's byte-level vocabularies represent each byte by a character (Radford 2019).
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        symbols = {chr(byte): byte for byte in shown}
        symbols |= {chr(256 + i): byte for i, byte in enumerate(hidden)}
        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return models.BPE(symbols, []), split, decoders.ByteLevel()


class Chars(Listed):
    """Characters of the training text, then [PAD], [BOS], [EOS], [UNK], further special tokens."""

    kind, stored = "chars", "characters"

    def __init__(self, characters: Sequence[str], specials: Sequence[str] = ()):
        super().__init__("".join(characters), specials)
        # A lookup table by code point; the last entry is for all larger code points.
        points = np.array([ord(c) for c in characters], np.int64)
        self._ids = np.full(points.max(initial=0) + 2, self.unk_id, np.int32)
        self._ids[points] = np.arange(len(points))

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return self._ids[np.minimum(points, len(self._ids) - 1)]

    def _parts(self):
        from tokenizers import Regex, decoders, pre_tokenizers

        split = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        return self._word_level(), split, decoders.Fuse()


class Words(Listed):
    """Whitespace-separated words, then [PAD], [BOS], [EOS], [UNK] and further special tokens.

    Decoding joins words by single spaces.
    """

    kind, stored, blank = "words", "words", " "

    def __init__(self, words: Sequence[str], specials: Sequence[str] = ()):
        super().__init__(list(words), specials)
        self._ids = {word: i for i, word in enumerate(words)}

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(word, self.unk_id) for word in text.split()], np.int32)

    def _parts(self):
        from tokenizers import pre_tokenizers

        return self._word_level(), pre_tokenizers.WhitespaceSplit(), None


class HuggingFace(Tokenizer):
    """A tokenizer.json of the `tokenizers` library.

    pad_id defaults to eos_id, and bos_id to pad_id, as in T5.
    """

    kind = "huggingface"

    def __init__(self, tokenizer, bos_id: int | None, eos_id: int, pad_id: int | None):
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # '</s>' in a document is text, not its end
        added = tokenizer.get_added_tokens_decoder()
        self.specials = {token.content: i for i, token in added.items() if token.special}
        self.eos_id, self.pad_id = eos_id, eos_id if pad_id is None else pad_id
        self.bos_id = self.pad_id if bos_id is None else bos_id
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1  # ids may have gaps

    def encode(self, text: str) -> np.ndarray:
        encoding = self._tokenizer.encode(_valid(text), add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def read(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = bool(self.split_specials)
        ids = self._tokenizer.encode(_valid(text), add_special_tokens=False).ids
        self._tokenizer.encode_special_tokens = True
        return ids

    def between(self) -> list[int]:
        ids = self._tokenizer.post_processor and template(self._tokenizer, pair=True)[1]
        return ids or super().between()

    def backend(self):
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self._tokenizer.to_str())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = [_valid(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        ids = [i for i in map(int, ids) if 0 <= i < self.vocab_size]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        for spaced, clean in CLEAN.items() if self.clean_up else ():
            text = text.replace(spaced, clean)
        return text

    def pieces(self) -> list[str]:
        names = {i: piece for piece, i in self._tokenizer.get_vocab().items()}
        return [names.get(i, "") for i in range(self.vocab_size)]

    def _write(self, folder: Path) -> dict:
        files.write_text(folder / "tokenizer.json", self._tokenizer.to_str(pretty=True))
        return {"bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id}

    @classmethod
    def _open(cls, folder: Path, about: dict) -> "HuggingFace":
        tokenizer = _parse(folder / "tokenizer.json")
        return cls(tokenizer, about["bos_id"], about["eos_id"], about["pad_id"])


class SentencePiece(Tokenizer):
    """A sentencepiece .model; further special tokens follow its last id.

    Uses the sentencepiece library: transformers' conversion differs in the normalisation of accents
    and supports neither word models nor trailing spaces.
    """

    kind = "sentencepiece"

    def __init__(self, path: str | Path, specials: Sequence[str] = ()):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"tokenizer.path: {path} is not a sentencepiece .model") from error
        self._path = Path(path)
        n = self._model.vocab_size()
        special = lambda i: self._model.is_control(i) or self._model.is_unknown(i)
        own = {self._model.id_to_piece(i): i for i in range(n) if special(i)}
        self._added = [name for name in specials if name not in own]
        self.specials = own | {name: n + i for i, name in enumerate(self._added)}
        self.vocab_size = n + len(self._added)
        self.eos_id = self._model.eos_id()
        if self.eos_id < 0:
            raise ConfigError(f"tokenizer.path: {path} has no end-of-sentence token; train the "
                              "model with --eos_id")
        # T5's models have no bos and start from pad; LLaMA's have no pad.
        self.pad_id = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos_id
        self.bos_id = self._model.bos_id() if self._model.bos_id() >= 0 else self.pad_id

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._model.encode(_valid(text)), np.int32)

    def aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        from sentencepiece import sentencepiece_pb2

        found = self._model.encode(text := _valid(text), out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(found).pieces
        ends = np.array([(piece.begin, piece.end) for piece in pieces], int).reshape(-1, 2)
        character = np.repeat(range(len(text)), [len(c.encode()) for c in text])  # of each byte
        spans = np.append(character, len(text))[ends]
        return np.array([piece.id for piece in pieces], np.int32), spans

    def read(self, text: str) -> list[int]:
        gaps = [re.escape(name) for name in self.specials if name.startswith((*MASKS, SENTINEL))]
        # The space before a sentinel belongs to the text that replaces it.
        return super().read(re.sub(f" +(?={'|'.join(gaps)})", "", text) if gaps else text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, np.int32) for ids in self._model.encode([_valid(t) for t in texts])]

    def decode(self, ids: Iterable[int]) -> str:
        n, skip = self._model.vocab_size(), set(self.specials.values())
        return self._model.decode([i for i in map(int, ids) if 0 <= i < n and i not in skip])

    def pieces(self) -> list[str]:
        n = self._model.vocab_size()
        return [self._model.id_to_piece(i) for i in range(n)] + self._added

    def backend(self):
        return self._path

    def _write(self, folder: Path) -> dict:
        target = folder / "tokenizer.model"
        if self._path.resolve() != target.resolve():
            temporary = target.with_suffix(".tmp")
            shutil.copyfile(self._path, temporary)
            os.replace(temporary, target)
        return {"specials": self._added}

    @classmethod
    def _open(cls, folder: Path, about: dict) -> "SentencePiece":
        return cls(folder / "tokenizer.model", about["specials"])


_KINDS = {kind.kind: kind for kind in (Bytes, Chars, Words, HuggingFace, SentencePiece)}


def token_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """Returns the number of UTF-8 bytes of each id's text, int32 [V], 0 for special tokens.

    None if ids do not determine the text (words, WordPiece). Counts refer to normalised text and,
    for sentencepiece, include the space it adds before a text.
    """
    utf8 = lambda piece: len(piece.encode())
    blank = lambda piece: utf8(re.sub(r"\A<0x[0-9A-F]{2}>\Z", " ", piece).replace("\u2581", " "))
    decoder = str(tokenizer.backend().decoder) if tokenizer.kind == "huggingface" else ""
    if tokenizer.kind == "bytes" or "ByteLevel" in decoder:
        count = len  # one character per byte
    elif tokenizer.kind == "chars":
        count = utf8
    elif tokenizer.kind == "sentencepiece" or "\u2581" in decoder or "Metaspace" in decoder:
        count = blank
    else:
        return None
    counts = np.array([count(piece) for piece in tokenizer.pieces()], np.int32)
    counts[list(tokenizer.specials.values())] = 0
    return counts


def _valid(text: str) -> str:
    """Replaces lone surrogates, which JSON and command lines may contain but UTF-8 may not."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _sample(docs: Sequence[str]) -> list[str]:
    """Returns evenly spaced documents, up to TRAINING_CHARACTERS in total."""
    if isinstance(docs, list):
        size = sum(map(len, docs))
    else:  # lazily read: estimate the total from a few documents
        few = [len(docs[i]) for i in np.linspace(0, len(docs) - 1, 100).astype(int)]
        size = int(np.mean(few) * len(docs))
    step = max(1, -(-size // TRAINING_CHARACTERS))
    return [docs[i] for i in range(0, len(docs), step)]


def assembled(model, pre_tokenizer=None, decoder=None, normalizer=None):
    """Returns a `tokenizers` object with these components."""
    from tokenizers import Tokenizer

    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    backend.normalizer = normalizer
    return backend


def special_token(name: str):
    """Creates a special token; the space before a gap belongs to the text that fills it."""
    from tokenizers import AddedToken

    gap = name.startswith((*MASKS, SENTINEL))
    return AddedToken(name, special=True, normalized=False, lstrip=gap)


def put_around(
    backend, first: Sequence[str], last: Sequence[str], between: Sequence[str] | None = None
):
    """Returns the post-processor that adds special tokens around a text, [CLS] $A [SEP].

    A second text, with type 1, is preceded by `between` (None: `last`) and followed by `last`.
    """
    from tokenizers import processors

    between = last if between is None else between
    single = [*first, "$A", *last]
    pair = [*first, "$A", *between, *(f"{text}:1" for text in ("$B", *last))]
    ids = [(text, backend.token_to_id(text)) for text in sorted({*first, *last, *between})]
    made = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    if "ByteLevel" not in str(backend.pre_tokenizer):
        return made
    trim = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    return processors.Sequence([trim, made])  # offsets without the preceding space


def template(backend, pair: bool = False) -> tuple[list[int], ...]:
    """Returns the ids that a `tokenizers` object's post-processor adds before and after a text.

    pair: before, between and after two texts.
    """
    from tokenizers import Tokenizer, models

    one = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))  # maps any text to one token
    one.post_processor = backend.post_processor
    text = one.encode(*["a"] * (1 + pair))
    places = np.flatnonzero(np.array(text.special_tokens_mask) == 0)
    parts = np.split(text.ids, places)
    return tuple(part[i > 0 :].tolist() for i, part in enumerate(parts))


def _train_bpe(docs: list[str], vocab_size: int, specials: list[str]) -> HuggingFace:
    """Trains GPT-2's byte-level BPE; one special token serves as eos and padding."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    end = "<|endoftext|>"
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = assembled(models.BPE(), split, decoders.ByteLevel())
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False,
           "special_tokens": [end, *map(special_token, specials)]}  # fmt: skip
    tokenizer.train_from_iterator(docs, trainers.BpeTrainer(vocab_size=vocab_size, **options))
    return HuggingFace(tokenizer, *[tokenizer.token_to_id(end)] * 3)


def _train_wordpiece(docs: list[str], vocab_size: int, specials: list[str]) -> HuggingFace:
    """Trains BERT's uncased WordPiece."""
    import tokenizers as hf

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names += [name for name in specials if name not in names]

    def new(vocab: dict[str, int] | None = None) -> hf.Tokenizer:
        model = hf.models.WordPiece(vocab, unk_token="[UNK]")
        split, normalizer = hf.pre_tokenizers.BertPreTokenizer(), hf.normalizers.BertNormalizer()
        return assembled(model, split, hf.decoders.WordPiece(), normalizer)

    def train(vocab_size: int, first: list[str]) -> dict[str, int]:
        tokenizer, options = new(), {"special_tokens": first, "show_progress": False}
        trainer = hf.trainers.WordPieceTrainer(vocab_size=vocab_size, **options)
        tokenizer.train_from_iterator(docs, trainer)
        return tokenizer.get_vocab()

    # The library numbers '##a', '##b', ... in hash table order, which decides ties between merges.
    # A first pass without merges collects them; the second pass gets them sorted.
    inner = sorted(token for token in train(0, names) if len(token) == 3 and token[:2] == "##")
    tokenizer = new(train(vocab_size, names + inner))
    tokenizer.add_special_tokens([special_token(name) for name in names])
    tokenizer.post_processor = put_around(tokenizer, ["[CLS]"], ["[SEP]"])
    return HuggingFace(tokenizer, *map(tokenizer.token_to_id, ("[CLS]", "[SEP]", "[PAD]")))


# Names in published tokenizers, most specific first.
ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]", "[SEP]")
_NAMES = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "[CLS]"),
    "eos": ENDS,
    "pad": ("<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
}


def _open_file(path: Path, specials: list[str]) -> HuggingFace:
    tokenizer = _parse(path)
    tokenizer.no_padding()  # published files may include padding and truncation settings
    tokenizer.no_truncation()
    tokenizer.add_special_tokens(specials)
    stated = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path.parent / name).is_file():
            stated |= files.read_json(path.parent / name)

    def find(role: str, *aliases: str) -> int | None:
        tokens = [stated.get(f"{alias}_token") for alias in (role, *aliases)]
        tokens = [token["content"] if isinstance(token, dict) else token for token in tokens]
        ids = (tokenizer.token_to_id(token) for token in (*tokens, *_NAMES[role]) if token)
        return next((i for i in ids if i is not None), None)

    eos = find("eos", "sep")
    if eos is None:
        raise ConfigError(f"tokenizer.path: {path} names no end-of-text token; add one to a "
                          "special_tokens_map.json next to it, as {\"eos_token\": \"</s>\"}")
    return HuggingFace(tokenizer, find("bos", "cls"), eos, find("pad"))


def _parse(path: Path):
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"tokenizer.path: {path} is not a tokenizer.json ({error})") from error


def _file(config: ConfigDict) -> Path:
    path = Path(config.path)
    if not config.path or not path.is_file():
        file = "a tokenizer.json" if config.name == "file" else "a .model"
        raise ConfigError(f"tokenizer.path: {config.path!r} is not a file; tokenizer.name="
                          f"{config.name} needs {file}; tokenizer.name=bpe trains one on your text "
                          "instead")
    return path
