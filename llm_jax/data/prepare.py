"""Prepares local text as a TFDS set of ArrayRecords, without TensorFlow.

    python -m llm_jax.data.prepare --name=my_text --train='texts/*.txt' --tfds_dir=DIR

then data.train = 'tfds:my_text' and data.tfds_dir = 'DIR' read it. Only one file at a time need
fit in memory, here and when it is read. A split that is not given is held out of train then.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from llm_jax.config import ConfigError, base
from llm_jax.data.sources import stream


def prepare(
    name: str, specs: dict[str, str], tfds_dir: str = "", data: ConfigDict | None = None
) -> Path:
    """Writes the documents of each split's spec as `tfds:name` and returns its folder.

    Raises ConfigError when a spec cannot be read, or when the set is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"--name: {name!r} must be lower-case letters, digits and underscores")
    builder = _builder_class(name)(
        texts={split: stream(spec, data or base().data) for split, spec in specs.items()},
        data_dir=tfds_dir or None,
        file_format="array_record",
    )
    if builder.is_prepared():
        raise ConfigError(f"--name: {name!r} is prepared already in {builder.data_dir}; delete "
                          "that folder, or choose another name")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _builder_class(name: str):
    import tensorflow_datasets as tfds

    class TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Documents of plain text."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent  # TFDS cannot find it when this module is the command

        def __init__(self, *, texts: dict[str, Iterator[str]], **kwargs):
            self.texts = texts
            super().__init__(**kwargs)

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(docs) for split, docs in self.texts.items()}

        def _generate_examples(self, docs):
            for i, text in enumerate(docs):
                yield i, {"text": text}

    TextBuilder.name = name
    return TextBuilder


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the set, as in tfds:NAME")
    parser.add_argument("--train", required=True, help="file or glob: .txt, .jsonl, .gz of them")
    parser.add_argument("--validation", help="the same, of its validation split")
    parser.add_argument("--test", help="the same, of its test split")
    parser.add_argument("--text_column", default="text", help="of JSONL records")
    parser.add_argument("--tfds_dir", default="", help="where to; default: TFDS's own folder")
    args = parser.parse_args(argv)
    data = base().data
    data.text_column = args.text_column
    specs = {split: getattr(args, split) for split in ("train", "validation", "test")}
    specs = {split: spec for split, spec in specs.items() if spec}
    try:
        folder = prepare(args.name, specs, args.tfds_dir, data)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    where = f" --config.data.tfds_dir={args.tfds_dir}" if args.tfds_dir else ""
    print(f"Prepared {folder}\nTrain on it: --config.data.train=tfds:{args.name}{where}")


if __name__ == "__main__":
    main()
