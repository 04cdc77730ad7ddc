"""WikiANN: English named entities, from MiniLM

Does configs/finetune/tag.py, starting from a pretrained 6-layer BERT (all-MiniLM-L6-v2), reach an
entity F1 of 75 on the test set? What does transformers' Trainer reach with the same batch size,
learning rate, steps and lengths? The tag of a word is that of its first token, and F1 is
seqeval's. The whole test set is evaluated once, after the last step. CPU seconds are those of the
whole process, including evaluation.

    python experiments/finetune/wikiann.py
"""

from functools import partial
from pathlib import Path

import study

NAME = Path(__file__).stem
SEEDS = (0, 1)
STEPS, RATE, BATCH, LENGTH = 625, 2e-4, 32, 64
LONG = 1250  # two epochs
SIDES = {"ours": "llm_jax", "trainer": "transformers' Trainer"}


def files() -> dict[str, Path]:
    """Writes train and test set without the `en:` before each word; returns their paths."""
    out = {}
    for name in ("train", "test"):
        text = (study.DATA / f"wikiann_en/{name}.tsv").read_text()
        out[name] = study.WORK / NAME / f"{name}.conll"
        out[name].parent.mkdir(parents=True, exist_ok=True)
        lines = (line.removeprefix("en:") for line in text.splitlines())
        out[name].write_text("\n".join(lines) + "\n")
    return {name: path.relative_to(study.ROOT) for name, path in out.items()}


def ours(seed: int, steps: int = STEPS) -> dict:
    """Trains and scores configs/finetune/tag.py."""
    keys = {
        "init_from": study.minilm(), "data.train": files()["train"],
        "data.validation": files()["test"], "data.tokens_column": 0, "data.tags_column": 1,
        "data.batch_size": BATCH, "model.max_length": LENGTH, "train.steps": steps,
        "optimizer.warmup_steps": steps // 10, "optimizer.learning_rate": RATE, "eval.every": steps,
        "seed": seed,
    }  # fmt: skip
    found = study.train(NAME, f"ours-{seed}-{steps}", "configs/finetune/tag.py", keys)
    return found | {"f1": found["eval_f1"]}


def trainer(seed: int) -> dict:
    """The same by transformers."""
    return study.python(
        "experiments/finetune/reference.py", "--task=tag", f"--model={study.minilm()}",
        f"--train={files()['train']}", f"--validation={files()['test']}", f"--steps={STEPS}",
        f"--warmup={STEPS // 10}", f"--rate={RATE}", f"--batch={BATCH}", f"--length={LENGTH}",
        f"--seed={seed}",
    )  # fmt: skip


def main() -> None:
    """Runs both sides in turn for each seed."""
    for seed in SEEDS:
        for side in (ours, trainer):
            study.recorded(NAME, f"{side.__name__}-{seed}", partial(side, seed))
    study.recorded(NAME, "long-0", partial(ours, 0, LONG))


def report(runs: dict[str, dict]) -> study.Report:
    """F1 and time of both sides, and of a longer run of ours."""
    targets, text = study.compared(runs, SIDES, "f1", 0.75, "entity F1")
    text += "\n\n" + study.steps(runs, "ours-0", "trainer-0")
    if "long-0" in runs:
        run = runs["long-0"]
        reached = f"{100 * run['f1']:.1f} % after {run['step']:,} steps, one seed"
        minutes = run["cpu_seconds"] / 60
        targets[:2] = [
            study.Target("entity F1 >= 75 %", reached, run["f1"] >= 0.75),
            study.Target("less than 20 CPU minutes", f"{minutes:.1f}", minutes < 20),
        ]
        text += f" A longer run of llm_jax reaches {reached}, in {minutes:.1f} CPU minutes."
    return study.Report(targets, f"""{text}

The recipe learns the task. The costs compare both on two cores of a shared machine; on one
core, with SST-2, PyTorch is faster. No learning rate was tuned, and there are too few seeds
to estimate noise.""")


if __name__ == "__main__":
    main()
