"""Measures the input pipeline on one core; writes results/ and README.md.

python experiments/input/run.py [CASE …]      # without cases: all that have no result
"""

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from llm_jax import record  # noqa: E402
from llm_jax.config import load  # noqa: E402
from llm_jax.sharding.hardware import chip  # noqa: E402

REPEATS, TOKENS, CORE, BATCH = 5, 6_000_000, 1, 64
# Case: config, and what a document is of Python's standard library and language reference.
CASES = {
    "gpt2": ("gpt2.py:124m", "file"),
    "llama": ("llama.py:8b", "file"),
    "bert": ("bert.py:large", "file"),
    "gpt3": ("gpt3.py:175b", "file"),
    "t5": ("t5.py:11b", "file"),
    "gpt2-paragraphs": ("gpt2.py:124m", "paragraph"),
}
MILLION = 100_000_000  # documents of the set that is only said to be there
# Chips of a host and its vCPUs: Google Cloud's machine types ct5p-hightpu-4t, ct5lp-hightpu-4t.
HOSTS = {"v5p": (4, 208), "v5e": (4, 112)}

TEXT = """# Throughput of the input pipeline

**Claim.** One core packs at least a million tokens per second from ArrayRecords of token ids. The
cores of a host can feed its chips in the planned configs. The iterator of a global shuffle of 100
million documents is ready in less than a second (the first batch takes longer, see below) and does
not hold a list of them.

**Setup.** The iterator of `launch.py train` (reading, cutting, shuffling, first-fit packing, the
random choices of the objective, batches of {batch}), with all its threads pinned to one core of
{hardware}, on a set prepared by `llm_jax.data.prepare`. Tokens are counted without padding. CPU
seconds are those of the process; wall seconds include the time that other programs used.
{repeats} repeats of {tokens:,} tokens each, median (minimum to maximum), with cached files.

{rates}

The same with {documents:,} simulated documents (`Lazy` over records that are generated when they
are read), divided into training and validation: the iterator is ready after {start:.3f} s and
returns the first batch {first:.2f} s later (with tracemalloc enabled). Peak traced memory is
{peak:.0f} MB; a list of the indices alone would need {indices:.0f} MB.

## Cores needed per host

The chips consume tokens at the compute bound of the cases in experiments/pod: chips x peak /
FLOPs per token, remat included. This is 100 % utilisation; a run at 40 % MFU needs less than
half. With one stream, every host packs all rows and keeps its own. With one of data.shards
streams per host, every host packs only its own rows ([docs/pod.md](../../docs/pod.md)).

{cores}

{verdict}

    {command}

{provenance}
"""


def measure(config_file: str, tfds_dir: str, name: str) -> list[dict]:
    """Tokens, and the CPU and wall seconds that one core takes for them, of each repeat."""
    os.sched_setaffinity(0, {CORE})
    from llm_jax import objectives
    from llm_jax.data import pipeline

    config = _config(config_file)
    config.data.train, config.data.tfds_dir = f"tfds:{name}", tfds_dir
    config.data.validation = config.data.test = ""
    config.data.validation_fraction = 0.01
    objective = objectives.get(config.objective.name)
    docs = objective.splits(config)["train"]
    tokenizer = objective.build_tokenizer(config, docs)
    iterator = pipeline.train_iterator(objective.examples(tokenizer, config), docs)
    sides = [s for s in ("segment_ids", "encoder_segment_ids") if s in next(iterator)]
    for _ in range(pipeline.AHEAD):
        next(iterator)
    runs = [_run(iterator, sides) for _ in range(REPEATS)]
    iterator.close()
    return runs


def _run(iterator, sides: list[str]) -> dict:
    count = places = 0
    began, used = time.perf_counter(), time.process_time()
    while count < TOKENS:
        batch = next(iterator)
        count += sum(int((batch[side] > 0).sum()) for side in sides)
        places += sum(batch[side].size for side in sides)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    return {"tokens": count, "wall_seconds": wall, "cpu_seconds": cpu, "filled": count / places}


