"""Chatterbot: a small chat model, in English and Chinese

configs/finetune/chat.py from scratch on the conversations of chatterbot-corpus, converted to
`messages`. Every tenth opening question is held out with all of its conversations. Several lines
under one question are turns of a conversation in two of the files, and alternative answers in the
others. Metrics cover replies, not questions.

With so little data, the model memorises its training answers: the loss of the last batch is far
below the loss of held-out replies, and the reply to the last question shown, which is in none of
the conversations, is unrelated to it.

    python experiments/finetune/chatterbot.py
"""

import json
import math
from functools import partial
from pathlib import Path

import study
import yaml

from llm_jax.record import table

NAME = Path(__file__).stem
STEPS = {"english": 500, "chinese": 300}
ASKED = {  # conversations, of which each question is given with all that was said before
    "english": [["Hello", "How are you doing?"], ["What is a computer?", "Can you walk"],
                ["Do you like the weather in Oslo?"]],
    "chinese": [["你好", "你是谁?"], ["你害怕吗"], ["奥斯陆的天气好吗?"]],
}  # fmt: skip
TURNS = ("conversations", "greetings")  # files of conversations that have several turns


def conversations(language: str) -> list[list[str]]:
    """Returns the turns of each conversation, an even number, without those said twice."""
    found = {}
    for file in sorted((study.DATA / "chatterbot" / language).glob("*.yml")):
        for said in yaml.safe_load(file.read_text())["conversations"]:
            first, *rest = [str(text).strip() for text in said if text is not None]
            if file.stem in TURNS:
                some = [[first, *rest][: (len(rest) + 1) // 2 * 2]]
            else:
                some = [[first, answer] for answer in rest]
            found |= {tuple(turns): turns for turns in some if turns and all(turns)}
    return list(found.values())


def files(language: str) -> dict[str, Path]:
    """Writes both splits as JSONL of `messages`; returns their paths."""
    some = conversations(language)
    held_out = set(sorted({turns[0] for turns in some})[::10])
    out = {}
    for split in ("train", "validation"):
        roles = ("user", "assistant")
        rows = [
            {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}
            for turns in some if (turns[0] in held_out) == (split == "validation")
        ]  # fmt: skip
        path = out[split] = study.WORK / NAME / f"{language}-{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines))
    return {split: path.relative_to(study.ROOT) for split, path in out.items()}


def train(language: str) -> dict:
    """Trains on a language, and has a conversation with the model."""
    split, steps = files(language), STEPS[language]
    keys = {
        "data.train": split["train"], "data.validation": split["validation"],
        "data.batch_size": 8, "model.num_layers": 2, "model.embed_dim": 192,
        "train.steps": steps, "eval.every": steps, "eval.max_batches": 0, "eval.max_new_tokens": 32,
    }  # fmt: skip
    found = study.train(NAME, language, "configs/finetune/chat.py", keys)
    run = (study.WORK / NAME / language).relative_to(study.ROOT)
    options = (f"--workdir={run}", "--temperature=0", "--max_new_tokens=48")
    chats = [study.launch("chat", *options, said="\n".join(some)) for some in ASKED[language]]
    counts = {name: len((study.ROOT / path).read_text().splitlines())
              for name, path in split.items()}  # fmt: skip
    return found | {"conversations": counts, "chats": chats}


def main() -> None:
    """Trains on both languages."""
    for language in STEPS:
        study.recorded(NAME, language, partial(train, language))


def report(runs: dict[str, dict]) -> study.Report:
    """Scores, and what was said."""
    rows, said = [], []
    for language, run in runs.items():
        rows.append([language, run["conversations"]["train"], run["conversations"]["validation"],
                     f"{run['loss']:.2f}", f"{run['eval_loss']:.2f}",
                     f"{math.exp(run['eval_loss']):,.0f}", f"{run['eval_bits_per_byte']:.1f}",
                     f"{run['eval_distinct1']:.2f}",
                     f"{run['eval_distinct2']:.2f}", f"{run['cpu_seconds'] / 60:.1f}"])  # fmt: skip
        turns = [("> " if message["role"] == "user" else "") + message["content"]
                 for chat in run["chats"] for message in chat["messages"]]  # fmt: skip
        command = run["chats"][0]["command"].removesuffix(" --json")
        said.append("```\n$ " + command + "\n" + "\n".join(turns) + "\n```")
    header = ["", "conversations", "held out", "nats per token, last batch",
              "nats per token, held-out replies", "perplexity", "bits per byte", "distinct-1",
              "distinct-2", "CPU minutes"]  # fmt: skip
    commands = "\n".join(f"    {run['command']}" for run in runs.values())
    chats = "\n\n".join(["Greedy replies, each conversation in a new session:", *said])
    return study.Report([], f"{table(header, rows)}\n\n{commands}\n\n{chats}")


if __name__ == "__main__":
    main()
