"""XQuAD and CMRC 2018: extractive question answering

configs/finetune/answer.py, from JSON to exact match and F1. Contexts are longer than a row, so they
are read in windows of 256 tokens with a stride of 128.

- XQuAD: 1,190 English questions (Artetxe 2020), starting from MiniLM. Every sixth article is held
  out, with all of its questions.
- CMRC 2018 (Cui 2019), Chinese, starting from MiniLM, whose tokenizer does not know most Chinese
  characters. The run named `nothing` starts from random weights with its own tokenizer. Training
  uses the dev set without the articles of the trial set. A fourth of the trial articles are held
  out (all of them for `nothing`).

The table compares with the same model before training, and with a baseline: the clause of the
text that shares the most words (in Chinese, characters) with the question.

`scores` compares our metrics with the official scripts, which are not part of this project
(SQuAD's evaluate-v2.0.py; baseline/cmrc2018_evaluate.py of github.com/ymcui/cmrc2018), on
correct, almost correct, random and awkward predictions. The sentence splitter of the latter
script needs NLTK data; here NLTK treats each stretch between Chinese characters as one sentence.

    python experiments/finetune/answers.py [DIRECTORY_WITH_BOTH_SCRIPTS]
"""

import importlib.util
import json
import random
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import study

from llm_jax.objectives import scores
from llm_jax.record import table

NAME = Path(__file__).stem
SETS = {"xquad": "XQuAD, English, from MiniLM", "cmrc": "CMRC 2018, Chinese, from MiniLM"}
STEPS = {"xquad": 240, "cmrc": 240}
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
AWKWARD = ("", "the", "A.", "don't U.S. 3.5% $5 ...", "……", "。MP", "30km度", "the Oslo, an")


def articles(file: str) -> list[dict]:
    """Returns the articles of a JSON file of SQuAD's form."""
    return json.loads((study.DATA / file).read_text())["data"]


def sets(name: str) -> dict[str, list[dict]]:
    """Returns the articles to train on, and those held out."""
    if name == "xquad":
        every = articles("xquad/xquad.en.json")
        held_out = every[::6]
        return {"train": [x for x in every if x not in held_out], "held_out": held_out}
    held_out = articles("cmrc2018/trial.json")
    known = {article["title"] for article in held_out}
    every = articles("cmrc2018/dev.json")
    return {"train": [x for x in every if x["title"] not in known], "held_out": held_out}


def answered(name: str) -> dict[str, list[dict]]:
    """Returns `sets`, with a fourth of the held-out articles for CMRC, which has many windows."""
    both = sets(name)
    return both | {"held_out": both["held_out"][:: 4 if name == "cmrc" else 1]}


def questions(some: list[dict]) -> list[tuple[str, dict]]:
    """Returns (context, question) of articles."""
    return [(p["context"], q) for article in some for p in article["paragraphs"] for q in p["qas"]]


def ours(name: str, steps: int) -> dict:
    """Trains and evaluates on held-out articles; steps=0 evaluates the initial model."""
    rate = 1e-4 if name == "xquad" else 2e-4
    keys = {"model.max_length": 256, "data.batch_size": 8, "init_from": study.minilm()}
    for split, some in answered(name).items():
        file = study.WORK / NAME / f"{name}-{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"version": "1.1", "data": some}))
        keys[f"data.{'train' if split == 'train' else 'validation'}"] = file.relative_to(study.ROOT)
    keys |= {
        "optimizer.learning_rate": rate if steps else 0.0, "train.steps": max(steps, 1),
        "optimizer.warmup_steps": steps // 10, "eval.every": max(steps, 1),
    }  # fmt: skip
    label = name if steps else f"{name}-untrained"
    counts = {split: len(questions(some)) for split, some in answered(name).items()}
    return study.train(NAME, label, "configs/finetune/answer.py", keys) | {"questions": counts}


def matched(name: str) -> dict:
    """Scores the clause of each text that has the most words of the question."""
    asked, guess = questions(answered(name)["held_out"]), []
    for context, question in asked:
        words = {*WORD.findall(question["question"].lower())}
        clauses = [x.strip() for x in re.split("[,.;:!?，。；：！？]", context) if x.strip()]
        guess.append(max(clauses, key=lambda x: len(words & {*WORD.findall(x.lower())})))
    gold = [[answer["text"] for answer in question["answers"]] for _, question in asked]
    return scores.answers(gold, guess)


def guesses(name: str) -> dict[str, dict[str, str]]:
    """Returns constructed predictions for held-out questions, by type and question id."""
    rng, out = random.Random(0), {"right": {}, "near": {}, "random": {}, "awkward": {}}
    for context, question in questions(sets(name)["held_out"]):
        right, at = question["answers"][0]["text"], rng.randrange(len(context))
        near = right[rng.randrange(2) : len(right) - rng.randrange(2)] + context[at : at + 2]
        out["right"][question["id"]] = right.upper()
        out["near"][question["id"]] = near
        out["random"][question["id"]] = context[at : at + rng.randrange(60)]
        out["awkward"][question["id"]] = rng.choice(AWKWARD) + rng.choice(("", right))
    return out


