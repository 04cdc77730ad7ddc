"""`export`: writes a checkpoint as a Hugging Face folder."""

import argparse

from llm_jax.commands.verb import Verb, add_step


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--to", dest="target", required=True, help="folder to create")
    add_step(sub)
    sub.add_argument("--family", help="model family; default: the first that can express the model")
    sub.add_argument("--adapter", action="store_true", help="write only the LoRA adapter, for PEFT")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    from llm_jax.hub.runs import export_run

    done = export_run(args.workdir, args.target, args.step, args.family, args.dtype,
                      args.adapter)
    less = f", without its {done['left_out'][0]}" if done["left_out"] else ""
    what = f"{done['family']}'s adapter" if args.adapter else done["family"]
    print(f"wrote step {done['step']} as {what} to {done['folder']}{less}")
    return done


VERB = Verb(run, add, "write a run's checkpoint as a Hugging Face folder")
