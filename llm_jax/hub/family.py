"""Model families: conversion of configs and tensors between Hugging Face and llm_jax.

A Family maps each of our modules to the Hugging Face module with the same parameters. The rest
follows from our parameter tree: the last part of a path determines the layout (kernels are
matrices, others are unchanged), '{}' in a name is the layer number, and several of our modules
under one name are concatenated.
"""

import functools
import logging
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax import config as configs
from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.models.functions import GATED
from llm_jax.models.heads import HEADS

log = logging.getLogger(__name__)


class Key(NamedTuple):
    """Maps an entry of config.json to a key of config.model."""

    theirs: str
    ours: str
    default: Any = None  # of their config class; None: derived, like ours
    values: Mapping[str, str] | None = None  # theirs -> ours; the first of equal ones is written


@dataclass(frozen=True)
class Family:
    """Conversion table of a model family.

    Attributes:
      name: `model_type` in config.json.
      model: values of config.model that define the family.
      keys: mapping of config.json entries to config.model keys.
      fixed: entries of config.json -> supported values; the first one is written.
      synonyms: alternative names of entries that transformers accepts.
      modules: our module (or bare parameter) -> theirs, with '{}' for the layer.
      gated_modules: replacements in `modules` for gated feed-forward networks.
      prefix: name prefix of the headless model, which files may omit.
      by_head: model.head -> replacements in `modules`.
      classes: model.head -> transformers class.
      copies: tensor -> the tensor that it must equal, and that it replaces if missing.
      aliases: tensor -> its name in newer versions; both are written, either is read.
      dropped: patterns of tensors to ignore, in addition to DROPPED.
      if_zero: tensors that are omitted if they are zero.
      within: suffix of a tensor name -> key of the layer's config: the pieces are interleaved in
        this number of parts, such as heads, instead of concatenated as a whole.
      units: tensors -> an axis of length 1 that ours do not have.
      by_kind: attention variant -> replacements in `modules` for its layers.
      experts: replacements in `modules` for layers with experts; a second '{}' is the expert.
      given: key of config.model -> replacements in `modules` for layers where it is set.
      nulls: entries for which null is a separate value, handled by `read`.
      linear: their matrices are [out, in]; GPT-2's, except heads, are [in, out].
      head_activation: the fixed model.activation of their masked-LM head.
      ids: entries of config.json that are tokenizer ids.
      specials: special tokens that a sentencepiece .model lacks.
      read: (config.json, tensor names) -> config.json with the entries of `keys`.
      write: the inverse, for a config.model.
      place: (model, parameters, tokenizer) -> equivalent (model, parameters) if transformers'
        function depends on tokenizer ids; None: it does not.
    """

    name: str
    model: Mapping[str, Any]
    keys: tuple[Key, ...]
    modules: Mapping[str, str]
    classes: Mapping[str, str]
    fixed: Mapping[str, tuple] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    gated_modules: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    by_head: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    if_zero: tuple[str, ...] = ()
    within: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    by_kind: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nulls: tuple[str, ...] = ()
    linear: bool = True
    head_activation: str = ""
    ids: Mapping[str, str] = field(default_factory=lambda: TOKEN_IDS)
    specials: tuple[str, ...] = ()
    read: Callable[[dict, Collection[str]], dict] = lambda hf, names: hf
    write: Callable[[dict, ConfigDict], dict] = lambda hf, model: hf
    place: Callable[..., tuple] | None = None


TOKEN_IDS = {"bos_token_id": "bos_id", "eos_token_id": "eos_id", "pad_token_id": "pad_id"}

# Entries of config.json for which llm_jax supports only these values, in every family.
FIXED = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "per_layer_config": (None, {}),
}
DROPPED = (r".*\.embeddings\.position_ids",)  # in every family
# Entries of config.json that do not change the computed function.
SILENT = re.compile(
    r"model_type|architectures|_.*|transformers_version|torch_dtype|dtype|use_cache|torchscript"
    r"|output_.*|return_dict|id2label|label2id|problem_type|.*_token_id|task_specific_params"
    r"|gradient_checkpointing|summary_.*|classifier_dropout.*|(qa|seq_classif)_dropout|n_ctx"
    r"|finetuning_task|tokenizer_class|chunk_size_feed_forward|is_encoder_decoder|pretraining_tp"
    r"|directionality|pooler_.*|initializer_factor|dense_act_fn|is_gated_act|use_bfloat16"
    r"|reorder_and_upcast_attn|sinusoidal_pos_embds|tie_weights_|num_beams|bad_words_ids"
    r"|max_length|normalize_embedding|num_hidden_layers|static_position_embeddings|down_scale_factor"
    r"|gap_size|num_memory_blocks|net_structure_type|layers_to_use"
    r"|axial_norm_std|chunk_size_lm_head|hash_seed|lsh_attention_probs_dropout_prob"
)
# Keys of config.model that do not change the computed function.
FREE = {
    "dtype", "quantize", "lora_alpha", "lora_targets", "lora_quantize", "weights", "scan", "remat",
    "pipeline_pieces", "mlp_chunk", "init", "initializer_range", "scale_residual_init", "dropout",
    "attention_dropout", "head_dropout", "mlp_dropout", "final_dropout",
}  # fmt: skip
ONE_LABEL = "single_label_classification"  # problem_type of a softmax over labels
MAY_BE_0 = ("type_vocab_size", "position_offset", "latent_query")  # 0 is a size, not "derived"
SAME = {"dense", "flash", "blockwise"}  # equivalent attention variants


