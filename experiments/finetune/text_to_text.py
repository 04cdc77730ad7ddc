"""Text to text: three tasks in one model, selected by a prefix

One encoder-decoder (configs/finetune/translate.py) is trained from scratch on three sources in
the format of T5 (Raffel 2020), each with its own prefix: sentiment of reviews (SST-2),
English-German translation of captions (Multi30k), and the type of a named entity (WikiANN). Each
source counts for at most 10,000 documents in the mixture. Each task is evaluated on the first 300
examples of its test set with greedy decoding, and compared with the most frequent answer in
training.

    python experiments/finetune/text_to_text.py
"""

import gzip
import json
from collections import Counter
from pathlib import Path

import study

from llm_jax.objectives import scores
from llm_jax.record import table

NAME = Path(__file__).stem
STEPS, LIMIT, TESTED = 1000, 10_000, 300
PREFIXES = {"review": "sst2 sentence: ", "translation": "translate English to German: ",
            "name": "kind of name: "}  # fmt: skip
KINDS = {"LOC": "place", "ORG": "organisation", "PER": "person"}


def review(split: str) -> list[tuple[str, str]]:
    """SST-2: a sentence, and `positive` or `negative`."""
    file = study.DATA / f"sst2/{split}.tsv"
    rows = (line.split("\t") for line in file.read_text().splitlines())
    return [(text, ("negative", "positive")[int(label)]) for text, label in rows]


def translation(split: str) -> list[tuple[str, str]]:
    """Multi30k: English and German."""
    name = {"train": "train", "test": "test_2016_flickr"}[split]
    read = lambda language: gzip.open(
        study.DATA / f"multi30k/{name}.{language}.gz", "rt", encoding="utf-8"
    ).read().splitlines()
    return list(zip(read("en"), read("de"), strict=True))


def name(split: str) -> list[tuple[str, str]]:
    """WikiANN: each name of a split once, and its kind."""
    sentences = (study.DATA / f"wikiann_en/{split}.tsv").read_text().split("\n\n")
    found = {}
    for sentence in sentences:
        lines = [line.split("\t") for line in sentence.splitlines() if "\t" in line]
        words = [word.removeprefix("en:") for word, *_ in lines]
        for start, end, kind in scores.entities([tag for _, tag in lines]):
            found.setdefault(" ".join(words[start:end]), KINDS[kind])
    return list(found.items())


TASKS = {"review": review, "translation": translation, "name": name}


def write(task: str, split: str) -> Path:
    """Writes a task's JSONL, of names in the test set those that training has not; its path."""
    rows = TASKS[task](split)
    if task == "name" and split == "test":
        known = dict(name("train"))
        rows = [row for row in rows if row[0] not in known]
    path = study.WORK / NAME / f"{task}-{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows[:TESTED] if split == "test" else rows
    texts = ({"source": PREFIXES[task] + source, "target": target} for source, target in rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in texts))
    return path.relative_to(study.ROOT)


def train() -> dict:
    """Trains on the mixture, and scores each task."""
    keys = {
        "data.train": ",".join(str(write(task, "train")) for task in TASKS),
        "data.mixture_limit": LIMIT, "data.validation_fraction": 0.01, "data.batch_size": 32,
        "model.max_length": 64, "train.steps": STEPS, "optimizer.warmup_steps": STEPS // 5,
        "eval.every": STEPS, "eval.scores": "()",
    }  # fmt: skip
    found = study.train(NAME, "run", "configs/finetune/translate.py", keys)
    run = (study.WORK / NAME / "run").relative_to(study.ROOT)
    scored = {}
    for task in TASKS:
        output = study.WORK / NAME / f"{task}-answers.jsonl"
        output.unlink(missing_ok=True)
        study.launch("predict", f"--workdir={run}", f"--input={write(task, 'test')}",
                     f"--output={output.relative_to(study.ROOT)}", "--batch_size=64")  # fmt: skip
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        gold = [row["target"] for row in rows]
        usual = Counter(target for _, target in TASKS[task]("train")).most_common(1)[0][0]
        measure = ("bleu",) if task == "translation" else ("exact_match",)
        of = lambda guess, gold=gold, measure=measure: scores.texts(measure, gold, guess)
        scored[task] = {"count": len(rows), "shown": rows[0], "score": measure[0],
                        "model": of([row["text"] for row in rows])[measure[0]],
                        "usual": of([usual] * len(rows))[measure[0]]}  # fmt: skip
    return {"command": found["command"], "steps": found["step"], "tasks": scored}


def main() -> None:
    """Trains and scores."""
    study.recorded(NAME, "run", train)


def report(runs: dict[str, dict]) -> study.Report:
    """Scores of each task."""
    run, rows = runs["run"], []
    for task, one in run["tasks"].items():
        shown = (lambda x: f"{x:.1f}") if one["score"] == "bleu" else (lambda x: f"{100 * x:.1f} %")
        rows.append([f"`{PREFIXES[task]}`", one["count"],
                     {"bleu": "sacreBLEU", "exact_match": "accuracy"}[one["score"]],
                     shown(one["model"]), shown(one["usual"]), one["shown"]["source"],
                     one["shown"]["text"]])  # fmt: skip
    better = all(one["model"] > one["usual"] for one in run["tasks"].values())
    targets = [study.Target("three tasks in one model", "all above the most frequent "
                            "answer" if better else "not all above the most frequent answer",
                            better)]  # fmt: skip
    header = ["prefix", "examples", "metric", "model", "most frequent answer",
              "first test example", "model output"]  # fmt: skip
    return study.Report(targets, f"""{table(header, rows)}

{run["steps"]:,} steps, {run["cpu_seconds"] / 60:.0f} CPU minutes including evaluation.

    {run["command"]}""")


if __name__ == "__main__":
    main()
