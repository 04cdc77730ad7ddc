"""Plans published models on absent TPU pods and GPU clusters; writes results/ and README.md.

python experiments/pod/run.py [CASE …]      # without cases: all that have no result
python experiments/pod/run.py --readme      # plans nothing

Needs the compilers of requirements-plan.txt and requirements-plan-gpu.txt.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from llm_jax import record  # noqa: E402
from llm_jax.pod import search  # noqa: E402

LLAMA = {"data.batch_size": 128, "model.max_length": 8192}
# Case: config, topology, keys. In the order in which they are made.
CASES = {
    "llama-8b": ("llama.py:8b", "v5p:4x4x4", LLAMA | {"train.microbatches": 2}),
    "llama-8b-whole-batch": ("llama.py:8b", "v5p:4x4x4", LLAMA),
    "llama-8b-feed-forward-in-4": ("llama.py:8b", "v5p:4x4x4", LLAMA | {"model.mlp_chunk": 2048}),
    "llama-8b-offload": ("llama.py:8b", "v5p:4x4x4", LLAMA | {"model.remat": "offload"}),
    "llama-8b-pipeline": ("llama.py:8b", "v5p:4x4x4",
                          LLAMA | {"mesh.pipeline": 4, "mesh.data": 1, "mesh.fsdp": 16,
                                   "model.pipeline_pieces": 8}),
    "llama-8b-two-slices": ("llama.py:8b", "v5p:4x4x4 x 2",
                            LLAMA | {"data.batch_size": 256, "train.microbatches": 2,
                                     "mesh.data": 2, "mesh.fsdp": 64}),
    "mixtral-8x7b": ("mixtral.py:8x7b", "v5p:4x4x8",
                     {"data.batch_size": 128, "mesh.data": 1, "mesh.expert": 8, "mesh.fsdp": 16,
                      "model.max_length": 4096}),
    "t5-11b": ("t5.py:11b", "v5e:16x16", {"mesh.data": 1, "mesh.fsdp": 256, "model.remat": "full",
                                          "data.batch_size": 512, "model.attention": "flash"}),
    "bert-large": ("bert.py:large", "v5e:16x16", {"model.dtype": "bfloat16",
                                                  "data.batch_size": 2048}),
    "llama-8b-126-layers": ("llama.py:8b", "v5p:4x4x4",
                            LLAMA | {"train.microbatches": 2, "model.num_layers": 126}),
    "llama-70b": ("llama.py:70b", "v5p:8x8x8", {"data.batch_size": 1024}),
    "llama-2-7b": ("llama.py:2-7b", "v5e:16x16", {"data.batch_size": 1024,
                                                  "model.max_length": 2048}),
    "llama-2-70b": ("llama.py:2-70b", "v5p:8x8x8", {"data.batch_size": 1024}),
    "gemma-2-9b": ("gemma2.py:9b", "v5p:4x4x4", LLAMA),
    "qwen-3-8b": ("qwen3.py:8b", "v5p:4x4x4", LLAMA),
    "mixtral-8x7b-fsdp": ("mixtral.py:8x7b", "v5p:4x4x8",
                          {"data.batch_size": 128, "model.max_length": 4096}),
    "gpt3-175b": ("gpt3.py:175b", "v5p:8x8x16", {"mesh.data": 1, "mesh.fsdp": 1024,
                                                 "data.batch_size": 2048, "data.ramp_steps": 0,
                                                 "model.attention": "flash,local"}),
    "llama-8b-gpus": ("llama.py:8b", "h100:8x8", LLAMA),
    "llama-8b-gpus-split-in-nodes": ("llama.py:8b", "h100:8x8",
                                     LLAMA | {"mesh.data": 8, "mesh.fsdp": 8}),
    "llama-8b-one-nvlink": ("llama.py:8b", "gb200:1x64", LLAMA),
    "llama-70b-gpus": ("llama.py:70b", "h100:64x8", {"data.batch_size": 1024}),
}  # fmt: skip
# The same, but only the meshes, microbatches and remat policies that a search compiled are named.
SEARCHES = {"search-llama-8b": ("llama.py:8b", "v5p:4x4x4", LLAMA)}
COMPILES = 4
# Cases that peer.py compiles too, by MaxText's name of the model.
MAXTEXT = {
    "llama-8b-whole-batch": "llama3-8b", "llama-70b": "llama3-70b", "llama-2-7b": "llama2-7b",
    "llama-2-70b": "llama2-70b", "gemma-2-9b": "gemma2-9b", "qwen-3-8b": "qwen3-8b",
    "mixtral-8x7b-fsdp": "mixtral-8x7b",
}  # fmt: skip

TEXT = """# Planned memory and communication on TPU pods and GPU clusters

