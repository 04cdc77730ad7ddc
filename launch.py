"""llm_jax's one command: `python launch.py --help`."""

import argparse
import json
import sys
import time
from pathlib import Path

from llm_jax import config as configs
from llm_jax.config import ConfigError

EXAMPLES = """examples:
  python launch.py                       # train, evaluate and sample a small GPT, in minutes
  python launch.py train --config=configs/shakespeare.py:small --workdir=runs/shakespeare \\
      --config.data.train=input.txt
  python launch.py train --config=configs/quickstart.py --workdir=runs/a --config.train.steps=100
  python launch.py eval --workdir=runs/quickstart
  python launch.py generate --workdir=runs/quickstart --prompt="def main(" --temperature=0.8

Any key of a config may follow as --config.KEY=VALUE; llm_jax/config.py lists them all.
Run the same train command again to resume. Add --json for one JSON object on stdout.
"""

QUICKSTART = "configs/quickstart.py"


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="launch.py",
        description="Pretrain, evaluate and sample Transformer language models in JAX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(function, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            function.__name__,
            help=text,
            description=text,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=function)
        sub.add_argument("--workdir", required=True, help="the run folder")
        sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
        return sub

    sub = command(train, "train, or resume, the run of a config")
    sub.add_argument("--config", default="", help="FILE.py[:variant]; see configs/")

    sub = command(eval, "mean loss of a run's checkpoint on held-out text")
    sub.add_argument("--step", type=int, help="a saved step; the newest if not given")
    sub.add_argument("--split", choices=("train", "validation", "test"), default="validation")

    sub = command(generate, "continue prompts with a run's checkpoint")
    sub.add_argument("--step", type=int, help="a saved step; the newest if not given")
    sub.add_argument("--prompt", action="append", default=[], help="may be given several times")
    sub.add_argument("--max_new_tokens", type=int, default=64)
    sub.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    sub.add_argument("--top_k", type=int, default=0, help="0: all")
    sub.add_argument("--top_p", type=float, default=1.0)
    sub.add_argument("--seed", type=int, default=0)
    return top


def train(args, overrides) -> dict:
    """Trains to the end of config.train.steps and samples; the quickstart too."""
    config = configs.load(args.config, overrides)
    # Only now: a wrong config is refused in the time that Python needs to start.
    from llm_jax.console import Reporter
    from llm_jax.train.loop import Trainer

    reporter = Reporter()
    trainer = Trainer(config, args.workdir, reporter)
    summary = trainer.run()
    if summary["finished"] and config.sample.prompts:
        options = {"temperature": 0.8, "top_k": 40, "seed": config.seed}
        texts = _sample(
            trainer.setup.model,
            trainer.params(),
            trainer.tokenizer,
            config.sample.prompts,
            max_new_tokens=config.sample.max_new_tokens,
            **options,
        )
        _write_samples(args.workdir, texts)
        _show_samples(texts)
        summary["samples"] = texts
    loss = summary.get("eval_loss", summary.get("loss"))
    what = "finished" if summary["finished"] else "stopped; the same command resumes"
    print(f"{what} at step {summary['step']}, loss {loss:.3f}; everything is in {args.workdir}")
    if summary["finished"]:
        print("\nnext:")
        print(f"  python launch.py generate --workdir={args.workdir} --prompt='The '")
        print(f"  python launch.py eval --workdir={args.workdir}")
        print(f"  tensorboard --logdir={args.workdir}/tensorboard   # loss.png has the same curves")
    return summary


def eval(args, overrides) -> dict:
    """Prints the loss of a checkpoint."""
    _no(overrides)
    import math

    import jax

    from llm_jax import sharding
    from llm_jax.data import pipeline, sources
    from llm_jax.train.evaluate import evaluate
    from llm_jax.train.run import load_params
    from llm_jax.train.state import make_eval_step

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    documents = sources.splits(setup.config)[args.split]
    batches = pipeline.eval_batches(setup.config, tokenizer, documents)
    eval_step = jax.jit(make_eval_step(setup.model, setup.objective, setup.config))
    with sharding.activate(setup.mesh):
        result = evaluate(eval_step, params, batches, setup.mesh)
    perplexity = math.exp(min(result["loss"], 700))
    print(
        f"step {step}, {args.split}: loss {result['loss']:.4f}, perplexity {perplexity:.2f}, "
        f"accuracy {result['accuracy']:.3f}, {result['tokens']:,} tokens"
    )
    return {"step": step, "split": args.split, "perplexity": perplexity} | result


def generate(args, overrides) -> dict:
    """Prints each prompt with its continuation."""
    _no(overrides)
    from llm_jax.train.run import load_params

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    texts = _sample(
        setup.model,
        params,
        tokenizer,
        args.prompt or [""],
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    _show_samples(texts)
    return {"step": step, "samples": texts}


def _sample(model, params, tokenizer, prompts, **options) -> list[dict]:
    from llm_jax.decode import generate

    ids = [[tokenizer.bos_id, *tokenizer.encode(prompt).tolist()] for prompt in prompts]
    try:
        found = generate(model, params, ids, eos_id=tokenizer.eos_id, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return [
        {"prompt": prompt, "completion": tokenizer.decode(tokens), "tokens": tokens}
        for prompt, tokens in zip(prompts, found, strict=True)
    ]


def _write_samples(workdir, texts: list[dict]) -> None:
    body = "\n\n".join(f">>> {t['prompt']}\n{t['prompt']}{t['completion']}" for t in texts)
    (Path(workdir) / "samples.txt").write_text(body + "\n")


def _show_samples(texts: list[dict]) -> None:
    for text in texts:
        print(f"\033[1m{text['prompt']}\033[0m{text['completion']}\n" if sys.stdout.isatty()
              else f"{text['prompt']}{text['completion']}\n")


def _no(overrides: list[str]) -> None:
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: only train takes config keys")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, 0 only for success."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("--") and argv[0] != "--help"):
        argv = ["train", f"--config={QUICKSTART}", "--workdir=runs/quickstart", *argv]
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    args = parser().parse_args([a for a in argv if not a.startswith("--config.")])
    if args.command is None:
        parser().print_help()
        return 2
    began = time.time()
    try:
        result = args.run(args, overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps(result | {"seconds": round(time.time() - began, 2)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
