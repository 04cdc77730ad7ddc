"""Setup of a run from its config: model, objective, optimizer, shardings, compiled steps."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax import attention, decode, models, objectives, sharding
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.files import read_config
from llm_jax.models.flops import train_flops
from llm_jax.train import groups, optimizer
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.folder import same_run
from llm_jax.train.state import (
    TrainState,
    fill,
    gradients,
    init_state,
    make_eval_step,
    make_train_step,
)

log = logging.getLogger(__name__)


class Setup:
    """Model, objective, optimizer and shardings of a config.

    Raises:
      ConfigError: an unknown attention or objective, or attention without a required feature.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self.config, self.mesh = config, mesh
        stacks = configs.depths(config.model).values()
        layers = [layer for depth in stacks for layer in configs.layers(config.model, depth)]
        for layer in dict.fromkeys(layers):
            _check_attention(config, layer)
        if config.model.lora_rank and config.model.num_experts:
            log.warning("model.lora_rank=%d: experts get no adapters (qwix does not support them)",
                        config.model.lora_rank)  # fmt: skip
        try:
            models.heads.check(config.model)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.model = models.build(config.model)
        self.objective = objectives.get(config.objective.name)
        self.params = models.abstract_params(self.model)
        self.groups = groups.of(config, self.params)
        self.tx = optimizer.build(config, self.groups)

    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the state, without computing it."""
        state = jax.eval_shape(lambda: init_state(self.model, self.tx, self.config))
        shardings = sharding.param_shardings(self.params, self.mesh)
        where = sharding.like_params(state, state.params, shardings, self.mesh)
        return jax.tree.map(_with_sharding, state, where)

    def abstract_params(self) -> Any:
        """Returns shapes, dtypes and shardings of the parameters, without computing them."""
        where = sharding.param_shardings(self.params, self.mesh)
        return jax.tree.map(_with_sharding, self.params, where)

    def train_step(self, place: TrainState, gradients: Callable = gradients) -> Callable:
        """Returns the compiled train step; the state has shardings `place` and is donated."""
        step = make_train_step(self.model, self.objective, self.tx, self.config, gradients)
        return jax.jit(step, donate_argnums=0, out_shardings=(place, None))

    def eval_step(self, tokenizer: Tokenizer) -> Callable:
        """Returns the compiled step of `evaluate`."""
        counts = tokenizers.token_bytes(tokenizer)
        return jax.jit(make_eval_step(self.model, self.objective, self.config, counts))

    def writer(self, tokenizer: Tokenizer) -> Callable[[Any, list], list] | None:
        """Returns a generator (parameters, records) -> [{"text", "score"}] with eval.beams.

        The score is the log-probability of the text, divided by the length penalty in beam search.
        None for objectives that do not generate text.
        """
        if not self.objective.writes:
            return None
        config, e = self.config, self.config.eval
        what = self.objective.examples(tokenizer, config)
        longest = config.data.target_length or max(config.model.max_length // 2, 1)
        options = {
            "max_new_tokens": e.max_new_tokens or longest, "beams": e.beams,
            "length_penalty": e.length_penalty if e.beams > 1 else None,
            "temperature": None if e.beams > 1 else 0.0, "batch_size": config.data.batch_size,
            "objective": config.objective, "imported": False, "scored": True,
        }  # fmt: skip

        def write(params: Any, records: list) -> list[dict]:
            if not records:
                return []
            prompts = [what.ask(record, options["max_new_tokens"]) for record in records]
            found = decode.complete(self.model, params, tokenizer, prompts, **options)
            return [{"text": x["completion"].strip(), "score": x["score"]} for x in found]

        return write

    def reading(self, items: dict[str, Any]) -> Callable[[int, dict], dict[str, Any]]:
        """Returns the items to read of a checkpoint, for `Checkpoints.restore`.

        At step 0 only parameters are read; `draw_state` initialises the rest from them, so that an
        import does not fix the optimizer, the moving average or adapters.
        """

        def like(step: int, meta: dict) -> dict[str, Any]:
            if step:
                return items
            model = ConfigDict(self.config.model.to_dict())
            for key, without in (("lora_rank", 0), ("lora_quantize", "none")):
                model[key] = meta["config"]["model"].get(key, without)
            params = models.abstract_params(model)
            where = sharding.param_shardings(params, self.mesh)
            return {"params": jax.tree.map(_with_sharding, params, where)}

        return like

    def draw_state(self, place: TrainState, params: Any = None) -> TrainState:
        """Initialises the state with shardings `place` from parameters, which are donated.

        Missing parameters are initialised from config.seed.
        """

        def draw(params, seed):
            filled = fill(self.model, seed, params)
            return init_state(self.model, self.tx, self.config, filled)

        return self._once(draw, place, params or {})

    def draw_params(self, params: Any) -> Any:
        """Initialises the missing parameters from config.seed."""
        params, place = self.put(params), sharding.param_shardings(self.params, self.mesh)
        if jax.tree.structure(params) == jax.tree.structure(self.params):
            return params
        return self._once(lambda params, seed: fill(self.model, seed, params), place, params)

    def put(self, params: Any) -> Any:
        """Puts parameters, in NumPy or on another mesh, onto this mesh with their shardings."""
        place = sharding.param_shardings(self.params, self.mesh)

        def put(tree, place):
            if isinstance(tree, dict):
                return {k: put(x, place[k]) for k, x in tree.items()}
            plain = hasattr(place, "how") and not hasattr(tree, "how")  # to be quantised
            return place.array.qvalue if plain else place

        return jax.device_put(params, put(params, place))

    def _once(self, draw: Callable, place: Any, params: Any) -> Any:
        # Runs once: on a CPU, full compiler optimisation would take longer than it saves.
        quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        with sharding.activate(self.mesh):
            run = jax.jit(draw, out_shardings=place, compiler_options=quick, donate_argnums=0)
            return run(params, np.uint32(self.config.seed))


def _with_sharding(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _check_attention(config: ConfigDict, cfg: FrozenConfigDict) -> None:
    """Raises ConfigError if a layer's attention variant lacks a required feature."""
    packing, objective, kind = config.data.packing, config.objective.name, cfg.attention
    lengths = objectives.get(objective).examples.lengths(config)
    needed = {
        "causal": (cfg.kind != "encoder", f"model.kind={cfg.kind!r}"),
        "bidirectional": (cfg.kind != "decoder", f"model.kind={cfg.kind!r}"),
        "packing": (packing != "none" or "side" in lengths, f"objective.name={objective!r}, "
                    f"data.packing={packing!r}"),
        "prefix": (objectives.get(objective).prefix, f"objective.name={objective!r}"),
        "dropout": (cfg.attention_dropout > 0, "model.attention_dropout > 0"),
        "grouped": (cfg.num_kv_heads < cfg.num_heads, "model.num_kv_heads < model.num_heads"),
        "bias": (cfg.positions in ("relative", "alibi"), f"model.positions={cfg.positions!r}"),
        "softcap": (cfg.attention_softcap > 0, "model.attention_softcap > 0"),
        "sinks": (cfg.attention_sinks, "model.attention_sinks=True"),
    }
    setting = f"model.attention={config.model.attention!r}"
    setting += f", model.layers={cfg.layers!r}" * bool(cfg.layers)
    if kind not in attention.VARIANTS:
        names = ", ".join(sorted(attention.VARIANTS))
        raise ConfigError(f"{setting}: {kind!r} is not one of {names}")
    wanted = {ability for ability, (used, _) in needed.items() if used}
    variant = attention.get(kind)
    for ability in sorted(wanted - variant.supports):
        # Variants that support all required features, the most similar first.
        able = [n for n, v in attention.VARIANTS.items() if wanted <= v.supports]
        able.sort(key=lambda n: len(attention.get(n).supports ^ variant.supports))
        raise ConfigError(f"{setting}: {kind!r} does not support {needed[ability][1]} "
                          f"({attention.ABILITIES[ability]}); these do: {', '.join(able)}")
    if variant.loss and cfg.reversible:
        raise ConfigError(f"{setting}: the auxiliary loss of {kind!r} is incompatible with "
                          "model.reversible=True")
    if variant.leaks and cfg.kind == "decoder":
        log.warning("%s: with %r, %s", setting, kind, variant.leaks)
    try:
        sizes = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        variant.weights(*sizes, **variant.settings(cfg))
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from error


