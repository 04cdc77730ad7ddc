"""Greedy decoding on a CPU, this project's and transformers', of the same weights, side by side.

    python experiments/decode/run.py [--rounds=7] [--new=128] [SHAPE ...]

Writes results.json and README.md beside this file; needs what requirements-dev.txt installs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from experiments.speed.run import QUIET, busy  # noqa: E402
from llm_jax import decode, hub, models, record  # noqa: E402

PROMPT, BATCHES = 128, (1, 8)
NO_END = {"bos_token_id": None, "eos_token_id": None}
SHAPES = {
    "gpt2-124m": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**NO_END)),
    "llama-135m": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
            tie_word_embeddings=True, **NO_END,
        )  # fmt: skip
    ),
}
NAMES = {"ours": "llm_jax", "dynamic": "transformers", "static": "transformers, static cache",
         "bound": "matrix-vector product"}  # fmt: skip


def sides(shape: str, batch: int, new: int) -> dict[str, Callable[[], object]]:
    """Returns functions that write `new` tokens a row; "bound" reads the weights as often."""
    torch.manual_seed(0)
    theirs = SHAPES[shape]().eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        cfg, params, _ = hub.load(folder)
    model, params = models.build(cfg), jax.tree.map(jnp.asarray, params)
    prompts = np.random.default_rng(0).integers(0, cfg.vocab_size, (batch, PROMPT))
    inputs = torch.from_numpy(prompts)
    settings = {"attention_mask": torch.ones_like(inputs), "max_new_tokens": new,
                "do_sample": False, "pad_token_id": 0}  # fmt: skip

    def generate(**cache):
        with torch.no_grad():
            return theirs.generate(inputs, **settings, **cache)[:, PROMPT:].tolist()

    count = sum(x.size for x in jax.tree.leaves(params))
    weights = jnp.ones((count // 1024, 1024))
    multiply = jax.jit(lambda w, x: w @ x)

    def bound():
        for _ in range(new):
            multiply(weights, weights[0]).block_until_ready()

    rows = prompts.tolist()
    return {
        "ours": lambda: decode.generate(model, params, rows, max_new_tokens=new, temperature=0),
        "dynamic": generate,
        "static": lambda: generate(cache_implementation="static"),
        "bound": bound,
    }


def measure(shape: str, batch: int, new: int, rounds: int) -> dict:
    """Takes turns, a text a side; tokens a second, ratios, and seconds of the first call."""
    runs, first, written, taken = sides(shape, batch, new), {}, {}, []
    for name, run in runs.items():
        began = time.perf_counter()
        written[name] = run()
        first[name] = time.perf_counter() - began
    for turn in range(rounds):
        seconds, began, before = {}, time.perf_counter(), busy()
        for name in sorted(runs, reverse=turn % 2 == 1):
            start = time.perf_counter()
            runs[name]()
            seconds[name] = time.perf_counter() - start
        others = (busy() - before) / ((time.perf_counter() - began) * os.cpu_count())
        taken.append(seconds | {"others": others})
        print(shape, batch, {k: round(v, 2) for k, v in taken[-1].items()}, flush=True)
    speed = {k: batch * new / statistics.median(x[k] for x in taken) for k in runs}
    ratios = [min(x["dynamic"], x["static"]) / x["ours"] for x in taken]
    pairs = zip(np.ravel(written["ours"]), np.ravel(written["dynamic"]), strict=True)
    return {
        "shape": shape, "batch": batch, "prompt": PROMPT, "new": new, "tokens_per_second": speed,
        "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
        "of_bound": statistics.median(x["bound"] / x["ours"] for x in taken),
        "first_call_seconds": first, "equal_tokens": float(np.mean([a == b for a, b in pairs])),
        "others_at_most": max(x["others"] for x in taken), "rounds": taken,
    }  # fmt: skip


def readme(result: dict) -> str:
    """The README.md of this folder."""
    header = ["shape", "rows", *(f"{name}, tokens/s" for name in NAMES.values()),
              "times the faster transformers (lowest, highest)", "of the bound", "same tokens",
              "first call, s (llm_jax)"]  # fmt: skip
    rows = [
        [
            x["shape"], str(x["batch"]), *(f"{x['tokens_per_second'][k]:.0f}" for k in NAMES),
            f"{x['ratio']:.2f} ({x['ratio_range'][0]:.2f}, {x['ratio_range'][1]:.2f})",
            f"{x['of_bound']:.0%}", f"{x['equal_tokens']:.1%}",
            f"{x['first_call_seconds']['ours']:.1f}",
        ]
        for x in result["rows"]
    ]  # fmt: skip
    first = result["rows"][0]
    others = max(x["others_at_most"] for x in result["rows"])
    quiet = ""
    if others > QUIET:
        quiet = (f"\n**Not a quiet machine**: other programs had up to {others:.0%} of its\n"
                 "processors. The sides took turns, so ratios say more than speeds.\n")  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"""# Speed of decoding

Greedy decoding of {first["new"]} tokens behind prompts of {first["prompt"]}, in float32, by
`llm_jax.decode.generate` and by `generate` of `transformers` in eager PyTorch, of the same random
weights. Times are of the whole call, prompt included, once compiled; medians of
{len(first["rounds"])} rounds. The bound: a product of one vector with a matrix of as many numbers
as the model has parameters, once for each token of a row, in JAX; prompt and cache are not in it.
{quiet}
{record.table(header, rows)}

    pip install -r requirements-dev.txt
    {result["command"]}

{result["hardware"]}; commit {result["commit"]};
{result["time"]}; {versions}.

This file is written by run.py from results.json.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new", type=int, default=128, help="tokens a row")
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), metavar="SHAPE")
    args = parser.parse_args()
    rows = [measure(shape, batch, args.new, args.rounds)
            for shape in args.shapes for batch in BATCHES]  # fmt: skip
    record.write(HERE / "results.json", rows=rows)
    text = readme(json.loads((HERE / "results.json").read_text()))
    (HERE / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
