"""Cost: parameters, FLOPs, device-hours and energy of training; memory and speed of inference."""

import time

import jax
import numpy as np

from llm_jax.audit.limit import Limit
from llm_jax.audit.statistics import figure, mean
from llm_jax.audit.subject import Subject
from llm_jax.models.flops import count_params
from llm_jax.train import metrics
from llm_jax.train.run import flops_per_token, load_params

ROUNDS, LOADS = 5, 3


def measure(subject: Subject) -> dict:
    """Measures training cost from config.json and metrics.jsonl, and inference by timing it."""
    config, lm = subject.config, subject.lm
    found = [figure("parameters", count_params(config.model))]
    found += trained(subject)
    leaves = jax.tree.leaves(lm.params)
    found += [
        figure("parameters in memory", sum(x.nbytes for x in leaves) / 2**20, "MiB"),
        mean("loading", [_seconds(lambda: load_params(subject.workdir, subject.step))
                         for _ in range(LOADS)], "s"),
    ]
    length, size = config.model.max_length, config.data.batch_size
    side = "encoder_" if config.model.kind == "encoder_decoder" else ""
    tokens = np.full((size, length), lm.tokenizer.pad_id, np.int32)
    batch = {"tokens": tokens} | ({f"{side}tokens": tokens} if side else {})

    def hidden(params, batch):
        outputs = lm.model.apply({"params": params}, batch)
        return outputs.features, outputs.heads

    run = jax.jit(hidden).lower(lm.params, batch).compile()
    memory = run.memory_analysis()
    if memory is not None:
        found.append(figure("temporaries of a batch", memory.temp_size_in_bytes / 2**20, "MiB"))
    jax.block_until_ready(run(lm.params, batch))
    found.append(_rate("reading", tokens.size, lambda: run(lm.params, batch)))
    if subject.kind == "words":
        new = min(32, length // 2)
        write = lambda: lm.generate([[lm.tokenizer.bos_id]] * size, max_new_tokens=new)
        count = sum(len(x["tokens"]) for x in write())  # equal in each round, with a fixed seed
        found.append(_rate("writing", count, write))
    return {"figures": found, "batch": f"{size} x {length} tokens"}


def trained(subject: Subject) -> list[dict]:
    """Returns FLOPs, device-hours and, with --watts and --grid, energy and CO2e."""
    rows = metrics.read(subject.workdir)
    rows = [row for row in rows if "tokens" in row]
    if not rows:
        return []
    steps = np.array([row["step"] for row in rows])
    tokens = float((np.diff(steps, prepend=0) * [row["tokens"] for row in rows]).sum())
    devices = subject.setup.mesh.size  # the run's mesh if it fits these devices
    hours = rows[-1].get("step_seconds", 0.0) / 3600 * devices
    found = [
        figure("tokens trained on (logged steps stand for those between)", tokens),
        figure("training", flops_per_token(subject.config) * tokens, "FLOPs"),
        figure(f"training steps, devices: {devices}", hours, "device-hours"),
    ]
    asked = subject.options
    if asked.watts:
        energy = hours * asked.watts / 1000
        stated = f"given: {asked.watts:g} W per device"
        found.append(figure("energy", energy, "kWh", error=stated))
        if asked.grid:
            carbon = energy * asked.grid
            stated = f"given: {asked.grid:g} kg per kWh"
            found.append(figure("emission", carbon, "kg CO2e", error=stated))
    return found


def _rate(name, tokens, run):
    return mean(name, [tokens / _seconds(run) for _ in range(ROUNDS)], "tokens/s")


def _seconds(run):
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


LIMIT = Limit(
    "cost",
    "Parameters, FLOPs, device-hours and energy of training; memory, load time and tokens per "
    "second of inference.",
    lambda subject: "",
    measure,
)
