import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config, decode, hub, models
from llm_jax.hub.families.reformer import REFORMER
from llm_jax.hub.family import from_tensors, plan, to_hf
from llm_jax.models import reversible
from llm_jax.models.embeddings import Embeddings, TokenEmbed
from llm_jax.models.flops import count_params
from llm_jax.train.loop import Trainer

TINY = {
    "num_layers": 4, "embed_dim": 16, "num_heads": 2, "head_dim": 6, "mlp_dim": 24,
    "max_length": 32, "attention": "chunked,lsh", "window": 4, "lsh_chunk": 4, "lsh_hashes": 2,
    "lsh_buckets": (4,), "positions": "axial", "axial_shape": (4, 8), "axial_dims": (4, 12),
    "reversible": True, "tie_embeddings": False, "output_bias": True, "attention_bias": False,
    "activation": "relu", "norm_epsilon": 1e-12, "initializer_range": 0.3,
}  # fmt: skip


def build(vocab_size=13, **changes):
    cfg = config.base().model
    cfg.update(TINY | changes)
    return models.build(config.resolve(cfg, vocab_size))


def tiny(**changes):
    """A model and its parameters as they begin."""
    model = build(**changes)
    params = jax.jit(lambda: nn.unbox(models.init_params(model, jax.random.key(0))))()
    return model, params


def batch(T=30, B=2, vocab_size=13):
    return {"tokens": jax.random.randint(jax.random.key(1), (B, T), 0, vocab_size)}


def gradients(model, params, batch, key=None):
    """Outputs, and gradients of a loss that treats them unevenly; padding has no part in it."""
    real = batch.get("segment_ids", jnp.ones_like(batch["tokens"])) > 0

    @jax.jit
    def run(params):
        rngs = None if key is None else {"dropout": key}

        def loss(params):
            out = model.apply({"params": params}, batch, deterministic=key is None, rngs=rngs)
            scores = models.logits(out)
            return jnp.sum(jnp.sin(scores) * real[..., None]), scores

        return jax.grad(loss, has_aux=True)(params)

    grads, scores = run(params)
    return scores, grads


def assert_near(ours, theirs, tolerance):
    """Every leaf, relative to its largest entry."""

    def one(path, a, b):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0, err_msg=name)

    jax.tree_util.tree_map_with_path(one, ours, theirs)


slow = partial(pytest.param, marks=pytest.mark.slow)
ENCODER_DECODER = {
    "kind": "encoder_decoder", "attention": "dense", "positions": "relative", "head_dim": 0,
    "reversible": True, "num_kv_heads": 1, "norm": "rmsnorm", "tie_embeddings": True,
    "output_bias": False, "num_layers": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        slow({"dropout": 0.2, "attention_dropout": 0.2, "mlp_chunk": 7}),
        slow({"window": 7, "lsh_chunk": 4}),
        {"share_layers": True, "attention": "dense", "positions": "alibi"},
        slow(ENCODER_DECODER | {"dropout": 0.1}),
        slow({"kind": "encoder", "head": "mlm", "dropout": 0.2, "attention_dropout": 0.2}),
    ],
    ids=[
        "reformer",
        "dropout, chunked feed-forward",
        "odd chunks",
        "shared layers",
        "encoder-decoder",
        "encoder",
    ],
)
def test_gradients_by_recomputation_equal_stored_ones(changes, monkeypatch):
    """Float64 holds sums of a few float32 numbers exactly, so that recomputed streams are those of
    the forward pass; in float32 the gradients of this model differ by up to 2e-5.
    """
    model, params = tiny(**changes)
    key = jax.random.key(5) if "dropout" in changes else None
    data = batch()
    data["encoder_tokens"] = data["tokens"][:, ::2]
    data["encoder_segment_ids"] = jnp.ones((2, 15), int).at[1, 9:].set(0)
    data["segment_ids"] = jnp.ones((2, 30), int).at[0, 20:].set(2)

    def by(function):
        def wide(sublayers, params, streams, *rest):
            return function(sublayers, params, jax.tree.map(jnp.float64, streams), *rest)

        monkeypatch.setattr(reversible, "run", wide)
        with jax.enable_x64(True):
            return gradients(model, params, data, key)

    recomputed = by(reversible.run)
    assert_near(recomputed, by(lambda *x: reversible.forward(*x)[0]), 1e-6)


def test_recomputation_keeps_to_what_the_forward_pass_decided():
    """Here each call by itself would decide otherwise."""
    decisions = itertools.count(3)

    def times(param, x, context, key, kept):
        factor = kept.get("factor", jnp.float32(next(decisions)))
        return param * factor * x, {"factor": factor}

    def last(param):
        streams, keys = (jnp.float32(1), jnp.float32(1)), jax.random.split(jax.random.key(0), 1)
        return reversible.run([times], param, streams, None, keys)[1]

    value, grad = jax.value_and_grad(last)(jnp.ones(1))
    assert grad == value - 1 >= 3


