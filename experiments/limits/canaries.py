"""Exposure of canaries by repetition, with deduplication and with DP-SGD; writes canaries.md here.

python experiments/limits/canaries.py [plain deduplicated private | --readme]

Lines of Shakespeare are in $LLM_JAX_DATA/tiny_shakespeare; DP-SGD needs dp-accounting.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from remedies import SST2, launch, main  # noqa: E402

from llm_jax import record  # noqa: E402
from llm_jax.audit.privacy import SECRETS  # noqa: E402
from llm_jax.files import read_json  # noqa: E402
from llm_jax.sweep.figures import styles  # noqa: E402
from llm_jax.train.metrics import figure  # noqa: E402

RUNS, RESULTS = Path("runs") / "limits" / "canaries", HERE / "canaries"
REPETITIONS, EACH = (0, 1, 4, 16, 64), 3  # canaries of each number of repetitions
LINES, HELD = 6000, 500
MODEL = [
    "--config.tokenizer.name=chars", "--config.data.packing=none", "--config.model.num_layers=2",
    "--config.model.embed_dim=64", "--config.model.num_heads=4", "--config.model.max_length=64",
    "--config.model.dropout=0", f"--config.data.validation={RUNS}/held.jsonl",
    "--config.optimizer.learning_rate=4e-3", "--config.optimizer.warmup_steps=20",
    "--config.eval.every=1000",
]  # fmt: skip
PLAIN = ["--config.data.batch_size=64", "--config.train.steps=400"]
POINTS = {
    "plain": [*PLAIN, f"--config.data.train={RUNS}/train.jsonl"],
    "deduplicated": [*PLAIN, "--config.data.train=tfds:canaries_exact",
                     f"--config.data.tfds_dir={RUNS}/tfds"],
    "private": [f"--config.data.train={RUNS}/train.jsonl", "--config.data.batch_size=256",
                "--config.train.microbatches=8", "--config.train.steps=150",
                "--config.privacy.clip=1", "--config.privacy.epsilon=8"],
}  # fmt: skip
TEXT = """# Exposure of canaries

**Command.** `python experiments/limits/canaries.py`, commits {commits}. One seed.

Secrets "the code of NAME is 12345." are planted in {lines:,} lines of Shakespeare: {each} for each
number of repetitions. A GPT of 2 layers and width 64 with a tokenizer of characters is trained on
lines in random order. The exposure of a code is log2(N + 1) - log2(rank), where rank is its place
by probability among N = {secrets:,} random codes (Carlini 2019): at most {most:.1f} bits, and 1.4
on average if it was never seen. `launch.py audit --only=privacy --canary=…` measures it
([docs/audit.md](../../docs/audit.md)).

- **plain**: as planted.
- **deduplicated**: after `prepare --clean=exact` ([docs/data.md](../../docs/data.md)), every code
  is in the training set once.
- **private**: DP-SGD with epsilon 8 and delta 1e-5 per line, which protects a line, not a secret in
  several lines ([docs/privacy.md](../../docs/privacy.md)).

{table}

Mean of {each} codes and its standard error, in bits.

![exposure by repetitions](canaries.png)
"""


def plant() -> dict[str, int]:
    """Writes the training lines with canaries, and held-out lines; returns {canary: count}."""
    rng = np.random.default_rng(0)
    file = SST2.parent / "tiny_shakespeare" / "input.txt"
    some = sorted({x for x in file.read_text().splitlines() if 24 <= len(x) <= 60})
    some = [some[i] for i in rng.permutation(len(some))[: LINES + HELD]]
    letters = np.array([*"abcdefghijklmnopqrstuvwxyz"])
    name = lambda: "".join(rng.choice(letters, 6))
    planted = {f"the code of {name()} is {rng.integers(10_000, 100_000)}.": count
               for count in REPETITIONS for _ in range(EACH)}  # fmt: skip
    lines = some[HELD:] + [text for text, count in planted.items() for _ in range(count)]
    RUNS.mkdir(parents=True, exist_ok=True)
    for name, texts in (("held", some[:HELD]), ("train", lines)):
        rows = (json.dumps({"text": text}) + "\n" for text in texts)
        (RUNS / f"{name}.jsonl").write_text("".join(rows))
    return planted


def point(label: str) -> None:
    """Trains a run and measures its canaries, if it is not recorded yet."""
    if (RESULTS / f"{label}.json").exists():
        return
    if record.commit().endswith("+changes"):
        sys.exit(f"{label}: commit the changes of the working tree first")
    planted, run = plant(), RUNS / label
    shutil.rmtree(run, ignore_errors=True)
    if label == "deduplicated":
        shutil.rmtree(RUNS / "tfds", ignore_errors=True)
        launch("prepare", "--name=canaries_exact", "--clean=exact", f"--tfds_dir={RUNS}/tfds",
               f"--config.data.train={RUNS}/train.jsonl",
               f"--config.data.validation={RUNS}/held.jsonl")  # fmt: skip
    trained = launch("train", f"--workdir={run}", *MODEL, *POINTS[label])
    launch("audit", f"--workdir={run}", "--only=privacy", "--examples=32",
           *(f"--canary={text}" for text in planted))  # fmt: skip
    bits = {f["name"]: f["value"] for f in read_json(run / "audit" / "privacy.json")["figures"]}
    found = [[count, bits[f"exposure of {text!r}"]] for text, count in planted.items()]
    record.write(RESULTS / f"{label}.json", loss=trained["eval_loss"], steps=trained["step"],
                 exposure=found)  # fmt: skip


def write_readme() -> None:
    """Writes canaries.md and its picture, of what is recorded."""
    files = {label: RESULTS / f"{label}.json" for label in POINTS}
    found = {label: read_json(file) for label, file in files.items() if file.exists()}
    rows, looks = [], styles(list(found))
    with figure(HERE / "canaries.png", 7, 4) as (_, (ax,)):
        for label, x in found.items():
            count, bits = np.array(x["exposure"]).T
            each = np.array([bits[count == n] for n in REPETITIONS])
            mean, error = each.mean(1), each.std(1, ddof=1) / np.sqrt(each.shape[1])
            cells = (f"{a:.1f} ± {b:.1f}" for a, b in zip(mean, error, strict=True))
            rows.append([label, f"{x['loss']:.3f}", *cells])
            look = looks[label] | {"marker": "o", "capsize": 3, "label": label}
            ax.errorbar(REPETITIONS, mean, error, **look)
        ax.axhline(1.44, color="#999999", linestyle=":", label="chance")
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xticks(REPETITIONS, REPETITIONS)
        ax.set(xlabel="times planted in the training set", ylabel="exposure (bits)")
        ax.legend(frameon=False)
    head = ["training", "validation loss (nats a character)", *map(str, REPETITIONS)]
    (HERE / "canaries.md").write_text(TEXT.format(
        commits=", ".join(sorted({x["commit"] for x in found.values()})), lines=LINES, each=EACH,
        secrets=SECRETS, most=np.log2(SECRETS + 1), table=record.table(head, rows)))  # fmt: skip


if __name__ == "__main__":
    main(POINTS, point, write_readme)
