"""Reads and writes Hugging Face folders without PyTorch: safetensors, config.json, tokenizer.

    model, params, tokenizer = hub.load("folder")
    outputs = models.build(model).apply({"params": params}, {"tokens": ids})
    hub.save(model, params, tokenizer, "other folder")
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.files import check_source
from llm_jax.hub import families, files, sentence, text
from llm_jax.hub.families import FAMILIES
from llm_jax.hub.family import (
    DROPPED,
    Family,
    Plan,
    differences,
    from_tensors,
    labels,
    plan,
    shape_of,
    to_hf,
    to_model,
    to_tensors,
)

__all__ = ["FAMILIES", "family_of", "labels", "load", "pooling", "save"]
pooling = sentence.pooling
SHOWN = 20  # maximum tensors listed in an error


def load(folder: str | Path) -> tuple[ConfigDict, dict, Tokenizer | None]:
    """Loads a folder: returns (resolved config.model, float32 NumPy parameters, tokenizer or None).

    Raises:
      ConfigError: no such folder, an unknown family, an unsupported entry of config.json, pickled
        weights, or missing, unexpected or wrongly shaped tensors.
    """
    folder = Path(folder)
    check_source(folder)
    hf = files.read_json(folder / files.CONFIG)
    family = families.get(hf.get("model_type"))
    tensors = files.Tensors(folder)
    added = _add_prefix(family, tensors)
    for name in family.if_zero:
        if name in tensors and not np.any(tensors.get(name)):
            tensors.drop(name)
    model = to_model(family, hf, tensors)
    _check_depth(family, model, tensors)
    wanted = plan(family, model)
    stand_ins = _check(family, wanted, tensors, folder, added)
    params = from_tensors(wanted, lambda name: tensors.get(stand_ins.get(name, name)))
    tokenizer = text.load(folder, hf, family)
    _check_last(model, tokenizer)
    return model, params, tokenizer


def _check_last(model: ConfigDict, tokenizer: Tokenizer | None) -> None:
    """Raises ConfigError if transformers' classifier would read a different token of a decoder."""
    if tokenizer is not None and model.kind == "decoder" and "sequence" in model.head:
        if tokenizer.pad_id in tokenizer.around("decoder")[1]:
            raise ConfigError(f"the tokenizer ends a text with its padding token, id "
                              f"{tokenizer.pad_id}: transformers would classify from the previous "
                              "token; the two must differ")


def _add_prefix(family: Family, tensors: files.Tensors) -> str:
    """Adds the family's prefix to names if the file omits it; returns the added prefix or ''."""
    if not family.prefix or any(name.startswith(family.prefix) for name in tensors):
        return ""
    unprefixed = (*family.copies, *family.aliases)
    modules = [family.modules, *family.by_head.values()]
    unprefixed += tuple(v for m in modules for v in m.values() if not v.startswith(family.prefix))
    tensors.rename(lambda name: name if name.startswith(unprefixed) else family.prefix + name)
    return family.prefix


def _check_depth(family: Family, model: ConfigDict, tensors: files.Tensors) -> None:
    """Compares the number of layers in config.json with that in the weight files."""
    counted = [n for n in tensors if not any(re.fullmatch(p, n) for p in family.dropped)]
    for stack in ("encoder", "decoder"):
        starts = {
            re.escape(theirs.partition("{}")[0])
            for ours, theirs in family.modules.items()
            if ours.startswith(stack) and "{}" in theirs
        }
        if starts:
            pattern = re.compile(rf"(?:{'|'.join(starts)})(\d+)\.")
            in_files = len({m[1] for name in counted if (m := pattern.match(name))})
            both = model.kind == "encoder_decoder" and stack == "decoder"
            ours = "num_decoder_layers" if both else "num_layers"
            key = next(key.theirs for key in family.keys if key.ours == ours)
            # If the files have no layer at all, the missing tensors are listed below.
            if model[ours] != in_files and (in_files or model[ours] > 1000):
                raise ConfigError(f"config.json: {key} gives the {stack} {model[ours]} layers, but "
                                  f"the weight files have {in_files}")


