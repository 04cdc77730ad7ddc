"""Plans of published models on pods that are not there; writes results/ and README.md.

python experiments/pod/run.py [CASE …]      # needs libtpu; without cases: those not yet there
python experiments/pod/run.py --readme      # plans nothing
"""

import json
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
    "gpt3-175b": ("gpt3.py:175b", "v5p:8x8x16", {"mesh.data": 1, "mesh.fsdp": 1024,
                                                 "data.batch_size": 2048, "data.ramp_steps": 0,
                                                 "model.attention": "flash,local"}),
}  # fmt: skip
# The same, but only the meshes, microbatches and remat policies that a search compiled are named.
SEARCHES = {"search-llama-8b": ("llama.py:8b", "v5p:4x4x4", LLAMA)}
COMPILES = 4
PEER = {"arguments": 1.51e9, "temporaries": 14.14e9}

TEXT = """# Pods that are not there

**Claim**: the train step of a published model is compiled for a pod of TPUs on a machine that has
none, and fits. Llama 3 8B on 64 chips of v5p, 2 x 8,192 tokens a chip, full remat, bfloat16, takes
less memory than MaxText's.

**Published**: nothing to compare with but a measurement: MaxText 0.2.5's `train_compile` with
libtpu 0.0.52, same model, topology, tokens and remat, on a machine like this one:
{arguments:.2f} GB of arguments and {temporaries:.2f} GB of temporaries a chip.

**Ours**: `launch.py plan`, one case a row. GB are 10^9 bytes a chip.

{table}

Step time and MFU are predictions and bounds: the longest of compute, HBM and network at the data
sheets' rates. HBM traffic counts what a kernel is given and returns once. Seconds of compiling
are of two cores that other work shared; CPU seconds are the compiler's own.

{notes}

## Searched

`launch.py plan --search` ranks all meshes, microbatches and remat policies by arithmetic, compiles
the {compiles} likeliest and ranks those that fit by the predicted step.

{searches}

## How

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
    if "predicted_mfu" in plan:
        seconds = plan["predicted_step_seconds"]
        cells += [f"{seconds:.2f} s by {plan['bound_by']}", f"{plan['predicted_mfu']:.0%}"]
    else:
        cells += ["-", "-"]
    return cells + [f"{plan['compile_seconds']:.0f} s ({plan['compile_cpu_seconds']:.0f} s CPU)"]


def notes(plans: dict) -> str:
    """What the table says, in words."""
    found = []
    whole = sum(PEER.values())
    for name in plans:
        keys = CASES[name][2]
        if keys.items() >= LLAMA.items() and "model.num_layers" not in keys:
            ours = plans[name]["argument_bytes"] + plans[name]["temp_bytes"]
            found.append(f"- {name}: {ours / 1e9:.2f} GB, {ours / whole:.0%} of MaxText's "
                         f"{whole / 1e9:.2f} GB.")  # fmt: skip
    if {"llama-8b", "llama-8b-126-layers"} <= set(plans):
        a, b = (plans[n]["compile_cpu_seconds"] for n in ("llama-8b", "llama-8b-126-layers"))
        found.append(f"- 126 layers (as many as 405B has) instead of 32 take {b / a:.2f} times "
                     "the CPU seconds to compile.")  # fmt: skip
    return "\n".join(found)


def searched(name: str, found: dict) -> str:
    """What a search printed, the best first."""
    best = found["ranked"][0] if found["ranked"] else None
    where = f" on {best['topology']} ({best['devices']} chips)" if best else ""
    lines = [f"{name}{where}: {found['settings']} settings, {found['compiled']} compiled."]
    lines += [f"{place}. {search.line(one)}" for place, one in enumerate(found["ranked"], 1)]
    return "\n".join(lines)


def write() -> None:
    """Writes README.md from what is in results/."""
    files = {name: HERE / "results" / f"{name}.json" for name in CASES | SEARCHES}
    results = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    found = {name: result["plan"] for name, result in results.items()}
    plans = {name: found[name] for name in CASES if name in found}
    header = ["case", "topology (devices)", "mesh", "parameters", "optimizer", "arguments",
              "temporaries", "on the host", "fits", "ICI GB a step", "DCN GB a step",
              "step at least", "MFU at most", "compiled in"]  # fmt: skip
    commands = [result["plan_command"] for result in results.values()]
    sources = [
        f"{name}: commit {r['commit']}, {r['time']}, {r['hardware']}, jax {r['versions']['jax']}, "
        f"libtpu {r['versions'].get('libtpu', '?')}"
        for name, r in results.items()
    ]
    text = TEXT.format(
        **{key: value / 1e9 for key, value in PEER.items()},
        table=record.table(header, [row(name, found) for name, found in plans.items()]),
        notes=notes(plans),
        compiles=COMPILES,
        searches="\n\n".join(searched(name, found[name]) for name in SEARCHES if name in found),
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
