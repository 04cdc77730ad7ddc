"""`Verb`, the definition of a subcommand, and shared helpers."""

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.files import read_config

ROOT = Path(__file__).parents[2]  # of the checkout or installation


class Verb(NamedTuple):
    """A subcommand: `run(args, overrides)` returns its JSON result; "failed" means exit code 1."""

    run: Callable[[argparse.Namespace, list[str]], dict]
    add: Callable[[argparse.ArgumentParser], None]  # adds its options
    help: str
    about: str = ""
    examples: str = ""
    keys: bool = False  # whether it takes --config.KEY=VALUE
    workdir: str = "run"  # --workdir: "run" must be a run folder, "new" may be; "": no such option


def add_step(sub: argparse.ArgumentParser) -> None:
    """Adds --step."""
    sub.add_argument("--step", type=lambda text: text if text == "best" else int(text), help=(
        "a saved step, or best: the best kept one by eval.metric; default: the newest"))


def add_sampling(sub: argparse.ArgumentParser) -> None:
    """Adds the sampling options of `decode.Request`."""
    sub.add_argument("--max_new_tokens", type=int, help="default 64, limited by model.max_length")
    sub.add_argument("--temperature", type=float, help="0: greedy; default 1, encoder-decoders 0")
    sub.add_argument("--top_k", type=int, help="0: all; masked models: candidates, default 5")
    sub.add_argument("--top_p", type=float)
    sub.add_argument("--min_p", type=float, help="minimum probability / largest probability")
    sub.add_argument("--repetition_penalty", type=float)
    sub.add_argument("--stop", action="append", help="a stop string; '': none")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--draft", metavar="WORKDIR",
                     help="speculative decoding: a run with a smaller model, same tokenizer")
    sub.add_argument("--draft_tokens", type=int, help="proposed in a round, default 4")


def add_ensemble(sub: argparse.ArgumentParser) -> None:
    """Adds --step and --ensemble."""
    add_step(sub)
    sub.add_argument("--ensemble", action="append", default=[], metavar="WORKDIR",
                     help="a further run, whose probabilities are averaged with the others'")


def requested(args: argparse.Namespace, mesh: Any) -> dict:
    """Returns the fields of `decode.Request` set by the arguments; a draft model on the mesh."""
    from llm_jax.decode import Draft, Request
    from llm_jax.train.run import load_params

    names = {field.name for field in dataclasses.fields(Request)} & vars(args).keys()
    settings = {name: getattr(args, name) for name in names}
    if args.stop is not None:
        settings["stop"] = [text for text in args.stop if text]
    if args.draft:
        setup, tokenizer, params, _ = load_params(args.draft, mesh=mesh)
        settings["draft"] = Draft(setup.model, params, tokenizer)
    return settings


def program() -> str:
    """Returns the program name to show in commands: llm-jax or python launch.py."""
    script = Path(sys.argv[0])
    path = sys.argv[0] if script.name == "launch.py" else "launch.py"
    return "llm-jax" if script.stem == "llm-jax" else f"python {shlex.quote(path)}"


def shown(verb: str, *options: str) -> str:
    """Formats a command to be copied into a shell."""
    return f"  {program()} {verb} {shlex.join(options)}"


def python() -> list[str]:
    """Returns the command line to start this program from any folder."""
    script = ROOT / "launch.py"
    return [sys.executable, *([str(script)] if script.is_file() else ["-m", "llm_jax"])]


def tell(text: str) -> None:
    """Prints a progress message to stderr."""
    print(text, file=sys.stderr, flush=True)


def config_of(args: argparse.Namespace, overrides: list[str]) -> configs.ConfigDict:
    """Returns the config of --config, else that of the run folder, else the defaults."""
    file = Path(args.workdir) / "config.json"
    if args.config or not file.is_file():
        if not args.config:
            begins = any(text.startswith("init_from=") for text in overrides)
            rest = "its architecture and head, and " * begins
            tell(f"no --config: a new run with {rest}the defaults of llm_jax/config.py")
        return configs.load(args.config, overrides)
    config = read_config(args.workdir)
    configs.change(config, overrides)
    return config


# Keys that only affect which data are read, and how they are evaluated.
READ = r"data\.(validation|test|tfds_dir|batch_size|\w+_column)|eval\.\w+"


def read_otherwise(config: configs.ConfigDict, overrides: list[str]) -> None:
    """Applies overrides to the config of a trained run; ConfigError for keys that cannot change."""
    for key in (text.partition("=")[0] for text in overrides):
        if key in configs.KEYS and not re.fullmatch(READ, key):
            raise ConfigError(f"--config.{key}: cannot be changed for a trained run; only "
                              "data.validation, data.test, data.FIELD_column, data.batch_size, "
                              "data.tfds_dir and eval.… can")
    configs.change(config, overrides)
