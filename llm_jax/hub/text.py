"""Tokenizers of Hugging Face folders, with generation_config.json and chat templates.

Reading uses transformers' AutoTokenizer; written tokenizers encode in transformers as prompts are
encoded here.
"""

import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.data.tokenizers import HuggingFace, Tokenizer, put_around, template
from llm_jax.hub import files
from llm_jax.hub.family import Family

CONFIG, WHOLE, SENTENCEPIECE = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"
GENERATION = "generation_config.json"
TOKENIZERS = re.compile(r"vocab|token|merges|\.model$|\.spm$")  # names of tokenizer files
CLEAN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
# Entries of config.json used if there is no generation_config.json.
GENERATES = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length",
    "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty",
    "no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id",
    "suppress_tokens", "begin_suppress_tokens", "typical_p", "diversity_penalty",
)  # fmt: skip
# transformers' names of special tokens, and their text here.
ROLES = {"[MASK]": "mask_token", "<mask>": "mask_token", "[CLS]": "cls_token",
         "[SEP]": "sep_token", "[UNK]": "unk_token", "<unk>": "unk_token"}  # fmt: skip


def load(folder: Path, hf: dict[str, Any], family: Family) -> Tokenizer | None:
    """Returns the folder's tokenizer, as read by AutoTokenizer; None if it has none.

    An encoder's texts start with its cls_token and end with its sep_token; the targets of an
    encoder-decoder start with decoder_start_token_id.

    Raises:
      ConfigError: damaged files, a tokenizer that transformers cannot open or that has no
        `tokenizers` backend, or no end-of-text token.
    """
    made = _auto(folder)
    if made is None:
        return None
    backend = made.backend_tokenizer
    backend.no_truncation()  # published files may include truncation and padding settings
    backend.no_padding()
    roles = {role: getattr(made, role) for role in made.SPECIAL_TOKENS_ATTRIBUTES}
    roles = {role: str(token) for role, token in roles.items() if token is not None}
    named = {role: backend.token_to_id(text) for role, text in roles.items()}
    generation = _generation(folder, hf)
    known = _known(folder, backend, roles)
    first = lambda *ids: next((i for i in ids if i in known), None)
    kind = family.model.get("kind", "decoder")
    begins, ends = (named.get(f"{role}_token") for role in ("bos", "eos"))
    if kind == "encoder":
        begins, ends = first(named.get("cls_token"), begins), first(named.get("sep_token"), ends)
    eos = first(ends, named.get("sep_token"), _id(generation.get("eos_token_id")),
                *map(backend.token_to_id, tokenizers.ENDS))  # fmt: skip
    if kind == "encoder" and None in (begins, ends):
        lacks = " and ".join(role for role, i in (("cls_token", begins), ("sep_token", ends))
                             if i is None)  # fmt: skip
        raise ConfigError(f"{folder}: its tokenizer has no {lacks}, which an encoder needs around "
                          f"each text (BERT's [CLS] and [SEP]); add the {WHOLE} that belongs to "
                          f"the weights, or name its tokens for these in {CONFIG}")
    if eos is None:
        raise ConfigError(f'{folder}: no file names an end-of-text token; add "eos_token": "</s>", '
                          f"or the token's name, to {CONFIG}")
    bos = first(begins, named.get("cls_token"))
    if kind == "encoder_decoder":
        bos = first(*(_id(of.get("decoder_start_token_id")) for of in (generation, hf)))
    tokenizer = HuggingFace(backend, bos, eos, named.get("pad_token"))
    tokenizer.frame = template(backend)
    tokenizer.roles = roles
    tokenizer.generation = generation
    tokenizer.chat_template = made.chat_template
    tokenizer.split_specials = made.split_special_tokens or None
    if made.clean_up_tokenization_spaces:
        merges = type(backend.model).__name__ == "BPE"
        tokenizer.clean_up = not merges or bool(getattr(made, CLEAN_BPE)) or None
    return tokenizer


def _known(folder: Path, backend, roles: dict[str, str]) -> set[int]:
    """Returns the ids without special tokens that are in no file: transformers adds default special
    tokens of a class to any vocabulary, with ids that the weights do not have."""
    own = backend.get_vocab(with_added_tokens=False)
    added = {text for text in roles.values() if text not in own}
    for path in filter(Path.is_file, folder.iterdir()) if added else ():
        if TOKENIZERS.search(path.name):
            content = path.read_bytes()
            added = {text for text in added if text.encode() not in content}
    return {i for text, i in backend.get_vocab().items() if text not in added}


def _auto(folder: Path):
    """Opens a folder with AutoTokenizer; None if there are no tokenizer files."""
    if not any(TOKENIZERS.search(path.name) for path in folder.iterdir()):
        return None
    for path in folder.glob("*token*.json"):  # transformers' errors do not name the damaged file
        files.read_json(path)
    made = _opened(folder)
    about = f"{folder}: its tokenizer is a {type(made).__name__}"
    if not made.is_fast:
        raise ConfigError(
            f"{about}, which transformers implements in Python only; llm_jax needs one of the "
            f"tokenizers library: an equivalent {WHOLE}, and a {CONFIG} with "
            '"tokenizer_class": "PreTrainedTokenizerFast"'
        )
    names = [*dict.fromkeys((WHOLE, *made.vocab_files_names.values()))]
    if not any((folder / name).is_file() for name in names):  # the vocabulary would be empty
        raise ConfigError(f"{about}, but none of its files exists: {', '.join(names)}")
    return made


