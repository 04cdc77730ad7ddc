"""`generate`: prompts and what the model makes of them."""

import argparse

from llm_jax.commands import samples
from llm_jax.commands.verb import Verb


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the command's own options to its parser."""
    sub.add_argument("--step", type=int, help="a saved step; the newest if not given")
    sub.add_argument("--prompt", action="append", default=[], help="may be given several times")
    sub.add_argument("--max_new_tokens", type=int, help="64, or what there is room for")
    sub.add_argument("--temperature", type=float, help="0: greedy; default 1, encoder-decoders 0")
    sub.add_argument("--top_k", type=int, help="0: all; of a masked model, 5")
    sub.add_argument("--top_p", type=float)
    sub.add_argument("--beams", type=int, help="more than 1: beam search")
    sub.add_argument("--length_penalty", type=float, help="of beam search, default 0.6")
    sub.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    """Prints each prompt with its completion."""
    from llm_jax import sharding
    from llm_jax.decode import complete
    from llm_jax.train.run import load_params

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    keys = "max_new_tokens temperature top_k top_p seed beams length_penalty".split()
    options = {key: getattr(args, key) for key in keys} | {"objective": setup.config.objective}
    with sharding.activate(setup.mesh):
        texts = complete(setup.model, params, tokenizer, args.prompt or [""], **options)
    samples.show(texts, setup.model.cfg.kind)
    return {"step": step, "samples": texts}


VERB = Verb(run, add, "continue prompts, answer them, or fill in their [MASK]s")