def script(folder: str, file: str) -> ModuleType:
    """Imports a script from a folder."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, Path(folder) / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official(folder: str, name: str, guess: dict[str, str]) -> dict[str, float]:
    """Returns an official script's scores of answers, in per cent."""
    data = sets(name)["held_out"]
    if name == "xquad":
        exact, f1 = script(folder, "evaluate-v2.0.py").get_raw_scores(data, guess)
        mean = lambda values: 100 * sum(values.values()) / len(values)
        return {"exact_match": mean(exact), "f1": mean(f1)}
    theirs = script(folder, "cmrc2018_evaluate.py")
    theirs.nltk.word_tokenize = partial(theirs.nltk.tokenize.word_tokenize, preserve_line=True)
    f1, exact, _, skipped = theirs.evaluate({"data": data}, guess)
    assert not skipped
    return {"exact_match": exact, "f1": f1}


def compared(folder: str) -> dict:
    """Scores each type of predictions with our code and the official script."""
    out = {}
    for name in SETS:
        asked = [question for _, question in questions(sets(name)["held_out"])]
        gold = [[answer["text"] for answer in question["answers"]] for question in asked]
        for kind, guess in guesses(name).items():
            found = scores.answers(gold, [guess[question["id"]] for question in asked])
            found = {key: 100 * value for key, value in found.items()}
            out[f"{name}-{kind}"] = {"ours": found, "official": official(folder, name, guess)}
    return {"scores": out}


def main() -> None:
    """Compares scores where the scripts are given; trains on both sets."""
    if len(sys.argv) > 1:
        study.recorded(NAME, "scores", partial(compared, sys.argv[1]))
    for name, steps in STEPS.items():
        study.recorded(NAME, f"{name}-matched", partial(matched, name))
        study.recorded(NAME, f"{name}-untrained", partial(ours, name, 0))
        study.recorded(NAME, name, partial(ours, name, steps))


def report(runs: dict[str, dict]) -> study.Report:
    """Reports scores before and after training, and the comparison with official scripts."""
    targets, rows = [], []
    for name, what in {**SETS, "nothing": "CMRC 2018, Chinese, from scratch"}.items():
        if name not in runs:
            targets.append(study.Target(f"{what}: F1 increases", "not run", False))
            continue
        before, after, other = runs[f"{name}-untrained"], runs[name], runs[f"{name}-matched"]
        sides = {key: (before[f"eval_{key}"], after[f"eval_{key}"], other[key])
                 for key in ("exact_match", "f1")}  # fmt: skip
        pair = [f"{100 * value:.1f}" for side in sides.values() for value in side]
        counts = after["questions"]
        rows.append([what, f"{counts['train']:,}", f"{counts['held_out']:,}", *pair,
                     f"{after['cpu_seconds'] / 60:.1f}"])  # fmt: skip
        if name in SETS:
            targets.append(study.Target(f"{what}: F1 increases", f"{pair[3]} to {pair[4]}",
                                        after["eval_f1"] > before["eval_f1"]))  # fmt: skip
    header = ["", "training questions", "held out", "exact match before", "after", "baseline",
              "F1 before", "after", "baseline", "CPU minutes"]  # fmt: skip
    text = f"""{table(header, rows)}

From scratch (run by an earlier version of this script), the model did not learn to answer.
Most windows of a long text contain no answer, and it predicts "no answer" for nearly all of
them, including those that contain
one.{" CMRC 2018 from MiniLM has not been run." * ("cmrc" not in runs)}"""
    if "scores" in runs:
        found = runs["scores"]["scores"]
        sides = lambda both: [f"{both[side][key]:.4f}" for key in ("exact_match", "f1")
                              for side in ("ours", "official")]  # fmt: skip
        apart = max(abs(both["ours"][key] - both["official"][key]) for both in found.values()
                    for key in ("exact_match", "f1"))  # fmt: skip
        targets.append(study.Target("metrics equal the official scripts", "largest difference of "
                                    f"{len(found)} sets of predictions: {apart:.1g} points",
                                    apart < 1e-9))  # fmt: skip
        header = ["predictions", "exact match, llm_jax", "official", "F1, llm_jax", "official"]
        text += "\n\n" + table(header, [[key, *sides(both)] for key, both in found.items()])
    commands = "\n".join(f"    {runs[name]['command']}" for name in (*SETS, "nothing")
                         if name in runs)
    return study.Report(targets, f"{text}\n\n{commands}")


if __name__ == "__main__":
    main()
