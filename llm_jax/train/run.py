"""Setup: model, objective, optimizer, shardings and steps of a config; a run's parameters."""

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
    """All that a run's config determines: model, objective, optimizer, and shardings.

    Raises:
      ConfigError: no such attention or objective, or attention that cannot do what is asked.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self.config, self.mesh = config, mesh
        stacks = configs.depths(config.model).values()
        layers = [layer for depth in stacks for layer in configs.layers(config.model, depth)]
        for layer in dict.fromkeys(layers):
            _check_attention(config, layer)
        if config.model.lora_rank and config.model.num_experts:
            log.warning("model.lora_rank=%d: experts get no adapters (qwix has none for them)",
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
        """Shapes, dtypes and shardings of the state; computes nothing."""
        state = jax.eval_shape(lambda: init_state(self.model, self.tx, self.config))
        shardings = sharding.param_shardings(self.params, self.mesh)
        where = sharding.like_params(state, state.params, shardings, self.mesh)
        return jax.tree.map(_with_sharding, state, where)

    def abstract_params(self) -> Any:
        """Shapes, dtypes and shardings of the parameters; computes nothing."""
        where = sharding.param_shardings(self.params, self.mesh)
        return jax.tree.map(_with_sharding, self.params, where)

    def train_step(self, place: TrainState, gradients: Callable = gradients) -> Callable:
        """The compiled step, whose state lies as `place` says and is donated."""
        step = make_train_step(self.model, self.objective, self.tx, self.config, gradients)
        return jax.jit(step, donate_argnums=0, out_shardings=(place, None))

    def eval_step(self, tokenizer: Tokenizer) -> Callable:
        """The compiled step of `evaluate`."""
        counts = tokenizers.token_bytes(tokenizer)
        return jax.jit(make_eval_step(self.model, self.objective, self.config, counts))

    def writer(self, tokenizer: Tokenizer) -> Callable[[Any, list], list] | None:
        """(parameters, records) -> {"text", "score"} of each, by eval.beams; None: it has no texts.

        The score is the text's log-probability, of beams over their length penalty.
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
        """What to read of a checkpoint, for `Checkpoints.restore`: of step 0 the parameters alone.

        What else there is at step 0 begins from these (`draw_state`), so that an import decides
        neither optimizer nor average, nor adapters, which it does not have.
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
        """The state at step 0, each array lying as `place` says, of parameters that it donates.

        Those that are not given are drawn from config.seed.
        """

        def draw(params, seed):
            filled = fill(self.model, seed, params)
            return init_state(self.model, self.tx, self.config, filled)

        return self._once(draw, place, params or {})

    def draw_params(self, params: Any) -> Any:
        """Parameters at step 0, given in part: what they lack is drawn from config.seed."""
        params, place = self.put(params), sharding.param_shardings(self.params, self.mesh)
        if jax.tree.structure(params) == jax.tree.structure(self.params):
            return params
        return self._once(lambda params, seed: fill(self.model, seed, params), place, params)

    def put(self, params: Any) -> Any:
        """Some of the parameters, of NumPy or another mesh, as they lie on this one."""
        place = sharding.param_shardings(self.params, self.mesh)

        def put(tree, place):
            if isinstance(tree, dict):
                return {k: put(x, place[k]) for k, x in tree.items()}
            plain = hasattr(place, "how") and not hasattr(tree, "how")  # to be quantised there
            return place.array.qvalue if plain else place

        return jax.device_put(params, put(params, place))

    def _once(self, draw: Callable, place: Any, params: Any) -> Any:
        # It runs once: on a CPU, compiling it with all optimisations takes longer than they save.
        quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        with sharding.activate(self.mesh):
            run = jax.jit(draw, out_shardings=place, compiler_options=quick, donate_argnums=0)
            return run(params, np.uint32(self.config.seed))


def _with_sharding(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _check_attention(config: ConfigDict, cfg: FrozenConfigDict) -> None:
    """Refuses a layer whose kind of attention cannot do what is asked of it."""
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
    said = f"model.attention={config.model.attention!r}"
    said += f", model.layers={cfg.layers!r}" * bool(cfg.layers)
    if kind not in attention.VARIANTS:
        names = ", ".join(sorted(attention.VARIANTS))
        raise ConfigError(f"{said}: {kind!r} is not one of {names}")
    wanted = {ability for ability, (used, _) in needed.items() if used}
    variant = attention.get(kind)
    for ability in sorted(wanted - variant.supports):
        # Kinds that support all that this config asks for, the most similar first.
        able = [n for n, v in attention.VARIANTS.items() if wanted <= v.supports]
        able.sort(key=lambda n: len(attention.get(n).supports ^ variant.supports))
        raise ConfigError(f"{said}: {kind!r} cannot do {needed[ability][1]} "
                          f"({attention.ABILITIES[ability]}); these can: {', '.join(able)}")
    if variant.loss and cfg.reversible:
        raise ConfigError(f"{said}: {kind!r} learns by a loss that model.reversible=True loses")
    if variant.leaks and cfg.kind == "decoder":
        log.warning("%s: with %r, %s", said, kind, variant.leaks)
    try:
        sizes = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        variant.weights(*sizes, **variant.settings(cfg))
    except ValueError as error:
        raise ConfigError(f"{said}: {error}") from error


def flops_per_token(config: ConfigDict) -> float:
    """FLOPs of training on a token of either side, of what is not frozen; see `train_flops`."""
    rates = groups.of(config, models.abstract_params(config.model))
    return _flops_per_token(config, lambda path: rates[path].rate > 0)


def recomputed_flops_per_token(config: ConfigDict) -> float:
    """FLOPs a token that remat adds to them: the forward pass of all layers once more."""
    if config.model.remat not in ("full", "offload") and not config.model.reversible:
        return 0.0  # "dots" keeps all products but attention's own
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
    """Returns (setup, tokenizer, parameters, step) of a run: the EMA of parameters where kept.

    Parameters alone are read, neither optimizer state nor, beside an EMA, those of the last step.
    They lie on setup.mesh, under which to use them: `with sharding.activate(setup.mesh)`.

    Args:
      step: a saved step; "best": by eval.metric; None: the newest.
      mesh: None: `reading_mesh`.

    Raises:
      ConfigError: no run, no checkpoint, no such step, or a checkpoint of another config or
        tokenizer than the folder's.
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
        raise ConfigError(f"--workdir={workdir}: no sound checkpoint there")
    step, items, _ = restored
    params = items[item] if step else setup.draw_params(items["params"])
    return setup, tokenizer, params, step


def reading_mesh(config: ConfigDict) -> Mesh:
    """Returns the mesh of a run where the devices here allow it, else one of fsdp over them all.

    Pipeline stages are for training: a run that has some is read with fsdp too.
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
