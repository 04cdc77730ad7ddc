"""`chat`: an interactive conversation with a run's model."""

import argparse
import contextlib
import signal
import sys

from llm_jax.commands.verb import Verb, add_sampling, add_step, requested, tell
from llm_jax.config import ConfigError

HELP = "/reset starts a new conversation, /exit (or Ctrl-D) ends; Ctrl-C stops a reply"


def add(sub: argparse.ArgumentParser) -> None:
    add_step(sub)
    sub.add_argument("--system", help="a system message at the start")
    add_sampling(sub)


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    from llm_jax import sharding
    from llm_jax.data import chat
    from llm_jax.decode import Memory, stream
    from llm_jax.models import heads
    from llm_jax.train.run import load_params

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    if not heads.speaks(setup.config.model) or setup.config.model.kind == "encoder":
        verb = "predict" if setup.objective.predict else "generate"
        raise ConfigError(f"--workdir={args.workdir}: objective.name={setup.objective.name!r} does "
                          f"not support chat; use `{verb}`")
    options = requested(args, setup.mesh) | {"memory": Memory()}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not that of `commands.run`
    begin = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(begin)
    if sys.stdin.isatty():
        tell(HELP)
    while (line := _line()) not in (None, "/exit"):
        if line == "/reset":
            messages = list(begin)
        elif line:
            messages.append({"role": "user", "content": line})
            reply = ""
            with contextlib.suppress(KeyboardInterrupt), sharding.activate(setup.mesh):
                messages = chat.fitted(tokenizer, messages, setup.config.model.max_length * 3 // 4)
                for piece in stream(setup.model, params, tokenizer, messages, **options):
                    print(piece, end="", flush=True)
                    reply += piece
            print(flush=True)
            messages.append({"role": "assistant", "content": reply})
    return {"step": step, "messages": messages}


def _line() -> str | None:
    """Reads a line of stdin; None at its end."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()


VERB = Verb(run, add, "chat with a run's model; each line of stdin is a message", about=f"""\
Replies to each line of stdin, with the tokenizer's chat template. {HELP}.""")