def test_bfloat16_gradients_by_recomputation_stay_near(monkeypatch):
    model, params = tiny(dtype="bfloat16", attention="dense", num_layers=8)
    _, ours = gradients(model, params, batch())
    monkeypatch.setattr(reversible, "run", lambda *x: reversible.forward(*x)[0])
    _, stored = gradients(model, params, batch())
    assert_near(ours, stored, 0.03)


@pytest.mark.slow
def test_temporary_memory_does_not_grow_with_depth():
    def temporaries(num_layers, **changes):
        model = build(num_layers=2, max_length=256, axial_shape=(16, 16))
        cfg = dict(model.cfg) | {"num_layers": num_layers, "num_decoder_layers": num_layers}
        model = models.build(config.ConfigDict(cfg | changes))
        key = jax.random.key(0)
        params = nn.unbox(jax.eval_shape(lambda: models.init_params(model, key)))
        loss = lambda p: jnp.sum(models.logits(model.apply({"params": p}, batch(256))) ** 2)
        program = jax.jit(jax.grad(loss)).lower(params).compile()
        weights = sum(x.size * 4 for x in jax.tree.leaves(params))
        return program.memory_analysis().temp_size_in_bytes, weights

    few, few_weights = temporaries(2, attention="chunked")
    many, many_weights = temporaries(10, attention="chunked")
    assert many - few <= 2 * (many_weights - few_weights)
    stored, _ = temporaries(10, attention="chunked", reversible=False, tie_embeddings=True)
    assert stored > 3 * many


def test_chunked_feed_forward_changes_nothing():
    simple = {"reversible": False, "attention": "dense", "num_layers": 1}
    model, params = tiny(mlp_chunk=7, **simple)
    chunked = gradients(model, params, batch())
    whole = build(**simple)
    assert_near(chunked, gradients(whole, params, batch()), 1e-5)


def test_axial_positions_are_rows_and_columns():
    model, params = tiny(num_layers=2, attention="chunked")
    tables = params["decoder"]["embeddings"]

    cfg = model.cfg
    embed = Embeddings(cfg, TokenEmbed(cfg))
    zeros = {"tokens": {"embedding": jnp.zeros((13, 16))}}
    at = jnp.array([[0, 9, 31]])
    x = embed.apply({"params": tables | zeros}, jnp.zeros_like(at), at)
    rows, columns = tables["rows"]["embedding"], tables["columns"]["embedding"]
    for place, (i, j) in zip(x[0], [(0, 0), (1, 1), (3, 7)], strict=True):
        np.testing.assert_array_equal(place, np.concatenate([rows[i], columns[j]]))


def test_decoder_is_causal_and_blind_to_padding():
    model, params = tiny(attention="chunked", num_layers=2)
    tokens = batch()["tokens"]

    @jax.jit
    def apply(tokens, segments):
        data = {"tokens": tokens, "segment_ids": segments}
        return models.logits(model.apply({"params": params}, data))

    real = jnp.ones((2, 30), int).at[:, 22:].set(0)
    first = apply(tokens, real)
    without = apply(tokens.at[:, 22:].set(0), real)
    np.testing.assert_allclose(first[:, :22], without[:, :22], atol=1e-5)
    later = apply(tokens.at[:, 15:].set(0), real)
    np.testing.assert_allclose(first[:, :15], later[:, :15], atol=1e-5)


@pytest.mark.parametrize("kind", ["chunked", "lsh"])
def test_encoder_looks_both_ways_and_is_blind_to_padding(kind):
    model, params = tiny(kind="encoder", attention=kind, num_layers=2)
    tokens = batch()["tokens"]

    @jax.jit
    def apply(tokens, segments):
        data = {"tokens": tokens, "segment_ids": segments}
        return models.logits(model.apply({"params": params}, data))

    real = jnp.ones((2, 30), int).at[1, 22:].set(0)
    first = apply(tokens, real)
    without = apply(tokens.at[1, 22:].set(0), real)
    np.testing.assert_allclose(first[1, :22], without[1, :22], atol=1e-5)
    later = apply(tokens.at[0, 20:].set(0), real)
    earlier = apply(tokens.at[0, :10].set(0), real)
    assert (jnp.abs(first - later)[0, :20] > 1e-3).any()
    assert (jnp.abs(first - earlier)[0, 10:] > 1e-3).any()


