"""DPO: preferring kind answers over rude ones

A small GPT first learns (configs/finetune/translate.py:decoder) to answer made-up prompts, each
with one kind and one rude answer. configs/finetune/preference.py then trains it to prefer the
kind answers. Margin and accuracy are measured on prompts that neither stage has seen. `kind` is
the share of these prompts whose greedy answer is the kind one. The reference model is the model
at step 0. Its log-probabilities, which a run stores before its first step, are compared bit by
bit with log-probabilities that are recomputed after training.

    python experiments/finetune/preference.py
"""

import json
import random
from pathlib import Path

import numpy as np
import study

from llm_jax import library
from llm_jax.record import table

NAME = Path(__file__).stem
NAMES = "Ann Bob Cem Dora Eli Fay Gus Hana Ivo Jun Kai Lea Max Nia Oto Pia".split()
THINGS = {
    "sea": "wide", "sun": "warm", "moon": "pale", "road": "long", "river": "slow", "hill": "green",
    "house": "old", "clock": "late", "bread": "fresh", "train": "full", "garden": "wet",
    "winter": "cold", "letter": "short", "bridge": "high", "market": "loud", "song": "sad",
}  # fmt: skip
KIND, RUDE = "Good question, {0}: the {1} is {2}.", "Go away, {0}! The {1} is {2}."
WIDTHS = {"model.max_length": 64, "model.num_layers": 2, "model.embed_dim": 64,
          "model.dropout": 0.0, "tokenizer.vocab_size": 512}  # fmt: skip
STEPS, EVERY = 120, 20


def pairs() -> tuple[list[dict], list[dict]]:
    """Returns the preferences to train on, and those of held-out prompts."""
    rows = [
        {"prompt": f"{name} asks how the {thing} is: ", "chosen": KIND.format(name, thing, what),
         "rejected": RUDE.format(name, thing, what)}
        for name in NAMES for thing, what in THINGS.items()
    ]  # fmt: skip
    random.Random(0).shuffle(rows)
    return rows[:-56], rows[-56:]


def write(name: str, rows: list[dict]) -> Path:
    """Writes a JSONL file; returns its path from the root."""
    path = study.WORK / NAME / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.relative_to(study.ROOT)


def kind(run: Path, rows: list[dict]) -> float:
    """Returns the share of prompts whose greedy answer begins as the kind one does."""
    found = library.load(study.ROOT / run).generate(
        [row["prompt"] for row in rows], max_new_tokens=24, temperature=0.0
    )
    return float(np.mean([one["completion"].strip().startswith("Good") for one in found]))


def first() -> dict:
    """Trains a model that gives kind and rude answers."""
    train, held_out = pairs()
    both = lambda rows: [{"source": row["prompt"], "target": row[side]}
                         for row in rows for side in ("chosen", "rejected")]  # fmt: skip
    keys = WIDTHS | {
        "data.train": write("first", both(train)), "data.validation": write("held", both(held_out)),
        "objective.suffix": "", "objective.label_smoothing": 0.0, "eval.scores": "()",
        "train.steps": 300, "optimizer.warmup_steps": 30, "eval.every": 300,
    }  # fmt: skip
    return study.train(NAME, "first", "configs/finetune/translate.py:decoder", keys)


def prefer() -> dict:
    """Has the kind answers preferred; compares the reference afterwards."""
    train, held_out = pairs()
    source = (study.WORK / NAME / "first").relative_to(study.ROOT)
    keys = {
        "init_from": source, "model.max_length": 64, "data.train": write("train", train),
        "data.validation": write("held_out", held_out), "optimizer.learning_rate": 1e-4,
        "optimizer.warmup_steps": 10, "train.steps": STEPS, "eval.every": EVERY,
        "eval.max_batches": 0,
    }  # fmt: skip
    recipe = "configs/finetune/preference.py"
    found = study.train(NAME, "preferred", recipe, keys)
    study.train(NAME, "anew", recipe, keys | {"train.steps": 1, "optimizer.warmup_steps": 0})
    run, anew = (study.WORK / NAME / name for name in ("preferred", "anew"))
    kept, computed = ((folder / "reference.json").read_bytes() for folder in (run, anew))
    logged = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    curve = [
        {key: line[key] for key in ("step", "eval_loss", "eval_margin", "eval_accuracy")}
        for line in logged if "eval_margin" in line
    ]  # fmt: skip
    return found | {
        "pairs": len(train), "held_out": len(held_out), "curve": curve,
        "kind_before": kind(source, held_out), "kind_after": kind(run, held_out),
        "reference_fixed": kept == computed,
    }  # fmt: skip


def main() -> None:
    """Trains the first model, then the preference."""
    study.recorded(NAME, "first", first)
    study.recorded(NAME, "preferred", prefer)


def report(runs: dict[str, dict]) -> study.Report:
    """Margin and accuracy by step."""
    run = runs["preferred"]
    curve, fixed = run["curve"], run["reference_fixed"]
    first, last = curve[0], curve[-1]
    rises = all(last[f"eval_{key}"] > first[f"eval_{key}"] or last[f"eval_{key}"] == 1
                for key in ("margin", "accuracy"))  # fmt: skip
    targets = [
        study.Target("margin and accuracy rise", f"margin 0 at step 0, {first['eval_margin']:.2f} "
                     f"at step {first['step']}, {last['eval_margin']:.2f} at step {last['step']}; "
                     f"accuracy {100 * last['eval_accuracy']:.0f} %", rises),
        study.Target("reference unchanged", "log-probabilities of all pairs " +
                     ("bit-identical" if fixed else "differ"), fixed),
    ]  # fmt: skip
    rows = [[line["step"], f"{line['eval_loss']:.4f}", f"{line['eval_margin']:.3f}",
             f"{100 * line['eval_accuracy']:.0f} %"] for line in curve]  # fmt: skip
    header = ["step", "loss", "margin (beta x difference)", "accuracy"]
    return study.Report(targets, f"""{run["pairs"]} pairs, {run["held_out"]} held out.

{table(header, rows)}

Share of kind greedy answers on held-out prompts: {100 * run["kind_before"]:.0f} % before,
{100 * run["kind_after"]:.0f} % after.

    {run["command"]}""")


if __name__ == "__main__":
    main()
