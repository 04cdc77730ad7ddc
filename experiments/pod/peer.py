"""Compiles MaxText's train step for cases of run.py; writes results/maxtext/.

PYTHON experiments/pod/peer.py [CASE …]   # without cases: those not yet there

PYTHON belongs to an environment of MaxText's own (Python 3.12, `pip install maxtext[tpu]==0.2.5
libtpu==0.0.52`). MaxText's `train_compile` is run as its users run it. The memory is what it
prints; the traffic is read from its compiled program by the code that reads ours.
"""

import importlib.util
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import run

from llm_jax import config, record
from llm_jax.pod import hlo

RESULTS = run.HERE / "results" / "maxtext"


def settings(case: str) -> tuple[int, list[str]]:
    """Returns the number of chips, and MaxText's keys for the same model, batch and topology."""
    recipe, topology, keys = run.CASES[case]
    chips = math.prod(int(size) for size in topology.partition(":")[2].split("x"))
    # A v5p topology is named by its TensorCores, two a chip.
    name = f"v5p-{2 * chips}" if topology.startswith("v5p") else f"v5e-{chips}"
    c = config.load(f"configs/{recipe}", [f"{key}={value}" for key, value in keys.items()])
    rows, left = divmod(c.data.batch_size, chips)
    assert not left, f"{case}: {c.data.batch_size} rows on {chips} chips"
    return chips, [
        f"model_name={run.MAXTEXT[case]}", f"compile_topology={name}",
        "compile_topology_num_slices=1", f"per_device_batch_size={rows}",
        f"max_target_length={c.model.max_length}", "remat_policy=full", "attention=flash",
        "enable_checkpointing=false", "run_name=plan",
    ]  # fmt: skip


def plan(case: str) -> None:
    """Compiles one case and records the command, the memory it printed, and the traffic."""
    chips, keys = settings(case)
    base = Path(importlib.util.find_spec("maxtext").submodule_search_locations[0])
    command = ["-m", "maxtext.trainers.pre_train.train_compile"]
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *command, str(base / "configs/base.yml"), *keys,
             f"base_output_directory={folder}"],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        )  # fmt: skip
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        printed = re.search(r"Memory analysis: .*", done.stdout)
        if done.returncode or not printed:
            raise SystemExit(f"{case}: train_compile failed:\n{done.stdout[-3000:]}")
        texts = sorted(Path(folder).rglob("*train_step*after_optimizations.txt"))
        moved = hlo.Program(texts[-1].read_text()).moved([0] * chips) if texts else None
    sizes = re.findall(r"(\w+)_size_in_bytes=(\d+)", printed.group())
    record.write(
        RESULTS / f"{case}.json",
        peer_command=" ".join(["python", *command, "configs/base.yml", *keys]),
        printed=printed.group(), seconds=round(seconds), moved=moved,
        cpu_seconds=round(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime),
        bytes={kind: int(size) for kind, size in sizes},
    )  # fmt: skip


if __name__ == "__main__":
    for name in sys.argv[1:] or [n for n in run.MAXTEXT if not (RESULTS / f"{n}.json").exists()]:
        plan(name)
