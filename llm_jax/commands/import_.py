"""`import`: creates a run folder at step 0 from a Hugging Face folder."""

import argparse

from llm_jax import config as configs
from llm_jax.commands import samples
from llm_jax.commands.verb import Verb, shown


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--from", dest="source", required=True, help="Hugging Face or run folder")
    sub.add_argument("--config", default="", help="FILE.py[:variant] for all but the model")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    config = configs.load(args.config)
    from llm_jax.hub.runs import import_run
    from llm_jax.models import heads

    imported = import_run(args.source, args.workdir, config, overrides)
    imported_as = f"{imported['family']}, {imported['parameters']:,} parameters"
    print(f"imported {imported_as}, into {args.workdir}")
    if imported["new"]:
        print(f"new parameters, which need training: {', '.join(imported['new'])}")
    if imported["unused"]:
        print(f"unused tensors: {', '.join(imported['unused'])}")
    print("\nnext:")
    workdir = f"--workdir={args.workdir}"
    if imported["head"] in ("none", "detection"):
        print("  it has no language modelling head; use llm_jax.load in Python, or export it:")
        if imported["objective"] == "contrastive":
            print(shown("predict", workdir, "--input=FILE", "--output=vectors.jsonl"))
        task = "--config=configs/finetune/classify.py", f"--config.init_from={args.workdir}"
        print(shown("train", "--workdir=OTHER", *task, "--config.data.train=FILE"))
        print(shown("export", workdir, "--to=FOLDER"))
        return imported
    if not imported["new"] and heads.speaks(configs.ConfigDict(imported)):
        prompt = samples.usual_prompt(imported["kind"])
        print(shown("generate", workdir, f"--prompt={prompt}"))
    data = "SOURCES.txt,TARGETS.txt" if imported["objective"] == "seq2seq" else "FILE"
    print(shown("train", workdir, f"--config.data.train={data}"))
    rate = imported["learning_rate"]
    print(f"  with learning rate {rate:g}; change it by --config.optimizer.learning_rate")
    return imported


VERB = Verb(run, add, "create a run from a Hugging Face folder (safetensors)", keys=True)
