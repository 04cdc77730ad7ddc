"""llm_jax's one command: `python launch.py --help`."""

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.pod import hosts
from llm_jax.train import Diverged, Restart

EXAMPLES = """examples:
  python launch.py                       # train, evaluate and sample a small GPT, in minutes
  python launch.py train --config=configs/shakespeare.py:small --workdir=runs/shakespeare \\
      --config.data.train=input.txt
  python launch.py train --config=configs/quickstart.py --workdir=runs/a --config.train.steps=100
  python launch.py eval --workdir=runs/quickstart
  python launch.py generate --workdir=runs/quickstart --prompt="def main(" --temperature=0.8
  python launch.py import --from=HF_FOLDER --workdir=runs/bert --config.data.train=text.txt
  python launch.py export --workdir=runs/quickstart --to=HF_FOLDER
  python launch.py sweep --config=configs/ablations/norms.py --workdir=runs/norms --seeds=3
  python launch.py plan --config=configs/llama.py:8b --topology=v5p:4x4x4   # no TPU needed

Any key of a config may follow as --config.KEY=VALUE; llm_jax/config.py lists them all.
Run the same train command again to resume. Add --json for one JSON object on stdout.
"""

SWEEP = """Trains every variant with the same seeds, each run a process of its own in
WORKDIR/runs/VARIANT/seedK, and writes WORKDIR/report/ (report.md, report.html). The same command
goes on where it was stopped and tries again what failed; exit code 1 if anything failed."""

SWEEPS = """examples:
  python launch.py sweep --config=configs/ablations/attention.py --workdir=runs/attention
  python launch.py sweep --config=configs/quickstart.py --workdir=runs/positions \\
      --axis=model.positions=learned,rotary,alibi --match=params --config.train.steps=300
  python launch.py sweep --config=configs/ablations/norms.py --workdir=runs/norms \\
      --index=0 --of=2                     # and another process or machine with --index=1
  python launch.py sweep --workdir=runs/norms --report       # of what is finished by now

A config file defines its axes in get_sweep(variant) beside get_config(variant), see
llm_jax/sweep/spec.py. --axis crosses them with further ones; the first value of each is the
baseline's. Commas within quotes or brackets belong to a value: model.attention="'a,b'",c.
"""

PLAN = """Compiles the train step of a config for chips that need not be there (TPUs: pip install
libtpu) and tells what it takes: memory, FLOPs, traffic, and the least time by each. Exit code 1
if it does not fit."""

PLANS = """examples:
  python launch.py plan --config=configs/llama.py:8b --topology=v5p:4x4x4 \\
      --config.data.batch_size=128
  python launch.py plan --config=configs/gpt2.py:124m --topology=v5e:4x4 --search
  python launch.py plan --config=configs/gpt2.py:124m --topology=cpu:8     # simulated devices
"""

SUBMIT = """Writes the job's file into the current folder and prints it with the command that
hands it in; --go runs that command. The job runs `launch.py train` with what is given here, and
starts again where it stopped: docs/pod.md."""

SUBMITS = """examples:
  python launch.py submit --on=slurm --nodes=4 --gpus=8 --config=configs/gpt2.py:124m \\
      --workdir=/shared/runs/gpt2 --setup='source env/bin/activate'
  python launch.py submit --on=gke --topology=v5p:4x4x4 --image=REGISTRY/llm_jax \\
      --claim=runs --config=configs/llama.py:8b --workdir=/runs/llama
  python launch.py submit --on=tpu-vm --topology=v5p:4x4x4 --zone=us-east5-a --bucket=my-runs \\
      --repository=https://… --config=configs/llama.py:8b --workdir=/runs/llama
"""

SUBMIT_OPTIONS = (
    ("nodes", int, "slurm: machines, one process each"),
    ("gpus", int, "slurm: GPUs of a machine"),
    ("time", str, "slurm: limit of one job, after which it is queued again; default 24:00:00"),
    ("partition", str, "slurm"),
    ("account", str, "slurm"),
    ("topology", str, "gke, tpu-vm: v5p:4x4x4"),
    ("slices", int, "gke, tpu-vm: so many of it, joined by DCN; default 1"),
    ("image", str, "gke: a container image with this repository as its working directory"),
    ("claim", str, "gke: a PersistentVolumeClaim that every pod can write, mounted at /runs"),
    ("zone", str, "tpu-vm"),
    ("project", str, "tpu-vm: default gcloud's own"),
    ("repository", str, "tpu-vm: a git address of this repository"),
    ("bucket", str, "tpu-vm: a Cloud Storage bucket, mounted at /runs"),
    ("spot", bool, "tpu-vm: chips that may be taken away"),
    ("setup", str, "slurm, tpu-vm: a shell line run first, such as one that activates Python"),
    ("retries", int, "restarts after crashes; default 10"),
)

