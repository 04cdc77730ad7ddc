"""transformers' Trainer on the task of an experiment; prints its scores and seconds as JSON.

python experiments/finetune/reference.py --task=classify --model=FOLDER --train=train.tsv \\
    --validation=dev.tsv --steps=432 --warmup=43 --rate=5e-5 --batch=32 --length=128 --seed=0

A line is a text, a tab and its label or, with --task=tag, a word, a tab and its tag, with a blank
line behind a sentence.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import transformers
from seqeval.metrics import f1_score
from torch.utils.data import Dataset


class Rows(Dataset):
    """Tokenised rows in memory."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        return self.rows[i]


def read(path: str, task: str) -> list[dict]:
    """Returns {"text", "label"} or {"tokens", "tags"} of each row."""
    pairs = lambda lines: [line.rsplit("\t", 1) for line in lines.strip().splitlines()]
    if task == "classify":
        return [dict(zip(("text", "label"), pair, strict=True))
                for pair in pairs(Path(path).read_text())]  # fmt: skip
    sentences = map(pairs, Path(path).read_text().strip().split("\n\n"))
    return [dict(zip(("tokens", "tags"), zip(*sentence, strict=True), strict=True))
            for sentence in sentences]  # fmt: skip


def tokenised(row: dict, tokenizer, ids: dict[str, int], length: int) -> dict:
    """A row as the model reads it; of a word its first token has the tag, all else is -100."""
    if "tokens" not in row:
        return {**tokenizer(row["text"], truncation=True, max_length=length),
                "labels": ids[row["label"]]}  # fmt: skip
    made = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=length)
    words = made.word_ids()
    first = [w is not None and (i == 0 or words[i - 1] != w) for i, w in enumerate(words)]
    tags = [ids[row["tags"][w]] if f else -100 for w, f in zip(words, first, strict=True)]
    return {**made, "labels": tags, "length": len(tags)}


def scores(task: str, names: list[str], logits: np.ndarray, gold: np.ndarray) -> dict:
    """Accuracy; of tags that of words, and seqeval's F1 of entities."""
    guess = logits.argmax(-1)
    if task == "classify":
        return {"accuracy": float((guess == gold).mean())}
    words = lambda x: [[names[i] for i in row[g >= 0]] for row, g in zip(x, gold, strict=True)]
    accuracy = float((guess == gold)[gold >= 0].mean())
    return {"accuracy": accuracy, "f1": float(f1_score(words(gold), words(guess)))}


def main() -> None:
    """Trains, and scores what was trained."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=("classify", "tag"), required=True)
    for name in ("model", "train", "validation"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("steps", "warmup", "batch", "length", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    args = parser.parse_args()
    transformers.set_seed(args.seed)
    sets = read(args.train, args.task), read(args.validation, args.task)
    found = {x for row in sets[0] for x in ([row["label"]] if "label" in row else row["tags"])}
    names = sorted(found, key=lambda name: (name != "O", name))
    ids = {name: i for i, name in enumerate(names)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    train, validation = (Rows([tokenised(row, tokenizer, ids, args.length) for row in rows])
                         for rows in sets)  # fmt: skip
    kind = "SequenceClassification" if args.task == "classify" else "TokenClassification"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        args.model, num_labels=len(names)
    )
    collate = "WithPadding" if args.task == "classify" else "ForTokenClassification"
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            folder, max_steps=args.steps, warmup_steps=args.warmup, learning_rate=args.rate,
            per_device_train_batch_size=args.batch, per_device_eval_batch_size=args.batch,
            weight_decay=0.01, train_sampling_strategy="group_by_length", seed=args.seed,
            save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=50, use_cpu=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, options, getattr(transformers, f"DataCollator{collate}")(tokenizer),
            train, validation,
            compute_metrics=lambda p: scores(args.task, names, p.predictions, p.label_ids),
        )  # fmt: skip
        cpu, began = time.process_time(), time.perf_counter()
        trainer.train()
        took = {"training_cpu_seconds": time.process_time() - cpu,
                "training_seconds": time.perf_counter() - began}  # fmt: skip
        found = trainer.evaluate()
    found = {name.removeprefix("eval_"): x for name, x in found.items()}
    print(json.dumps({name: found[name] for name in ("loss", "accuracy", "f1") if name in found}
                     | took))  # fmt: skip


if __name__ == "__main__":
    main()