def flops_per_token(config: ConfigDict) -> float:
    """Training FLOPs per token (source or target), without frozen parameters; see `train_flops`."""
    rates = groups.of(config, models.abstract_params(config.model))
    return _flops_per_token(config, lambda path: rates[path].rate > 0)


def recomputed_flops_per_token(config: ConfigDict) -> float:
    """FLOPs per token added by rematerialisation: another forward pass of all layers."""
    if config.model.remat not in ("full", "offload") and not config.model.reversible:
        return 0.0  # "dots" saves all products except attention's
    config = ConfigDict(config.to_dict())
    config.model.head = "none"
    return _flops_per_token(config, lambda path: False)


def _flops_per_token(config: ConfigDict, trained: Callable[[str], bool]) -> float:
    examples = objectives.get(config.objective.name).examples
    lengths = examples.lengths(config)
    sides = lengths["tokens"], lengths.get("encoder_tokens", 0)
    predicted = examples.predicted(config)
    return train_flops(config.model, 1, *sides, predicted, trained) / sum(sides)


def load_params(
    workdir: str | Path, step: int | str | None = None, mesh: Mesh | None = None
) -> tuple[Setup, Tokenizer, Any, int]:
    """Loads the parameters of a run; returns (setup, tokenizer, parameters, step).

    Reads the EMA of the parameters if there is one, and no optimizer state. The parameters are on
    setup.mesh; use them under `with sharding.activate(setup.mesh)`.

    Args:
      step: a saved step; "best": by eval.metric; None: the newest.
      mesh: None: `reading_mesh`.

    Raises:
      ConfigError: no run, no checkpoint, no such step, or a checkpoint whose config or tokenizer
        differs from the folder's.
    """
    config = read_config(workdir)
    setup = Setup(config, reading_mesh(config) if mesh is None else mesh)
    tokenizer = tokenizers.load(Path(workdir) / "tokenizer")
    item = "ema" if config.train.ema_decay else "params"
    restored = None
    if (Path(workdir) / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, config.checkpoint, read_only=True)
        like, same = setup.reading({item: setup.abstract_params()}), same_run(workdir, config)
        with sharding.activate(setup.mesh):
            step = checkpoints.best() if step == "best" else step
            restored = checkpoints.restore(like, step, same)
        checkpoints.close()
    if restored is None:
        raise ConfigError(f"--workdir={workdir}: has no sound checkpoint")
    step, items, _ = restored
    params = items[item] if step else setup.draw_params(items["params"])
    return setup, tokenizer, params, step


def reading_mesh(config: ConfigDict) -> Mesh:
    """Returns the run's mesh if it fits these devices, otherwise fsdp over all devices.

    Runs with pipeline stages, which are for training only, are also read with fsdp.
    """
    try:
        mesh = sharding.make_mesh(config.mesh)
        sharding.check(config, mesh)
        if mesh.shape["pipeline"] == 1:
            return mesh
    except ConfigError:
        pass
    sizes = configs.base().mesh
    sizes.data, sizes.fsdp = 1, -1
    return sharding.make_mesh(sizes)