def to_model(family: Family, hf: Mapping[str, Any], names: Collection[str]) -> ConfigDict:
    """Converts config.json, given the tensor names, to a resolved config.model.

    Raises:
      ConfigError: an unsupported entry of config.json, with its value.
    """
    spelled = {name: other for other, name in family.synonyms.items()
               if other in hf and name not in hf}  # fmt: skip
    try:
        return _to_model(family, hf, names)
    except ConfigError as error:
        text = re.sub(r"\w+", lambda m: spelled.get(m[0], m[0]), str(error))
        raise ConfigError(text) from error


def _to_model(family: Family, hf: Mapping[str, Any], names: Collection[str]) -> ConfigDict:
    # null is accepted where it is equivalent to a missing entry.
    null = [key.theirs for key in family.keys if key.default not in (None, ())]
    for name in null:
        if hf.get(name, "") is None:
            raise ConfigError(f"config.json: {name}=null: remove it or set a value")
    hf = family.read(_one_name(family, {
        k: v for k, v in hf.items() if v is not None or k in family.nulls
    }), names)
    _check_entries(family, hf)
    model = configs.base().model
    model.update(family.model)
    came_from = _fill_in(model, family, hf)
    _set_heads(model, family, hf, names)
    if not model.num_labels and any(HEADS[name].labels for name in models.heads.names(model)):
        model.num_labels = len(labels(hf))
        if model.num_labels > 1 and hf.get("problem_type") not in (None, ONE_LABEL):
            raise ConfigError(f"config.json: problem_type={hf['problem_type']!r} with "
                              f"{model.num_labels} labels: only {ONE_LABEL}, and regression with "
                              "one label, are supported; without the entry one of these is assumed")
    if family.head_activation and "mlm" in model.head.split(","):
        if model.activation != family.head_activation:
            key = came_from["activation"].theirs
            raise ConfigError(f"config.json: {key}={hf[key]!r}, but the output head of "
                              f"{family.name} always has {family.head_activation!r}; llm_jax "
                              "supports only one activation for both")
    return _checked(model, came_from)


TOLD = ("head", "pooler", "num_labels", "output_bias")  # inferred from tensor names
MARKS = {"mlm": "transform/dense", "detection": "detection/score", "sequence": "sequence",
         "token": "token", "span": "span"}  # fmt: skip


def _set_heads(model: ConfigDict, family: Family, hf: dict, names: Collection[str]) -> None:
    """Infers heads, pooler and output bias from the tensor names."""
    marks = MARKS | {head: head for head in family.by_head if head in HEADS.keys() - MARKS.keys()}
    tables = {head: (family.modules, family.by_head.get(head, {})) for head in marks}
    there = lambda table, ours: f"{table.get(ours)}.weight" in names
    heads = [head for head, ours in marks.items() if any(there(x, ours) for x in tables[head])]
    if {"sequence", "token"} <= set(heads):  # both have the same tensor name
        token = "ForTokenClassification" in str(hf.get("architectures"))
        heads.remove("sequence" if token else "token")
    if "sequence" in heads and there(family.modules, "sequence"):  # of pretraining
        model.num_labels = 2
    model.head = ",".join(heads) or model.head
    table = family.modules | family.by_head.get(model.head, {})
    if "pooler/dense" in table:
        model.pooler = "sequence" in heads or there(table, "pooler/dense")
    if "mlm" not in heads and table.get("output_bias") in names:
        model.output_bias = True


