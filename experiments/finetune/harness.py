"""lm-evaluation-harness: llm_jax compared with the hf model on the export

A small GPT of the quickstart's size, trained on the validation text of WikiText-2, is exported.
llm_jax/harness.py reads the run folder, and the harness's own `hf` model reads the export.
Three tasks on lines of the test text: choosing one of four continuations (log-likelihoods), 16
greedy tokens, and the perplexity of whole lines. The answers to each request are compared: text
exactly, log-likelihoods to 1e-4.

    python experiments/finetune/harness.py
"""

import json
import random
from pathlib import Path

import study

from llm_jax.record import table

NAME = Path(__file__).stem
ROWS, TOKENS = 40, 16
KEYS = {
    "data.train": "", "model.max_length": 128, "model.num_layers": 2, "model.embed_dim": 128,
    "model.num_heads": 4, "train.steps": 200, "eval.every": 200, "sample.prompts": "()",
}  # fmt: skip
COMMON = """dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
task: {task}
"""
TASKS = {
    "continuation": """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "writing": f"""output_type: generate_until
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: {TOKENS}}}
metric_list: [{{metric: exact_match}}]
""",
    "perplexity": """output_type: loglikelihood_rolling
doc_to_target: "{{question}}{{choices[0]}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
}


def tasks(folder: Path) -> str:
    """Writes the tasks and their rows; returns the folder's path."""
    lines = (study.DATA / "wikitext2/test.txt").read_text().splitlines()
    halves = []
    for line in lines:
        words = line.split()
        if 30 <= len(words) and not line.strip().startswith("="):
            halves.append((" ".join(words[:20]), " " + " ".join(words[20:30])))
    rng = random.Random(0)
    halves = rng.sample(halves, ROWS)
    others = lambda: [other for _, other in rng.sample(halves, 3)]
    rows = [{"question": first, "choices": [rest, *others()]} for first, rest in halves]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task, text in TASKS.items():
        (folder / f"{task}.yaml").write_text(COMMON.format(file=file, task=task) + text)
    return str(folder)


def answers(model, folder: str, **args) -> tuple[dict[str, dict[str, float]], dict[str, list]]:
    """Returns the scores of each task, and the answer to each request."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model, tasks=[*TASKS], num_fewshot=0, bootstrap_iters=0,
        task_manager=TaskManager(include_path=folder, include_defaults=False), **args,
    )  # fmt: skip
    scores = {
        task: {name.partition(",")[0]: value for name, value in found["results"][task].items()
               if isinstance(value, float)} for task in TASKS
    }  # fmt: skip
    parts = lambda one: [*one] if isinstance(one, list | tuple) else [one]
    said = {task: [parts(one) for sample in found["samples"][task]
                   for one in sample["filtered_resps"]] for task in TASKS}  # fmt: skip
    return scores, said


def compared() -> dict:
    """Trains, exports, and asks both."""
    keys = KEYS | {"data.train": study.DATA / "wikitext2/valid.txt"}
    trained = study.train(NAME, "gpt", "configs/quickstart.py", keys)
    run = study.WORK / NAME / "gpt"
    export = study.launch("export", f"--workdir={run.relative_to(study.ROOT)}",
                          f"--to={study.workdir(NAME, 'hf')}")  # fmt: skip
    folder = tasks(study.WORK / NAME / "tasks")

    from llm_jax.harness import Harness

    ours = answers(Harness(run), folder)
    theirs = answers("hf", folder, device="cpu", batch_size=8,
                     model_args={"pretrained": str(study.WORK / NAME / "hf")})  # fmt: skip
    apart, unequal, requests = {}, {}, {}
    for task in TASKS:
        pairs = [pair for one in zip(ours[1][task], theirs[1][task], strict=True)
                 for pair in zip(*one, strict=True)]  # fmt: skip
        requests[task] = len(ours[1][task])
        number = lambda x: isinstance(x, float)
        apart[task] = max((abs(a - b) for a, b in pairs if number(b)), default=0.0)
        unequal[task] = sum(a != b for a, b in pairs if not number(b))
    return {
        "command": trained["command"], "export": export["command"], "ours": ours[0],
        "hf": theirs[0], "apart": apart, "unequal": unequal, "requests": requests,
    }  # fmt: skip


def main() -> None:
    """Compares."""
    study.recorded(NAME, "compared", compared)


def report(runs: dict[str, dict]) -> study.Report:
    """Scores of both, and how far single answers are apart."""
    run = runs["compared"]
    rows = [
        [task, metric, f"{run['ours'][task][metric]:.6g}", f"{value:.6g}"]
        for task in TASKS for metric, value in run["hf"][task].items()
    ]  # fmt: skip
    apart, unequal = max(run["apart"].values()), sum(run["unequal"].values())
    count = sum(run["requests"].values())
    targets = [
        study.Target("greedy text and greedy flags equal hf", f"{unequal} of {count} answers "
                     "differ", not unequal),
        study.Target("log-likelihoods within 1e-4 of hf", f"largest difference {apart:.1g}",
                     apart <= 1e-4),
    ]  # fmt: skip
    text = table(["task", "metric", "llm_jax", "hf"], rows)
    return study.Report(targets, f"{text}\n\n    {run['command']}\n    {run['export']}")


if __name__ == "__main__":
    main()
