"""Memory of a training step's gradient by depth and by length; writes results/, a figure, README.

python experiments/reformer/run.py

Nothing is run: XLA's own account of the compiled program (`memory_analysis`) gives the bytes.
"""

import json
import math
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib  # noqa: E402

from llm_jax import config, models, record  # noqa: E402
from llm_jax.objectives import causal_lm  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SIZES = {
    "vocab_size": 259, "embed_dim": 128, "num_heads": 2, "mlp_dim": 512, "positions": "sinusoidal",
    "window": 64, "lsh_chunk": 64, "lsh_hashes": 2, "lsh_buckets": (8, 16), "mlp_chunk": 256,
    "tie_embeddings": False, "activation": "relu", "dropout": 0.1,
}  # fmt: skip
DEPTHS, DEPTH_LENGTH = (2, 4, 8, 16, 32), 1024
LENGTHS, LENGTH_DEPTH = (1024, 2048, 4096, 8192, 16384), 2
BY_DEPTH = {
    "stored (dense)": {"attention": "dense", "reversible": False},
    "stored, remat (dense)": {"attention": "dense", "reversible": False, "remat": "full"},
    "reversible (dense)": {"attention": "dense", "reversible": True},
    "reversible (LSH)": {"attention": "lsh", "reversible": True},
}
BY_LENGTH = {
    "dense": {"attention": "dense", "reversible": True},
    "local": {"attention": "chunked", "reversible": True},
    "LSH, 2 rounds": {"attention": "lsh", "reversible": True},
}

TEXT = """# Reformer: memory by depth and by sequence length

**Claim** (Kitaev 2020, sections 2 and 3): with reversible layers, the activations of a training
step need the memory of one layer, whatever the depth. With LSH attention, memory grows with the
length L as L log L instead of L^2.

**Published** (table 3): memory of the order of max(b l d_ff, b n l^2) n_l for a Transformer and
max(b l d, b n l n_r c) for a Reformer, with n_l layers, l tokens, n heads and n_r rounds of
hashing.

**Measured**: temporary bytes of the compiled gradient of the loss of one sequence. Width
{embed_dim}, {num_heads} heads, feed-forward width {mlp_dim} in chunks of {mlp_chunk} positions,
chunks of {lsh_chunk} in local and LSH attention, dropout {dropout}, float32.

![memory by depth and by length](memory.png)

## By depth, {depth_length} tokens

MiB of temporaries, and bytes per additional layer (least squares). LSH attention stores its
buckets for the backward pass, as in transformers, because rounding could otherwise assign a token
to another bucket: {buckets:,} bytes per layer, compared with {stream:,} for the activations of
one stream.

{depth}

## By length, {length_depth} layers

MiB of temporaries, and the exponent of the length fitted to the upper half of the lengths.

{length}

## How to reproduce

```
{command}
```

Commit {commit}, {time}, jax {jax}, {hardware}. XLA reports these bytes for the CPU; other devices
pad and fuse differently. run.py writes this file from results/memory.json.
"""


def temporaries(length: int, layers: int, **changes) -> int:
    """Temporary bytes of the gradient of one sequence's loss."""
    cfg = config.base().model
    cfg.update(SIZES | {"max_length": length, "num_layers": layers} | changes)
    model = models.build(config.resolve(cfg, 0))
    shapes = nn.unbox(jax.eval_shape(lambda: models.init_params(model, jax.random.key(0))))
    settings = config.base().objective

    def loss(params, tokens, key):
        batch = {"tokens": tokens, "targets": tokens, "weights": jnp.ones(tokens.shape)}
        out = model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key})
        return causal_lm.losses(out, batch, settings)[0]["tokens"]

    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.jit(jax.grad(loss)).lower(shapes, tokens, key).compile()
    return program.memory_analysis().temp_size_in_bytes


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the least-squares line."""
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    dots = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return dots / sum((a - x) ** 2 for a in xs)


def main() -> None:
    """Measures, records, draws, writes."""
    by_depth, by_length = {}, {}
    for name, changes in BY_DEPTH.items():
        by_depth[name] = [temporaries(DEPTH_LENGTH, n, **changes) for n in DEPTHS]
        print(name, by_depth[name], file=sys.stderr)
    for name, changes in BY_LENGTH.items():
        by_length[name] = [temporaries(n, LENGTH_DEPTH, **changes) for n in LENGTHS]
        print(name, by_length[name], file=sys.stderr)
    upper = len(LENGTHS) // 2
    record.write(
        HERE / "results" / "memory.json",
        sizes={k: list(v) if isinstance(v, tuple) else v for k, v in SIZES.items()},
        depth={"length": DEPTH_LENGTH, "layers": DEPTHS, "bytes": by_depth},
        length={"layers": LENGTH_DEPTH, "lengths": LENGTHS, "bytes": by_length},
        bytes_a_layer={name: slope(DEPTHS, y) for name, y in by_depth.items()},
        exponents={
            name: slope([math.log(n) for n in LENGTHS[upper:]], [math.log(y) for y in ys[upper:]])
            for name, ys in by_length.items()
        },
    )
    write()


def write() -> None:
    """Draws memory.png and writes README.md from the record."""
    r = json.loads((HERE / "results" / "memory.json").read_text())
    mib = lambda x: x / 2**20
    depth, length = r["depth"], r["length"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, ys in depth["bytes"].items():
        left.plot(depth["layers"], [mib(y) for y in ys], "o-", label=name)
    left.set(xlabel="layers", ylabel="MiB of temporaries", xscale="log", yscale="log",
             title=f"by depth, {depth['length']:,} tokens")  # fmt: skip
    left.set_yticks([25, 50, 100, 200, 400], ["25", "50", "100", "200", "400"])
    left.set_xticks(depth["layers"], map(str, depth["layers"]))
    for name, ys in length["bytes"].items():
        label = f"{name}: length^{r['exponents'][name]:.2f}"
        right.plot(length["lengths"], [mib(y) for y in ys], "o-", label=label)
    right.set(xlabel="tokens", xscale="log", yscale="log",
              title=f"by length, {length['layers']} reversible layers")  # fmt: skip
    right.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
    right.set_xticks(length["lengths"], [f"{n:,}" for n in length["lengths"]])
    for axes in (left, right):
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(HERE / "memory.png", dpi=110)

    s = r["sizes"]
    buckets = s["num_heads"] * s["lsh_hashes"] * depth["length"] * 2
    rows = lambda ys: [f"{mib(y):.1f}" for y in ys]
    text = TEXT.format(
        depth_length=f"{depth['length']:,}",
        length_depth=length["layers"],
        buckets=buckets,
        stream=depth["length"] * s["embed_dim"] * 4,
        depth=record.table(
            ["", *map(str, depth["layers"]), "bytes per layer"],
            [[name, *rows(ys), f"{r['bytes_a_layer'][name]:,.0f}"]
             for name, ys in depth["bytes"].items()],
        ),
        length=record.table(
            ["", *(f"{n:,}" for n in length["lengths"]), "exponent"],
            [[name, *rows(ys), f"{r['exponents'][name]:.2f}"]
             for name, ys in length["bytes"].items()],
        ),
        jax=r["versions"]["jax"],
        **{k: r[k] for k in ("command", "commit", "time", "hardware")},
        **{k: s[k] for k in ("embed_dim", "num_heads", "mlp_dim", "mlp_chunk", "dropout")},
        lsh_chunk=s["lsh_chunk"],
    )  # fmt: skip
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
