"""Compares blockwise with dense attention, copies the report of a sweep, writes README.md.

python experiments/attention/run.py --sweep=runs/attention     # or only --readme
"""

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from llm_jax import attention, record  # noqa: E402
from llm_jax.attention import Mask  # noqa: E402

MEMORY, SPEED = 8192, 1024  # tokens
HEADS, SIZE = 4, 64
ROUNDS = 15
KINDS = ("textbook", "dense", "blockwise")

TEXT = """# Attention variants compared

**Claims.** (1) The attention variant of a decoder is one config key, and `launch.py sweep`
compares a list of such keys with confidence intervals. (2) Exact attention does not need to hold
the scores in memory: `blockwise`, in plain JAX, stays in the CPU cache and is not slower.

```
python launch.py sweep --config=configs/ablations/attention.py:main --workdir=runs/attention
python experiments/attention/run.py --sweep=runs/attention
```

run.py writes this file from results/ and the report of the sweep.

## Blockwise exact attention

Gradient of a sum over one call, {heads} heads of size {size}, float32, causal. *textbook* is
softmax(Q K^T) V as the formula states it. *dense* processes queries in blocks of an eighth and
skips keys that the mask hides. *blockwise* never holds more than one tile of scores. Targets: an
eighth of the temporary bytes of dense at {memory:,} tokens, and no more time than dense at
{speed:,} tokens.

{table}

blockwise needs {bytes_ratio:.1%} of the bytes of dense at {memory:,} tokens ({textbook_ratio:.1%}
of the textbook form), and takes {time_ratio:.2f} times as long at {speed:,} tokens (median of
{rounds} alternating rounds; quartiles {low:.2f} to {high:.2f}). Commit {commit}; jax {jax};
{hardware}; {time}.

## What the sweep shows

The models have less than a million parameters and were trained on 614,400 bytes, for
minutes on a CPU core. The sweep shows that every variant trains, what each costs by sequence
length, and how they rank in this setup, where tokens are bytes, rows have 256 tokens, and a
window covers most of the relevant context.

It does not show how they rank at larger scale, with long documents, or with tuned learning rates:
all variants use the same rate, which was not tuned. Three seeds resolve only large differences.
If an interval contains zero, or Holm's p is not small, there is no evidence of a difference. The
large spread between seeds of the gated linear variant means that its training is unstable at this
rate. Beyond the training length, rotary positions fail in softmax variants that see all keys, as
is known; variants that see only nearby keys continue to work.

Tokens per second were logged on a shared machine and show only the order of magnitude. FLOPs are
counted by the commit that wrote the report, not by the commit that trained. The delta rule was
measured when LAPACK solved its triangular system; the current code uses matrix products. Bytes are
those that XLA reports.

"""


def textbook(query, key, value):
    """softmax(Q K^T / sqrt(H)) V, [T, T] and all."""
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), value)


def compiled(kind: str, length: int):
    """Returns the compiled gradient of a sum over one call of a variant."""
    attend = textbook
    if kind != "textbook":
        attend = lambda *x: attention.get(kind).attend(*x, Mask(causal=True))
    shape = jax.ShapeDtypeStruct((1, length, HEADS, SIZE), jnp.float32)
    grad = jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x))), argnums=(0, 1, 2))
    return jax.jit(grad).lower(shape, shape, shape).compile()


def measure() -> None:
    """Writes results/blockwise.json."""
    temporary = {
        f"{kind}, {length}": compiled(kind, length).memory_analysis().temp_size_in_bytes
        for kind in KINDS
        for length in (SPEED, MEMORY)
    }
    programs = {kind: compiled(kind, SPEED) for kind in KINDS}
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [jax.random.normal(key, (1, SPEED, HEADS, SIZE)) for key in keys]
    seconds = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS + 1):
        for kind, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            seconds[kind].append(time.perf_counter() - began)
    seconds = {kind: times[1:] for kind, times in seconds.items()}  # the first warms up
    record.write(HERE / "results" / "blockwise.json", temporary=temporary, seconds=seconds)


def write_readme() -> None:
    """Writes README.md from results/ and report/."""
    found = json.loads((HERE / "results" / "blockwise.json").read_text())
    temporary, seconds = found["temporary"], found["seconds"]
    bytes_of = lambda kind, length: temporary[f"{kind}, {length}"]
    growth = lambda kind: math.log(bytes_of(kind, MEMORY) / bytes_of(kind, SPEED), MEMORY / SPEED)
    rows = [
        [
            kind,
            *(f"{bytes_of(kind, length) / 2**20:,.1f}" for length in (SPEED, MEMORY)),
            f"{growth(kind):.2f}",
            f"{np.median(seconds[kind]) * 1e3:,.1f}",
        ]
        for kind in KINDS
    ]
    sizes = (f"MiB at {n:,}" for n in (SPEED, MEMORY))
    header = ["", *sizes, "exponent", f"milliseconds at {SPEED:,}"]
    ratios = np.divide(seconds["blockwise"], seconds["dense"])
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    text = TEXT.format(
        heads=HEADS, size=SIZE, memory=MEMORY, speed=SPEED, rounds=ROUNDS,
        table=record.table(header, rows), time_ratio=middle, low=low, high=high,
        bytes_ratio=bytes_of("blockwise", MEMORY) / bytes_of("dense", MEMORY),
        textbook_ratio=bytes_of("blockwise", MEMORY) / bytes_of("textbook", MEMORY),
        commit=found["commit"], jax=found["versions"]["jax"], hardware=found["hardware"],
        time=found["time"],
    )  # fmt: skip
    report = HERE / "report" / "report.md"
    if report.exists():
        _, *body = report.read_text().splitlines()
        text += "\n".join(line.replace("](", "](report/") if line.startswith("![") else line
                          for line in body).strip() + "\n"  # fmt: skip
    (HERE / "README.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep", help="sweep directory, whose report is copied")
    parser.add_argument("--readme", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.sweep:
        sweep, results = Path(args.sweep), HERE / "results"
        shutil.copytree(sweep / "report", HERE / "report", dirs_exist_ok=True)
        for source in (sweep / "sweep.json", *sweep.glob("cost/*.json")):
            target = results / source.relative_to(sweep)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    if not args.readme:
        measure()
    write_readme()


if __name__ == "__main__":
    main()
