"""ChnSentiCorp: sentiment of Chinese hotel reviews, from scratch

Does a small Transformer with random initial weights, trained only on these reviews, learn more
than logistic regression on character counts (scikit-learn; for comparison also with counts of
character pairs)? The dataset has no split: a fifth, after a fixed shuffle, is the test set. It
is evaluated once, after the last step. F1 is the mean of both labels.

    python experiments/finetune/chnsenticorp.py
"""

import csv
import random
from functools import partial
from pathlib import Path

import study
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV

from llm_jax import record

NAME = Path(__file__).stem
SEEDS = (0, 1, 2)
COUNTS = {"counts-1": 1, "counts-2": 2}
KEYS = {
    "tokenizer.name": "bpe", "tokenizer.vocab_size": 8000, "model.max_length": 128,
    "model.dropout": 0.2, "optimizer.learning_rate": 1e-3, "train.steps": 500, "eval.every": 500,
}  # fmt: skip


def files() -> dict[str, Path]:
    """Writes train.csv and test.csv, a fifth of the reviews; returns their paths."""
    with (study.DATA / "chnsenticorp/hotel_reviews.csv").open(encoding="utf-8-sig") as file:
        rows = [row for row in csv.DictReader(file) if row["review"].strip()]
    random.Random(0).shuffle(rows)
    held_out = len(rows) // 5
    out = {}
    for name, part in (("train", rows[held_out:]), ("test", rows[:held_out])):
        out[name] = study.WORK / NAME / f"{name}.csv"
        out[name].parent.mkdir(parents=True, exist_ok=True)
        with out[name].open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ("label", "review"))
            writer.writeheader()
            writer.writerows(part)
    return {name: path.relative_to(study.ROOT) for name, path in out.items()}


def counted(size: int) -> dict:
    """Scores logistic regression on counts of runs of up to `size` characters.

    The strength of its penalty is chosen by cross-validation in the training set.
    """
    sets = {}
    for name, path in files().items():
        with (study.ROOT / path).open(encoding="utf-8") as file:
            sets[name] = list(csv.DictReader(file))
    texts, labels = ([[row[column] for row in sets[name]] for name in ("train", "test")]
                     for column in ("review", "label"))  # fmt: skip
    counts = CountVectorizer(analyzer="char", ngram_range=(1, size))
    found = GridSearchCV(LogisticRegression(max_iter=1000), {"C": [0.03, 0.1, 0.3]}, cv=3)
    found.fit(counts.fit_transform(texts[0]), labels[0])
    guess = found.predict(counts.transform(texts[1]))
    return {
        "accuracy": accuracy_score(labels[1], guess),
        "f1": f1_score(labels[1], guess, average="macro"), "C": found.best_params_["C"],
        "train": len(labels[0]), "test": len(labels[1]), "features": len(counts.vocabulary_),
    }  # fmt: skip


def ours(seed: int) -> dict:
    """Trains and scores configs/finetune/classify.py without init_from."""
    paths = files()
    keys = {
        "data.train": paths["train"], "data.validation": paths["test"],
        "data.text_column": "review", "data.label_column": "label", "seed": seed, **KEYS,
    }  # fmt: skip
    return study.train(NAME, f"ours-{seed}", "configs/finetune/classify.py", keys)


def main() -> None:
    """Counts, then trains with each seed."""
    for label, size in COUNTS.items():
        study.recorded(NAME, label, partial(counted, size))
    for seed in SEEDS:
        study.recorded(NAME, f"ours-{seed}", partial(ours, seed))


def report(runs: dict[str, dict]) -> study.Report:
    """Reports accuracy and F1, compared with character counts."""
    found = [run for label, run in runs.items() if label.startswith("ours-")]
    means, rows = {}, []
    for label, size in COUNTS.items():
        if label not in runs:
            continue
        run = runs[label]
        about = "characters" if size == 1 else f"n-grams of 1 to {size} characters"
        rows.append([f"logistic regression, {run['features']:,} {about}",
                     study.percent([run["accuracy"]]), study.percent([run["f1"]]),
                     f"{run['cpu_seconds']:.0f}"])  # fmt: skip
    for score in ("accuracy", "f1") if found else ():
        means[score] = sum(run[f"eval_{score}"] for run in found) / len(found)
    each = lambda score: study.percent([run[f"eval_{score}"] for run in found])
    if found:
        rows.append(["llm_jax (each seed)", *map(each, means),
                     ", ".join(f"{run['cpu_seconds']:.0f}" for run in found)])  # fmt: skip
    targets = [
        study.Target(f"{name} above character counts "
                     f"({100 * runs['counts-1'][score]:.1f})",
                     f"{100 * means[score]:.1f}" if found else "not run",
                     bool(found) and means[score] > runs["counts-1"][score])
        for score, name in (("accuracy", "accuracy"), ("f1", "F1"))
    ]  # fmt: skip
    sizes = f"{runs['counts-1']['train']:,} training reviews, {runs['counts-1']['test']:,}"
    text = record.table(["", "accuracy, %", "F1, %", "CPU seconds"], rows)
    errors = study.sampling_error(runs["counts-1"]["accuracy"], runs["counts-1"]["test"])
    return study.Report(targets, f"""{text}

{sizes} test reviews. The recipe learns from few texts without a pretrained model, and more
than character counts do: its tokens come from a byte-level BPE and often cover several
characters. This does not show that attention helps: counts of character pairs are about as
good, or better. An accuracy on {errors}""")


if __name__ == "__main__":
    main()
