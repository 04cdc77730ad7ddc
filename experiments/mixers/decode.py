"""Cost per token in decoding: bytes of cache or state, and time relative to dense attention."""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs.ablations.mixers import KINDS
from llm_jax import attention, models, record
from llm_jax import config as configs
from llm_jax.sweep.spec import slug

LENGTHS = (1024, 8192, 65_536)
TOKENS = 8  # decoded by a call, in a loop on the device as llm_jax.decode has it
ROUNDS, SECONDS = 15, 3.0  # rounds in turn with dense; fewer where they take longer than that
FILE = Path(__file__).parent / "results" / "decode"


def model_config(keys: dict):
    """One layer without feed-forward, four heads of 64, float32, of a row's length."""
    c = configs.base()
    c.model.update(num_layers=1, embed_dim=256, num_heads=4, positions="rotary", use_bias=False,
                   feed_forward=False, vocab_size=8)  # fmt: skip
    for key, value in keys.items():
        c.model[key.removeprefix("model.")] = value
    return c.model


def abstract_cache(cfg, length: int):
    """Shapes of what one row keeps when it has `length` tokens; computes nothing."""
    model = models.build(cfg)
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def step(tokens, positions):
        params = models.unstacked(model, models.init_params(model, jax.random.key(0)))
        return model.apply(
            {"params": params}, tokens, positions, cache_length=length, method="step",
            mutable=["cache"],
        )[1]  # fmt: skip

    return jax.eval_shape(step, one, one)["cache"]


def cache_bytes(cfg, length: int) -> int | None:
    """Bytes of a row's cache or state, all layers together; None: it has none to go on from."""
    layers = configs.layers(cfg, configs.depths(cfg)["decoder"])
    if not all("cache" in attention.get(layer.attention).supports for layer in layers):
        return None
    leaves = jax.tree.leaves(abstract_cache(cfg, length))
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in leaves)


class Step:
    """Decodes the last tokens of a full row, again and again; the cache is updated in place."""

    def __init__(self, keys: dict, length: int):
        cfg = configs.resolve(model_config(keys | {"model.max_length": length}), 8)
        self.bytes, model = cache_bytes(cfg, length), models.build(cfg)
        self.params = models.unstacked(model, models.init_params(model, jax.random.key(0)))
        seen = length - TOKENS - 1
        fill = lambda x: jnp.full(x.shape, 0.1 if x.dtype.kind == "f" else seen, x.dtype)
        self.cache = jax.tree.map(fill, abstract_cache(cfg, length))

        def step(i, carry, params):
            variables, one = {"params": params, "cache": carry[0]}, jnp.ones((1, 1), jnp.int32)
            outputs, new = model.apply(
                variables, i * one, (length - TOKENS + i) * one, cache_length=length,
                method="step", mutable=["cache"],
            )  # fmt: skip
            return new["cache"], outputs.hidden

        def run(cache, params):
            start = cache, jnp.zeros((1, 1, cfg.embed_dim))
            return jax.lax.fori_loop(0, TOKENS, partial(step, params=params), start)

        self.run = jax.jit(run, donate_argnums=0).lower(self.cache, self.params).compile()

    def seconds(self) -> float:
        """Of a token, in the second of two calls: in the first, other memory is freed."""
        for _ in range(2):
            began = time.perf_counter()
            self.cache, hidden = self.run(self.cache, self.params)
            jax.block_until_ready((self.cache, hidden))
        return (time.perf_counter() - began) / TOKENS


def measure(keys: dict, dense: Step, length: int) -> dict:
    """Bytes, the median time of a token, and its median ratio to dense's in the same rounds."""
    step, rounds, began = Step(keys, length), [], time.perf_counter()
    for _ in range(1 + ROUNDS):
        rounds.append((step.seconds(), dense.seconds()))
        if time.perf_counter() - began > SECONDS:
            break
    times = np.array(rounds[1:] or rounds)  # the first warms up
    low, ratio, high = np.percentile(times[:, 0] / times[:, 1], (25, 50, 75)).tolist()
    return {"length": length, "bytes": step.bytes, "ratio": ratio, "low": low, "high": high,
            "milliseconds": 1e3 * float(np.median(times[:, 0])), "rounds": len(times)}  # fmt: skip


def study(kinds: list[str]) -> None:
    """Writes results/decode/KIND.json of the kinds that are missing and can go on from a cache."""
    able = lambda keys: "cache" in attention.get(keys["model.attention"]).supports
    there = lambda kind: (FILE / f"{slug(kind)}.json").exists()
    todo = [k for k, keys in KINDS.items() if not there(k) and able(keys) and k in (kinds or [k])]
    if not todo:
        return
    rows: dict[str, list] = {kind: [] for kind in todo}
    for length in LENGTHS:
        dense = Step({"model.attention": "dense"}, length)
        for kind in todo:
            rows[kind].append(measure(KINDS[kind], dense, length))
            print(f"decode, {kind}: {rows[kind][-1]}", flush=True)
    for kind, found in rows.items():
        record.write(FILE / f"{slug(kind)}.json", kind=kind, rows=found)