**Claim.** The train step of published models is compiled for a TPU pod, or for several nodes of
GPUs, on a machine without them, and it fits into memory.

**Published**: no memory figures. MaxText is compiled for comparison below.

**Results** of `launch.py plan`, one case per row. GB are 10^9 bytes per chip.

{table}

Step time and MFU are predictions and bounds: the longest of compute (matrix products and
attention kernels of the compiled program), HBM and network time at data-sheet rates. They are not
based on measured times. HBM traffic counts the inputs and outputs of each kernel once. MFU counts
attention without the mask. Compile time was measured on two shared cores; CPU seconds are those
of the compiler.

{notes}

## Comparison with MaxText

MaxText 0.2.5 compiles the same models with its own `train_compile`: same topology, batch and
length, full remat, flash attention, parameters sharded over all chips, float32 parameters and
AdamW. Its memory is the figure that it prints. The traffic of both is read from the compiled
programs by the same code. Both use the same libtpu, each with its own version of jax.

{peers}

## Search

`launch.py plan --search` ranks all meshes, microbatches and remat policies by an arithmetic
estimate, compiles the {compiles} best, and ranks those that fit by predicted step time.

{searches}

## How to reproduce

Not run: {missing}.

    {command}

{provenance}
"""


def plan(name: str) -> None:
    """Makes one plan by the command that a user would type, and keeps its JSON."""
    config, topology, keys = (CASES | SEARCHES)[name]
    topology, _, slices = topology.partition(" x ")
    command = ["launch.py", "plan", f"--config=configs/{config}", f"--topology={topology}"]
    command += [f"--slices={slices}"] if slices else []
    command += ["--search", f"--compiles={COMPILES}"] if name in SEARCHES else []
    command += [f"--config.{key}={value}" for key, value in keys.items()] + ["--json"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"{name}: the plan failed")
    found = json.loads(done.stdout.splitlines()[-1])
    record.write(HERE / "results" / f"{name}.json", plan=found, plan_command=" ".join(command))


def row(name: str, plan: dict) -> list[str]:
    """One plan in the table."""
    size = lambda key: f"{plan[key] / 1e9:.2f}" if plan.get(key) is not None else "-"
    cells = [name, f"{plan['slices']} x {plan['topology']} ({plan['devices']})"]
    cells += [" ".join(f"{k}={v}" for k, v in plan["mesh"].items())]
    cells += [size("parameter_bytes"), size("optimizer_bytes"), size("argument_bytes")]
    cells += [size("temp_bytes"), size("host_bytes"), "yes" if plan["fits"] else "no"]
    sent = lambda key: f"{sum(plan[key].values()) / 1e9:.1f}" if key in plan else "-"
    cells += [sent("ici_bytes"), sent("dcn_bytes")]
    cells += [f"{plan['hbm_traffic_bytes'] / 1e9:,.0f}" if plan["fits"] else "-"]
    if "predicted_mfu" in plan:
        seconds = plan["predicted_step_seconds"]
        cells += [f"{seconds:.2f} s by {plan['bound_by']}", f"{plan['predicted_mfu']:.0%}"]
    else:
        cells += ["-", "-"]
    return cells + [f"{plan['compile_seconds']:.0f} s ({plan['compile_cpu_seconds']:.0f} s CPU)"]


def notes(plans: dict) -> str:
    """What the table says, in words."""
    found = []
    if {"llama-8b", "llama-8b-126-layers"} <= set(plans):
        a, b = (plans[n]["compile_cpu_seconds"] for n in ("llama-8b", "llama-8b-126-layers"))
        found.append(f"- Compiling 126 layers (as in Llama 3 405B) takes {b / a:.2f} times the "
                     "CPU seconds of 32 layers.")  # fmt: skip
    return "\n".join(found)


def peers(plans: dict) -> str:
    """Returns the table of MaxText's compiled steps and the geometric means of the ratios."""
    rows, ratios = [], []
    for name in MAXTEXT:
        file = HERE / "results" / "maxtext" / f"{name}.json"
        if name not in plans or not file.exists():
            continue
        ours, theirs = plans[name], json.loads(file.read_text())
        memory = [ours["argument_bytes"] + ours["temp_bytes"],
                  theirs["bytes"]["argument"] + theirs["bytes"]["temp"]]  # fmt: skip
        sent = [sum(x["ici_bytes"].values()) for x in (ours, theirs["moved"])]
        hbm = [x["hbm_traffic_bytes"] for x in (ours, theirs["moved"])]
        cpu = [ours["compile_cpu_seconds"], theirs["cpu_seconds"]]
        ratios.append([a / b for a, b in (memory, sent, hbm)])
        pair = lambda values, unit=1e9, digits=1: [f"{v / unit:,.{digits}f}" for v in values]
        rows.append([name, f"{ours['topology']} ({ours['devices']})", *pair(memory, digits=2),
                     f"{ratios[-1][0]:.2f}", *pair(sent), f"{ratios[-1][1]:.2f}",
                     *pair(hbm, digits=0), f"{ratios[-1][2]:.2f}", *pair(cpu, 1, 0)])  # fmt: skip
    if not rows:
        return "Not run."
    header = ["case", "topology (chips)"]
    header += [x for kind in ("memory", "ICI", "HBM traffic")
               for x in (f"{kind}, GB", "MaxText", "ratio")]  # fmt: skip
    header += ["CPU seconds to compile", "MaxText, whole command"]
    means = [statistics.geometric_mean(column) for column in zip(*ratios, strict=True)]
    return record.table(header, rows) + (
        "\n\nMemory is arguments and temporaries per chip. Geometric means of the ratios: memory "
        f"{means[0]:.2f}, ICI bytes {means[1]:.2f}, HBM bytes {means[2]:.2f}."
    )