QUICKSTART = "configs/quickstart.py"
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="launch.py",
        description="Pretrain, evaluate and sample Transformer language models in JAX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(function, text: str, about="", epilog=EXAMPLES) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            function.__name__.rstrip("_"),  # import_: the word is Python's
            help=text,
            description=about or text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=function)
        if function is not plan:
            sub.add_argument("--workdir", required=True, help="the run folder")
        sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
        return sub

    sub = command(train, "train, or resume, the run of a config")
    sub.add_argument("--config", default="", help="FILE.py[:variant]; the run's own if not given")

    sub.add_argument("--stopped_code", type=int, default=0, help="exit code after SIGTERM's save")

    sub = command(submit, "train as a job of Slurm, GKE or TPU VMs", SUBMIT, SUBMITS)
    sub.add_argument("--on", choices=("slurm", "gke", "tpu-vm"), required=True)
    sub.add_argument("--config", default="", help="FILE.py[:variant]; the run's own if not given")
    sub.add_argument("--name", default="llm-jax", help="of the job; default llm-jax")
    sub.add_argument("--go", action="store_true", help="hand the job in; else only write its file")
    for option, kind, text in SUBMIT_OPTIONS:
        how = {"action": "store_true"} if kind is bool else {"type": kind}
        sub.add_argument(f"--{option}", default=None, help=text, **how)

    sub = command(eval, "mean loss of a run's checkpoint on held-out text")
    sub.add_argument("--step", type=int, help="a saved step; the newest if not given")
    sub.add_argument("--split", choices=("train", "validation", "test"), default="validation")

    sub = command(generate, "continue prompts, answer them, or fill in their [MASK]s")
    sub.add_argument("--step", type=int, help="a saved step; the newest if not given")
    sub.add_argument("--prompt", action="append", default=[], help="may be given several times")
    sub.add_argument("--max_new_tokens", type=int, help="64, or what there is room for")
    sub.add_argument("--temperature", type=float, help="0: greedy; default 1, encoder-decoders 0")
    sub.add_argument("--top_k", type=int, default=0, help="0: all; of a masked model, 5")
    sub.add_argument("--top_p", type=float, default=1.0)
    sub.add_argument("--beams", type=int, default=1, help="more than 1: beam search")
    sub.add_argument("--length_penalty", type=float, help="of beam search, default 0.6")
    sub.add_argument("--seed", type=int, default=0)

    sub = command(import_, "make a run of a Hugging Face folder (safetensors)")
    sub.add_argument("--from", dest="source", required=True, help="the Hugging Face folder")
    sub.add_argument("--config", default="", help="FILE.py[:variant] for all but the model")

    sub = command(export, "write a run's checkpoint as a Hugging Face folder")
    sub.add_argument("--to", dest="target", required=True, help="the folder to be made")
    sub.add_argument("--step", type=int, help="a saved step; the newest if not given")
    sub.add_argument("--family", help="of those that can express the model; found if not given")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")

    sub = command(sweep, "train variants of a config over seeds and compare them", SWEEP, SWEEPS)
    sub.add_argument("--config", default="", help="FILE.py[:variant], with or without get_sweep")
    sub.add_argument("--axis", action="append", default=[], metavar="KEY=V1,V2,…")
    sub.add_argument("--seeds", type=int, help="runs of each variant; default the file's, or 3")
    sub.add_argument("--match", help="none | params | flops: solve model.mlp_dim for equal ones")
    sub.add_argument("--baseline", help="the variant that the others are compared with")
    sub.add_argument("--lengths", help="tokens at which cost is measured: 512,1024,… or none")
    sub.add_argument("--index", type=int, default=0, help="of this process, 0 to OF - 1")
    sub.add_argument("--of", type=int, default=1, help="processes that share the work")
    sub.add_argument("--report", action="store_true", help="only write the report")

    sub = command(plan, "what a training step would take on a pod, without one", PLAN, PLANS)
    sub.add_argument("--config", required=True, help="FILE.py[:variant]")
    sub.add_argument("--topology", required=True, help="v5p:4x4x4, v5e:16x16, …, or cpu:8")
    sub.add_argument("--slices", type=int, default=1, help="so many of it, joined by DCN")
    sub.add_argument("--search", action="store_true", help="rank meshes, microbatches and remat")
    sub.add_argument("--compiles", type=int, default=8, help="of --search, at most")
    return top


