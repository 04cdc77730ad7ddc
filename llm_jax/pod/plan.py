"""Plans: memory, FLOPs and traffic of a train step compiled for other devices, without running."""

import math
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import objectives, sharding
from llm_jax.config import ConfigError
from llm_jax.data import pipeline
from llm_jax.pod import chips, flops, hlo
from llm_jax.sharding import hardware
from llm_jax.sharding.hardware import Chip
from llm_jax.train.run import Setup, flops_per_token

LARGEST = 6  # number of buffers listed


def make(
    config: ConfigDict, topology: str, slices: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compiles the train step of a config for a topology; returns its `figures`.

    tell: receives lines of progress.

    Raises:
      ConfigError: an unknown topology, or a mesh, batch or model that does not divide over it.
    """
    prepared = prepare(config, chips.devices(topology, slices))
    tell("compiling; this may take minutes …")
    return {"topology": topology, "slices": slices} | figures(prepared)


def prepare(config: ConfigDict, devices: list) -> Setup:
    """Validates a config for these devices and returns its Setup, without compiling."""
    config = ConfigDict(config.to_dict())
    objective = objectives.get(config.objective.name)
    objective.check(config)
    if not config.model.vocab_size and config.tokenizer.name == "bytes":
        config.model.vocab_size = objective.build_tokenizer(config, []).vocab_size
    if not config.model.vocab_size:
        raise ConfigError("model.vocab_size=0: a plan does not train the tokenizer; set its size, "
                          "such as --config.model.vocab_size=32000")
    config.model = configs.resolve(config.model, 0)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check(config, mesh)
    return Setup(config, mesh)


def figures(setup: Setup) -> dict[str, Any]:
    """Returns bytes, FLOPs and seconds of a step; memory and traffic are per device."""
    mesh, config = setup.mesh, setup.config
    device = mesh.devices.flat[0]
    chip = hardware.chip(device)
    chip = chip if chip and chip.hbm else None
    state, batch = setup.abstract_state(), batch_like(setup)
    held = {
        "parameter_bytes": _bytes(state.params),
        "optimizer_bytes": _bytes(state.opt_state),
        "other_argument_bytes": _bytes([state.ema, batch]),
    }
    result = {
        "chip": device.device_kind,
        "devices": mesh.size,
        "mesh": {axis: n for axis, n in mesh.shape.items() if n > 1},
        "hbm_bytes": chip and chip.hbm,
    } | held
    room = chip.hbm if chip else float("inf")
    if sum(held.values()) > room:  # no need to compile
        result |= {"argument_bytes": sum(held.values()), "temp_bytes": None, "compile_seconds": 0.0}
        return result | _does_not_fit(config, result)
    began, worked = time.perf_counter(), time.process_time()
    compiled, text, refusal = compile_step(setup, state, batch)
    result["compile_seconds"] = round(time.perf_counter() - began, 2)
    result["compile_cpu_seconds"] = round(time.process_time() - worked, 2)
    if compiled is None:
        result |= {"argument_bytes": sum(held.values()), "temp_bytes": _needed(refusal, held)}
        result["largest"] = hlo.Program(text).largest(LARGEST)
        return result | _does_not_fit(config, result)
    memory = compiled.memory_analysis()
    program = hlo.Program(text)
    result |= {
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        # Count donated buffers once.
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "host_bytes": memory.host_temp_size_in_bytes,
        "largest": program.largest(LARGEST),
    }
    names = ("argument_bytes", "temp_bytes", "output_bytes", "code_bytes")
    if chip:
        result["left_bytes"] = chip.hbm - sum(result[name] for name in names)
        if result["left_bytes"] < 0:
            return result | _does_not_fit(config, result)
    moved = program.moved([chips.slice_of(d) for d in mesh.devices.flat])
    moved["computed_flops"] = flops.computed(program)
    return result | {"fits": True} | roofline(work(config), moved, mesh.size, chip)


def compile_step(setup: Setup, state: Any, batch: Any) -> tuple[Any, str, str]:
    """Returns (compiled step, its HLO, ""), or (None, HLO, XLA's message) if memory is exceeded."""
    place = jax.tree.map(lambda x: x.sharding, state)
    numbers = (jax.ShapeDtypeStruct((), dtype) for dtype in ("uint32", "float32"))
    with tempfile.TemporaryDirectory() as folder, sharding.activate(setup.mesh):
        lowered = setup.train_step(place).lower(state, batch, *numbers)
        # Read the text from a dump: jaxlib cannot parse all output of a newer libtpu.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        if setup.mesh.devices.flat[0].platform == "gpu":  # its dump has the code of all kernels
            # No autotuning: it would time kernels on the missing device.
            options = {} if jax.default_backend() == "gpu" else {"xla_gpu_autotune_level": 0}
        compiled, refusal = None, ""
        try:
            with chips.quiet():
                compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            refusal = str(error)
            if "RESOURCE_EXHAUSTED" not in refusal:
                raise
        texts = sorted(Path(folder).glob("*train_step*after_optimizations*.txt"), key=_last)
        text = texts[-1].read_text() if texts else compiled.as_text() if compiled else ""
        return compiled, text, refusal


def _last(path: Path) -> tuple[bool, bool]:
    """Sort key that puts the final dump of the main program last."""
    name = path.name.removesuffix(".txt")
    return name.endswith(("optimizations", "assignment")), name.endswith("after_optimizations")


def batch_like(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of the batches of the data pipeline."""
    where = sharding.batch_sharding(setup.mesh)
    rows = pipeline.row_shapes(setup.objective.examples, setup.config)
    return {
        name: jax.ShapeDtypeStruct((setup.config.data.batch_size, *shape), dtype, sharding=where)
        for name, (shape, dtype) in rows.items()
    }


def work(config: ConfigDict) -> dict[str, float]:
    """Returns the tokens of a step and the model FLOPs, as counted by MFU."""
    lengths = objectives.get(config.objective.name).examples.lengths(config)
    sides = (lengths.get(side, 0) for side in ("tokens", "encoder_tokens"))
    tokens = config.data.batch_size * sum(sides)
    return {"tokens": tokens, "flops": tokens * flops_per_token(config)}


def roofline(
    todo: dict[str, float], moved: dict[str, Any], count: int, chip: Chip | None
) -> dict[str, Any]:
    """Roofline model: lower bounds of a step in seconds by compute, HBM and network.

    Each is the work of the compiled program divided by the data sheet's rate; the step takes at
    least the maximum. MFU uses `train_flops`, without the causal discount of attention, so that
    kernels that skip masked blocks may exceed 1.
    """
    result = todo | moved
    if chip is None:
        return result
    seconds = {
        "compute": moved["computed_flops"] / chip.flops,
        "HBM": moved["hbm_traffic_bytes"] / chip.hbm_rate,
        "network": max(  # the two networks work concurrently
            sum(moved["ici_bytes"].values()) / chip.ici_rate,
            sum(moved["dcn_bytes"].values()) / chip.dcn_rate,
        ),
    }
    step = max(seconds.values())
    return result | {
        "roofline_seconds": seconds,
        "bound_by": max(seconds, key=seconds.get),
        "predicted_step_seconds": step,
        "predicted_tokens_per_second": todo["tokens"] / step,
        "predicted_mfu": todo["flops"] / (step * count * chip.flops),
    }


def _bytes(tree: Any) -> int:
    """Returns the bytes of abstract arrays per device."""
    on_one = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(on_one(x) for x in jax.tree.leaves(tree))


def _needed(refusal: str, held: dict[str, int]) -> int | None:
    """Parses the bytes of temporaries from XLA's out-of-memory message; None if there are none."""
    temporaries = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceed", refusal)
    total = re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of", refusal)
    size = lambda match: int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
    return size(temporaries) if temporaries else size(total) - sum(held.values()) if total else None


def _does_not_fit(config: ConfigDict, figures: dict[str, Any]) -> dict[str, Any]:
    """Returns suggestions for a step that does not fit, the most promising first."""
    m, mesh, advice = config.model, figures["mesh"], []
    held = figures["parameter_bytes"] + figures["optimizer_bytes"]
    if held > figures["hbm_bytes"] / 3 and mesh.get("fsdp", 1) < figures["devices"]:
        advice.append(f"mesh.data=1 and mesh.fsdp={figures['devices'] // mesh.get('tensor', 1)}: "
                      "splits parameters and optimizer state")
    if m.remat != "full" and not m.reversible:
        advice.append("model.remat=full: saves one vector per token and layer")
    if m.attention == "dense" and m.max_length > 1024:
        advice.append("model.attention=flash: no [length, length] scores")
    if m.dtype == "float32":
        advice.append("model.dtype=bfloat16: halves activations")
    parts = config.data.batch_size // mesh.get("data", 1) // mesh.get("fsdp", 1)
    if parts > config.train.microbatches:
        advice.append("train.microbatches=" + str(2 * config.train.microbatches)
                      + ", or a smaller data.batch_size: reduces activations")
    if not (m.mlp_chunk or m.num_experts):
        advice.append(f"model.mlp_chunk={m.max_length // 4}: reduces the activations of the "
                      "feed-forward network, without extra FLOPs if remat=full")
    if mesh.get("tensor", 1) == 1:
        advice.append("mesh.tensor: splits heads and feed-forward dimensions, also in activations")
    return {"fits": False, "advice": advice + ["more chips"], "failed": True}
