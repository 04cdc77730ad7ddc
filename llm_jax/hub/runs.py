"""Import and export of runs: start a run from other weights, or write a Hugging Face folder.

An imported run is a run at step 0. This is the only module of hub that depends on training.
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import hub, models, objectives, sharding
from llm_jax.config import ConfigError
from llm_jax.data import pipeline
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.files import folder_named, is_full, read_config, read_json, write_json, write_text
from llm_jax.hub import adapter as adapters
from llm_jax.hub import sentence
from llm_jax.hub.files import CONFIG
from llm_jax.models.heads import HEADS
from llm_jax.train.checkpoint import SAVED, Checkpoints, hushed
from llm_jax.train.folder import IMPORTED, Start, describe
from llm_jax.train.groups import name as path_name
from llm_jax.train.run import Setup, load_params

log = logging.getLogger(__name__)

# Default fine-tuning learning rate (Devlin 2019, 4.1, tuned 2e-5 to 5e-5): a rate for training from
# random weights would destroy the pretrained ones.
RATE = 5e-5
# Keys of config.model set by a recipe or the command line; all others come from the source.
TASK = ("head", "num_labels", "head_dropout", "pooler", "generator_fraction", "dropout",
        "attention_dropout", "mlp_dropout", "final_dropout", "max_length", "dtype", "remat", "scan",
        "quantize", "pipeline_pieces", "lora_rank", "lora_alpha", "lora_targets",
        "lora_quantize", "weights")
# Other keys that the command line may change.
FREE = ("attention", "rotary_base", "rotary_scaling", "rotary_factor", "rotary_original_length",
        "expert_capacity", "router_balance", "router_z")


class Source(NamedTuple):
    """Initial weights from a Hugging Face folder or a run (its moving average, if any)."""

    name: str
    family: str | None
    model: ConfigDict
    params: Any
    tokenizer: Tokenizer
    labels: tuple[str, ...]  # label names of a classifier or tagger
    pooling: str  # objective.pooling; "": unknown


def read(source: str | Path) -> Source:
    """Reads a Hugging Face folder or a run folder.

    Raises:
      ConfigError: see hub.load and train.run.load_params; no tokenizer.
    """
    if (Path(source) / "checkpoints").is_dir():
        setup, tokenizer, params, _ = load_params(source)
        model, params = models.merge(setup.config.model, params)
        about = Path(source) / IMPORTED
        family = read_json(about).get("family") if about.is_file() else None
        labels, pooling = setup.config.data.labels, _pooling(setup)
        return Source(str(source), family, model, params, tokenizer, labels, pooling)
    model, params, tokenizer = hub.load(source)
    if tokenizer is None:
        raise ConfigError(f"{source}: has no tokenizer files; write them with transformers: "
                          "AutoTokenizer.from_pretrained(SOURCE).save_pretrained(FOLDER)")
    hf = read_json(Path(source) / CONFIG)
    # Next sentence prediction and regression have no label names, whatever config.json says.
    named = model.head in ("sequence", "token") and model.num_labels > 1 and "id2label" in hf
    labels = hub.labels(hf) if named else ()
    model = configs.resolve(model, 0)
    labelled = labels, hub.pooling(source)
    return Source(str(source), hf["model_type"], model, params, tokenizer, *labelled)


def _pooling(setup: Setup) -> str:
    """Returns objective.pooling if the objective uses it."""
    pools = "pooled" in setup.objective.examples.lengths(setup.config)
    return setup.config.objective.pooling if pools else ""


def start(
    config: ConfigDict, workdir: str | Path, overrides: Sequence[str] = (), recipe: bool = True
) -> Start | None:
    """Returns the initial weights from config.init_from, for train.loop.Trainer.

    Completes the config: architecture and tokenizer come from the source; TASK keys and all others
    from the recipe; then `overrides` (key=value) are applied. Returns None, with the config
    completed, for an existing run, whose source is not read again.

    Args:
      recipe: whether the config is from a recipe. Otherwise TASK keys come from the source too,
        and the defaults are a suitable objective and a fine-tuning learning rate.

    Raises:
      ConfigError: see `read`; an override of the architecture that differs from the source; too few
        positions for model.max_length.
    """
    config_file = Path(workdir) / CONFIG
    saved = any(p.name.isdigit() for p in (Path(workdir) / "checkpoints").glob("*"))
    if config_file.is_file() and saved:
        if recipe:
            old = read_config(workdir)
            config.tokenizer, config.objective.pooling = old.tokenizer, old.objective.pooling
            _adopt(config, str(workdir), old.model, old.data.labels, overrides, recipe)
        else:
            configs.change(config, overrides)
        return None
    if not config.init_from:
        return None
    return begin(config, read(config.init_from), overrides, recipe or config_file.is_file())


def begin(config: ConfigDict, source: Source, overrides: Sequence[str], recipe: bool) -> Start:
    """Completes the config of a new run, and returns its initial weights; see `start`."""
    config.tokenizer = configs.base().tokenizer
    config.objective.pooling = source.pooling or config.objective.pooling
    kind = source.tokenizer.kind
    config.tokenizer.name = "file" if kind == "huggingface" else kind
    if config.tokenizer.name in ("file", "sentencepiece"):
        config.tokenizer.path = source.name
    labels = source.labels
    if recipe and labels == tuple(f"LABEL_{i}" for i in range(len(labels))):
        labels = ()  # their correspondence to the data's labels is unknown
    kept = _adopt(config, source.name, source.model, labels, overrides, recipe)
    pipeline.check_vocab(config, source.tokenizer)
    params, new, unused = _fitted(config.model, source, kept)
    origin = {"from": source.name, "family": source.family, "new": new, "unused": unused}
    return Start(params, source.tokenizer, origin)


def _adopt(
    config: ConfigDict, name: str, model: ConfigDict, labels: tuple[str, ...],
    overrides: Sequence[str], recipe: bool,
) -> bool:
    """Sets the source's model and labels in a config, then applies overrides.

    Returns whether heads with labels are kept.
    """
    by_hand = [text.partition("=")[0] for text in overrides]
    task = {key: config.model[key] for key in TASK} if recipe else {}
    if task and model.kind == "decoder":  # its classifiers have no pooler, as in transformers
        task["pooler"] = False
    config.model = ConfigDict(model.to_dict() | task)
    if not recipe:
        if "model.head" in by_hand:
            head = next(text for text in overrides if text.startswith("model.head="))
            configs.set_key(config, *head.split("=", 1))
        if "objective.name" not in by_hand:
            config.objective.name = objectives.suited(config.model).name
            for key, allowed in objectives.get(config.objective.name).needs.items():
                room, _, last = key.partition(".")
                if room == "data" and key not in by_hand and config[room][last] not in allowed:
                    configs.set_key(config, key, str(allowed[0]))
        if config.optimizer.learning_rate == configs.KEYS["optimizer.learning_rate"].default:
            config.optimizer.learning_rate = RATE
    configs.change(config, overrides)
    for key in (key.removeprefix("model.") for key in by_hand if key.startswith("model.")):
        if key not in TASK + FREE and config.model[key] != model[key]:
            raise ConfigError(f"model.{key}={config.model[key]!r}: differs from {name}, which has "
                              f"{model[key]!r}; of model, only {', '.join(TASK + FREE)} can be "
                              "changed")
    if not recipe and "model.head" in by_hand:
        objectives.get(config.objective.name).check(config)
    if fixed := [key for key in by_hand if key.startswith("tokenizer.")]:
        raise ConfigError(f"{fixed[0]}: cannot be set, the tokenizer comes from {name}")
    named = not configs.unread(config, "data.labels")
    if named != bool(labels) or not _label_heads(model) & _label_heads(config.model):
        return False
    if named:
        config.data.labels = config.data.labels or labels
    config.model.num_labels = config.model.num_labels or len(config.data.labels) or 1
    return config.model.num_labels == model.num_labels


def _label_heads(model: ConfigDict) -> set[str]:
    return {name for name in model.head.split(",") if name in HEADS and HEADS[name].labels}


def _flat(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _fitted(model: ConfigDict, source: Source, labels: bool) -> tuple[Any, list[str], list[str]]:
    """Fits source parameters to a model: returns (parameters, new parts, unused parts).

    A table of learned positions may be truncated. labels: keep heads with labels.
    """
    model = ConfigDict(model.to_dict() | {"lora_rank": 0, "num_labels": model.num_labels or 1})
    wanted = models.abstract_params(model)
    anew = set() if labels else _label_heads(model)
    kept = {key for key in source.params if key in wanted and key not in anew}
    params = {key: source.params[key] for key in kept}
    shapes, given = _flat({key: wanted[key] for key in kept}), _flat(params)
    if missing := sorted(shapes.keys() - given.keys()):
        raise ConfigError(f"model.attention={model.attention!r}: has parameters that {source.name} "
                          f"lacks ({', '.join(missing[:3])})")

    def cut(path, x):
        shape, rows = shapes[path_name(path)].shape, len(x) - model.position_offset
        if x.shape == shape:
            return x
        if model.max_length > rows:
            raise ConfigError(f"model.max_length={model.max_length}: {source.name} has only {rows} "
                              f"learned positions; set {rows} or less, or start from a model with "
                              "rotary or relative positions")
        log.warning("model.max_length=%d: keeps only the first of the %d learned positions",
                    model.max_length, rows)  # fmt: skip
        return x[: shape[0]]

    params = _only(params, shapes)
    params = jax.tree_util.tree_map_with_path(cut, params)
    unused = sorted({*source.params} - kept)
    return params, sorted({*wanted} - kept), unused


def _only(tree: Any, paths: Any, prefix: str = "") -> Any:
    """Returns the leaves of a tree at these paths."""
    pairs = {k: _only(x, paths, f"{prefix}{k}/") if isinstance(x, dict) else x
             for k, x in tree.items()}  # fmt: skip
    return {k: x for k, x in pairs.items() if isinstance(x, dict) or f"{prefix}{k}" in paths}


def import_run(
    source: str | Path, workdir: str | Path, config: ConfigDict, overrides: Sequence[str] = ()
) -> dict:
    """Creates a run folder at step 0 with the parameters of a Hugging Face folder or a run.

    `config` provides everything but model and tokenizer; then `overrides` (key=value) are applied.
    A learning rate that neither sets is RATE. Returns a summary of loaded and new parameters.

    imported.json is written first and config.json last: an interrupted import leaves a folder that
    no command accepts as a run, and that the same import completes.

    Raises:
      ConfigError: see `start`; the run folder is not empty.
    """
    made = begin(config, read(source), overrides, recipe=False)
    params = make_run(workdir, config, made.tokenizer, made.params, made.origin)
    return {
        "family": made.origin["family"],
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        **{key: config.model[key] for key in ("vocab_size", "kind", "head", "max_length")},
        "objective": config.objective.name,
        "learning_rate": config.optimizer.learning_rate,
        "new": made.origin["new"],
        "unused": made.origin["unused"],
    }


def make_run(
    workdir: str | Path, config: ConfigDict, tokenizer: Tokenizer, params: Any, origin: dict
) -> Any:
    """Creates a run folder at step 0 with given parameters; initialises missing ones.

    Returns all parameters. origin: imported.json, see `Start`.

    Raises:
      ConfigError: a config that cannot be trained; the run folder is not empty.
    """
    workdir = _new(workdir)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check(config, mesh)
    Setup(config, mesh)  # raises if it cannot be trained
    # LoRA matrices that are not given are initialised when training starts; here a missing head.
    stored = ConfigDict(config.to_dict())
    stored.model.lora_rank *= any("_lora_" in path for path in _flat(params))
    stored.optimizer = configs.base().optimizer  # its patterns may refer to them
    params = Setup(stored, mesh).draw_params(params)
    try:
        _write(workdir, config, tokenizer, params, origin, stored.model.lora_rank)
    except BaseException as error:
        _clear(workdir)
        if is_full(error):
            raise ConfigError(f"--workdir={workdir}: the disk is full, nothing was imported; free "
                              "some space and run the same command again") from error
        raise
    return params


def _new(workdir: str | Path) -> Path:
    """Checks that the folder is absent, empty, or an incomplete import, which is cleared."""
    workdir = folder_named(workdir)
    trained = (workdir / "metrics.jsonl").exists()
    if (workdir / IMPORTED).is_file() and not trained and not (workdir / CONFIG).exists():
        _clear(workdir)
        names = [p.name for p in workdir.iterdir()]
        if names == [IMPORTED]:
            return workdir
    return hub.check_new(workdir)


def _clear(workdir: Path) -> None:
    """Removes an incomplete import, except imported.json, with which `train` rejects the folder."""
    with suppress(OSError):
        (workdir / CONFIG).unlink(missing_ok=True)
        for name in ("tokenizer", "checkpoints"):
            shutil.rmtree(workdir / name, ignore_errors=True)
        for partial in (*workdir.glob("*.partial"), workdir / SAVED, workdir / ".lock"):
            partial.unlink(missing_ok=True)


def _write(
    workdir: Path, config: ConfigDict, tokenizer, params, origin: dict, lora_rank: int
) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / IMPORTED, origin)
    tokenizer.save(workdir / "tokenizer")
    checkpoints = Checkpoints(workdir, config.checkpoint)
    with hushed():
        meta = describe(workdir, config, None)
        meta["config"]["model"]["lora_rank"] = lora_rank
        checkpoints.save(0, {"params": params}, meta)
        checkpoints.wait()
        checkpoints.close()
    write_text(workdir / CONFIG, configs.to_json(config) + "\n")


def export_run(
    workdir: str | Path, target: str | Path, step: int | None = None, family: str | None = None,
    dtype: str = "float32", adapter: bool = False,
) -> dict:
    """Writes a checkpoint of a run as a Hugging Face folder.

    Args:
      adapter: writes the LoRA matrices as a PEFT adapter instead.

    Raises:
      ConfigError: no run or checkpoint, a model that no family can express, or a folder that is not
        empty.
    """
    hub.check_new(target)
    about = Path(workdir) / IMPORTED
    origin = read_json(about) if about.is_file() else {}
    family = family or origin.get("family")  # several families may be able to express a model
    setup, tokenizer, params, step = load_params(workdir, step)
    config = setup.config
    if adapter:
        family = family or hub.family_of(ConfigDict(config.model.to_dict() | {"lora_rank": 0}))
        trained = [path for path, group in setup.groups.items() if group.rate > 0]
        adapters.save(family, config.model, params, trained, Path(target), origin.get("from", ""))
        return {"family": family, "step": step, "folder": str(target), "left_out": []}
    options = {"labels": config.data.labels, "dtype": dtype}
    name = hub.save(config.model, params, tokenizer, target, family, **options)
    if mode := _pooling(setup):
        sentence.save(Path(target), config.model.embed_dim, config.model.max_length, mode)
    left_out = ["generator"] if setup.config.model.generator_fraction else []
    return {"family": name, "step": step, "folder": str(target), "left_out": left_out}