def labels(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the label names of a classifier, in order; transformers omits them for two labels.

    Raises:
      ConfigError: id2label is not numbered from 0.
    """
    names = hf.get("id2label") or [f"LABEL_{i}" for i in range(hf.get("num_labels", 2))]
    names = names if isinstance(names, dict) else dict(enumerate(names))
    named = {str(i): str(name) for i, name in names.items()}
    if set(named) != {str(i) for i in range(len(named))}:
        raise ConfigError(f"config.json: id2label={names!r}: must name 0 to {len(named) - 1}")
    return tuple(named[str(i)] for i in range(len(named)))


def _check_entries(family: Family, hf: dict) -> None:
    """Raises ConfigError for unsupported values; warns about unknown entries."""
    for name, allowed in (FIXED | family.fixed).items():
        if name in hf and hf[name] not in allowed:
            raise ConfigError(f"config.json: {name}={hf[name]!r} is not supported; for the family "
                              f"{family.name} it must be {' or '.join(map(repr, allowed))}")
    known = {key.theirs for key in family.keys} | set(FIXED) | set(family.fixed)
    for name, value in hf.items():
        if value and name not in known and not SILENT.fullmatch(name):
            log.warning("config.json: %s=%r is unknown for %s; ignored", name, value, family.name)


def _fill_in(model: ConfigDict, family: Family, hf: dict) -> dict[str, Key]:
    """Sets the keys of config.model from config.json; returns the source entry of each."""
    came_from: dict[str, Key] = {}
    for key in family.keys:
        value = hf.get(key.theirs, key.default)
        if value is None:
            continue
        value = _translated(family, key, value)
        value = configs.typed(f"config.json: {key.theirs}", model[key.ours], value)
        if type(value) is int and value < 1 and key.ours not in MAY_BE_0:
            raise ConfigError(f"config.json: {key.theirs}={value}: must be 1 or more")
        first = came_from.setdefault(key.ours, key)
        if first is not key and model[key.ours] != value:
            if key.ours in FREE:
                continue
            raise ConfigError("config.json: "
                              f"{first.theirs}={hf.get(first.theirs, first.default)!r} and "
                              f"{key.theirs}={hf.get(key.theirs, key.default)!r} differ; llm_jax "
                              f"has only one key for both, model.{key.ours}")
        model[key.ours] = value
    return came_from


def _checked(model: ConfigDict, came_from: dict[str, Key]) -> ConfigDict:
    """Resolves and checks config.model; errors name the entries of config.json."""
    config = configs.base()
    config.model = configs.resolve(model, 0)
    try:
        configs.check(config)
    except ConfigError as error:
        names = {ours: key.theirs for ours, key in came_from.items()}
        names.setdefault("head_dim", f"head_dim = {names['embed_dim']} / {names['num_heads']}")
        text = re.sub(r"\bmodel\.(\w+)", lambda m: names.get(m[1], m[0]), str(error))
        raise ConfigError(f"config.json: {text}") from error
    return config.model


def _one_name(family: Family, hf: dict) -> dict:
    """Renames synonyms in config.json to the names in `keys`."""
    for other, name in family.synonyms.items():
        value = hf.pop(other, None)
        if value is not None and hf.setdefault(name, value) != value:
            raise ConfigError(f"config.json: {other}={value!r} and {name}={hf[name]!r} are "
                              "synonyms, but differ")
    return hf


def _translated(family: Family, key: Key, value: Any) -> Any:
    if key.values is None:
        return value
    if not isinstance(value, Hashable) or value not in key.values:
        raise ConfigError(f"config.json: {key.theirs}={value!r} is not supported; for "
                          f"{family.name} it must be one of {', '.join(key.values)}")
    return key.values[value]


def to_hf(family: Family, model: ConfigDict) -> dict[str, Any]:
    """Converts a resolved config.model to config.json.

    Raises:
      ConfigError: the family cannot express the model; names the unsupported keys.
    """
    problems = differences(family, model)
    if problems:
        raise ConfigError(f"{family.name} cannot express this model: {'; '.join(problems)}")
    return _to_hf(family, model)


def _to_hf(family: Family, model: ConfigDict) -> dict[str, Any]:
    hf = {"model_type": family.name}
    head = family.classes.get(model.head)
    if head is None:
        raise ConfigError(f"model.head={model.head!r}: {family.name} supports "
                          f"{', '.join(family.classes)}")
    hf["architectures"] = [head]
    hf |= {name: allowed[0] for name, allowed in family.fixed.items() if allowed[0] is not None}
    for key in family.keys:
        value = model[key.ours]
        if key.values is not None:
            names = [theirs for theirs, ours in key.values.items() if ours == value]
            if not names:
                raise ConfigError(f"model.{key.ours}={value!r}: {family.name} supports "
                                  f"{', '.join(dict.fromkeys(map(str, key.values.values())))}")
            value = names[0]
        hf[key.theirs] = value
    return family.write(hf, model)


def differences(family: Family, model: ConfigDict) -> list[str]:
    """Returns the reasons why the family cannot express the model, if any.

    Writes and reads the config: keys that change are not supported.
    """
    problems, names = [], ()
    try:
        names = tuple(plan(family, model))
    except ConfigError as error:
        problems = [str(error)]
    try:
        labels = {"id2label": dict.fromkeys(range(model.num_labels))}  # names do not matter
        back = to_model(family, _to_hf(family, model) | labels, names)
    except ConfigError as error:
        return [str(error), *problems]
    unknown = (*(TOLD if problems else ()), *BY_LAYER)
    changed = [
        (key, model, back)
        for key in back
        if back[key] != model[key] and key not in unknown and not _free(key, model, back)
    ]
    for stack, depth in configs.depths(model).items():
        theirs = configs.layers(back, configs.depths(back).get(stack, depth))
        pairs = list(zip(configs.layers(model, depth), theirs, strict=False))
        differ = lambda key, a, b: a[key] != b[key] and not _free(key, a, b)
        for key in configs.LAYER:
            found = [(key, a, b) for a, b in pairs if differ(key, a, b)][:1]
            changed += [(key, model, back)] if found and model[key] != back[key] else found
    told = (f"model.{key}={a[key]!r}, it supports only {b[key]!r}" for key, a, b in changed)
    return [*dict.fromkeys(told), *problems]


BY_LAYER = (*configs.LAYER, "layers", "expert_every")  # compared layer by layer


def _free(key: str, ours: ConfigDict, theirs: ConfigDict) -> bool:
    """Whether a difference in this key does not change the computed function."""
    if key == "attention":
        return {ours.attention, theirs.attention} <= SAME
    if key in FREE or (key in ("mlp_dim", "activation") and not ours.feed_forward):
        return True
    when = configs.KEYS[f"model.{key}"].when
    return when is not None and not when.holds({f"model.{k}": v for k, v in ours.items()})


class Piece(NamedTuple):
    """A parameter, or one of its layers or experts, as a part of a Hugging Face tensor."""

    path: tuple[str, ...]
    stack: tuple[int, ...]  # sizes of our leading axes: layers, experts
    index: tuple[int, ...]  # index on these axes
    ours: tuple[int, ...]
    theirs: tuple[int, ...]  # shape of the tensor if it had only this piece
    cut: int  # their axis along which pieces are concatenated
    order: tuple[int, ...]  # permutation of our axes to theirs
    outer: int  # number of parts, in each of which the piece has `width` rows
    width: int


Plan = dict[str, list[Piece]]  # their tensor -> its pieces, in order


def shapes_of(model: ConfigDict) -> dict:
    """Returns the parameter shapes of a resolved config.model, without computing parameters."""
    return _shapes(FrozenConfigDict(model))


@functools.lru_cache(maxsize=8)  # a model is tried with every family
def _shapes(model: FrozenConfigDict) -> dict:
    to_shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.tree.map(to_shape, models.abstract_params(model))


def plan(family: Family, model: ConfigDict) -> Plan:
    """Maps our parameters to their tensors, in the order of the table.

    Raises:
      ConfigError: parameters that the table does not map.
    """
    model = FrozenConfigDict(model)  # frozen once, so that its layers are cached
    leaves = jax.tree_util.tree_flatten_with_path(shapes_of(model))[0]
    paths = {tuple(part.key for part in path): x.shape for path, x in leaves}
    layers = {kind: configs.layers(model, n) for kind, n in configs.depths(model).items()}
    by_module: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        name = NUMBERED.sub(r"\1", "/".join(path))
        by_module.setdefault(name.rpartition("/")[0], []).append(path)
        by_module.setdefault(name, []).append(path)
    out: Plan = {}
    gated = family.gated_modules if model.activation in GATED else {}
    table = family.experts | family.modules | gated | family.by_head.get(model.head, {})
    for key, entries in family.given.items():
        table |= entries if model[key] else {}
    for ours, theirs in table.items():
        for path in by_module.get(ours, ()):
            if model.share_layers and "{}" in theirs:
                continue  # they have one per layer
            shape, name, layer = paths.pop(path), theirs, model
            if numbers := configs.numbers(model, "/".join(path)):
                layer = layers[path[0]][numbers[0]]
                own = family.by_kind.get(layer.attention, {})
                own = own | (family.experts if layer.num_experts else {})
                name = own.get(ours, theirs)
            if path[-1] != ours.rpartition("/")[2]:
                name += ".bias" if path[-1] == "bias" else ".weight"
            axes = name.count("{}")
            for index in np.ndindex(shape[:axes]):
                part = path, shape[:axes], index, shape[axes:]
                piece = _piece(family, layer, name, *part)
                if name in family.units:
                    at, flat = family.units[name], piece.theirs
                    with_unit = (*flat[:at], 1, *flat[at:])
                    piece = piece._replace(theirs=with_unit, cut=piece.cut + (at <= piece.cut))
                places = (numbers[index[0]], *index[1:]) if index else ()
                out.setdefault(name.format(*places), []).append(piece)
    if paths:
        some = ", ".join("/".join(path) for path in list(paths)[:3])
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        raise ConfigError(f"{family.name} cannot express the parameters {some}{more}")
    return out


NUMBERED = re.compile(r"\b(layers|block)_\d+\b")
EXPERTS = ("router", "gate", "up", "down")  # matrices of mixtures of experts


def _piece(
    family: Family, layer: Any, name: str, path: tuple, stack: tuple, index: tuple, shape: tuple
) -> Piece:
    """Layout of a parameter: ours is [experts, inputs, outputs], theirs usually outputs first."""
    last, n = path[-1], len(shape)
    if not last.startswith(("kernel", "bias", "norm", "up_", *EXPERTS)):
        return Piece(path, stack, index, shape, shape, 0, tuple(range(n)), 1, shape[0])
    if last.endswith("bias") or last == "norm":
        inputs, batch = 0, n - 1 if last.startswith(EXPERTS) else 0
    elif last in EXPERTS:
        inputs, batch = 1, n - 2
    else:  # attention's output contracts heads and head_dim
        inputs, batch = 2 if path[-2] == "out" else 1, 0
    each, ins, outs = range(batch), range(batch, batch + inputs), range(batch + inputs, n)
    # Tensors of all experts have our layout.
    turned = (family.linear or path[0] in HEADS) and not batch
    order = (*each, *outs, *ins) if turned else range(n)
    size = lambda axes: math.prod(shape[axis] for axis in axes)
    theirs = [size(part) for part in ((outs, ins) if turned else (ins, outs))]
    theirs = (*shape[:batch], *(theirs if inputs else [size(outs)]))
    parts = next((layer[key] for end, key in family.within.items() if name.endswith(end)), 1)
    outer = size(each) * (1 if turned else size(ins)) * parts
    cut = batch + (inputs > 0 and not turned)
    return Piece(path, stack, index, shape, theirs, cut, tuple(order), outer, size(outs) // parts)


def shape_of(pieces: list[Piece]) -> tuple[int, ...]:
    """Returns the shape of a Hugging Face tensor."""
    shape, cut = pieces[0].theirs, pieces[0].cut
    return (*shape[:cut], sum(piece.theirs[cut] for piece in pieces), *shape[cut + 1 :])


def from_tensors(plan: Plan, get: Callable[[str], np.ndarray]) -> dict:
    """Returns our parameters in float32, reading one Hugging Face tensor at a time."""
    params: dict = {}
    for name, pieces in plan.items():
        tensor, start = get(name), 0
        inner = math.prod(pieces[0].ours) // (pieces[0].outer * pieces[0].width)
        rows = tensor.reshape(pieces[0].outer, -1, inner)
        for piece in pieces:
            node = params
            for part in piece.path[:-1]:
                node = node.setdefault(part, {})
            if piece.path[-1] not in node:
                node[piece.path[-1]] = np.empty(piece.stack + piece.ours, np.float32)
            part = rows[:, start : start + piece.width]
            start += piece.width
            part = part.reshape([piece.ours[axis] for axis in piece.order])
            node[piece.path[-1]][piece.index] = part.transpose(np.argsort(piece.order))
    return params


def to_tensors(
    plan: Plan, params: Mapping, names: Iterable[str], dtype: Any
) -> dict[str, np.ndarray]:
    """Returns Hugging Face tensors from our parameters."""
    out = {}
    for name in names:
        parts = []
        for piece in plan[name]:
            x = functools.reduce(lambda node, part: node[part], piece.path, params)
            x = np.asarray(x[piece.index]).transpose(piece.order)
            parts.append(x.reshape(piece.outer, piece.width, -1))
        tensor = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
        tensor = tensor.reshape(shape_of(plan[name]))
        out[name] = np.ascontiguousarray(tensor, dtype=dtype)
    return out