def _config(config_file: str):
    config = load(f"{ROOT}/configs/{config_file}")
    config.model.vocab_size, config.data.batch_size, config.data.ramp_steps = 0, BATCH, 0
    config.tokenizer.name, config.tokenizer.vocab_size = "bpe", 8192
    config.tokenizer.path = ""
    return config


def prepare(name: str, config_file: str, unit: str, folder: str) -> dict:
    """Writes the corpus as tokens; returns how many documents and tokens there are."""
    from llm_jax.data import corpus, sources
    from llm_jax.data import prepare as preparing

    texts = corpus.python_documents()
    if unit == "paragraph":
        texts = [part for text in texts for part in text.split("\n\n") if part.strip()]
    file = Path(folder) / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = _config(config_file)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        config.data.train = str(file)
        preparing.prepare(name, config, folder=folder, tokens=True)
    config.data.tfds_dir = folder
    docs = sources.documents(f"tfds:{name}", config.data)
    sizes = [len(doc) for doc in docs.read(range(len(docs)))]
    return {"documents": len(docs), "tokens": sum(sizes), "median": statistics.median(sizes)}


def case(name: str) -> None:
    """Prepares one case and measures it in a separate process."""
    config_file, unit = CASES[name]
    stored = name.replace("-", "_")
    with tempfile.TemporaryDirectory() as folder:
        about = prepare(stored, config_file, unit, folder)
        command = [sys.executable, __file__, f"--one={config_file}", folder, stored]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs = json.loads(done.stdout.splitlines()[-1])
    record.write(HERE / "results" / f"{name}.json", config=config_file, unit=unit, set=about,
                 runs=runs)  # fmt: skip


class _Said:
    """Records that are made when they are asked for."""

    def __len__(self):
        return MILLION

    def __getitem__(self, i):
        return {"text": f"Document {i} of very many. " * 100}


def shuffle() -> None:
    """Starts to read a set of 100 million documents."""
    import tracemalloc

    from llm_jax import objectives
    from llm_jax.data import lazy, pipeline, sources, tokenizers

    config = _config("gpt2.py:124m")
    tokenizer = tokenizers.Bytes()
    tracemalloc.start()
    began = time.perf_counter()
    docs = lazy.Lazy(_Said(), {"text": "text"}, mean=2700)
    parts = sources._hold_out(docs, [0.001, 0.0])
    examples = objectives.get(config.objective.name).examples(tokenizer, config)
    iterator = pipeline.train_iterator(examples, parts[0])
    started = time.perf_counter() - began
    next(iterator)
    first = time.perf_counter() - began - started
    peak = tracemalloc.get_traced_memory()[1]
    iterator.close()
    record.write(HERE / "results" / "shuffle.json", documents=len(docs), start_seconds=started,
                 first_batch_seconds=first, peak_bytes=peak)  # fmt: skip


def spread(values: list[float], form: str = "{:.1f}") -> str:
    """The median, and the range."""
    show = lambda x: form.format(x)
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"


def rates(results: dict) -> str:
    """The table of what was measured."""
    rows = []
    for name, found in results.items():
        config = _config(found["config"])
        runs, about = found["runs"], found["set"]
        rows.append([
            name, config.objective.name, config.model.max_length, found["unit"],
            f"{about['documents']:,} of {about['median']:,.0f} tokens (median)",
            spread([r["tokens"] / r["cpu_seconds"] / 1e6 for r in runs]),
            spread([r["tokens"] / r["wall_seconds"] / 1e6 for r in runs]),
            f"{statistics.median(r['filled'] for r in runs):.1%}",
        ])  # fmt: skip
    header = ["case", "objective", "row", "document", "documents", "million tokens per CPU second",
              "per wall second", "row filled"]  # fmt: skip
    rate = lambda found: statistics.median(r["tokens"] / r["cpu_seconds"] for r in found["runs"])
    low = [name for name, found in results.items() if rate(found) < 1e6]
    said = f"Below a million: {', '.join(low)}." if low else "All cases exceed a million."
    return f"{record.table(header, rows)}\n\n{said}"


