"""Chunked recurrences, this project's and fla's own in PyTorch, side by side on a CPU.

    python experiments/mixers/speed.py [--rounds=5] [--length=1024]

Writes results/speed.json and the table in speed.md; needs fla-core of requirements-dev.txt.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from llm_jax.attention import Mask  # noqa: E402
from llm_jax.attention.delta import delta_rule  # noqa: E402
from llm_jax.attention.recurrent import sum_of_products  # noqa: E402
from llm_jax.record import table, write  # noqa: E402

torch.set_num_threads(1)  # threads that wait for each other would count as time
N, H = 4, 64
CAUSAL = Mask(causal=True)

TEXT = """# Chunked recurrences compared with flash-linear-attention, on a CPU

**Claim.** The chunked forms that training uses are not slower than the chunked PyTorch references
of flash-linear-attention (`fla.ops.*.naive`; chunks of 64, for RWKV-6 of 32).

**Result:** {verdict}

One row of {length:,} tokens, {heads} heads of size {size}, float32. Milliseconds, the minimum of
{rounds} rounds in which both take turns, after their results have been compared (*difference*:
relative to the largest value). The machine had other load, so compare the CPU time of all threads;
PyTorch uses one thread. A dash means that the reference cannot be differentiated, because it
overwrites values that the backward pass needs.

{rows}

    python experiments/mixers/speed.py

Commit {commit}, {time}, {hardware}. speed.py writes this file from results/speed.json.
"""


def fla(name: str):
    """A module of fla.ops by its file, as importing the package asks for Triton and a GPU."""
    root = importlib.util.find_spec("fla").submodule_search_locations[0]
    path = Path(root, "ops", *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"fla_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def delta(q, k, v, g, beta):
    return delta_rule(q * H**-0.5, k, k * beta[..., None], v, g, CAUSAL)[0]


def rwkv6(q, k, v, g):
    heads_first = (x.transpose(1, 2) for x in (q * H**-0.5, k, v, g))
    run = fla("rwkv6.chunk_naive").naive_chunk_rwkv6
    return run(*heads_first, torch.zeros(N, H)).transpose(1, 2)


def summed(q, k, v, g, strict=False):
    return sum_of_products(q * H**-0.5, k, v, CAUSAL, g, strict=strict)[0]


# Ours, theirs, and whether a decay is of each channel and there is a beta; None: no such array.
CASES = {
    "simple GLA, Mamba-2": (
        summed, lambda *x: fla("simple_gla.naive").naive_chunk_simple_gla(*x)[0], (False, False),
    ),
    "GLA, RWKV-6": (lambda *x: summed(*x, strict=True), rwkv6, (True, False)),
    "Gated DeltaNet": (
        delta, lambda *x: fla("gated_delta_rule.naive").naive_chunk_gated_delta_rule(*x)[0],
        (False, True),
    ),
    "KDA": (delta, lambda *x: fla("kda.naive").naive_chunk_kda(*x)[0], (True, True)),
}  # fmt: skip


def arrays(length: int, channels: bool, beta: bool) -> list[np.ndarray]:
    """Query, key of length 1, value, log decay and, where asked for, beta."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal((1, length, N, *shape), np.float32)
    q, k, v = draw(H), draw(H), draw(H)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    found = [q, k, v, -0.1 * np.abs(draw(*(H,) * channels))]
    return found + [1 / (1 + np.exp(-draw()))] * beta


def ours(f: Callable, inputs: list, backward: bool) -> Callable:
    """Returns a function that computes the output, or a loss's gradients."""
    loss = lambda *x: jnp.square(f(*x)).sum()
    run = jax.jit(jax.grad(loss, argnums=range(len(inputs))) if backward else f)
    inputs = [jnp.asarray(x) for x in inputs]
    return lambda: jax.block_until_ready(run(*inputs))


def theirs(f: Callable, inputs: list, backward: bool) -> Callable:
    inputs = [torch.tensor(x, requires_grad=backward) for x in inputs]

    def run():
        with torch.set_grad_enabled(backward):
            y = f(*inputs)
        return torch.autograd.grad(y.square().sum(), inputs) if backward else y

    return run


def race(runs: list[Callable], rounds: int) -> list[list[float]]:
    """Returns the least milliseconds of each, on the wall and of the CPU; they take turns."""
    least = [[float("inf")] * 2 for _ in runs]
    for _ in range(rounds):
        for i, run in enumerate(runs):
            start = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - start[0], time.process_time() - start[1]
            least[i] = [min(a, 1000 * b) for a, b in zip(least[i], spent, strict=True)]
    return least


def measure(name: str, backward: bool, length: int, rounds: int) -> dict:
    f, g, given = CASES[name]
    inputs = arrays(length, *given)
    runs = [ours(f, inputs, backward), theirs(g, inputs, backward)]
    found = {"case": name, "backward": backward}
    mine = runs[0]()
    try:
        other = runs[1]()
    except RuntimeError as error:  # of autograd, where a reference writes in place
        found["theirs_fails"] = str(error)[:80]
        runs.pop()
    else:
        pairs = zip(mine, other, strict=True) if backward else [(mine, other)]
        found["differs"] = max(
            float(np.abs(np.asarray(a) - b.numpy()).max() / b.abs().max()) for a, b in pairs
        )
        assert found["differs"] < 1e-3, found
    times = race(runs, rounds)
    for side, (wall, cpu) in zip(("ours", "theirs"), times, strict=False):
        found |= {f"{side}_wall_ms": wall, f"{side}_cpu_ms": cpu}
    return found


def report(results: dict) -> str:
    number = lambda x, key: f"{x[key]:,.1f}" if key in x else "–"
    rows, ratios = [], []
    for x in results["cases"]:
        both = "theirs_cpu_ms" in x
        if both:
            ratios.append(x["theirs_cpu_ms"] / x["ours_cpu_ms"])
        sides = [number(x, f"{s}_{t}_ms") for t in ("cpu", "wall") for s in ("ours", "theirs")]
        differs = f"{x['differs']:.0e}" if both else "–"
        what = "forward and backward" if x["backward"] else "forward"
        rows.append([x["case"], what, *sides, differs])
    header = ["", "", "CPU, llm_jax", "CPU, fla", "wall, llm_jax", "wall, fla", "difference"]
    verdict = f"{min(ratios):.1f} to {max(ratios):.1f} times as fast as fla, by CPU time."
    return TEXT.format(
        verdict=verdict, rows=table(header, rows), heads=N, size=H,
        **{key: results[key] for key in ("length", "rounds", "commit", "time", "hardware")},
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args()
    path, cases = HERE / "results" / "speed.json", []
    for name in () if options.report else CASES:
        for backward in (False, True):
            cases.append(measure(name, backward, options.length, options.rounds))
            print(json.dumps(cases[-1]), flush=True)
    if cases:
        write(path, cases=cases, length=options.length, rounds=options.rounds)
    (HERE / "speed.md").write_text(report(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
