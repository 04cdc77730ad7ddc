"""Formats samples, prompts with completions, for train and generate."""

import sys
from pathlib import Path

from llm_jax.files import write_text


def write(workdir: str | Path, texts: list[dict], kind: str) -> None:
    """Writes samples.txt; kind: the config's model.kind."""
    body = "\n\n".join(_laid_out(text, kind) for text in texts)
    write_text(Path(workdir) / "samples.txt", body + "\n")


def show(texts: list[dict], kind: str) -> None:
    """Prints samples in the format of samples.txt, with bold prompts on a terminal."""
    for text in texts:
        print(_laid_out(text, kind, "\033[1m{}\033[0m" if sys.stdout.isatty() else "{}") + "\n")


def _laid_out(text: dict, kind: str, prompt: str = "{}") -> str:
    """Returns >>> and the prompt, then the continued text, the answer, or candidates.

    The mark separates samples, since texts may have empty lines.
    """
    asked, continued = text["prompt"], kind == "decoder"
    if not isinstance(asked, str):  # messages
        asked, continued = asked[-1]["content"], False
    first = prompt.format(asked)
    lines = [f">>> {first}", (first if continued else "") + text["completion"]]
    for gap in text.get("candidates", ()):
        lines += ["  " + ", ".join(f"{c['text']!r} {c['probability']:.3f}" for c in gap)]
    return "\n".join(lines)


def usual_prompt(kind: str) -> str:
    """Returns an example prompt for a masked model or any other."""
    return "The [MASK] is" if kind == "encoder" else "The "
