"""Holds every family to its reference in PyTorch, records it, and writes README.md.

python experiments/parity/run.py [CASE …]     # all of them; --readme only writes README.md
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

TEXT = """# The same models as `transformers`

**Claim.** Each family is the model of its paper, number by number, as far as the PyTorch code of
`transformers` is: with the same random weights it gives the same outputs, losses and gradients,
it trains the same, and its weights survive export and import bit for bit. **How**:

```
python experiments/parity/run.py
```

Everything in float32 on a CPU; attention of the reference is its own `eager`. Each model is saved
by `transformers`, read by `hub.load`, and run on a ragged batch; only real positions are compared.
tests/parity.py lists the cases.

- *outputs*: max |ours - theirs| / max(|theirs|, 1) over logits, loss, last hidden states and,
  where the model has them, encoder output, pooled vector, sentence logits. Limit: 1e-4.
- *gradient*: for every parameter max |ours - theirs| / max |theirs|, the largest. Where a
  gradient is below a thousandth of the model's largest, it is taken relative to that: that of
  a key's bias, say, is zero but for rounding. Limit: 1e-3.
- *100 steps*: the largest difference of the losses of 100 steps of AdamW (learning rate 1e-3, decay
  0.1 on matrices only, no dropout) from the same weights on the same batches. Limit: 1e-3.
- *round trip*: exported by `hub.save`, opened by `transformers`: all weights bitwise the same, none
  missing, none left over, and the outputs equal within 1e-6.

Of the Reformer each LSH layer hashes by the rotations of the reference (`hash_seed`), whose
odd lengths are padded, and whose list of hidden states leaves one stream out: its are taken from
the bare model. The bias of its output has two names in `transformers`: of one parameter in version
4, of two in version 5, which adds `lm_head.decoder.bias` alone; both are written.

This file is written by run.py from results/.

"""
HASHES = """

## Where hashing parts

A bucket is the argmax of products, and training is chaotic where a token changes its bucket: what
float32 rounds differently once in a great many tokens sets two runs apart for good. Of 100 steps:

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
             training, "bitwise" if r["round_trip"] else "**differs**"]
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
    parted = ["case", "first step with another bucket", "buckets that differ, mean of the steps",
              "of the worst step", "100 steps' losses"]  # fmt: skip
    text = TEXT + record.table(header, rows) + HASHES + record.table(parted, hashes) + about
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] != ["--readme"]:
        main(sys.argv[1:])
    write_readme()
