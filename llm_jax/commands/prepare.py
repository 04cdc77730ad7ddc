"""`prepare`: writes cleaned documents as a TFDS dataset of ArrayRecords, with a data card."""

import argparse

from llm_jax import config as configs
from llm_jax.commands.verb import Verb
from llm_jax.console import counted
from llm_jax.data import files

ABOUT = """Writes data.train, data.validation and data.test as a TFDS dataset, with a data card.

Datasets larger than memory are then read on demand. Records have the fields of the config's
objective, by default text. --clean lists steps, in order: ftfy, length:MINIMUM:MAXIMUM, repetition,
quality, language:en, exact, near, stop_words:FILE (docs/data.md). Only train is cleaned; in other
splits the effect is only counted."""
EXAMPLES = """examples:
  {program} prepare --name=mine --config.data.train='corpus/*.txt' --clean=ftfy,repetition,near
  {program} prepare --name=reviews --config=configs/finetune/classify.py \\
      --config.data.train=train.tsv --config.data.validation=dev.tsv --clean=exact
  {program} prepare --name=ids --tokens --config=configs/quickstart.py \\
      --config.data.train='corpus/*.txt'
"""


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", required=True, help="name of the dataset, as in tfds:NAME")
    sub.add_argument("--config", default="", help="FILE.py[:variant] with the objective")
    sub.add_argument("--clean", default="", help="STEP,STEP,…")
    sub.add_argument("--tokens", action="store_true", help="write tokens of the config's tokenizer")
    sub.add_argument("--tfds_dir", default="", help="output folder; default: that of TFDS")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    config = configs.load(args.config, overrides)
    files.check_named(config.data)
    from llm_jax import objectives
    from llm_jax.data.prepare import prepare

    examples = objectives.get(config.objective.name).examples
    clean = [step.strip() for step in args.clean.split(",") if step.strip()]
    folder, sizes = prepare(args.name, config, examples.columns(config), args.tfds_dir, clean,
                            args.tokens, examples.specials(config))  # fmt: skip
    for split, (read, stored) in sizes.items():
        print(f"{split}: {stored.documents:,} of {counted(read.documents, 'documents')}")
    where = f" --config.data.tfds_dir={args.tfds_dir}" if args.tfds_dir else ""
    print(f"prepared {folder}, with the data card README.md\n"
          f"train on it: --config.data.train=tfds:{args.name}{where}")  # fmt: skip
    documents = {split: stored.documents for split, (_, stored) in sizes.items()}
    return {"folder": str(folder), "documents": documents}


VERB = Verb(run, add, "write documents as a cleaned TFDS dataset, with a data card",
            about=ABOUT, examples=EXAMPLES, keys=True, workdir="")  # fmt: skip
