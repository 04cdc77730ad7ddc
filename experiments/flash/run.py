"""Exact attention, forward and backward: `flash` compared with PyTorch.

    python experiments/flash/run.py [--rounds=15] [--length=4096] [--dtype=bfloat16]

Runs on a GPU if both JAX and PyTorch find one, otherwise on the CPU. Writes a file in results/,
named after the device, and README.md. Needs requirements-dev.txt, with the CUDA builds of JAX and
PyTorch.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Both share one GPU: neither may preallocate all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from llm_jax.attention import VARIANTS  # noqa: E402
from llm_jax.attention.mask import Mask  # noqa: E402
from llm_jax.record import table, write  # noqa: E402

AIM = 1.15  # times PyTorch's seconds, on a GPU, at length 4,096 in bfloat16
SHAPES = {"GPT-2 124M": (4, 12, 12, 64), "Llama 3 8B": (1, 32, 8, 128)}  # rows, heads, of keys, H
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}  # of the largest value, between the two

TEXT = """# Flash attention compared with PyTorch

**Claim.** `attention="flash"`, causal, bfloat16, rows of 4,096 tokens, forward and backward,
takes at most {aim} times as long as PyTorch's `scaled_dot_product_attention` on the same GPU.

**Result:** {verdict}

Medians of {rounds} rounds, in which the two implementations take turns. Outputs and gradients are
compared first; *difference* is the largest one, relative to the largest value.

{rows}

    python experiments/flash/run.py

{sources}

run.py writes this file from results/.
"""


def arrays(shape: tuple, length: int) -> list[np.ndarray]:
    """Query, key, value and what the output's gradient is, float32 [B, T, heads, H]."""
    rows, heads, key_heads, size = shape
    draw = np.random.default_rng(0)
    widths = (heads, key_heads, key_heads, heads)
    return [draw.standard_normal((rows, length, n, size), np.float32) for n in widths]


def ours(inputs: list[np.ndarray], dtype: str) -> Callable[[], tuple]:
    """Returns a function that gives the output and three gradients, when they are there."""
    query, key, value, ahead = (jnp.asarray(x, dtype) for x in inputs)

    @jax.jit
    def step(query, key, value, ahead):
        attend = lambda *x: VARIANTS["flash"].attend(*x, Mask(causal=True))
        out, back = jax.vjp(attend, query, key, value)
        return out, *back(ahead)

    return lambda: jax.block_until_ready(step(query, key, value, ahead))


def theirs(inputs: list[np.ndarray], dtype: str) -> Callable[[], tuple]:
    """Returns the same of PyTorch, whose arrays have heads before positions."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = lambda x: torch.from_numpy(x).to(device, getattr(torch, dtype)).transpose(1, 2)
    query, key, value = (place(x).contiguous().requires_grad_() for x in inputs[:3])
    ahead = place(inputs[3]).contiguous()

    def step():
        for x in (query, key, value):
            x.grad = None
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )
        out.backward(ahead)
        if device == "cuda":
            torch.cuda.synchronize()
        return tuple(x.detach().transpose(1, 2) for x in (out, query.grad, key.grad, value.grad))

    return step


def differs(one: tuple, other: tuple) -> float:
    """Largest difference of output or gradients, as a share of the largest value."""
    pairs = zip(one, other, strict=True)
    pairs = [(np.asarray(a, np.float32), b.float().cpu().numpy()) for a, b in pairs]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def measure(shape: tuple, length: int, dtype: str, rounds: int) -> dict:
    """Seconds of each side, and the ratio of medians; raises where they do not agree."""
    inputs = arrays(shape, length)
    sides = {"llm_jax": ours(inputs, dtype), "PyTorch": theirs(inputs, dtype)}
    apart = differs(sides["llm_jax"](), sides["PyTorch"]())
    if not apart < TOLERANCE[dtype]:
        raise SystemExit(f"{shape}, {length}, {dtype}: results differ by {apart:.3g}")
    times = {name: [] for name in sides}
    for i in range(rounds + 1):
        # Who goes first changes, so that neither always follows the other.
        for name in sorted(sides, reverse=i % 2 == 1):
            began = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(t[1:]) for name, t in times.items()}
    ratio = seconds["llm_jax"] / seconds["PyTorch"]
    return {"shape": shape, "differs": apart, "seconds": seconds, "ratio": ratio}


def readme() -> str:
    """Returns README.md, from all records."""
    records = [json.loads(file.read_text()) for file in sorted((HERE / "results").glob("*.json"))]
    header = ["device", "shape (rows, heads, KV heads, head size)", "length", "dtype",
              "llm_jax, ms", "PyTorch, ms", "ratio", "difference"]  # fmt: skip
    rows = [
        [r["device"], f"{name}: {tuple(x['shape'])}", f"{r['length']:,}", r["dtype"],
         *(f"{1000 * x['seconds'][side]:.2f}" for side in ("llm_jax", "PyTorch")),
         f"{x['ratio']:.2f}", f"{x['differs']:.1e}"]
        for r in records for name, x in r["shapes"].items()
    ]  # fmt: skip
    claimed = [r for r in records if r["gpu"] and (r["length"], r["dtype"]) == (4096, "bfloat16")]
    ratios = [x["ratio"] for r in claimed for x in r["shapes"].values()]
    verdict = "**not measured on a GPU.** The CPU measurements below do not test the claim."
    if ratios:
        kept = "the claim holds" if max(ratios) <= AIM else "**the claim does not hold**"
        verdict = f"{min(ratios):.2f} to {max(ratios):.2f} times; {kept}."
    sources = "  \n".join(
        f"{r['device']}: `{r['command']}`, commit {r['commit']}, {r['time']}, {r['hardware']}, "
        f"jax {r['versions']['jax']}, torch {r['versions']['torch']}"
        for r in records
    )
    counts = sorted({r["rounds"] for r in records})
    return TEXT.format(aim=AIM, verdict=verdict, rounds=" or ".join(map(str, counts)),
                       rows=table(header, rows), sources=sources)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--dtype", choices=TOLERANCE, default="bfloat16")
    args = parser.parse_args()
    device = jax.devices()[0]
    gpu = device.platform == "gpu"
    if gpu != torch.cuda.is_available():
        what = "does not see" if gpu else "sees"
        raise SystemExit(f"JAX runs on {device.platform}, PyTorch {what} a GPU: install both")
    found = {}
    for name, shape in SHAPES.items():
        found[name] = measure(shape, args.length, args.dtype, args.rounds)
        print(name, {k: f"{v:.4f}" for k, v in found[name]["seconds"].items()},
              f"ratio {found[name]['ratio']:.3f}", flush=True)  # fmt: skip
    kind = device.device_kind
    file = re.sub(r"\W+", "-", f"{kind}-{args.length}-{args.dtype}".lower()) + ".json"
    write(HERE / "results" / file, device=kind, gpu=gpu, length=args.length, dtype=args.dtype,
          rounds=args.rounds, shapes=found)  # fmt: skip
    (HERE / "README.md").write_text(readme())


if __name__ == "__main__":
    main()
