"""SciTLDR: one-sentence summaries of abstracts, from scratch

configs/finetune/summarise.py on 1,992 abstracts of papers (Cachola 2020), tested on 618. ROUGE is
the F1 of rouge-score, against the first summary of each paper. The baseline lead-1 is the first
sentence of the abstract.

    python experiments/finetune/scitldr.py
"""

import json
from pathlib import Path

import study

from llm_jax.objectives import scores
from llm_jax.record import table

NAME = Path(__file__).stem
ROUGE = ("rouge1", "rouge2", "rougeL")


def rows(split: str) -> list[dict]:
    """Returns abstracts with the first of their summaries."""
    lines = (study.DATA / f"scitldr/{split}.jsonl").read_text().splitlines()
    return [{"source": row["source"], "target": row["target"][0]} for row in map(json.loads, lines)]


def lead() -> dict:
    """Scores the first sentences."""
    test = rows("test")
    gold, guess = [row["target"] for row in test], [row["source"][0] for row in test]
    return scores.texts(("rouge",), gold, guess) | {"examples": len(test)}


def train() -> dict:
    """Trains on all abstracts, and summarises the test set."""
    files = {}
    for split in ("train", "dev", "test"):
        path = study.WORK / NAME / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(split)))
        files[split] = path.relative_to(study.ROOT)
    keys = {
        "data.train": files["train"], "data.validation": files["dev"], "data.test": files["test"],
        "data.batch_size": 8, "data.target_length": 64, "model.max_length": 384,
        "train.steps": 500, "optimizer.warmup_steps": 100, "eval.every": 500, "eval.max_batches": 2,
        "eval.max_new_tokens": 48,
    }  # fmt: skip
    found = study.train(NAME, "run", "configs/finetune/summarise.py", keys)
    run = (study.WORK / NAME / "run").relative_to(study.ROOT)
    tested = study.launch("eval", f"--workdir={run}", "--split=test", "--max_batches=0")
    output = study.WORK / NAME / "shown.jsonl"
    output.unlink(missing_ok=True)
    shown = study.WORK / NAME / "three.jsonl"
    shown.write_text("".join(json.dumps(row) + "\n" for row in rows("test")[:3]))
    study.launch("predict", f"--workdir={run}", f"--input={shown}", f"--output={output}")
    written = [json.loads(line) for line in output.read_text().splitlines()]
    examples = [{key: row[key] for key in ("target", "text")} for row in written]
    return {"command": found["command"], "steps": found["step"], "shown": examples} | {
        key: tested[key] for key in (*ROUGE, "loss", "examples")
    }


def main() -> None:
    """Scores both."""
    study.recorded(NAME, "lead", lead)
    study.recorded(NAME, "run", train)


def report(runs: dict[str, dict]) -> study.Report:
    """ROUGE of both."""
    names = {"run": "llm_jax from scratch, greedy", "lead": "lead-1"}
    scored = [
        [names[name], *(f"{100 * runs[name][key]:.1f}" for key in ROUGE),
         f"{runs[name]['cpu_seconds'] / 60:.1f}"] for name in names if name in runs
    ]  # fmt: skip
    text = table(["summaries of the test set", "ROUGE-1", "ROUGE-2", "ROUGE-L", "CPU minutes"],
                 scored)  # fmt: skip
    if "run" in runs:
        shown = [[one["target"], one["text"]] for one in runs["run"]["shown"]]
        text += "\n\n" + table(["reference", "model"], shown)
        text += "\n\nTrained from scratch on so few texts, the model has learned the style of such "
        text += f"summaries, not the content of a paper.\n\n    {runs['run']['command']}"
    score = {name: f"{100 * run['rouge1']:.1f}" for name, run in runs.items()}
    reached = f"ROUGE-1 {score.get('run', 'not run')}, lead-1 {score['lead']}"
    target = study.Target("ROUGE measured, with lead-1 for comparison", reached, "run" in runs)
    return study.Report([target], text)


if __name__ == "__main__":
    main()
