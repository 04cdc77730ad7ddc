"""Measures exact attention in blocks against dense, takes in a sweep's report, writes README.md.

python experiments/attention/run.py --sweep=runs/attention     # or --readme alone
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

TEXT = """# Attention, one key at a time

**Claims.** (1) Which kind of attention a decoder has is one config key, and `launch.py sweep`
turns a list of such keys into a comparison with error bars. (2) Exact attention needs no memory
for the scores: `blockwise`, in plain JAX, keeps to a CPU's cache, and is no slower for it. **How**:

```
python launch.py sweep --config=configs/ablations/attention.py:main --workdir=runs/attention
python experiments/attention/run.py --sweep=runs/attention
```

This file is written by run.py, from results/ and the sweep's own report.

## Exact attention in blocks

Gradient of a sum over one call, {heads} heads of {size}, float32, causal. *textbook* is softmax(Q
K^T) V as the formula has it; *dense* takes queries in blocks of an eighth and leaves out what the
mask hides; *blockwise* never holds more than a tile of scores. Aims: an eighth of dense's temporary
bytes at {memory:,} tokens, and no more time than dense at {speed:,}.

{table}

Of dense, blockwise needs {bytes_ratio:.1%} of the bytes at {memory:,} tokens (of the textbook form
{textbook_ratio:.1%}), and takes {time_ratio:.2f} times as long at {speed:,} (median of {rounds}
rounds in turn; quartiles {low:.2f} to {high:.2f}). Commit {commit}; jax {jax}; {hardware}; {time}.

## What the sweep does and does not show

Models of under a million parameters, trained on a few million bytes for minutes of a CPU core: it
shows that every kind trains, what each costs by length, and how they rank *here*, where text is
bytes, rows are 256 long and a window covers most of what matters. It does not show how they rank
at scale, with long documents, or when tuned: one learning rate serves all, chosen for none of them.
Three seeds resolve little: where an interval holds zero, or Holm's p is not small, nothing has been
shown, and a spread between seeds as wide as the gated linear kind's says that its training is not
stable at this rate. Beyond the length of training rotary positions fail softmax kinds that see all,
as is known; what sees only what is near goes on as before. Tokens a second were logged while other
work shared the machine: orders of magnitude. FLOPs are counted by the commit that wrote the report,
not by the one that trained; the delta rule was measured while LAPACK solved its triangular system,
which products do since. The bytes are XLA's own account.

"""


def textbook(query, key, value):
    """softmax(Q K^T / sqrt(H)) V, [T, T] and all."""
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), value)


def compiled(kind: str, length: int):
    """The gradient of a sum over one call of a kind."""
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
    """Writes README.md of what is in results/ and report/."""
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
    parser.add_argument("--sweep", help="a sweep's folder, whose report is taken in")
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