@pytest.mark.slow
def test_encoder_learns_masked_tokens(overrides, tmp_path, silent):
    changes = {
        "model.kind": "encoder", "model.head": "mlm", "objective.name": "masked_lm",
        "model.attention": "chunked,lsh", "model.window": 4, "model.lsh_chunk": 4,
        "model.mlp_dim": 32, "model.dropout": 0.1, "model.max_length": 32,
        "model.positions": "axial", "model.axial_shape": (4, 8), "model.axial_dims": (4, 12),
        "model.vocab_size": 0, "model.initializer_range": 0.1, "model.use_bias": True,
        "train.steps": 40, "eval.every": 40, "checkpoint.every": 40,
    }  # fmt: skip
    c = config.load("configs/reformer.py:enwik8-3", overrides(changes))
    assert c.model.reversible
    Trainer(c, tmp_path, silent, devices=jax.devices()[:1]).run()
    losses = [silent.values[step]["loss"] for step in sorted(silent.values)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_dropout_changes_with_its_key_alone():
    model, params = tiny(dropout=0.2, lsh_hashes=1)
    apply = partial(model.apply, {"params": params}, batch(), deterministic=False)
    run = jax.jit(lambda key: apply(rngs={"dropout": key}).hidden)
    a, b, c = (run(jax.random.key(i)) for i in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize("kind", ["chunked", "lsh"])
def test_generates(kind):
    """By a cache where there can be one, by reading again where not; either way the same."""
    model, params = tiny(attention=kind, num_layers=2)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [3]]
    how = {"max_new_tokens": 6, "temperature": 0}
    found = decode.generate(model, params, prompts, **how)
    assert found == decode.generate(model, params, prompts, cached=False, **how)
    if kind == "lsh":
        with pytest.raises(ValueError, match="'lsh' does not support: cache"):
            decode.generate(model, params, prompts, cached=True, **how)


@pytest.mark.parametrize("changes, key", [
    ({"axial_dims": (4, 4)}, "axial_dims"),
    ({"axial_shape": (2, 4)}, "axial_shape"),
    ({"norm_place": "post"}, "norm_place"),
    ({"remat": "full"}, "remat"),
    ({"lsh_buckets": (3,)}, "lsh_buckets"),
])  # fmt: skip
def test_what_cannot_run_is_refused(changes, key):
    c = config.base()
    c.model.update(TINY | changes)
    with pytest.raises(config.ConfigError, match=key):
        config.check(c)


def reference_config(cfg, **more):
    """Their config of one of ours."""
    transformers = pytest.importorskip("transformers")
    return transformers.ReformerConfig(**to_hf(REFORMER, config.ConfigDict(cfg)), **more)


def from_reference(model, tensors):
    """Our parameters with the values of theirs."""
    wanted = plan(REFORMER, config.ConfigDict(model.cfg))
    return from_tensors(wanted, lambda name: tensors[name])


@pytest.mark.parametrize("variant", ["enwik8", "enwik8-3", "crime-and-punishment"])
def test_published_sizes_have_the_reference_count(variant):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg = config.resolve(config.load(f"configs/reformer.py:{variant}").model, 0)
    with torch.device("meta"):
        theirs = transformers.ReformerModelWithLMHead(reference_config(cfg))
    # Their second bias of the output takes no part.
    used = [p.numel() for name, p in theirs.named_parameters() if name != "lm_head.bias"]
    assert count_params(cfg) == sum(used)


@pytest.fixture
def reference():
    """Returns (ours, its parameters, theirs), their hash rotations fed into ours."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests import parity as measure

    def make(bidirectional=False, **changes):
        model = build(**changes)
        torch.manual_seed(0)
        more = {"hash_seed": 11, "lsh_attention_probs_dropout_prob": 0.0}
        more["chunk_size_feed_forward"] = 2 if model.cfg.mlp_chunk else 0
        theirs = reference_config(model.cfg, **more)
        if bidirectional:
            theirs.is_decoder, theirs.local_num_chunks_after = False, 1
            theirs = transformers.ReformerForMaskedLM(theirs)
        else:
            theirs = transformers.ReformerModelWithLMHead(theirs)
        for name, p in theirs.named_parameters():  # biases and scales too
            torch.nn.init.normal_(p, 1.0 if "norm.weight" in name else 0.0, 0.3)
        tensors = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
        return model, from_reference(model, tensors), measure.ready(theirs)

    with measure.rotations_of(11):
        yield make


@pytest.mark.parametrize("changes, T", [
    ({"attention": "chunked", "window": 5, "num_layers": 2}, 30),
    slow({"attention": "chunked", "window": 8, "num_layers": 2}, 19),
    slow({"attention": "chunked", "num_layers": 2}, 3),
    ({"attention": "lsh", "num_layers": 2, "lsh_hashes": 3, "lsh_buckets": (2, 4)}, 27),
    ({"mlp_chunk": 3, "lsh_buckets": ()}, 32),
    ({}, 21),
    slow({"lsh_chunk": 32, "window": 32}, 23),
])  # fmt: skip
def test_logits_and_gradients_equal_transformers(reference, changes, T):
    torch = pytest.importorskip("torch")
    model, params, theirs = reference(**changes)
    data = batch(T)
    scores, grads = gradients(model, params, data)
    expected = theirs(torch.tensor(np.array(data["tokens"])), use_cache=False).logits
    limit = 1e-4 * expected.abs().max().item()
    np.testing.assert_allclose(scores, expected.detach(), atol=limit, rtol=0)
    torch.sin(expected).sum().backward()
    tensors = {k: v.grad.numpy() for k, v in theirs.named_parameters() if v.grad is not None}
    assert_near(grads, from_reference(model, tensors), 1e-3)


@pytest.mark.parametrize("window, lsh_chunk, T, L", [
    (6, 4, 21, 21), slow(6, 4, 13, 24), slow(4, 6, 17, 24), slow(16, 4, 10, 16),
    slow(4, 16, 10, 10), slow(3, 7, 9, 21),
])  # fmt: skip
def test_unequal_chunks_equal_transformers(reference, window, lsh_chunk, T, L):
    """On T tokens, which it fills up to a multiple of both chunks; ours are given L.

    Ours fill each layer's chunks by themselves, and how far shows at the seam of two rounds of
    hashing: equal where both end at one length, or once the rows come filled up.
    """
    torch = pytest.importorskip("torch")
    model, params, theirs = reference(window=window, lsh_chunk=lsh_chunk, num_layers=2)
    data = batch(T)
    tokens = torch.tensor(np.array(data["tokens"]))
    if L > T:
        data["segment_ids"] = jnp.ones((2, L), int).at[:, T:].set(0)
        data["tokens"] = jnp.pad(data["tokens"], [(0, 0), (0, L - T)])
    scores, grads = gradients(model, params, data)
    expected = theirs(tokens, use_cache=False).logits
    limit = 1e-4 * expected.abs().max().item()
    np.testing.assert_allclose(scores[:, :T], expected.detach(), atol=limit, rtol=0)
    torch.sin(expected).sum().backward()
    tensors = {k: v.grad.numpy() for k, v in theirs.named_parameters() if v.grad is not None}
    assert_near(grads, from_reference(model, tensors), 1e-3)


@pytest.mark.parametrize("changes, T, lengths", [
    ({"attention": "lsh", "num_layers": 2, "lsh_hashes": 3, "lsh_buckets": (2, 4)}, 27, (27, 14)),
    slow({"attention": "lsh", "num_layers": 2}, 24, (24, 9)),
    ({"attention": "chunked", "num_layers": 2}, 24, (20, 13)),
    slow({"attention": "chunked", "num_layers": 2}, 4, (4, 2)),
    slow({}, 21, (20, 6)),
])  # fmt: skip
def test_encoder_equals_transformers(reference, changes, T, lengths):
    """On ragged rows; their local chunks go round from last to first, where padding has to be."""
    torch = pytest.importorskip("torch")
    decoder, params, theirs = reference(bidirectional=True, **changes)
    model = models.build(config.ConfigDict(dict(decoder.cfg) | {"kind": "encoder"}))
    rename = lambda tree, a, b: {b if name == a else name: x for name, x in tree.items()}
    data = batch(T)
    real = np.arange(T) < np.array(lengths)[:, None]
    data["segment_ids"] = jnp.asarray(real, int)
    ours = rename(params, "decoder", "encoder")
    scores, grads = gradients(model, ours, data)
    inputs = torch.tensor(np.array(data["tokens"])), torch.tensor(real.astype(int))
    expected = theirs(inputs[0], attention_mask=inputs[1]).logits
    limit = 1e-4 * expected.abs().max().item()
    np.testing.assert_allclose(scores[real], expected[real].detach(), atol=limit, rtol=0)
    hidden = theirs.reformer(*inputs, use_cache=False).last_hidden_state
    features = jax.jit(lambda p: model.apply({"params": p}, data).features)(ours)
    limit = 1e-4 * hidden.abs().max().item()
    np.testing.assert_allclose(features[real], hidden[real].detach(), atol=limit, rtol=0)
    torch.sin(expected[real]).sum().backward()
    tensors = {k: v.grad.numpy() for k, v in theirs.named_parameters() if v.grad is not None}
    assert_near(rename(grads, "encoder", "decoder"), from_reference(decoder, tensors), 1e-3)


def test_exported_folder_opens_in_transformers(reference, tmp_path):
    torch = pytest.importorskip("torch")
    model, params, theirs = reference()
    assert hub.save(model.cfg, params, None, tmp_path / "ours") == "reformer"
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in theirs.state_dict().items())
    cfg, back, _ = hub.load(tmp_path / "ours")
    free = ("initializer_range", "dropout", "attention_dropout")
    assert {k: v for k, v in model.cfg.items() if v != cfg[k] and k not in free} == {}
    jax.tree.map(np.testing.assert_array_equal, params, back)
