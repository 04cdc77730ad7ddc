"""Prepares local text as a TFDS set of ArrayRecords, without TensorFlow.

    python -m llm_jax.data.prepare --name=my_text --train='texts/*.txt' --tfds_dir=DIR

then data.train = 'tfds:my_text' and data.tfds_dir = 'DIR' read it. Only one document at a time is
in memory, of .json one file. A split that is not given is held out of train when it is read.

With --config=FILE.py[:variant] and --config.KEY=VALUE the set holds the tokens of that config's
tokenizer, which is kept beside it; runs of the same tokenizer read them many times faster. One
that is trained here sees all of --train, also what is held out of it later.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from llm_jax.config import ConfigError, base, load
from llm_jax.data.examples import Record
from llm_jax.data.pipeline import build_tokenizer
from llm_jax.data.sources import stored_tokenizer, stream
from llm_jax.data.tokenizers import TRAINING_CHARACTERS, UNTRAINED, Tokenizer
from llm_jax.data.windows import streams


def prepare(
    name: str, specs: dict[str, str], tfds_dir: str = "", data: ConfigDict | None = None,
    config: ConfigDict | None = None, specials: Sequence[str] = (),
) -> Path:
    """Writes the documents of each split's spec as `tfds:name` and returns its folder.

    Args:
      data: how text is read.
      config: the run whose tokenizer's tokens are to be written instead of text.
      specials: what its objective needs of the tokenizer.

    Raises ConfigError when a spec cannot be read, or when the set is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"--name: {name!r} must be lower-case letters, digits and underscores")
    columns = {"text": (data or base().data).text_column}
    tokenizer = config and _tokenizer(config, stream(specs["train"], columns), specials)
    texts = {split: stream(spec, columns) for split, spec in specs.items()}
    about = {"tokenizer": config.tokenizer.to_dict()} if config else None
    builder = _builder(name, texts, tokenizer, about, tfds_dir)
    if builder.is_prepared():
        raise ConfigError(f"--name: {name!r} is prepared already in {builder.data_dir}; delete "
                          "that folder, or choose another name")
    if tokenizer:
        tokenizer.save(stored_tokenizer(builder))
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _tokenizer(config: ConfigDict, docs: Iterator[Record], specials: Sequence[str]) -> Tokenizer:
    """Builds the config's tokenizer on documents evenly spaced among `docs`."""
    if config.tokenizer.name in UNTRAINED:
        return build_tokenizer(config, [], specials)
    kept, size, step = [], 0, 1
    for i, doc in enumerate(docs):
        if i % step == 0:
            kept.append(doc)
            size += len(doc["text"])
        if size > TRAINING_CHARACTERS and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            size = sum(len(doc["text"]) for doc in kept)
    return build_tokenizer(config, kept, specials)


def _builder(name: str, texts: dict[str, Iterator[Record]], tokenizer, about, tfds_dir: str):
    """The TFDS builder of documents of plain text, or of a tokenizer's tokens."""
    import tensorflow_datasets as tfds

    class TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent  # TFDS cannot find it when this module is the command

        def _info(self):
            features = {"text": tfds.features.Text()}
            if tokenizer:
                how = {"dtype": tokenizer.dtype, "encoding": "bytes"}
                features = {"tokens": tfds.features.Tensor(shape=(None,), **how)}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(about) if about else None,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(docs) for split, docs in texts.items()}

        def _generate_examples(self, docs):
            yield from enumerate(_tokens(tokenizer, docs) if tokenizer else docs)

    TextBuilder.name = name
    return TextBuilder(data_dir=tfds_dir or None, file_format="array_record")


def _tokens(tokenizer: Tokenizer, docs: Iterator[Record]) -> Iterator[Record]:
    while texts := [doc["text"] for doc in itertools.islice(docs, 1024)]:
        for ids in streams(tokenizer, texts, framed=False):
            yield {"tokens": ids}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the set, as in tfds:NAME")
    parser.add_argument("--train", required=True, help="file or glob: text or tables (.jsonl …)")
    parser.add_argument("--validation", help="the same, of its validation split")
    parser.add_argument("--test", help="the same, of its test split")
    parser.add_argument("--text_column", default="text", help="of tables")
    parser.add_argument("--tfds_dir", default="", help="where to; default: TFDS's own folder")
    parser.add_argument("--config", help="FILE.py[:variant]: write its tokenizer's tokens")
    args, overrides = parser.parse_known_args(argv)
    if unknown := [arg for arg in overrides if not arg.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    from llm_jax import objectives  # as a command, this stands above them

    data = base().data
    data.text_column = args.text_column
    splits = ("train", "validation", "test")
    specs = {split: spec for split in splits if (spec := getattr(args, split))}
    try:
        overrides = [arg.removeprefix("--config.") for arg in overrides]
        config, specials = None, ()
        if args.config or overrides:
            config = load(args.config or "", overrides)
            specials = objectives.get(config.objective.name).examples.specials(config)
        folder = prepare(args.name, specs, args.tfds_dir, data, config, specials)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    where = f" --config.data.tfds_dir={args.tfds_dir}" if args.tfds_dir else ""
    print(f"Prepared {folder}\nTrain on it: --config.data.train=tfds:{args.name}{where}")


if __name__ == "__main__":
    main()
