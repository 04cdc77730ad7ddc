"""Speculative decoding on a CPU: speed, and the tokens accepted of a trained draft model.

    python experiments/speculative/run.py random
    python experiments/speculative/run.py trained [--data=tiny_shakespeare/input.txt]

The second trains the two models of TRAINED in runs/speculative, unless they are there. Each writes
a JSON file, and README.md, beside this file.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import launch  # noqa: E402
from experiments.speed.run import QUIET, busy  # noqa: E402
from llm_jax import config, decode, models, record, sharding  # noqa: E402
from llm_jax.decode.speculative import Speculation  # noqa: E402
from llm_jax.files import read_text  # noqa: E402
from llm_jax.train.metrics import read  # noqa: E402
from llm_jax.train.run import load_params  # noqa: E402

PROMPT, NEW, COUNTS, ROWS = 64, 128, (2, 4, 8), 8
COMMON = {"data.batch_size": 4, "model.dropout": 0.0, "model.attention_dropout": 0.0}
TRAINED = {  # changes of configs/shakespeare.py:large
    "model": COMMON | {"train.steps": 600, "model.num_layers": 4, "model.embed_dim": 256,
                       "model.num_heads": 8, "model.positions": "rotary",
                       "optimizer.learning_rate": 2e-3, "optimizer.warmup_steps": 50},
    "draft": COMMON | {"train.steps": 1000, "model.num_layers": 1, "model.embed_dim": 128,
                       "model.num_heads": 4, "optimizer.learning_rate": 3e-3},
}  # fmt: skip
RANDOM = {"model": "124m", "draft": {"num_layers": 2, "num_heads": 4, "embed_dim": 256}}


def train(folder: Path, data: str, changes: dict[str, Any]) -> dict:
    """Trains a model unless it is there; returns its size and loss."""
    changes |= {"data.train": data, "eval.every": changes["train.steps"]}
    changes |= {"checkpoint.every": changes["train.steps"], "sample.prompts": ()}
    began = time.perf_counter()
    if not folder.is_dir():
        options = [f"--config.{key}={value}" for key, value in changes.items()]
        recipe = "--config=configs/shakespeare.py:large"
        assert launch.main(["train", recipe, f"--workdir={folder}", *options]) == 0
        (folder / "minutes").write_text(f"{(time.perf_counter() - began) / 60:.2f}")
    losses = [row["eval_loss"] for row in read(folder) if row.get("eval_loss")]
    return changes | {"loss": losses[-1], "minutes": float((folder / "minutes").read_text())}


def sizes(model: models.Model) -> dict:
    cfg = model.cfg
    params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
    count = sum(x.size for x in jax.tree.leaves(params))
    return {"layers": cfg.num_layers, "width": cfg.embed_dim, "parameters": count}


def random_model(variant: str, **changes: int) -> decode.Draft:
    """GPT-2's config with these changes, with random parameters."""
    cfg = config.load(f"configs/gpt2.py:{variant}").model
    cfg.update(changes)
    model = models.build(config.resolve(cfg, 50257))
    params = jax.jit(lambda key: models.init_params(model, key))(jax.random.key(len(changes)))
    return decode.Draft(model, params, None)


