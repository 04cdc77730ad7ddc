"""`generate`: completes prompts."""

import argparse
from pathlib import Path

from llm_jax.commands import samples
from llm_jax.commands.verb import Verb, add_sampling, add_step, requested, tell
from llm_jax.config import ConfigError
from llm_jax.files import parse_json, read_text


def add(sub: argparse.ArgumentParser) -> None:
    add_step(sub)
    sub.add_argument("--prompt", action="append", default=[], help="repeatable")
    sub.add_argument("--prompts", type=Path, help="a file with one prompt per line, or .jsonl")
    sub.add_argument("--samples", type=int, help="per prompt; with --beams, the best ones")
    add_sampling(sub)
    sub.add_argument("--min_new_tokens", type=int)
    sub.add_argument("--beams", type=int, help="more than 1: beam search")
    sub.add_argument("--length_penalty", type=float, help="of beam search, default 0.6")
    sub.add_argument("--batch_size", type=int, default=64, help="prompts per batch")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    prompts = args.prompt + (_prompts(args.prompts) if args.prompts else []) or [""]
    from llm_jax import sharding
    from llm_jax.decode import complete
    from llm_jax.train.run import load_params

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    options = requested(args, setup.mesh) | {"objective": setup.config.objective}
    with sharding.activate(setup.mesh):
        texts = complete(setup.model, params, tokenizer, prompts, **options)
    samples.show(texts, setup.model.cfg.kind)
    result = {"step": step, "samples": texts}
    if args.draft:
        total = lambda name: sum(text[name] for text in texts)
        tokens = sum(len(text["tokens"]) for text in texts)
        result["acceptance_rate"] = rate = total("accepted") / total("proposed")
        result["tokens_per_round"] = speed = tokens / total("rounds")
        tell(f"draft: {rate:.0%} of its tokens accepted; {speed:.2f} tokens a round")
    return result


def _prompts(file: Path) -> list:
    """Reads prompts: lines of a file, or "prompt" or "messages" of each row of a .jsonl file."""
    lines = read_text(file).splitlines()
    if file.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"--prompts={file}, line {number}"
            row = parse_json(line, where, (dict, list, str))
            prompt = row.get("messages", row.get("prompt")) if isinstance(row, dict) else row
            if not isinstance(prompt, (str, list)):
                raise ConfigError(f'{where}: has no "prompt" or "messages", but {sorted(row)}')
            prompts.append(prompt)
    return prompts


VERB = Verb(run, add, "continue prompts, answer them, or fill in their [MASK]s")
