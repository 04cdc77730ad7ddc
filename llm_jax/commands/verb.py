"""The record of a subcommand, and helpers that several of them share."""

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.files import read_config

ROOT = Path(__file__).parents[2]  # of a checkout, or of what is installed


class Verb(NamedTuple):
    """A verb: `run(args, overrides)` returns what --json prints; "failed" in it is exit code 1."""

    run: Callable[[argparse.Namespace, list[str]], dict]
    add: Callable[[argparse.ArgumentParser], None]  # declares its options
    help: str
    about: str = ""
    examples: str = ""
    keys: bool = False  # whether it takes --config.KEY=VALUE
    workdir: bool = True


def add_step(sub: argparse.ArgumentParser) -> None:
    """Adds --step."""
    sub.add_argument("--step", type=lambda text: text if text == "best" else int(text), help=(
        "a saved step, or best: of those that are kept, by eval.metric; the newest if not given"))


def add_sampling(sub: argparse.ArgumentParser) -> None:
    """Adds what `decode.Request` has for a text that is sampled."""
    sub.add_argument("--max_new_tokens", type=int, help="64, or what there is room for")
    sub.add_argument("--temperature", type=float, help="0: greedy; default 1, encoder-decoders 0")
    sub.add_argument("--top_k", type=int, help="0: all; of a masked model, 5")
    sub.add_argument("--top_p", type=float)
    sub.add_argument("--min_p", type=float, help="as likely as the likeliest times this")
    sub.add_argument("--repetition_penalty", type=float)
    sub.add_argument("--stop", action="append", help="a text to end before; '': none")
    sub.add_argument("--seed", type=int, default=0)


def add_ensemble(sub: argparse.ArgumentParser) -> None:
    """Adds --step and --ensemble."""
    add_step(sub)
    sub.add_argument("--ensemble", action="append", default=[], metavar="WORKDIR",
                     help="a further run; its probabilities are averaged with the others'")


def requested(args: argparse.Namespace) -> dict:
    """Returns the fields of `decode.Request` that the arguments have."""
    from llm_jax.decode import Request

    names = {field.name for field in dataclasses.fields(Request)} & vars(args).keys()
    settings = {name: getattr(args, name) for name in names}
    if args.stop is not None:
        settings["stop"] = [text for text in args.stop if text]
    return settings


def program() -> str:
    """Returns how this process was called, to be shown in commands: llm-jax or python launch.py."""
    script = Path(sys.argv[0])
    path = sys.argv[0] if script.name == "launch.py" else "launch.py"
    return "llm-jax" if script.stem == "llm-jax" else f"python {shlex.quote(path)}"


def shown(verb: str, *options: str) -> str:
    """Returns a command to be copied into a shell."""
    return f"  {program()} {verb} {shlex.join(options)}"


def python() -> list[str]:
    """Returns the command line of another process of this program, run anywhere."""
    script = ROOT / "launch.py"
    return [sys.executable, *([str(script)] if script.is_file() else ["-m", "llm_jax"])]


def tell(text: str) -> None:
    """Prints a line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def config_of(args: argparse.Namespace, overrides: list[str]) -> configs.ConfigDict:
    """Returns the config that is named, else that of the run folder, else the defaults."""
    file = Path(args.workdir) / "config.json"
    if args.config or not file.is_file():
        if not args.config:
            begins = any(text.startswith("init_from=") for text in overrides)
            rest = "its own architecture and head, and " * begins
            tell(f"no --config: a new run of {rest}llm_jax/config.py's defaults")
        return configs.load(args.config, overrides)
    config = read_config(args.workdir)
    configs.change(config, overrides)
    return config


# Keys of a run that change nothing but what is read, and how it is scored.
READ = r"data\.(validation|test|tfds_dir|batch_size|\w+_column)|eval\.\w+"


def read_otherwise(config: configs.ConfigDict, overrides: list[str]) -> None:
    """Applies overrides to the config of a trained run; ConfigError for keys that are the run's."""
    for key in (text.partition("=")[0] for text in overrides):
        if key in configs.KEYS and not re.fullmatch(READ, key):
            raise ConfigError(f"--config.{key}: is the run's own; data.validation, data.test, "
                              "data.FIELD_column, data.batch_size, data.tfds_dir and eval.… may "
                              "be others here")
    configs.change(config, overrides)