def measure(big: decode.Draft, small: decode.Draft, rows: list, at_once: int, rounds: int,
            new: int, **settings: Any) -> list[dict]:  # fmt: skip
    """Takes turns: without a draft model, then with each number of tokens proposed."""
    batches = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
    settings |= {"max_new_tokens": new}
    work = {count: [Speculation(small, count) for _ in batches] for count in COUNTS}

    def write(count: int | None) -> list:
        windows = work[count] if count else [None] * len(batches)
        return [decode.generate(big.model, big.params, batch, window=window, **settings)
                for batch, window in zip(batches, windows, strict=True)]  # fmt: skip

    runs: dict[int | None, Callable] = {None: write, **dict.fromkeys(COUNTS, write)}
    texts, taken = {count: run(count) for count, run in runs.items()}, []
    for turn in range(rounds):
        seconds, began, before = {}, time.perf_counter(), busy()
        for count in sorted(runs, key=lambda n: n or 0, reverse=turn % 2 == 1):
            start = time.perf_counter()
            runs[count](count)
            seconds[str(count)] = time.perf_counter() - start
        others = (busy() - before) / ((time.perf_counter() - began) * os.cpu_count())
        taken.append(seconds | {"others": others})
        print({k: round(v, 2) for k, v in taken[-1].items()}, flush=True)
    found, tokens, steps = [], len(rows) * new, len(batches) * new
    for count, windows in work.items():
        passes, accepted = (np.concatenate([getattr(w, name) for w in windows])
                            for name in ("rounds", "accepted"))  # fmt: skip
        turns = sum(int(w.rounds.max()) for w in windows)  # a batch goes on until its last row ends
        ratios = [x["None"] / x[str(count)] for x in taken]
        costs = [(x[str(count)] / turns) / (x["None"] / steps) for x in taken]
        found.append({
            "rows": at_once, "count": count, "new": new, "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)], "round_cost": statistics.median(costs),
            "round_cost_range": [min(costs), max(costs)],
            "plain_tokens_per_second": tokens / statistics.median(x["None"] for x in taken),
            "tokens_per_second": tokens / statistics.median(x[str(count)] for x in taken),
            "acceptance_rate": float(accepted.sum() / (count * passes.sum())),
            "tokens_per_round": float(tokens / passes.sum()),
            "equal_texts": texts[count] == texts[None],
            "others_at_most": max(x["others"] for x in taken), "seconds": taken,
        })  # fmt: skip
    return found


