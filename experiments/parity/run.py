"""Compares every family with its reference in PyTorch; writes results/ and README.md.

python experiments/parity/run.py [CASE …]     # without cases: all; --readme only writes README.md
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from llm_jax import record  # noqa: E402

TEXT = """# Numerical parity with `transformers`

**Claim.** Each model family computes the same numbers as the PyTorch code of `transformers`. With
the same random weights it has the same outputs, losses and gradients, it trains in the same way,
and its weights are bit-identical after export and import.

```
python experiments/parity/run.py
```

Everything is float32 on a CPU; the reference uses `eager` attention. `transformers` saves each
model, `hub.load` reads it, and both run on a ragged batch. Only real positions are compared.
tests/parity.py lists the cases.

- *outputs*: max |ours - theirs| / max(|theirs|, 1) over logits, loss, last hidden states and, if
  the model has them, encoder output, pooled vector and sequence logits. Limit: 1e-4.
- *gradient*: max |ours - theirs| / max |theirs| for each parameter, the largest. A gradient below
  a thousandth of the model's largest gradient is compared relative to that one; for example, the
  gradient of a key bias is zero except for rounding. Limit: 1e-3.
- *100 steps*: the largest difference of the losses in 100 steps of AdamW (learning rate 1e-3,
  weight decay 0.1 on matrices only, no dropout), from the same weights, on the same batches.
  Limit: 1e-3.
- *round trip*: `hub.save` exports the model and `transformers` opens it. All weights are
  bit-identical, none are missing, none are left over, and the outputs agree within 1e-6.

Reformer: each LSH layer uses the rotations of the reference (`hash_seed`). The reference pads odd
lengths, and its list of hidden states omits one stream, so hidden states are taken from the bare
model. The output bias has two names in `transformers`: they are one parameter in version 4 and
two in version 5, which adds only `lm_head.decoder.bias`. The export writes both.

run.py writes this file from results/.

"""
HASHES = """

## Where hash buckets differ

A bucket is the argmax of products. A token that changes its bucket makes training diverge, so one
different rounding in float32, in a very large number of tokens, separates two runs permanently.
In 100 steps:

"""
OUTPUTS = ("logits", "loss", "features", "encoded", "pooled", "classes")


def main(names: list[str]) -> None:
    """Measures and records the cases, then rewrites README.md."""
    import torch

    from tests import parity as measure

    torch.set_num_threads(1)
    for name in names or measure.CASES:
        began = time.time()
        with tempfile.TemporaryDirectory() as folder:
            found = measure.compare(name, Path(folder) / "compare")
            if name in measure.HASHED:
                ours, theirs, other = measure.train_hashed(name, Path(folder) / "train")
                found["other_buckets"] = other.tolist()
            elif name in measure.TRAINED:
                ours, theirs = measure.train(name, Path(folder) / "train")
            if name in measure.HASHED + measure.TRAINED:
                found["training"] = float(np.abs(ours - theirs).max())
                found["losses"] = [float(theirs[0]), float(theirs[-1])]
        case = measure.CASES[name]
        record.write(
            HERE / "results" / f"{name}.json",
            case=name,
            config=case.config,
            batch=case.shape,
            seconds=round(time.time() - began, 1),
            **found,
        )
        print(f"{name}: {time.time() - began:.1f} s", file=sys.stderr)


def sizes(config: dict) -> str:
    """Returns layers x width, heads and vocabulary of a case."""
    pick = lambda *names: next(config[name] for name in names if name in config)
    layers = pick(
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "attn_layers"
    )
    if isinstance(layers, list):
        layers = len(layers)
    width = pick("hidden_size", "n_embd", "dim", "d_model")
    heads = pick("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
    return f"{layers} x {width}, {heads} heads, vocabulary {config['vocab_size']}"


def write_readme() -> None:
    """Writes README.md from every recorded case."""
    rows, hashes, seen = [], [], set()
    for path in sorted((HERE / "results").glob("*.json")):
        r = json.loads(path.read_text())
        outputs = max(r[key] for key in OUTPUTS if key in r)
        batch = " x ".join(map(str, r["batch"]))
        training = f"{r['training']:.1e}" if "training" in r else ""
        rows.append(
            [r["family"], r["case"], r["reference"], f"{sizes(r['config'])}, batch {batch}",
             f"{r.get('logits', r['features']):.1e}", f"{outputs:.1e}", f"{r['gradient']:.1e}",
             training, "bit-identical" if r["round_trip"] else "**differs**"]
        )  # fmt: skip
        if "other_buckets" in r:
            share = r["other_buckets"]
            first = next((str(i) for i, x in enumerate(share, start=1) if x), "none")
            hashes.append([r["case"], first, f"{np.mean(share):.1e}", f"{np.max(share):.1e}",
                           training])  # fmt: skip
        v = r["versions"]
        seen.add(
            f"{r['hardware']}; Python {v['python']}, jax {v['jax']}, torch {v['torch']}, "
            f"transformers {v['transformers']}"
        )
    header = ["family", "case", "reference class", "sizes", "logits", "outputs", "gradient",
              "100 steps", "round trip"]  # fmt: skip
    about = "\n\n" + "\n".join(f"Measured on {line}." for line in sorted(seen)) + "\n"
    parted = ["case", "first step with a different bucket", "different buckets, mean over steps",
              "worst step", "100 steps, losses"]  # fmt: skip
    text = TEXT + record.table(header, rows) + HASHES + record.table(parted, hashes) + about
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] != ["--readme"]:
        main(sys.argv[1:])
    write_readme()
