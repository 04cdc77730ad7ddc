"""`prepare`: documents, cleaned if asked, as a set of ArrayRecords for TFDS, with a data card."""

import argparse

from llm_jax import config as configs
from llm_jax.commands.verb import Verb

ABOUT = """Writes data.train, data.validation and data.test as a TFDS set, and a data card.

Sets larger than memory are then read as they are needed. The records have what the config's
objective reads: text, if no --config says otherwise. --clean names steps, in order, of ftfy,
length:LEAST:MOST, repetition, quality, language:en, exact, near, stop_words:FILE (docs/data.md).
Only train is cleaned; of the others it is counted what would be."""
EXAMPLES = """examples:
  {program} prepare --name=mine --config.data.train='corpus/*.txt' --clean=ftfy,repetition,near
  {program} prepare --name=reviews --config=configs/finetune/classify.py \\
      --config.data.train=train.tsv --config.data.validation=dev.tsv --clean=exact
  {program} prepare --name=ids --tokens --config=configs/quickstart.py \\
      --config.data.train='corpus/*.txt'
"""


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", required=True, help="of the set, as in tfds:NAME")
    sub.add_argument("--config", default="", help="FILE.py[:variant], whose objective's it is")
    sub.add_argument("--clean", default="", help="STEP,STEP,…")
    sub.add_argument("--tokens", action="store_true", help="write tokens of the config's tokenizer")
    sub.add_argument("--tfds_dir", default="", help="where to; TFDS's own folder if not given")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    config = configs.load(args.config, overrides)
    from llm_jax import objectives
    from llm_jax.data.prepare import prepare

    examples = objectives.get(config.objective.name).examples
    clean = [step.strip() for step in args.clean.split(",") if step.strip()]
    folder, sizes = prepare(args.name, config, examples.columns(config), args.tfds_dir, clean,
                            args.tokens, examples.specials(config))  # fmt: skip
    for split, (read, stored) in sizes.items():
        print(f"{split}: {stored.documents:,} of {read.documents:,} documents")
    where = f" --config.data.tfds_dir={args.tfds_dir}" if args.tfds_dir else ""
    print(f"prepared {folder}, with its data card README.md\n"
          f"train on it: --config.data.train=tfds:{args.name}{where}")  # fmt: skip
    documents = {split: stored.documents for split, (_, stored) in sizes.items()}
    return {"folder": str(folder), "documents": documents}


VERB = Verb(run, add, "write documents as a set for TFDS, cleaned, with a data card",
            about=ABOUT, examples=EXAMPLES, keys=True, workdir=False)  # fmt: skip
