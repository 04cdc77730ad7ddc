"""The tokenizer of a Hugging Face folder: tokenizer.json or a sentencepiece .model, kept as is."""

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
    return found


def ids(family: Family, tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """Returns config.json's ids of special tokens: those of the tokenizer."""
    if tokenizer is None:  # transformers will not build a model without these two
        needed = ("pad_token_id", "decoder_start_token_id")
        return {theirs: 0 if theirs in needed else None for theirs in family.ids}
    return {theirs: getattr(tokenizer, ours) for theirs, ours in family.ids.items()}


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes the tokenizer's own files and, for transformers, tokenizer_config.json."""
    tokenizer.save(folder)
    if not (folder / "tokenizer.json").is_file():
        return
    names = {i: name for name, i in tokenizer.specials.items()}
    said = {
        f"{role}_token": names[i]
        for role in ("bos", "eos", "pad")
        if (i := getattr(tokenizer, f"{role}_id")) in names
    }
    for name in tokenizer.specials:
        said |= {ROLES[name]: name} if name in ROLES else {}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    files.write_json(folder / "tokenizer_config.json", about | said)