def train(args, overrides) -> dict:
    """Trains to the end of config.train.steps and samples; the quickstart too."""
    config = _config(args, overrides)
    # Only now: a wrong config is refused in the time that Python needs to start.
    found = hosts.start()
    from llm_jax import models
    from llm_jax.console import Reporter, Silent
    from llm_jax.train.loop import Trainer

    first = found is None or found.index == 0
    with hosts.together(found):
        trainer = Trainer(config, args.workdir, Reporter() if first else Silent())
        summary = trainer.run()
        speaks = models.heads.speaks(config.model)
        sampling = summary["finished"] and config.sample.prompts and speaks
        params = trainer.params(here=True) if sampling else None
    if not first:
        return summary
    if sampling:
        from llm_jax.decode import complete

        options = {"temperature": 0.8, "top_k": 40} if config.model.kind == "decoder" else {}
        texts = complete(
            trainer.setup.model,
            params,
            trainer.tokenizer,
            config.sample.prompts,
            objective=config.objective,
            max_new_tokens=config.sample.max_new_tokens,
            seed=config.seed,
            **options,
        )
        _write_samples(args.workdir, texts, config.model.kind)
        _show_samples(texts, config.model.kind)
        summary["samples"] = texts
    held_out = summary.get("eval_loss")
    which, loss = ("validation", held_out) if held_out else ("training", summary.get("loss"))
    what = "finished" if summary["finished"] else "stopped; the same command resumes"
    reached = f", {which} loss {loss:.3f}" if loss else ""
    print(f"{what} at step {summary['step']}{reached}; everything is in {args.workdir}")
    if summary["finished"]:
        print("\nnext:")
        prompt = shlex.quote((*config.sample.prompts, _usual_prompt(config.model.kind))[0])
        if speaks:
            print(f"  python launch.py generate --workdir={args.workdir} --prompt={prompt}")
        print(f"  python launch.py eval --workdir={args.workdir}")
        print(f"  open {args.workdir}/loss.png, or, with tensorboard installed:")
        print(f"  tensorboard --logdir={args.workdir}/tensorboard")
    return summary


def _config(args, overrides) -> configs.ConfigDict:
    """The config that is named, else that of the run folder, else the defaults."""
    file = Path(args.workdir) / "config.json"
    if args.config:
        return configs.load(args.config, overrides)
    if not file.is_file():
        config = configs.load("", overrides)
        print("no --config: a new run of llm_jax/config.py's defaults", file=sys.stderr)
        return config
    try:
        config = configs.from_json(file.read_text())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    configs.change(config, overrides)
    return config


def submit(args, overrides) -> dict:
    """Writes a job and, asked to, hands it in."""
    from llm_jax.pod import submit as jobs

    config = _config(args, overrides)  # refused here rather than by each of many machines
    train = ["train", *[f"--config={args.config}"] * bool(args.config)]
    train += [f"--workdir={args.workdir}", *(f"--config.{override}" for override in overrides)]
    given = {option: getattr(args, option) for option, _, _ in SUBMIT_OPTIONS}
    given = {o: value for o, value in given.items() if value is not None and value is not False}
    job = jobs.make(args.on, args.name, train, given, Path(__file__).resolve().parent)
    if job.devices:
        configs.mesh_sizes(config.mesh, job.devices)
    path = jobs.write(job)
    print(f"{job.text}\n{path} is the above; {'running' if args.go else 'to hand it in'}:")
    print(f"  {shlex.join(job.command)}")
    code = None
    if args.go:
        try:
            code = subprocess.run(job.command, check=False).returncode
        except FileNotFoundError as error:
            raise ConfigError(f"--go: {job.command[0]} is not installed here") from error
    return {"file": str(path), "command": job.command, "code": code, "failed": bool(code)}


