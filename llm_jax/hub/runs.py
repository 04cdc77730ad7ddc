"""A run folder from a Hugging Face folder, and a Hugging Face folder from a run.

The one part of hub that knows of training: an imported run is a run at step 0.
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jax
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import hub, objectives, sharding
from llm_jax.config import ConfigError
from llm_jax.data import pipeline
from llm_jax.files import folder_named, is_full, read_json, write_json, write_text
from llm_jax.hub.files import CONFIG
from llm_jax.train.checkpoint import SAVED, Checkpoints, hushed
from llm_jax.train.folder import IMPORTED, describe
from llm_jax.train.groups import name
from llm_jax.train.run import Setup, load_params

log = logging.getLogger(__name__)

# The learning rate of an import that is not told another (Devlin 2019, 4.1, tuned 2e-5 to 5e-5):
# that of training from random weights undoes what was learned.
RATE = 5e-5
# Keys of config.model that a folder does not decide.
CHANGEABLE = ("attention", "dropout", "attention_dropout", "mlp_dropout", "final_dropout",
              "dtype", "max_length", "remat", "scan", "quantize", "pipeline_pieces",
              "lora_rank", "lora_alpha", "lora_targets")
# Nor these, of an encoder without a head, which can have one of two.
NEW_HEAD, NEW_HEADS = ("head", "num_labels", "head_dropout"), ("mlm", "sequence")


def import_run(
    source: str | Path, workdir: str | Path, config: ConfigDict, overrides: Sequence[str] = ()
) -> dict:
    """Makes a run folder whose step 0 has the parameters of a Hugging Face folder.

    `config` gives all but the model and the tokenizer; `overrides` (key=value) are applied last:
    model.head=mlm, or model.head=sequence with model.num_labels, gives an encoder without a head a
    new one. A smaller model.max_length cuts a table of learned positions. A learning rate that
    neither sets becomes RATE. Returns what was found and is new.

    imported.json comes first and config.json last: whatever ends it on the way leaves a folder
    that no command takes for a run, and that the same import fills.

    Raises:
      ConfigError: see hub.load; no tokenizer; the run folder is not empty; an override of what
        the folder decides.
    """
    workdir = _new(workdir)
    model, params, tokenizer = hub.load(source)
    if tokenizer is None:
        raise ConfigError(
            f"--from={source}: has no file of a tokenizer; transformers writes them: "
            "AutoTokenizer.from_pretrained(SOURCE).save_pretrained(FOLDER)"
        )
    config.tokenizer.name = "file" if tokenizer.kind == "huggingface" else tokenizer.kind
    config.tokenizer.path = str(source)
    _decide(config, model, source, overrides)
    pipeline.check_vocab(config, tokenizer)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check(config, mesh)
    Setup(config, mesh)  # refuses what could not be trained
    # What the weights lack is drawn when training begins (LoRA), and here only a head.
    whole = ConfigDict(config.to_dict())
    whole.model.lora_rank = 0
    whole.optimizer = configs.base().optimizer  # whose patterns may name those
    setup = Setup(whole, mesh)
    new = sorted(setup.params.keys() - params.keys())
    params = _fitted(setup, params)
    place = sharding.param_shardings(setup.params, mesh)
    params = setup.draw_params(jax.device_put(params, {k: place[k] for k in params}))
    family = read_json(Path(source) / CONFIG)["model_type"]
    origin = {"from": str(source), "family": family, "new": new}
    try:
        _write(workdir, config, tokenizer, params, origin)
    except BaseException as error:
        _clear(workdir)
        if is_full(error):
            raise ConfigError(
                f"--workdir={workdir}: the disk is full, nothing is imported; the same command "
                "tries again"
            ) from error
        raise
    return {
        "family": family,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        **{key: config.model[key] for key in ("vocab_size", "kind", "head", "max_length")},
        "objective": config.objective.name,
        "learning_rate": config.optimizer.learning_rate,
        "new": new,
    }


def _decide(
    config: ConfigDict, model: ConfigDict, source: str | Path, overrides: Sequence[str]
) -> None:
    """Fills in a config from an imported model and its folder, then applies overrides."""
    config.model = configs.resolve(model, 0)  # a copy: overrides may change it
    changeable = CHANGEABLE
    if model.kind == "encoder" and model.head == "none":
        changeable = NEW_HEAD + CHANGEABLE
    for text in overrides:
        key, _, value = text.partition("=")
        first, _, last = key.partition(".")
        wrong = first == "model" and last not in changeable
        wrong |= key == "model.head" and value not in NEW_HEADS
        if first == "tokenizer" or wrong:
            raise ConfigError(
                f"--config.{key}: comes from {source}; of model, import can change "
                f"{', '.join(changeable)}"
            )
        if key == "model.head":
            model.head = value
    if not any(text.startswith("objective.name=") for text in overrides):
        config.objective.name = objectives.suited(model).name
    names = read_json(Path(source) / CONFIG).get("id2label")
    if model.num_labels and names and config.objective.name == "classification":
        config.data.labels = tuple(str(names[i]) for i in sorted(names, key=int))
    if config.optimizer.learning_rate == configs.KEYS["optimizer.learning_rate"].default:
        config.optimizer.learning_rate = RATE
    configs.change(config, overrides)


def _new(workdir: str | Path) -> Path:
    """Checks that the folder is absent, empty, or an unfinished import, which is cleared."""
    workdir = folder_named(workdir)
    trained = (workdir / "metrics.jsonl").exists()
    if (workdir / IMPORTED).is_file() and not trained and not (workdir / CONFIG).exists():
        _clear(workdir)
        names = [p.name for p in workdir.iterdir()]
        if names == [IMPORTED]:
            return workdir
    return hub.check_new(workdir)


def _clear(workdir: Path) -> None:
    """Removes an unfinished import but for imported.json, at which `train` refuses the folder."""
    with suppress(OSError):
        (workdir / CONFIG).unlink(missing_ok=True)
        for name in ("tokenizer", "checkpoints"):
            shutil.rmtree(workdir / name, ignore_errors=True)
        for partial in (*workdir.glob("*.partial"), workdir / SAVED, workdir / ".lock"):
            partial.unlink(missing_ok=True)


def _write(workdir: Path, config: ConfigDict, tokenizer, params, origin: dict) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / IMPORTED, origin)
    tokenizer.save(workdir / "tokenizer")
    checkpoints = Checkpoints(workdir, config.checkpoint)
    with hushed():
        meta = describe(workdir, config, None)
        meta["config"]["model"]["lora_rank"] = 0
        checkpoints.save(0, {"params": params}, meta)
        checkpoints.wait()
        checkpoints.close()
    write_text(workdir / CONFIG, configs.to_json(config) + "\n")


def _fitted(setup: Setup, params: dict) -> dict:
    """The parameters of a folder as a model takes them, tables of learned positions cut."""
    flat = lambda tree: {name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    model, wanted = setup.config.model, flat({key: setup.params[key] for key in params})
    if missing := sorted(wanted.keys() - flat(params).keys()):
        raise ConfigError(
            f"model.attention={model.attention!r}: has parameters that the imported model has not "
            f"({', '.join(missing[:3])})"
        )

    def cut(path, x):
        shape, rows = wanted[name(path)].shape, len(x) - model.position_offset
        if x.shape == shape:
            return x
        if model.max_length > rows:
            raise ConfigError(
                f"model.max_length={model.max_length}: the imported model has learned a table of "
                f"{rows} positions and nothing of those beyond; at most {rows} (longer texts are "
                "cut in windows), or import a model with rotary or relative positions"
            )
        log.warning("model.max_length=%d: the first of the %d learned positions are kept",
                    model.max_length, rows)  # fmt: skip
        return x[: shape[0]]

    return jax.tree_util.tree_map_with_path(cut, params)


def export_run(
    workdir: str | Path,
    target: str | Path,
    step: int | None = None,
    family: str | None = None,
    dtype: str = "float32",
) -> dict:
    """Writes a checkpoint of a run as a Hugging Face folder.

    Raises:
      ConfigError: no run or checkpoint there, a model that no family has, a folder not empty.
    """
    hub.check_new(target)
    about = Path(workdir) / IMPORTED
    if family is None and about.is_file():  # several families may express the same model
        family = read_json(about)["family"]
    setup, tokenizer, params, step = load_params(workdir, step)
    config = setup.config
    options = {"labels": config.data.labels, "dtype": dtype}
    name = hub.save(config.model, params, tokenizer, target, family, **options)
    left_out = ["generator"] if setup.config.model.generator_fraction else []
    return {"family": name, "step": step, "folder": str(target), "left_out": left_out}
