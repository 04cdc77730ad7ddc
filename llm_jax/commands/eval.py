"""`eval`: evaluates a checkpoint."""

import argparse
import math

from llm_jax.commands.verb import Verb, add_ensemble, read_otherwise, tell
from llm_jax.config import ConfigError
from llm_jax.console import counted


def add(sub: argparse.ArgumentParser) -> None:
    add_ensemble(sub)
    sub.add_argument("--max_batches", type=int, help="0: all; default eval.max_batches")
    sub.add_argument("--split", choices=("train", "validation", "test"), help=(
        "default validation, or test if --config.data.test is given"))


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    from llm_jax import sharding
    from llm_jax.data import pipeline
    from llm_jax.models import heads
    from llm_jax.objectives import scores
    from llm_jax.train import ensemble, reference, report
    from llm_jax.train.evaluate import evaluate

    setup, tokenizer, params, step = ensemble.load([args.workdir, *args.ensemble], args.step)
    read_otherwise(setup.config, overrides)
    named = any(text.startswith("data.test=") for text in overrides)
    args.split = args.split or ("test" if named else "validation")
    documents = setup.objective.split(setup.config, args.split)
    if not len(documents):
        raise ConfigError(f"--split={args.split}: the run has no such split; set --config.data."
                          f"{args.split}=FILE")
    reference.attach(setup, tokenizer, {args.split: documents}, args.workdir)
    examples = setup.objective.examples(tokenizer, setup.config)
    # As many batches as in training, so that the loss equals eval_loss there.
    limit = setup.config.eval.max_batches if args.max_batches is None else args.max_batches
    if limit < 0:
        raise ConfigError(f"--max_batches={limit}: must be at least 0 (0: all)")
    batches = pipeline.eval_batches(examples, documents)
    eval_step = setup.eval_step(tokenizer)
    write = setup.writer(tokenizer) if setup.config.eval.scores else None
    with sharding.activate(setup.mesh):
        evaluation = evaluate(eval_step, params, batches, setup.mesh, limit, write)
    result = evaluation.values
    if heads.speaks(setup.config.model) and not setup.objective.reference:
        result |= {"perplexity": math.exp(min(result["loss"], 700))}
    counts = {name: result[name] for name in ("examples", "tokens") if name in result}
    shown = [f"loss {result['loss']:.3f}"]  # the format of training
    others = {name: x for name, x in result.items() if name not in ("loss", *counts)}
    shown += [f"{name} {value:.4g}" for name, value in others.items()]
    shown += [counted(value, name) for name, value in counts.items()]
    data = setup.config.data
    source = f"of {data[args.split] or data.train}"
    part = f"; at most {counted(limit, 'batches')}; --max_batches=0: all" * bool(limit)
    also = f", averaged with {', '.join(args.ensemble)}" * bool(args.ensemble)
    print(f"step {step}{also}: {args.split} {', '.join(shown)} ({source}{part})")
    if "bleu" in result:
        measure = scores.bleu([record.get("target", "") for record in evaluation.records])
        measure.corpus_score(["a"], [["a"]])  # the signature requires a computed score
        result["bleu_signature"] = str(measure.get_signature())
        print(f"bleu {result['bleu_signature']}")
    if evaluation.answers:
        try:
            title = f"{args.split}, step {step}{also}"
            about = report.write(args.workdir, evaluation, examples, title)
            print(f"errors and more scores: {about}")
        except OSError as error:
            tell(f"--workdir={args.workdir}: report.md cannot be written ({error})")
    return {"step": step, "split": args.split} | result


VERB = Verb(run, add, "evaluate a run's checkpoint on held-out data or another file",
            keys=True, about="""\
Computes loss and scores of a checkpoint on the run's validation set, or another split. For another
file use --config.data.test=FILE, and --config.data.text_column=NAME … if its columns differ.""")
