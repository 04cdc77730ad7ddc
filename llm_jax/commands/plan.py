"""`plan`: memory, traffic and time of a train step compiled for other chips, without running."""

import argparse

from llm_jax import config as configs
from llm_jax.commands.verb import Verb, tell

ABOUT = """Compiles the train step of a config for chips that this machine does not need to have
(TPUs: pip install -r requirements-plan.txt; GPUs: -r requirements-plan-gpu.txt) and reports memory,
FLOPs, traffic and lower bounds of the step time. Exit code 1 if it does not fit."""

EXAMPLES = """examples:
  {program} plan --config=configs/llama.py:8b --topology=v5p:4x4x4 \\
      --config.data.batch_size=128
  {program} plan --config=configs/gpt2.py:124m --topology=v5e:4x4 --search
  {program} plan --config=configs/llama.py:8b --topology=h100:8x8   # nodes x GPUs
  {program} plan --config=configs/gpt2.py:124m --topology=cpu:8     # simulated devices
"""


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", required=True, help="FILE.py[:variant]")
    sub.add_argument("--topology", required=True, help="v5p:4x4x4, h100:8x8, …, or cpu:8")
    sub.add_argument("--slices", type=int, default=1, help="number of slices, connected by DCN")
    sub.add_argument("--search", action="store_true", help="rank meshes, microbatches and remat")
    sub.add_argument("--compiles", type=int, default=8, help="maximum compilations of --search")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    config = configs.load(args.config, overrides)
    import jax

    if not args.topology.startswith("gpu"):
        jax.config.update("jax_platforms", "cpu")  # nothing runs
    from llm_jax.pod import plan, report, search

    if args.search:
        result = search.search(config, args.topology, args.slices, args.compiles, tell)
        if result["compiled"] and not result["ranked"]:
            print(f"none of the {result['compiled']} compiled settings fits")
        for place, one in enumerate(result["ranked"], 1):
            print(f"{place}. {search.line(one)}")
        return result
    result = plan.make(config, args.topology, args.slices, tell)
    print("\n".join(report.lines(result)))
    return result


VERB = Verb(
    run, add, "memory, FLOPs and time of a train step on other chips", ABOUT, EXAMPLES, keys=True,
    workdir="",
)  # fmt: skip