def searched(name: str, found: dict) -> str:
    """What a search printed, the best first."""
    best = found["ranked"][0] if found["ranked"] else None
    where = f" on {best['topology']} ({best['devices']} chips)" if best else ""
    lines = [f"{name}{where}: {found['settings']} settings, {found['compiled']} compiled."]
    lines += [f"{place}. {search.line(one)}" for place, one in enumerate(found["ranked"], 1)]
    return "\n".join(lines)


def write() -> None:
    """Writes README.md from results/."""
    files = {name: HERE / "results" / f"{name}.json" for name in CASES | SEARCHES}
    results = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    found = {name: result["plan"] for name, result in results.items()}
    plans = {name: found[name] for name in CASES if name in found}
    header = ["case", "topology (devices)", "mesh", "parameters", "optimizer", "arguments",
              "temporaries", "on the host", "fits", "ICI or NVLink GB per step",
              "DCN or network GB per step", "HBM GB per step",
              "step at least", "MFU at most", "compiled in"]  # fmt: skip
    commands = [result["plan_command"] for result in results.values()]
    sources = [
        f"{name}: commit {r['commit']}, {r['time']}, {r['hardware']}, jax {r['versions']['jax']}, "
        f"{compiler} {r['versions'].get(compiler, '?')}"
        for name, r in results.items()
        for compiler in ["libtpu" if "TPU" in str(r["plan"]) else "jax-cuda12-plugin"]
    ]
    text = TEXT.format(
        table=record.table(header, [row(name, found) for name, found in plans.items()]),
        notes=notes(plans),
        peers=peers(plans),
        compiles=COMPILES,
        searches="\n\n".join(searched(name, found[name]) for name in SEARCHES if name in found)
        or "Not run.",
        missing=", ".join(n for n in CASES | SEARCHES if n not in found) or "nothing",
        command="\n    ".join(f"python {command}" for command in commands),
        provenance="  \n".join(sources),
    )
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    left = [name for name in CASES | SEARCHES if not (HERE / "results" / f"{name}.json").exists()]
    for case in [] if sys.argv[1:] == ["--readme"] else sys.argv[1:] or left:
        plan(case)
        write()
    write()