def trained(data: str, runs: Path, rounds: int) -> dict:
    """Speed with trained models, whose drafts are accepted as often as they deserve."""
    about = {name: train(runs / name, data, dict(changes)) for name, changes in TRAINED.items()}
    setup, tokenizer, params, _ = load_params(runs / "model")
    theirs, same, small, _ = load_params(runs / "draft", mesh=setup.mesh)
    assert same.fingerprint() == tokenizer.fingerprint()
    text = read_text(data)
    held_out = text[len(text) * 9 // 10 :]
    prompts = [held_out[i * 5000 :][:PROMPT] for i in range(ROWS)]
    ids = [tokenizer.encode(prompt).tolist() for prompt in prompts]
    big, draft = decode.Draft(setup.model, params, None), decode.Draft(theirs.model, small, None)
    rows = []
    with sharding.activate(setup.mesh):
        for at_once, temperature in itertools.product((1, ROWS), (0.0, 1.0)):
            part = measure(big, draft, ids, at_once, rounds, NEW, temperature=temperature)
            rows += [x | {"temperature": temperature} for x in part]
    about["model"] |= sizes(setup.model)
    about["draft"] |= sizes(theirs.model)
    return about | {"rows": rows}


def costs(rounds: int) -> dict:
    """The cost of a round for GPT-2 124M; it does not depend on the weights."""
    big, small = random_model(RANDOM["model"]), random_model("124m", **RANDOM["draft"])
    ids = np.random.default_rng(0).integers(0, 50257, (1, PROMPT)).tolist()
    rows = measure(big, small, ids, 1, rounds, 32, temperature=0.0)
    return {"model": sizes(big.model), "draft": sizes(small.model), "rows": rows}


def learned(result: dict) -> str:
    """What trained models wrote, and how fast."""
    header = ["rows", "temperature", "proposed a round", "accepted", "tokens a round",
              "cost of a round", "tokens/s without draft", "tokens/s",
              "times as fast (lowest, highest)"]  # fmt: skip
    rows = [
        [
            str(x["rows"]), f"{x['temperature']:g}", str(x["count"]),
            f"{x['acceptance_rate']:.0%}", f"{x['tokens_per_round']:.2f}",
            f"{x['round_cost']:.2f}", f"{x['plain_tokens_per_second']:.0f}",
            f"{x['tokens_per_second']:.0f}",
            f"{x['ratio']:.2f} ({x['ratio_range'][0]:.2f}, {x['ratio_range'][1]:.2f})",
        ]
        for x in result["rows"]
    ]  # fmt: skip
    about = lambda x: (f"{size(x)} parameters, {x['train.steps']} steps of\n"
                       f"  {x['data.batch_size']} x 256 characters: validation loss "
                       f"{x['loss']:.3f}")  # fmt: skip
    greedy = [x["equal_texts"] for x in result["rows"] if x["temperature"] == 0]
    return f"""## Trained models

A speed-up needs a draft model that is often right, so both models are trained here, for a few
minutes, by characters on tiny Shakespeare (configs/shakespeare.py:large with the changes in
run.py), in float32.

- Model: {about(result["model"])}.
- Draft model: {about(result["draft"])}.

Texts of {result["rows"][0]["new"]} tokens after {ROWS} held-out prompts of {PROMPT}, one by one or
all in a batch, which goes on until its last row ends. The time is of the whole call, prompt
included, once compiled; medians of {len(result["rows"][0]["seconds"])} turns. The cost of a round
is its time, in steps of the model alone. The greedy texts (temperature 0) equal those of the model
alone in {sum(greedy)} of {len(greedy)} settings.

{record.table(header, rows)}
{provenance(result)}"""


def random(result: dict) -> str:
    """What a round costs."""
    header = ["proposed a round", "cost of a round (lowest, highest)", "tokens a round at most"]
    cost = lambda x: (f"{x['round_cost']:.2f} ({x['round_cost_range'][0]:.2f}, "
                      f"{x['round_cost_range'][1]:.2f})")  # fmt: skip
    rows = [[str(x["count"]), cost(x), str(x["count"] + 1)] for x in result["rows"]]
    first = result["rows"][0]
    return f"""## The cost of a round for GPT-2

It does not depend on the weights, so they are random: the shape of GPT-2
({size(result["model"])} parameters) with a draft model of
{size(result["draft"])}, float32, greedy, one text of {first["new"]} tokens after a prompt of
{PROMPT}; medians of {len(first["seconds"])} turns. The cost is the time of a round in steps of the
model alone. With a draft model that is often right, speculative decoding is as many times as fast
as a round gives tokens, divided by this cost; at most as in the last column.

{record.table(header, rows)}
{provenance(result)}"""


def size(x: dict) -> str:
    layers = f"{x['layers']} layer{'s' * (x['layers'] > 1)}"
    return f"{layers}, width {x['width']}, {x['parameters'] / 1e6:.1f}M"


def provenance(result: dict) -> str:
    others = max(x["others_at_most"] for x in result["rows"])
    quiet = ""
    if others > QUIET:
        quiet = (f"\n**Not a quiet machine**: other programs had up to {others:.0%} of its\n"
                 "processors. The sides took turns, so ratios say more than speeds.\n")  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"""{quiet}
    {result["command"]}

{result["hardware"]}; commit {result["commit"]};
{result["time"]}; {versions}.
"""


STUDIES = {"random": random, "trained": learned}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--data", default="tiny_shakespeare/input.txt")
    parser.add_argument("--runs", default="runs/speculative", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    random = args.study == "random"
    found = costs(args.rounds) if random else trained(args.data, args.runs, args.rounds)
    record.write(HERE / f"{args.study}.json", **found)
    parts = ["# Speed of speculative decoding\n"]
    for study, text in STUDIES.items():
        if (file := HERE / f"{study}.json").exists():
            parts.append(text(json.loads(file.read_text())))
    text = "\n".join([*parts, "This file is written by run.py from the JSON files beside it.\n"])
    (HERE / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