def _check(
    family: Family, wanted: Plan, tensors: files.Tensors, folder: Path, added: str
) -> dict[str, str]:
    """Checks tensor names and shapes; returns the copies to read for missing tied tensors."""

    def own(name: str) -> str:  # the name in the file
        return tensors.own_name(name) if name in tensors else name.removeprefix(added)

    stand_ins: dict[str, str] = {}
    for copy, original in (family.copies | family.aliases).items():
        if copy in tensors and copy not in wanted and original not in tensors:
            stand_ins.setdefault(original, copy)
    problems = [f"missing: {own(n)}" for n in wanted if n not in tensors and n not in stand_ins]
    for name in tensors:
        original = (family.copies | family.aliases).get(name)
        stands_for = name if name in wanted else original
        if name in wanted or (original in wanted and stand_ins.get(original) == name):
            ours, theirs = shape_of(wanted[stands_for]), tensors.shape(name)
            if theirs != ours:
                problems.append(
                    f"shape mismatch: {own(name)} is {theirs}, but {ours} by config.json"
                )
            elif tensors.dtype(name) not in files.FLOATS:
                problems.append(f"not floating-point: {own(name)} is {tensors.dtype(name)}")
        elif original in wanted and name in family.copies:
            source = stand_ins.get(original, original)
            if not np.array_equal(tensors.get(name), tensors.get(source)):
                problems.append(f"not tied: {own(name)} differs from {own(source)}")
        elif not any(re.fullmatch(p, name) for p in (*DROPPED, *family.dropped, *family.aliases)):
            problems.append(f"unexpected: {own(name)}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ConfigError(
            f"{folder} does not hold the {family.name} model of its config.json; {len(problems)} "
            "of its tensors are wrong:\n  " + "\n  ".join(problems[:SHOWN] + more)
        )
    return stand_ins


def family_of(model: ConfigDict) -> str:
    """Returns the name of the first family that can express config.model.

    Raises:
      ConfigError: none can; names the unsupported keys of the nearest family.
    """
    model = configs.resolve(model, 0)
    problems = {name: differences(family, model) for name, family in FAMILIES.items()}
    # Families that fail to write the config are not compared further, which keeps messages short.
    differ = lambda name: sum(model[k] != v for k, v in FAMILIES[name].model.items())
    far = lambda name: FAMILIES[name].model.get("kind", "decoder") != model.kind
    nearest = min(problems, key=lambda n: (bool(problems[n]), far(n), differ(n), len(problems[n])))
    if problems[nearest]:
        raise ConfigError(f"no Hugging Face family can express this model; for model.kind="
                          f"{model.kind!r} the nearest is {nearest}, but "
                          f"{'; '.join(problems[nearest])}")
    return nearest


def save(
    model: ConfigDict, params: Any, tokenizer: Tokenizer | None, folder: str | Path,
    family: str | None = None,
    *, labels: Sequence[str] = (), dtype: str = "float32", shard_bytes: float = 5e9,
) -> str:
    """Writes a folder that transformers can open; returns the family's name.

    For ELECTRA only the discriminator is written (Clark 2020, 2).

    Args:
      model: config.model with vocab_size filled in.
      params: the parameter tree, NumPy or JAX arrays.
      folder: new or empty.
      family: a name in FAMILIES; None: the first that can express the model.
      labels: names of the model's num_labels labels, in order; (): unknown.
      dtype: float32, bfloat16 or float16.

    Raises:
      ConfigError: no family, or not the given one, can express the model; folder not empty.
    """
    folder = check_new(folder)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype={dtype!r}: allowed are float32, bfloat16, float16")
    model, params = models.merge(kept(model), params)
    _check_last(model, tokenizer)
    table = families.get(family or family_of(model))
    hf = text.ids(table, tokenizer) | to_hf(table, model)
    if model.num_labels:
        names = [str(name) for name in labels] or [f"LABEL_{i}" for i in range(model.num_labels)]
        hf["id2label"] = {str(i): name for i, name in enumerate(names)}
        hf["label2id"] = {name: i for i, name in enumerate(names)}
        if model.num_labels == 1:
            hf["problem_type"] = "regression"
    if table.place and tokenizer is not None:
        model, params = table.place(model, params, tokenizer)
        hf |= to_hf(table, model)
    wanted = plan(table, model)
    wanted |= {name: wanted[newer] for name, newer in table.aliases.items()}
    if model.tie_embeddings and hf.get("tie_word_embeddings") is False:  # T5, tied but unscaled
        wanted |= {"lm_head.weight": wanted[table.copies["lm_head.weight"]]}
    if table.prefix and all(name.startswith(table.prefix) for name in wanted) and _headless(model):
        names = {name: name.removeprefix(table.prefix) for name in wanted}
        wanted = {names[name]: pieces for name, pieces in wanted.items()}
    folder.mkdir(parents=True, exist_ok=True)
    width = np.dtype(dtype).itemsize
    sizes = {name: width * int(np.prod(shape_of(pieces))) for name, pieces in wanted.items()}
    files.write(
        folder, sizes, lambda names: to_tensors(wanted, params, names, np.dtype(dtype)), shard_bytes
    )
    if tokenizer is not None:
        text.save(tokenizer, folder, model)
    # Written last: a folder with a config.json is complete.
    files.write_json(folder / files.CONFIG, hf | {"dtype": dtype})
    return table.name


def kept(model: ConfigDict) -> ConfigDict:
    """Returns the resolved model that is exported: for ELECTRA, the discriminator."""
    model = configs.resolve(model, 0)
    model.generator_fraction = 0.0
    return model


def check_new(folder: str | Path) -> Path:
    """Returns the path; ConfigError unless it is absent or an empty folder."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty; name a new folder")
    return folder


def _headless(model: ConfigDict) -> bool:
    return model.head == "none"