def _opened(path: Path, name: str = "AutoTokenizer"):
    """Opens a tokenizer with transformers, whose import takes seconds."""
    with _no_warnings():
        try:
            import transformers

            door = getattr(transformers, name)
            made = door.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            made.encode("\u0378")  # an unknown character: fails if there is no unk_token
            return made
        except Exception as error:  # transformers raises various exceptions
            raise ConfigError(f"{path}: transformers cannot open its tokenizer "
                              f"({type(error).__name__}: {error})") from error


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppresses transformers' warnings, for example about missing PyTorch."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _generation(folder: Path, hf: dict[str, Any]) -> dict[str, Any]:
    """Returns generation_config.json, or the entries of config.json if there is none."""
    if (folder / GENERATION).is_file():
        entries = files.read_json(folder / GENERATION)
    else:
        entries = {name: hf.get(name) for name in GENERATES}
    return {name: value for name, value in entries.items() if value is not None}


def _id(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def ids(family: Family, tokenizer: Tokenizer | None) -> dict[str, int | list[int] | None]:
    """Returns the special token ids for config.json."""
    if tokenizer is None:  # transformers requires these two to build a model
        needed = ("pad_token_id", "decoder_start_token_id")
        return {theirs: 0 if theirs in needed else None for theirs in family.ids}
    entries = {theirs: getattr(tokenizer, ours) for theirs, ours in family.ids.items()}
    ends = (tokenizer.generation or {}).get("eos_token_id")  # several may end a text
    return entries | ({"eos_token_id": ends} if ends and "eos_token_id" in entries else {})


def save(tokenizer: Tokenizer, folder: Path, model: ConfigDict) -> None:
    """Writes tokenizer.json and tokenizer_config.json for transformers 4 and 5, and the
    generation_config.json and chat template of an import."""
    backend = tokenizer.backend()
    if isinstance(backend, Path):  # for readers of sentencepiece models
        shutil.copyfile(backend, folder / SENTENCEPIECE)
        backend = _of_sentencepiece(folder / SENTENCEPIECE, tokenizer)
    (before, behind), between = tokenizer.around(model.kind), tokenizer.between()
    pairs = "sequence" in model.head and template(backend, pair=True)[1] != between
    if template(backend) != (before, behind) or pairs:  # adds the same tokens around texts as we do
        name = tokenizer.pieces()
        parts = [[name[i] for i in ids] for ids in (before, behind, between)]
        backend.post_processor = put_around(backend, *parts)
    files.write_json(folder / WHOLE, json.loads(backend.to_str()))
    chat = tokenizer.chat_template
    if isinstance(chat, dict):
        chat = [{"name": name, "template": one} for name, one in chat.items()]
    types = ["token_type_ids"] * (model.type_vocab_size > 1)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_length,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up),
    }
    given = {CLEAN_BPE: tokenizer.clean_up, "split_special_tokens": tokenizer.split_specials,
             "chat_template": chat}  # fmt: skip
    about |= {name: value for name, value in given.items() if value}
    entries = roles(tokenizer, model.kind)
    if "sequence" in model.head:  # transformers finds the last token by the padding id
        entries = {"pad_token": tokenizer.pieces()[tokenizer.pad_id]} | entries
    files.write_json(folder / CONFIG, about | entries)
    if tokenizer.generation is not None:
        files.write_json(folder / GENERATION, tokenizer.generation)


def roles(tokenizer: Tokenizer, kind: str) -> dict[str, str]:
    """Returns transformers' names of the special tokens: {"mask_token": "[MASK]", ...}."""
    if tokenizer.roles is not None:
        return tokenizer.roles
    names = {i: name for name, i in tokenizer.specials.items()}
    entries = {ROLES[name]: name for name in tokenizer.specials if name in ROLES}
    taken = set(entries.values()) if kind == "encoder" else ()  # BERT's [CLS] is not bos
    for role in ("bos", "eos", "pad"):
        name = names.get(getattr(tokenizer, f"{role}_id"))
        if name and name not in taken:
            entries[f"{role}_token"] = name
    return entries


def _of_sentencepiece(path: Path, tokenizer: Tokenizer):
    """Returns transformers' conversion of a sentencepiece .model, with our special tokens.

    Raises:
      ConfigError: the conversion differs: a word model, or spaces as suffixes.
    """
    backend = _opened(path, "PreTrainedTokenizerFast").backend_tokenizer
    names = sorted(tokenizer.specials, key=tokenizer.specials.get)
    backend.add_special_tokens([tokenizers.special_token(name) for name in names])
    words = (piece.strip("\u2581") for piece in tokenizer.pieces())
    text = " ".join([word for word in words if word.isalnum()][:1000])
    if backend.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
        raise ConfigError("tokenizer.name=sentencepiece: transformers encodes differently than "
                          "this .model: it does not support its model_type or "
                          "treat_whitespace_as_suffix")
    return backend
