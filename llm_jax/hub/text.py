"""The tokenizer of a Hugging Face folder: tokenizer.json or a sentencepiece .model.

What is written tokenises in transformers as decode.complete does here.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llm_jax.data import tokenizers
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.hub import files
from llm_jax.hub.family import Family

MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# What transformers calls special tokens, and how they are spelt.
ROLES = {
    "[MASK]": "mask_token",
    "<mask>": "mask_token",
    "[CLS]": "cls_token",
    "[SEP]": "sep_token",
    "[UNK]": "unk_token",
    "<unk>": "unk_token",
}


def load(folder: Path, hf: dict[str, Any], family: Family) -> Tokenizer | None:
    """Returns the folder's tokenizer with the ids that config.json states; None if it has none."""
    if (folder / tokenizers.ABOUT).is_file():  # written by `save`, ids and all
        return tokenizers.load(folder)
    if (folder / "tokenizer.json").is_file():
        kind, file, specials = "file", folder / "tokenizer.json", ()
    else:
        file = next((folder / name for name in MODELS if (folder / name).is_file()), None)
        kind, specials = "sentencepiece", family.specials
    if file is None:
        return None
    about = {"name": kind, "path": str(file), "specials": specials}
    found = tokenizers.build(ConfigDict(about), ())
    for theirs, ours in family.ids.items():  # in the table's order: the start of decoding last
        value = hf.get(theirs)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and 0 <= value < found.vocab_size:
            setattr(found, ours, value)
    if kind == "file":
        found.frame = found.template()
    return found


def ids(family: Family, tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """Returns config.json's ids of special tokens: those of the tokenizer."""
    if tokenizer is None:  # transformers will not build a model without these two
        needed = ("pad_token_id", "decoder_start_token_id")
        return {theirs: 0 if theirs in needed else None for theirs in family.ids}
    return {theirs: getattr(tokenizer, ours) for theirs, ours in family.ids.items()}


def save(tokenizer: Tokenizer, folder: Path, model: ConfigDict, family: Family) -> None:
    """Writes the tokenizer's own files and, for transformers, two more that do what it does."""
    tokenizer.save(folder)
    whole = _tokenizer_json(tokenizer, folder, model.kind)
    if whole is not None:
        files.write_json(folder / "tokenizer.json", whole)
    elif not family.sentencepiece:  # transformers finds the class by config.json
        return
    names = {i: name for name, i in tokenizer.specials.items()}
    said = {ROLES[name]: name for name in tokenizer.specials if name in ROLES}
    for role in ("bos", "eos", "pad"):
        name = names.get(getattr(tokenizer, f"{role}_id"))
        if name and name not in said.values():  # BERT's [CLS] and [SEP] are no bos and eos there
            said[f"{role}_token"] = name
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast" if whole else family.sentencepiece,
        "model_max_length": model.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if model.type_vocab_size > 1:
        about["model_input_names"].insert(1, "token_type_ids")
    if whole is None:
        before, behind = tokenizer.around(model.kind)
        about |= {"add_bos_token": bool(before), "add_eos_token": bool(behind)}
    files.write_json(folder / "tokenizer_config.json", about | said)


def _tokenizer_json(tokenizer: Tokenizer, folder: Path, kind: str) -> dict[str, Any] | None:
    """The content of a tokenizer.json that puts around a text, and reads, what we do."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import processors

    if tokenizer.kind in ("bytes", "chars"):
        backend = _of_characters(tokenizer)
    elif (folder / "tokenizer.json").is_file():
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    else:
        return None
    before, behind = tokenizer.around(kind)
    if backend.encode("a").ids != [*before, *tokenizer.encode("a").tolist(), *behind]:
        name = tokenizer.pieces()
        first, last = ([name[i] for i in ids] for ids in (before, behind))
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, "$B:1", *(f"{text}:1" for text in last)],
            special_tokens=[(name[i], i) for i in {*before, *behind}],
        )
    return json.loads(backend.to_str())


def _of_characters(tokenizer: Tokenizer):
    """A tokenizers.Tokenizer without merges, one id a byte or a character."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    if tokenizer.kind == "bytes":
        alphabet = {_byte_symbol(i): i for i in range(256)}
        backend = Backend(models.BPE(vocab=alphabet, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
    else:
        vocab = {c: i for i, c in enumerate(tokenizer.characters)} | tokenizer.specials
        backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    specials = sorted(tokenizer.specials, key=tokenizer.specials.get)
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in specials])
    return backend


def _byte_symbol(byte: int) -> str:
    """The character by which GPT-2's byte-level vocabularies write a byte (Radford 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return chr(byte if byte in shown else 256 + hidden.index(byte))