def eval(args, overrides) -> dict:
    """Prints the loss of a checkpoint."""
    _no(overrides)
    import jax

    from llm_jax import sharding
    from llm_jax.data import pipeline, sources
    from llm_jax.train.evaluate import evaluate
    from llm_jax.train.run import load_params
    from llm_jax.train.state import make_eval_step

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    documents = sources.splits(setup.config)[args.split]
    if not len(documents):
        raise ConfigError(
            f"--split={args.split}: the run has none; data.{args.split} or "
            f"data.{args.split}_fraction of its config would make one"
        )
    batches = pipeline.eval_batches(setup.config, tokenizer, documents)
    eval_step = jax.jit(make_eval_step(setup.model, setup.objective, setup.config))
    with sharding.activate(setup.mesh):
        result = evaluate(eval_step, params, batches, setup.mesh)
    perplexity = math.exp(min(result["loss"], 700))
    print(
        f"step {step}, {args.split}: loss {result['loss']:.4f}, perplexity {perplexity:.2f}, "
        f"accuracy {result['accuracy']:.3f}, {result['tokens']:,} tokens"
    )
    return {"step": step, "split": args.split, "perplexity": perplexity} | result


def generate(args, overrides) -> dict:
    """Prints each prompt with what the model makes of it."""
    _no(overrides)
    for prompt in args.prompt:
        if any("\ud800" <= c <= "\udfff" for c in prompt):  # Python's stand-ins for such bytes
            raise ConfigError(f"--prompt={prompt!r}: is not UTF-8 text")
    from llm_jax.decode import complete
    from llm_jax.train.run import load_params

    setup, tokenizer, params, step = load_params(args.workdir, args.step)
    keys = "max_new_tokens temperature top_k top_p seed beams length_penalty".split()
    options = {key: getattr(args, key) for key in keys} | {"objective": setup.config.objective}
    texts = complete(setup.model, params, tokenizer, args.prompt or [""], **options)
    _show_samples(texts, setup.model.cfg.kind)
    return {"step": step, "samples": texts}


def import_(args, overrides) -> dict:
    """Makes a run folder at step 0 of a Hugging Face folder."""
    config = configs.load(args.config)
    from llm_jax.hub.runs import import_run
    from llm_jax.models import heads

    found = import_run(args.source, args.workdir, config, overrides)
    print(f"imported {found['family']}, {found['parameters']:,} parameters, into {args.workdir}")
    if found["new"]:
        print(f"new, to be trained first: {', '.join(found['new'])}")
    print("\nnext:")
    if not heads.speaks(configs.ConfigDict(found)):
        print("  it says no words, so there is nothing to train or sample; it gives vectors,")
        print("  from Python (llm_jax/hub/__init__.py shows how), and can be exported:")
        print(f"  python launch.py export --workdir={args.workdir} --to=FOLDER")
        if found["head"] == "none":
            print("  to train it, import it again with a new head: --config.model.head=mlm")
        return found
    if not found["new"]:
        prompt = shlex.quote(_usual_prompt(found["kind"]))
        print(f"  python launch.py generate --workdir={args.workdir} --prompt={prompt}")
    data = "SOURCES.txt,TARGETS.txt" if found["objective"] == "seq2seq" else "FILE"
    print(f"  python launch.py train --workdir={args.workdir} --config.data.train={data}")
    return found


def export(args, overrides) -> dict:
    """Writes a checkpoint as a Hugging Face folder."""
    _no(overrides)
    from llm_jax.hub.runs import export_run

    found = export_run(args.workdir, args.target, args.step, args.family, args.dtype)
    less = f", without its {found['left_out'][0]}" if found["left_out"] else ""
    print(f"wrote step {found['step']} as {found['family']} to {found['folder']}{less}")
    return found


def sweep(args, overrides) -> dict:
    """Plans, runs and reports an ablation."""
    from llm_jax.sweep import execute, report, results

    workdir = Path(args.workdir)
    tell = lambda text: print(text, file=sys.stderr, flush=True)
    if not args.report:
        execute.share([], args.index, args.of)  # refused before the slow imports
        plan = _planned(args, overrides, tell)
        train = [sys.executable, str(Path(__file__).resolve()), "train"]
        execute.execute(plan, workdir, train, args.index, args.of, tell)
    plan = results.read_plan(workdir)
    states = [run.state() for run in results.runs(plan, workdir)]
    path = report.write(workdir)
    counts = {name: states.count(name) for name in ("finished", "failed", "left")}
    print(", ".join(f"{n} {name}" for name, n in counts.items()) + f"; the report is {path}")
    return counts | {"report": str(path), "variants": results.as_json(plan, workdir)}


