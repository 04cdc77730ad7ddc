"""The command `llm-jax`, or `python launch.py`: one module per subcommand, one error handler."""

import argparse
import json
import shlex
import sys
import time
import traceback
from importlib import import_module

from llm_jax.commands.verb import Verb, program
from llm_jax.config import KEYS, ConfigError
from llm_jax.files import folder_named, read_config
from llm_jax.pod import hosts
from llm_jax.train import Diverged, Restart

MODULES = (
    "train", "submit", "eval", "generate", "chat", "predict", "prepare", "import_", "export",
    "sweep", "compress", "audit", "plan",
)  # fmt: skip
VERBS: dict[str, Verb] = {
    name.rstrip("_"): import_module(f"llm_jax.commands.{name}").VERB for name in MODULES
}
QUICKSTART = ("train", "--config=configs/quickstart.py", "--workdir=runs/quickstart")
INTERRUPTED = 130

EXAMPLES = """examples:
  {program}                       # train, evaluate and sample a small GPT, in minutes
  {program} train --config=configs/shakespeare.py:small --workdir=runs/shakespeare \\
      --config.data.train=input.txt
  {program} train --config=configs/quickstart.py --workdir=runs/a --config.train.steps=100
  {program} eval --workdir=runs/quickstart
  {program} generate --workdir=runs/quickstart --prompt="def main(" --temperature=0.8
  {program} chat --workdir=runs/chat --system="Be brief."
  {program} predict --workdir=runs/sst2 --input=texts.txt --output=labels.jsonl
  {program} import --from=HF_FOLDER --workdir=runs/bert --config.data.train=text.txt
  {program} export --workdir=runs/quickstart --to=HF_FOLDER
  {program} sweep --config=configs/ablations/norms.py --workdir=runs/norms --seeds=3
  {program} audit --workdir=runs/quickstart
  {program} compress --workdir=runs/quickstart --to=runs/int8 --method=int8
  {program} plan --config=configs/llama.py:8b --topology=v5p:4x4x4   # no TPU needed

Set any config key by --config.KEY=VALUE; llm_jax/config.py lists all keys.
Run the same train command again to resume. --json prints one JSON object on stdout.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        raise ConfigError(message)


def _examples(command: str) -> str:
    """Returns the part of EXAMPLES that is about one subcommand."""
    start = "\n  {program}"
    commands, _, notes = EXAMPLES.partition("\n\n")
    title, *every = commands.split(start)
    own = [text for text in every if text.startswith(f" {command} ")]
    return start.join([title, *own]) + (f"\n\n{notes}" if command == "train" else "\n")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands; usage errors raise ConfigError."""
    plain = argparse.RawDescriptionHelpFormatter
    top = _Parser(
        prog=program().removeprefix("python "),
        description="Pretrain, evaluate and sample Transformer language models in JAX.",
        epilog=EXAMPLES.format(program=program()),
        formatter_class=plain,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, verb in VERBS.items():
        epilog = (verb.examples or _examples(name)).format(program=program())
        about = verb.about or verb.help
        sub = commands.add_parser(
            name, help=verb.help, description=about, epilog=epilog, formatter_class=plain
        )
        if verb.workdir:
            sub.add_argument("--workdir", required=True, help="the run folder")
        sub.add_argument("--json", action="store_true", help="print a JSON object as the last line")
        verb.add(sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code, 0 only for success.

    With --json, the last line of stdout is one JSON object; for errors it is {"error": …}.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("--") and argv[0] != "--help"):
        argv = [*QUICKSTART, *argv]
    began = time.time()
    code, result = _outcome(argv)
    if "--json" in argv:
        print(json.dumps(result | {"seconds": round(time.time() - began, 2)}), flush=True)
    return code


def _outcome(argv: list[str]) -> tuple[int, dict]:
    """Returns the exit code and the JSON result; prints errors as one line on stderr."""
    try:
        args, overrides = _read(argv)
        result = VERBS[args.command].run(args, overrides)
    except KeyboardInterrupt:
        return INTERRUPTED, {"error": "interrupted"}
    except Exception as error:
        known = isinstance(error, (ConfigError, Diverged, Restart, OSError))
        if not known:
            traceback.print_exc()
        kind = "diverged" if isinstance(error, Diverged) else "error"
        text = str(error) if known else repr(error)
        if known:
            print(f"{kind}: {hosts.named()}{text}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1, {"error": text}
    if result.get("finished") is False:  # in a sweep it is a count
        return args.stopped_code, result
    return int(bool(result.get("failed"))), result


def _read(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the arguments of a subcommand and its --config.KEY=VALUE overrides.

    Raises:
      ConfigError: wrong usage, or no run in a folder that must hold one; before the slow imports.
    """
    for text in argv:
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):  # invalid UTF-8
            raise ConfigError(f"{text!r}: is not valid UTF-8")
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    options = [a for a in argv if not a.startswith("--config.")]
    for key, value in zip(argv, [*argv[1:], ""], strict=True):
        if key.startswith("--config.") and "=" not in key:
            value = "VALUE" if value.startswith("--") else value
            raise ConfigError(f"{key}: write {key}={shlex.quote(value or 'VALUE')}, one argument")
    for option in (a.split("=")[0] for a in options if a.startswith("--")):
        if "." in option:
            raise ConfigError(f"{option}: write --config.{option[2:]}")
    top = parser()
    args, unknown = top.parse_known_args(options)
    if unknown:
        top.error(_unknown(args.command, unknown))
    if overrides and not VERBS[args.command].keys:
        takers = ", ".join(name for name, verb in VERBS.items() if verb.keys)
        raise ConfigError(f"--config.{overrides[0]}: only {takers} take config keys")
    folder_named(getattr(args, "workdir", "-"))
    runs = [args.workdir] if VERBS[args.command].workdir == "run" else []
    for run in (*runs, *getattr(args, "ensemble", ())):
        read_config(run)
    return args, overrides


def _unknown(command: str, options: list[str]) -> str:
    """Returns the message for options that a subcommand does not have."""
    name = options[0].split("=")[0].removeprefix("--")
    keys = [key for key in KEYS if key.endswith(f".{name}")] if VERBS[command].keys else []
    meant = f"did you mean {' or '.join(f'--config.{key}' for key in keys)}? " if keys else ""
    return (f"{command}: unrecognized arguments: {' '.join(options)}; {meant}"
            f"`{program()} {command} --help` lists the options")


def run() -> None:
    """Runs the command line and exits with its exit code."""
    code = main()
    if code == INTERRUPTED or (code in (1, 2) and hosts.joined()):
        # Threads may be inside C++ code; an interrupted run has nothing to save here, and a failed
        # one must not wait for the others at JAX's shutdown barrier.
        hosts.end(code)
    raise SystemExit(code)
