"""`import`: creates a run folder at step 0 from a Hugging Face folder."""

import argparse
from collections.abc import Sequence

from llm_jax import config as configs
from llm_jax.commands import samples
from llm_jax.commands.verb import Verb, shown
from llm_jax.files import check_source


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--from", dest="source", required=True, help="Hugging Face or run folder")
    sub.add_argument("--config", default="", help="FILE.py[:variant] for all but the model")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    config = configs.load(args.config)
    check_source(args.source)
    from llm_jax import objectives
    from llm_jax.hub.runs import import_run
    from llm_jax.models import heads

    imported = import_run(args.source, args.workdir, config, overrides)
    objective = objectives.get(imported["objective"])
    imported_as = f"{imported['family']}, {imported['parameters']:,} parameters"
    print(f"imported {imported_as}, into {args.workdir}")
    if imported["new"]:
        print(f"new parameters, which need training: {', '.join(imported['new'])}")
    if imported["unused"]:
        print(f"unused tensors: {', '.join(imported['unused'])}")
    print("\nnext:")
    workdir, examples = f"--workdir={args.workdir}", objective.examples
    headless = imported["head"] in ("none", "detection")
    if headless:
        print("  it has no language modelling head; use llm_jax.load in Python, or export it:")
    elif not imported["new"] and heads.speaks(configs.ConfigDict(imported)):
        prompt = samples.usual_prompt(imported["kind"])
        print(shown("generate", workdir, f"--prompt={prompt}"))
    if not imported["new"] and objective.predict:
        print(shown("predict", workdir, "--input=FILE", "--output=FILE"))
    if headless:
        task = "--config=configs/finetune/classify.py", f"--config.init_from={args.workdir}"
        print(shown("train", "--workdir=OTHER", *task, "--config.data.train=FILE"))
        print(_table(configs.base().data, ("text", "label")))
        print(shown("export", workdir, "--to=FOLDER"))
        return imported
    data = "SOURCES.txt,TARGETS.txt" if imported["objective"] == "seq2seq" else "FILE"
    print(shown("train", workdir, f"--config.data.train={data}"))
    if not examples.cut and data == "FILE":
        print(_table(config.data, examples.columns(config)))
    rate = imported["learning_rate"]
    print(f"  with learning rate {rate:g}; change it by --config.optimizer.learning_rate")
    return imported


def _table(data: configs.ConfigDict, fields: Sequence[str]) -> str:
    """Names the columns of a training file."""
    columns = ", ".join(data[f"{field}_column"] for field in fields)
    return (f"  FILE: .jsonl, .csv or .tsv with the columns {columns}; for other names "
            f"--config.data.{fields[0]}_column=NAME …")


VERB = Verb(run, add, "create a run from a Hugging Face folder (safetensors)", keys=True,
            workdir="new")