def needs(results: dict) -> list[dict]:
    """What each planned config takes at its compute bound, and the cores that pack so much."""
    from llm_jax import config as configs
    from llm_jax.train.run import flops_per_token, recomputed_flops_per_token

    sys.path.insert(0, str(ROOT / "experiments" / "pod"))
    import importlib.util

    spec = importlib.util.spec_from_file_location("pods", ROOT / "experiments" / "pod" / "run.py")
    pods = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pods)
    found = []
    for name, (config_file, topology, keys) in pods.CASES.items():
        measured = next((r for r in results.values() if r["unit"] == "file" and
                         r["config"].split(":")[0] == config_file.split(":")[0]), None)  # fmt: skip
        if measured is None:
            continue
        config = load(f"{ROOT}/configs/{config_file}", [f"{k}={v}" for k, v in keys.items()])
        config.model = configs.resolve(config.model, config.tokenizer.vocab_size)
        kind, shape = topology.split(":")
        if kind not in HOSTS:
            continue
        chips = math.prod(map(int, shape.split("x")))
        peak = chip(SimpleNamespace(device_kind=kind)).flops
        work = flops_per_token(config) + recomputed_flops_per_token(config)
        rate = statistics.median(r["tokens"] / r["cpu_seconds"] for r in measured["runs"])
        found.append({
            "name": name, "topology": topology, "chips": chips, "kind": kind,
            "takes": chips * peak / work, "rate": rate, "cores": chips * peak / work / rate,
        })  # fmt: skip
    return found


def cores(found: list[dict]) -> str:
    """The table of the arithmetic."""
    rows = []
    for n in found:
        each, vcpus = HOSTS[n["kind"]]
        hosts = n["chips"] // each
        rows.append([
            n["name"], f"{n['topology']} ({n['chips']})", f"{n['takes'] / 1e6:.2f}",
            f"{n['rate'] / 1e6:.1f}", f"{n['cores']:.2f}", hosts, f"{n['cores'] / hosts:.4f}",
            vcpus,
        ])  # fmt: skip
    header = ["case", "chips", "million tokens/s, all chips", "packed per core",
              "cores per host, one stream", "hosts", "cores per host, one shard per host",
              "vCPUs per host"]  # fmt: skip
    return record.table(header, rows)


def verdict(found: list[dict]) -> str:
    """What the table says, in words."""
    hosts = lambda n: n["chips"] // HOSTS[n["kind"]][0]
    named = lambda few: ", ".join(n["name"] for n in few)
    one = [n for n in found if n["cores"] > 1]
    still = [n for n in found if n["cores"] / hosts(n) > 1]
    if still:
        return f"{named(still)}: one core per host is not enough, even with data.shards."
    if one:
        return (f"One stream, packed by every host, is enough for all cases except {named(one)}. "
                "With data.shards equal to the number of hosts, one core per host is enough for "
                "all cases.")  # fmt: skip
    return "One core per host and one stream are enough for all cases."


def write() -> None:
    """Writes README.md from results/."""
    read = lambda name: json.loads((HERE / "results" / f"{name}.json").read_text())
    results = {n: read(n) for n in CASES if (HERE / "results" / f"{n}.json").exists()}
    if not results or not (HERE / "results" / "shuffle.json").exists():
        return
    start = read("shuffle")
    found = needs(results)
    text = TEXT.format(
        batch=f"{BATCH} rows", hardware=start["hardware"], repeats=REPEATS, tokens=TOKENS,
        rates=rates(results), documents=start["documents"], start=start["start_seconds"],
        first=start["first_batch_seconds"], peak=start["peak_bytes"] / 1e6,
        indices=start["documents"] * 8 / 1e6, cores=cores(found), verdict=verdict(found),
        command="python experiments/input/run.py",
        provenance="  \n".join(
            f"{name}: commit {r['commit']}, {r['time']}, {r['hardware']}"
            for name, r in {**results, "shuffle": start}.items()
        ),
    )  # fmt: skip
    (HERE / "README.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--one", help="config: measure it here, on FOLDER and NAME")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, *args.cases)))
        return
    done = lambda name: (HERE / "results" / f"{name}.json").exists()
    for name in args.cases or [name for name in [*CASES, "shuffle"] if not done(name)]:
        shuffle() if name == "shuffle" else case(name)
        print(name, flush=True)
    write()


if __name__ == "__main__":
    main()
