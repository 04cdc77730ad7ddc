"""Tests that decoding with a cache equals a forward pass over the whole sequence.

Covers all attention variants and positions, and the cached steps of families in transformers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import attention, hub, models
from llm_jax.decode.cache import Reader
from tests.slow import but, every
from tests.tiny_models import tiny_model

LENGTH, STEPS = 12, 6
PROMPTS = np.array([5, 1, 3])
TOKENS = np.random.default_rng(0).integers(0, 11, (len(PROMPTS), LENGTH))
POSITIONS = ("learned", "sinusoidal", "rotary", "relative", "alibi", "none")

build = partial(tiny_model, max_length=LENGTH)


@partial(jax.jit, static_argnums=(0, 3, 4))
def stepwise(model, params, source=None, prefix=False, size=LENGTH):
    """[B, STEPS + 1, V]: the logits behind each prompt, and STEPS tokens on."""
    params, tokens, T = models.unstacked(model, params), TOKENS, PROMPTS.max()
    reader = Reader(model, params, source, size, prefix=prefix)
    # What stands behind a prompt must not matter.
    prompts = np.where(np.arange(T) < PROMPTS[:, None], tokens[:, :T], 7)
    first, cache = reader.start(jnp.asarray(prompts), jnp.asarray(PROMPTS))

    def step(cache, at):
        token = jnp.take_along_axis(jnp.asarray(tokens), at[:, None], axis=1)[:, 0]
        return reader.advance(cache, token, at)[::-1]

    _, rest = jax.lax.scan(step, cache, PROMPTS + jnp.arange(STEPS)[:, None])
    return jnp.concatenate([first[None], rest]).swapaxes(0, 1)


@partial(jax.jit, static_argnums=(0, 3))
def whole(model, params, source=None, prefix=False):
    """The same, from the model as it is trained."""
    batch = {"tokens": jnp.asarray(TOKENS), **(source or {})}
    if prefix:
        batch["prefix"] = jnp.asarray(PROMPTS)
    logits = models.logits(model.apply({"params": params}, batch))
    at = PROMPTS[:, None] - 1 + jnp.arange(STEPS + 1)
    return jnp.take_along_axis(logits, at[..., None], axis=1)


def close(found, right):
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("positions", every(2, POSITIONS))
def test_every_position_scheme(positions):
    model, params = build(positions=positions, attention="dense,local", window=3)
    close(stepwise(model, params), whole(model, params))


# Kinds that keep something of their own; those of keys and values alone are alike.
ALIKE = ("flash", "blockwise", "talking_heads", "sigmoid", "differential", "strided", "performer",
         "based", "rebased", "retnet", "gated_linear", "hgrn2", "deltanet", "stick_breaking")


CACHED = [name for name, v in attention.VARIANTS.items() if "cache" in v.supports]


@pytest.mark.parametrize(
    "kind", but([name for name in CACHED if name not in ALIKE][::3], CACHED)
)
def test_every_kind_of_attention(kind):
    small = {"window": 3, "stride": 2, "latent_kv": 6, "latent_rotary": 2, "random_features": 8,
             "block": 2, "selected_blocks": 3, "index_topk": 4, "index_dim": 6, "value_dim": 6,
             "num_key_heads": 2, "slots": 3, "negative_eigenvalues": True,
             "ttt_batch": 4}  # fmt: skip
    model, params = build(attention=kind, **small)
    close(stepwise(model, params), whole(model, params))


@pytest.mark.parametrize(
    "changes",
    every(2, [
        {"attention_softcap": 1.0, "attention_sinks": True, "qk_norm": True, "output_gate": True},
        {"rotary_scaling": "yarn", "rotary_original_length": 8, "attention": "latent"},
        {"rotary_scaling": "ntk", "attention": "latent", "latent_query": 5},
        {"num_kv_heads": 4, "attention": "flash"},
        {"num_kv_heads": 1, "norm_place": "post", "share_layers": True, "scan": False},
        {"rotary_scaling": "linear", "attention": "local", "window": 1},
        {"reversible": True, "tie_embeddings": False, "attention": "dense,chunked", "window": 4},
        {"positions": "axial", "axial_shape": (3, 4), "axial_dims": (6, 10)},
        {"num_layers": 5, "layers": "2 local window=3 rotary_base=50.0, dense num_kv_heads=1",
         "norm_place": "sandwich", "norm_zero_centered": True},
        {"num_layers": 3, "layers": "rest kda, dense", "positions": "none", "num_kv_heads": 4},
        {"layers": "dense short_conv=3, kda short_conv=4"},
    ]),
)
def test_other_shapes(changes):
    model, params = build(**changes)
    close(stepwise(model, params), whole(model, params))


@pytest.mark.parametrize("name", ["gpt2-b", "llama-gqa", "t5-v1.1-a", "t5-v1.0-a", "marian-a"])
def test_cached_steps_are_the_whole_forward_pass_of_transformers(name, tmp_path):
    """Logits behind prompts of unequal length and of each token after, one row at a time there."""
    torch = pytest.importorskip("torch")
    from tests import parity

    theirs = parity.reference(parity.CASES[name])
    theirs.save_pretrained(tmp_path)
    cfg, params, _ = hub.load(tmp_path)
    source = None
    if cfg.kind == "encoder_decoder":
        tokens = np.random.default_rng(1).integers(3, 11, (3, 6))
        real = (np.arange(6) < np.array([[6], [2], [4]])).astype(np.int32)
        source = {"encoder_tokens": tokens, "encoder_segment_ids": real}
    ours = stepwise(models.build(cfg), params, source)
    for i, row in enumerate(TOKENS):
        inputs = {"input_ids": torch.from_numpy(row[None])}
        if source:
            inputs = {"decoder_input_ids": inputs["input_ids"]}
            inputs["input_ids"] = torch.from_numpy(tokens[i : i + 1, : real[i].sum()])
        with torch.no_grad():
            expected = theirs(**inputs).logits[0, PROMPTS[i] - 1 :][: STEPS + 1].numpy()
        np.testing.assert_allclose(ours[i], expected, atol=1e-4 * np.abs(expected).max())


def test_padding_behind_a_prompt_is_not_taken_in():
    """A slot is empty until its own token comes."""
    model, params = build(positions="learned")
    prompts = np.where(np.arange(5) < PROMPTS[:, None], TOKENS[:, :5], 7)
    reader = Reader(model, models.unstacked(model, params), None, LENGTH)
    _, cache = reader.start(jnp.asarray(prompts), jnp.asarray(PROMPTS))
    taken = np.arange(LENGTH) < PROMPTS[:, None]
    for x in jax.tree.leaves(cache):  # [B, K, S, H]
        written = np.abs(x).max(axis=(1, 3)) > 0
        np.testing.assert_array_equal(written, taken)


@pytest.mark.parametrize("kind, slots", [("local", 2), ("chunked", 5), ("dilated", 4)])
def test_a_window_costs_no_more_than_it_reaches_back(kind, slots):
    """Keys and values of so many tokens, and where each stands; a bias wants all of them."""
    for positions in ("rotary", "alibi"):
        model, params = build(attention=kind, window=3, stride=2, positions=positions)
        reader = Reader(model, models.unstacked(model, params), None, LENGTH)
        _, cache = jax.eval_shape(reader.start, TOKENS[:, :5], PROMPTS)
        found = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
        one = 4 * 2 * 2 * 4  # float32 keys and values of two heads of 4
        expected = LENGTH * one if positions == "alibi" else slots * (one + 4)
        assert found == 2 * len(PROMPTS) * expected  # two layers


@pytest.mark.parametrize(
    "changes", [{"positions": "relative"}, {"attention": "local", "window": 3}]
)
def test_a_prompt_that_sees_itself_in_a_cache_longer_than_needed(changes):
    model, params = build(**changes)
    right = whole(model, params, None, True)
    close(stepwise(model, params, None, True, 2 * LENGTH), right)
    assert np.abs(right - whole(model, params)).max() > 1e-2


def test_ragged_sources():
    model, params = build(kind="encoder_decoder", positions="relative")
    tokens = np.random.default_rng(1).integers(1, 11, (3, 6))
    real = np.arange(6) < np.array([[6], [2], [4]])
    source = {"encoder_tokens": tokens, "encoder_segment_ids": real.astype(np.int32)}
    right = whole(model, params, source)
    close(stepwise(model, params, source), right)
    source["encoder_tokens"] = np.where(real, tokens, 0)
    close(stepwise(model, params, source), right)  # padding is not looked at
    source["encoder_tokens"] = np.where(real & (np.arange(6) != 1), tokens, 0)
    assert np.abs(stepwise(model, params, source) - right).max(axis=(1, 2)).min() > 1e-3


def test_bfloat16():
    model, params = build(positions="relative", dtype="bfloat16")
    found, right = stepwise(model, params), whole(*build(positions="relative"))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, whole(model, params), atol=0.05 * np.abs(right).max())
    np.testing.assert_allclose(found, right, atol=0.1 * np.abs(right).max())
