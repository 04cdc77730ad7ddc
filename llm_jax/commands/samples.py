"""Prompts and what a model made of them, as train and generate show them."""

import sys
from pathlib import Path

from llm_jax.files import write_text


def write(workdir: str | Path, texts: list[dict], kind: str) -> None:
    """Writes samples.txt; kind: the config's model.kind."""
    first = ">>> {}\n{}" if kind == "decoder" else ">>> {1}"  # below which the others have theirs
    body = "\n\n".join(first.format(t["prompt"], _laid_out(t, kind)) for t in texts)
    write_text(Path(workdir) / "samples.txt", body + "\n")


def show(texts: list[dict], kind: str) -> None:
    """Prints samples, prompts in bold where stdout is a terminal."""
    for text in texts:
        print(_laid_out(text, kind, "\033[1m{}\033[0m" if sys.stdout.isatty() else "{}") + "\n")


def _laid_out(text: dict, kind: str, prompt: str = "{}") -> str:
    """A continuation follows its prompt; an answer, or a text filled in, stands below it."""
    asked = text["prompt"] if isinstance(text["prompt"], str) else text["prompt"][-1]["content"]
    lines = [prompt.format(asked) + ("" if kind == "decoder" else "\n")]
    lines[0] += text["completion"]
    for gap in text.get("candidates", ()):
        lines += ["  " + ", ".join(f"{c['text']!r} {c['probability']:.3f}" for c in gap)]
    return "\n".join(lines)


def usual_prompt(kind: str) -> str:
    """Returns a prompt to try, of a masked model or any other."""
    return "The [MASK] is" if kind == "encoder" else "The "
