"""`train`: trains to config.train.steps and samples; also the quickstart."""

import argparse
import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llm_jax.commands import samples
from llm_jax.commands.verb import Verb, config_of, shown
from llm_jax.config import ConfigError
from llm_jax.data import files
from llm_jax.files import check_source
from llm_jax.pod import hosts
from llm_jax.pod.watchdog import watchdog


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", default="", help="FILE.py[:variant]; default: that of the run")
    sub.add_argument("--stopped_code", type=int, default=0, help="exit code if SIGTERM stops it")
    text = "after so long without a step, print all stacks and exit with 1; default 0: never"
    sub.add_argument("--stall_seconds", type=int, default=0, help=text)


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    # With init_from, overrides are applied after the source has completed the config.
    begins = [text for text in overrides if text.startswith("init_from=")]
    config = config_of(args, begins or overrides)
    if args.stall_seconds < 0:
        raise ConfigError(f"--stall_seconds={args.stall_seconds}: must be at least 0")
    # In a job of several processes, `hosts.together` tells the others of what fails.
    if not hosts.find(os.environ):
        if not config.init_from:
            files.check_named(config.data)
        elif not (Path(args.workdir) / "config.json").is_file():
            check_source(config.init_from)
    job = hosts.start()
    # Imported only now, so that config errors appear quickly.
    from llm_jax import console, decode
    from llm_jax.models import heads
    from llm_jax.train.loop import Reporter, Trainer

    first = job is None or job.index == 0
    prompts = config.sample.prompts

    def accept(setup, tokenizer):  # checks that would otherwise fail at the end of the run
        if prompts and heads.speaks(config.model):
            decode.read(setup.model.cfg, tokenizer, prompts, config.objective)

    reporter, start = console.Reporter() if first else Reporter(), None
    name = str(job or "this process")
    with hosts.together(job, args.workdir), watchdog(args.stall_seconds, name) as hooks:
        if config.init_from:
            from llm_jax.hub import runs

            start = runs.start(config, args.workdir, overrides, recipe=bool(args.config))
        trainer = Trainer(config, args.workdir, reporter, accept=accept, start=start,
                          **_otherwise(config))  # fmt: skip
        trainer.hooks += hooks
        if job is not None:
            trainer.hooks.insert(trainer.hooks.index(trainer.log), hosts.slowest_input(job))
        summary = trainer.run()
        sampling = summary["finished"] and prompts and heads.speaks(config.model)
        params = trainer.params(here=True) if sampling else None
    if not first:
        return summary
    if sampling:
        summary["samples"] = _sample(trainer, params)
    _tell_end(summary, args.workdir)
    if summary["finished"]:
        _tell_next(config, args.workdir)
    return summary


def _otherwise(config: ConfigDict) -> dict[str, Any]:
    """Returns further arguments of Trainer for differential privacy or distillation."""
    if config.privacy.clip:
        from llm_jax import privacy

        account = privacy.Account(config)
        return {"hooks": [account.hook], "make_step": account.make_step}
    if config.distill.teacher:
        from llm_jax.compress import distill

        return {"make_step": distill.make_step}
    return {}


def _sample(trainer: Any, params: Any) -> list[dict]:
    """Completes config.sample.prompts; writes samples.txt and prints the samples."""
    from llm_jax import decode, sharding

    config, model, tokenizer = trainer.config, trainer.setup.model, trainer.tokenizer
    options = {"temperature": 0.8, "top_k": 40} if config.model.kind == "decoder" else {}
    options |= {"max_new_tokens": config.sample.max_new_tokens, "seed": config.seed}
    options |= {"objective": config.objective, "imported": False}
    with nullcontext() if trainer.several else sharding.activate(trainer.mesh):
        texts = decode.complete(model, params, tokenizer, config.sample.prompts, **options)
    samples.write(trainer.workdir, texts, config.model.kind)
    samples.show(texts, config.model.kind)
    return texts


def _tell_end(summary: dict, workdir: str) -> None:
    from llm_jax.console import SCORES

    held_out = summary.get("eval_loss")
    which, loss = ("validation", held_out) if held_out else ("training", summary.get("loss"))
    outcome = "finished" if summary["finished"] else "stopped; the same command resumes"
    reached = f", {which} loss {loss:.3f}" if loss else ""
    found = {name: summary[f"eval_{name}"] for name in SCORES if f"eval_{name}" in summary}
    reached += "".join(f", {name} {score:.4g}" for name, score in found.items())
    print(f"{outcome} at step {summary['step']}{reached}; results are in {workdir}")


def _tell_next(config: ConfigDict, workdir: str) -> None:
    from llm_jax import objectives
    from llm_jax.models import heads

    objective = objectives.get(config.objective.name)
    print("\nnext:")
    if config.objective.name == "chat":
        print(shown("chat", f"--workdir={workdir}"))
    elif heads.speaks(config.model):
        prompt = (*config.sample.prompts, samples.usual_prompt(config.model.kind))[0]
        print(shown("generate", f"--workdir={workdir}", f"--prompt={prompt}"))
    if objective.predict or objective.writes:
        print(shown("predict", f"--workdir={workdir}", "--input=FILE", "--output=FILE"))
    print(shown("eval", f"--workdir={workdir}"))
    print(shown("export", f"--workdir={workdir}", "--to=FOLDER"))
    print(f"  open {shlex.quote(f'{workdir}/loss.png')}, or, with tensorboard installed:")
    print(f"  tensorboard --logdir={shlex.quote(f'{workdir}/tensorboard')}")


VERB = Verb(run, add, "train or resume a run", keys=True, workdir="new")