def plan(args, overrides) -> dict:
    """Prints what a config's train step takes on a topology."""
    config = configs.load(args.config, overrides)
    import jax

    if not args.topology.startswith("gpu"):
        jax.config.update("jax_platforms", "cpu")  # nothing is run
    from llm_jax.pod import plan, report, search

    tell = lambda text: print(text, file=sys.stderr, flush=True)
    if args.search:
        found = search.search(config, args.topology, args.slices, args.compiles, tell)
        if found["compiled"] and not found["ranked"]:
            print(f"none of the {found['compiled']} settings that were compiled fits")
        for place, one in enumerate(found["ranked"], 1):
            print(f"{place}. {search.line(one)}")
        return found
    found = plan.make(config, args.topology, args.slices, tell)
    print("\n".join(report.lines(found)))
    return found


def _planned(args, overrides, tell) -> dict:
    from llm_jax.sweep import spec

    lengths = None if args.lengths is None else spec.lengths(args.lengths)
    found = spec.load(
        args.config, args.axis, seeds=args.seeds, match=args.match, baseline=args.baseline,
        lengths=lengths,
    )  # fmt: skip
    found.variants()
    import jax

    from llm_jax.sweep import plan as plans

    # Shapes are all it needs of JAX; an accelerator is for the runs.
    jax.config.update("jax_platforms", "cpu")
    plan = plans.commit(plans.make(found, args.config, overrides), Path(args.workdir))
    for line in plans.describe_match(plan):
        tell(f"matched {line}")
    return plan


def _write_samples(workdir, texts: list[dict], kind: str) -> None:
    first = ">>> {}\n{}" if kind == "decoder" else ">>> {1}"  # below which the others have theirs
    body = "\n\n".join(first.format(t["prompt"], _laid_out(t, kind)) for t in texts)
    (Path(workdir) / "samples.txt").write_text(body + "\n")


def _show_samples(texts: list[dict], kind: str) -> None:
    for text in texts:
        print(_laid_out(text, kind, "\033[1m{}\033[0m" if sys.stdout.isatty() else "{}") + "\n")


def _laid_out(text: dict, kind: str, prompt: str = "{}") -> str:
    """A continuation follows its prompt; an answer, or a text filled in, stands below it."""
    lines = [prompt.format(text["prompt"]) + ("" if kind == "decoder" else "\n")]
    lines[0] += text["completion"]
    for gap in text.get("candidates", ()):
        lines += ["  " + ", ".join(f"{c['text']!r} {c['probability']:.3f}" for c in gap)]
    return "\n".join(lines)


def _usual_prompt(kind: str) -> str:
    return "The [MASK] is" if kind == "encoder" else "The "


def _no(overrides: list[str]) -> None:
    if overrides:
        takers = "train, submit, import, sweep and plan"
        raise ConfigError(f"--config.{overrides[0]}: only {takers} take config keys")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, 0 only for success."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("--") and argv[0] != "--help"):
        argv = ["train", f"--config={QUICKSTART}", "--workdir=runs/quickstart", *argv]
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    for option in (a.split("=")[0] for a in argv if a.startswith("--")):
        if "." in option and not option.startswith("--config."):
            print(f"error: {option}: write --config.{option[2:]}", file=sys.stderr)
            return 2
    args = parser().parse_args([a for a in argv if not a.startswith("--config.")])
    if args.command is None:
        parser().print_help()
        return 2
    began = time.time()
    try:
        result = args.run(args, overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        return 1
    except Restart as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    if args.json:
        print(json.dumps(result | {"seconds": round(time.time() - began, 2)}))
    if result.get("finished") is False:  # a sweep's is a count
        return args.stopped_code
    return 1 if result.get("failed") else 0


if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED or (code in (1, 2) and hosts.joined()):
        # Threads may be inside C++ code; a run that was interrupted here has nothing to save, and
        # one that failed must not wait for the others' farewell.
        hosts.end(code)
    raise SystemExit(code)
