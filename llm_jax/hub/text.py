"""The tokenizer of a Hugging Face folder, and what goes with it: generation_config.json, chats.

Reading is what AutoTokenizer makes of the folder (hub/classes.py); what is written tokenises in
transformers as prompts are read here.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.data.tokenizers import HuggingFace, Tokenizer, put_around, template
from llm_jax.files import read_text
from llm_jax.hub import classes, files
from llm_jax.hub.family import Family

GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
CLEAN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
# Entries of config.json that stand for generation_config.json where there is none.
GENERATES = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length",
    "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty",
    "no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id",
    "suppress_tokens", "begin_suppress_tokens", "typical_p", "diversity_penalty",
)  # fmt: skip
# What transformers calls special tokens, and how they are spelt here.
ROLES = {"[MASK]": "mask_token", "<mask>": "mask_token", "[CLS]": "cls_token",
         "[SEP]": "sep_token", "[UNK]": "unk_token", "<unk>": "unk_token"}  # fmt: skip


def load(folder: Path, hf: dict[str, Any], family: Family) -> Tokenizer | None:
    """Returns the folder's tokenizer, as AutoTokenizer reads it; None if it has none.

    An encoder's texts begin with its cls_token and end with its sep_token; an encoder-decoder's
    begin with decoder_start_token_id.
    """
    made = classes.read(folder, hf)
    if made is None:
        return None
    named = {role: made.backend.token_to_id(text) for role, text in made.roles.items()}
    file = folder / GENERATION
    generation = files.read_json(file) if file.is_file() else hf
    known = generation if file.is_file() else dict.fromkeys(GENERATES)
    generation = {k: v for k, v in generation.items() if k in known and v is not None}

    first = lambda *ids: next((i for i in ids if i is not None), None)
    kind = family.model.get("kind", "decoder")
    begins, ends = (named.get(f"{role}_token") for role in ("bos", "eos"))
    if kind == "encoder":
        begins, ends = first(named.get("cls_token"), begins), first(named.get("sep_token"), ends)
    eos = first(ends, named.get("sep_token"), _id(generation.get("eos_token_id")),
                *map(made.backend.token_to_id, tokenizers.ENDS))  # fmt: skip
    if eos is None or eos < 0:
        raise ConfigError(f'{folder}: no file names an end-of-text token; put "eos_token": "</s>", '
                          f"or what it is called, into {classes.CONFIG}")
    bos = first(begins, named.get("cls_token"))
    if kind == "encoder_decoder":
        bos = first(*(_id(of.get("decoder_start_token_id")) for of in (generation, hf)))
    tokenizer = HuggingFace(made.backend, bos, eos, named.get("pad_token"))
    tokenizer.frame = template(made.backend)
    tokenizer.roles = made.roles
    tokenizer.generation = generation
    tokenizer.chat_template = _chat_template(folder, made.config)
    tokenizer.split_specials = made.config.get("split_special_tokens", False) or None
    merges = type(made.backend.model).__name__ == "BPE"
    if made.config.get("clean_up_tokenization_spaces"):
        tokenizer.clean_up = not merges or bool(made.config.get(CLEAN_BPE)) or None
    return tokenizer


def _id(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """chat_template.jinja and additional_chat_templates, before tokenizer_config.json's own."""
    paths = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    templates = {path.stem: read_text(path) for path in paths}
    if (folder / TEMPLATE).is_file():
        templates = {"default": read_text(folder / TEMPLATE)} | templates
    if templates:
        return templates["default"] if [*templates] == ["default"] else templates
    stated = config.get("chat_template")
    if isinstance(stated, list):
        stated = {one["name"]: one["template"] for one in stated}
    return stated


def ids(family: Family, tokenizer: Tokenizer | None) -> dict[str, int | list[int] | None]:
    """Returns config.json's ids of special tokens: those of the tokenizer."""
    if tokenizer is None:  # transformers will not build a model without these two
        needed = ("pad_token_id", "decoder_start_token_id")
        return {theirs: 0 if theirs in needed else None for theirs in family.ids}
    said = {theirs: getattr(tokenizer, ours) for theirs, ours in family.ids.items()}
    ends = (tokenizer.generation or {}).get("eos_token_id")  # several may end a text
    return said | ({"eos_token_id": ends} if ends and "eos_token_id" in said else {})


def save(tokenizer: Tokenizer, folder: Path, model: ConfigDict) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which transformers 4 and 5 read alike, and
    what an import came with: generation_config.json and the chat template."""
    files.write_json(folder / classes.WHOLE, json.loads(_backend(tokenizer, model.kind).to_str()))
    if isinstance(tokenizer.backend(), Path):  # for those who read sentencepiece models alone
        shutil.copyfile(tokenizer.backend(), folder / "tokenizer.model")
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": one} for name, one in template.items()]
    types = ["token_type_ids"] * (model.type_vocab_size > 1)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_length,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up),
    }
    given = {CLEAN_BPE: tokenizer.clean_up, "split_special_tokens": tokenizer.split_specials,
             "chat_template": template}  # fmt: skip
    about |= {name: value for name, value in given.items() if value}
    files.write_json(folder / classes.CONFIG, about | roles(tokenizer, model.kind))
    if tokenizer.generation is not None:
        files.write_json(folder / GENERATION, tokenizer.generation)


def roles(tokenizer: Tokenizer, kind: str) -> dict[str, str]:
    """Returns what transformers calls the special tokens: {"mask_token": "[MASK]", ...}."""
    if tokenizer.roles is not None:
        return tokenizer.roles
    names = {i: name for name, i in tokenizer.specials.items()}
    said = {ROLES[name]: name for name in tokenizer.specials if name in ROLES}
    taken = set(said.values()) if kind == "encoder" else ()  # BERT's [CLS] is no bos there
    for role in ("bos", "eos", "pad"):
        name = names.get(getattr(tokenizer, f"{role}_id"))
        if name and name not in taken:
            said[f"{role}_token"] = name
    return said


def _backend(tokenizer: Tokenizer, kind: str):
    """A `tokenizers` object that puts around a text, and reads, what we do."""
    backend = tokenizer.backend()
    if isinstance(backend, Path):
        backend, _, added = classes.of_sentencepiece(backend, {})
        backend.add_tokens(list(added))
        names = sorted(tokenizer.specials, key=tokenizer.specials.get)
        backend.add_special_tokens([tokenizers.special_token(name) for name in names])
    before, behind = tokenizer.around(kind)
    if template(backend) != (before, behind):
        name = tokenizer.pieces()
        first, last = ([name[i] for i in ids] for ids in (before, behind))
        backend.post_processor = put_around(backend, first, last)
    return backend
