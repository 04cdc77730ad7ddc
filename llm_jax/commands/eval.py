"""`eval`: the loss of a checkpoint."""

import argparse
import math

from llm_jax.commands.verb import Verb
from llm_jax.config import ConfigError


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--step", type=int, help="a saved step; the newest if not given")
    sub.add_argument("--split", choices=("train", "validation", "test"), default="validation")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    """Prints the loss of a checkpoint."""
    import jax

    from llm_jax import sharding
    from llm_jax.data import pipeline
    from llm_jax.train.evaluate import evaluate
    from llm_jax.train.run import load_params
    from llm_jax.train.state import make_eval_step

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    documents = setup.objective.splits(setup.config)[args.split]
    if not len(documents):
        raise ConfigError(
            f"--split={args.split}: the run has none; data.{args.split} or "
            f"data.{args.split}_fraction of its config would make one"
        )
    examples = setup.objective.examples(tokenizer, setup.config)
    batches = pipeline.eval_batches(examples, documents)
    eval_step = jax.jit(make_eval_step(setup.model, setup.objective, setup.config))
    with sharding.activate(setup.mesh):
        result = evaluate(eval_step, params, batches, setup.mesh)
    perplexity = math.exp(min(result["loss"], 700))
    print(
        f"step {step}, {args.split}: loss {result['loss']:.4f}, perplexity {perplexity:.2f}, "
        f"accuracy {result['accuracy']:.3f}, {result['tokens']:,} tokens"
    )
    return {"step": step, "split": args.split, "perplexity": perplexity} | result


VERB = Verb(run, add, "mean loss of a run's checkpoint on held-out text")
