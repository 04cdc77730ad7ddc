"""Tests of losses against definitions in NumPy, of accumulation and of padding."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_softmax

from llm_jax import config as configs
from llm_jax import models, objectives
from llm_jax.config import base
from llm_jax.models import Outputs
from llm_jax.train.state import init_state, make_eval_step, make_train_step
from tests import making
from tests.slow import every

# Those of texts and pairs, and classes; tags, answers, numbers, vectors, chats, preferences have
# their own.
APART = ("chat", "regression", "tagging", "roles", "question_answering", "preference",
         "contrastive", "similarity")  # fmt: skip
NAMES = tuple(name for name in objectives.OBJECTIVES if name not in APART)
WORDS = "the quick brown fox jumps over a lazy dog. it sleeps! who knows why? nobody does.".split()


@functools.cache
def _setup(name, dropout=0.0):
    """A tiny model of the kind that the objective needs, its parameters, and a batch."""
    c = base()
    c.objective.name = name
    objective = objectives.get(name)
    c.model.kind, c.model.head = objective.kinds[0], ",".join(objective.heads)
    for key, allowed in objective.needs.items():
        c.update_from_flattened_dict({key: allowed[0]})
    c.model.update({"max_length": 24, "num_layers": 1, "embed_dim": 16, "num_heads": 2})
    c.model.dropout = dropout
    if name == "replaced_token_detection":
        c.model.generator_fraction = 0.5
    c.tokenizer.name, c.data.batch_size = "bytes", 8
    c.optimizer.update({"name": "adamw", "warmup_steps": 0})
    rng = np.random.default_rng(0)
    docs = [" ".join(rng.choice(WORDS, rng.integers(2, 30))) for _ in range(40)]
    if name in ("seq2seq", "completion"):
        n = 20 if name == "seq2seq" else 8
        docs = [(doc[:n], doc[::-1][:n]) for doc in docs]
    if name == "classification":
        docs = [{"text": doc[:30], "label": str(len(doc) % 3)} for doc in docs]
        objective.resolve(c, docs)
    tokenizer = making.build_tokenizer(c, docs)
    batch = next(making.train_iterator(c, tokenizer, docs))
    batch["segment_ids"][-1] = 0  # as the rows that fill up a last batch
    for field in ("weights", "masked_weights", "answer_weights"):
        if field in batch:
            batch[field][-1] = 0
    if "encoder_segment_ids" in batch:
        batch["encoder_segment_ids"][-1] = 0
    c.model = configs.resolve(c.model, tokenizer.vocab_size)
    model = models.build(c.model)
    params = nn.unbox(models.init_params(model, jax.random.key(0)))
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.2 * noise.normal(size=x.shape).astype("f"), params)
    return c, model, params, batch


def _run(name, batch=None):
    c, model, params, whole = _setup(name)
    batch = whole if batch is None else batch
    outputs = jax.jit(model.apply)({"params": params}, batch)
    terms, metrics = objectives.get(name).losses(outputs, batch, c.objective)
    return outputs, terms, metrics, objectives.get(name).weights(batch)


def _nll(outputs, targets):
    logits = np.einsum("btd,vd->btv", outputs.hidden, outputs.matrix).astype(np.float64)
    logits = logits if outputs.bias is None else logits + np.asarray(outputs.bias)
    logp = log_softmax(logits, axis=-1)
    hit = np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    return -hit, logp.argmax(-1) == targets


NEXT = ["causal_lm", "prefix_lm", "completion", "span_corruption", "seq2seq"]


@pytest.mark.parametrize("name", NEXT)
def test_next_token_losses(name):
    outputs, terms, metrics, weights = _run(name)
    batch = _setup(name)[3]
    nll, hits = _nll(outputs, batch["targets"])
    n = (batch["weights"] > 0).sum()
    assert weights["tokens"] == n > 0
    wanted = (nll * batch["weights"]).sum()
    np.testing.assert_allclose(terms["tokens"], wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0], wanted, rtol=1e-5)
    answers = batch.get("answer_weights", batch["weights"])
    assert metrics["accuracy"] == ((hits * answers).sum(), "answers")
    assert weights["answers"] == answers.sum()


@pytest.mark.parametrize("name", every(3, NAMES))
def test_label_smoothing_and_z_loss_reach_every_objective(name):
    """Of PaLM's z-loss and of optax's smoothed labels; metrics report the loss without them."""
    c, _, _, batch = _setup(name)
    outputs, plain, metrics, _ = _run(name)
    cfg = c.objective.copy_and_resolve_references()
    cfg.label_smoothing, cfg.z_loss = 0.1, 0.01
    terms, with_both = objectives.get(name).losses(outputs, batch, cfg)
    if name == "classification":
        term, logits, targets = "rows", outputs.heads["sequence"], batch["label"]
        weights = batch["segment_ids"][:, 0] > 0
        cfg.z_loss = 0.0  # of few classes, which has none
    else:
        term = "masked" if "masked_targets" in batch else "tokens"
        side = "masked_" if term == "masked" else ""
        logits, targets = models.logits(outputs), batch[f"{side}targets"]
        weights = batch[f"{side}weights"]
    labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), 0.1)
    z = jax.scipy.special.logsumexp(logits, axis=-1)
    each = optax.softmax_cross_entropy(logits, labels) + cfg.z_loss * z**2
    np.testing.assert_allclose(terms[term], (each * weights).sum(), rtol=1e-5)
    assert abs(terms[term] / plain[term] - 1) > 1e-3
    np.testing.assert_allclose(with_both["loss"][0], metrics["loss"][0], rtol=1e-6)


def test_accuracy_counts_neither_ties_nor_a_completions_end():
    """A constant model knows nothing; of an answer's end all that is known is that it comes."""
    c, _, _, batch = _setup("completion")
    eos = 258
    letter = int(batch["targets"][batch["answer_weights"] > 0][0])
    for column, hits in ((None, 0), (eos, 0), (letter, None)):  # constant, or always the same
        matrix = np.zeros((c.model.vocab_size, 2), np.float32)
        if column is not None:
            matrix[column] = 1
        outputs = Outputs(jnp.ones((*batch["tokens"].shape, 2)), jnp.asarray(matrix))
        _, metrics = objectives.get("completion").losses(outputs, batch, c.objective)
        right = (batch["targets"] == (column or 0)) & (batch["answer_weights"] > 0)
        assert metrics["accuracy"][0] == (right.sum() if hits is None else hits)
    scored = batch["targets"][batch["weights"] > 0]
    assert (scored == eos).sum() > 3  # the loss has them
    assert batch["answer_weights"].sum() == batch["weights"].sum() - (scored == eos).sum()


@pytest.mark.parametrize("name", ["masked_lm", "bert", "albert"])
def test_masked_losses(name):
    outputs, terms, metrics, weights = _run(name)
    _, model, params, batch = _setup(name)
    assert outputs.hidden.shape[:2] == batch["masked_positions"].shape
    nll, hits = _nll(outputs, batch["masked_targets"])
    used = batch["masked_weights"]
    assert weights["masked"] == used.sum() > 0
    np.testing.assert_allclose(terms["masked"], (nll * used).sum(), rtol=1e-5)
    assert metrics["accuracy"] == ((hits * used).sum(), "masked")
    if name == "masked_lm":
        assert set(terms) == {"masked"}
        return
    scores = np.asarray(outputs.heads["sequence"], np.float64)
    logp = log_softmax(scores, axis=-1)[:-1]  # the last: padding
    label = batch["next_sentence"][:-1]
    assert weights["rows"] == 7
    np.testing.assert_allclose(terms["rows"], -logp[np.arange(7), label].sum(), rtol=1e-5)
    assert metrics["sentence_loss"] == (terms["rows"], "rows")
    assert metrics["sentence_accuracy"] == ((logp.argmax(-1) == label).sum(), "rows")
    step = make_eval_step(model, objectives.get(name), _setup(name)[0])
    sums, counts, _ = step(params, batch)
    mean = {key: float(sums[key] / counts[key]) for key in sums}
    assert mean["loss"] == pytest.approx((nll * used).sum() / used.sum(), rel=1e-5)
    assert mean["sentence_loss"] == pytest.approx(-logp[np.arange(7), label].mean(), rel=1e-5)


def test_electra_judges_what_the_generator_sampled():
    name = "replaced_token_detection"
    outputs, terms, metrics, weights = _run(name)
    c, model, params, batch = _setup(name)
    used = batch["masked_weights"] > 0
    places = np.zeros(batch["tokens"].shape, bool)
    for row, where, on in zip(places, batch["masked_positions"], used, strict=True):
        row[where[on]] = True
    replaced = np.asarray(outputs.heads["replaced"])
    assert replaced.any() and not (replaced & ~places).any()
    real = batch["segment_ids"] > 0
    assert weights == {"masked": used.sum(), "tokens": real.sum()}
    scores = np.asarray(outputs.heads["detection"], np.float64)
    nll = -np.log(np.where(replaced, expit(scores), expit(-scores)))
    np.testing.assert_allclose(terms["tokens"], 50 * nll[real].sum(), rtol=1e-5)
    cfg = c.objective.copy_and_resolve_references()
    cfg.detection_weight = 7.0
    seven = objectives.get(name).losses(outputs, batch, cfg)[0]["tokens"]
    np.testing.assert_allclose(seven, 7 * nll[real].sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0], nll[real].sum(), rtol=1e-5)
    assert metrics["accuracy"][0] == ((scores > 0) == replaced)[real].sum()
    mlm, _ = _nll(outputs, batch["masked_targets"])
    np.testing.assert_allclose(terms["masked"], mlm[used].sum(), rtol=1e-5)

    batch = jax.tree.map(jnp.asarray, batch)
    # Sampling: by the generator's probabilities, drawn afresh with each key, and without gradient.
    apply = jax.jit(lambda key: model.apply({"params": params}, batch, rngs={"dropout": key}))
    keys = jax.random.split(jax.random.key(3), 400)
    found = jax.vmap(lambda key: apply(key).heads["replaced"])(keys)
    rate = np.asarray(found).mean(0)
    for row in range(7):
        for slot in np.flatnonzero(used[row]):
            p = 1 - np.exp(-mlm[row, slot])
            assert abs(rate[row, batch["masked_positions"][row, slot]] - p) < 0.13

    def of(term):
        def loss(params):
            outputs = model.apply({"params": params}, batch)
            return objectives.get(name).losses(outputs, batch, c.objective)[0][term]

        return jax.jit(jax.grad(loss))(params)

    zero = lambda tree: not any(np.any(x) for x in jax.tree.leaves(tree))
    judge, fill = of("tokens"), of("masked")
    assert zero(judge["generator"]) and not zero(judge["encoder"])
    shared = fill["encoder"].pop("embeddings")  # by the generator (Clark 2020, 3.2)
    assert zero(fill["encoder"]) and not zero(shared) and not zero(fill["generator"])
    assert not zero(judge["embed"]) and not zero(fill["embed"])  # one table for both
    assert set(params) == {"embed", "encoder", "detection", "generator"}
    assert set(params["generator"]) == {"encoder", "transform", "output_bias"}

    # Without the generator's, these are the parameters of a Model that only judges.
    cfg = c.model.copy_and_resolve_references()
    cfg.generator_fraction = 0.0
    alone = {k: v for k, v in params.items() if k != "generator"}
    plain = {k: v for k, v in batch.items() if not k.startswith("masked_")}
    scores = models.build(cfg).apply({"params": alone}, plain).heads["detection"]
    whole = model.apply({"params": params}, plain).heads["detection"]
    np.testing.assert_allclose(scores, whole, rtol=1e-5)


def test_what_electras_generator_gets_right_is_not_replaced():
    name = "replaced_token_detection"
    c, model, params, batch = _setup(name)
    certain = int(batch["masked_targets"][0, 0])
    bias = params["generator"]["output_bias"].at[certain].add(1e4)
    sure = params | {"generator": params["generator"] | {"output_bias": bias}}
    used = batch["masked_weights"] > 0
    for target, expected in ((certain, False), ((certain + 1) % 256, True)):
        asked = batch | {"masked_targets": np.where(used, target, 0).astype(np.int32)}
        asked = jax.tree.map(jnp.asarray, asked)
        replaced = model.apply({"params": sure}, asked).heads["replaced"]
        places = np.zeros(replaced.shape, bool)
        for row, where, on in zip(places, batch["masked_positions"], used, strict=True):
            row[where[on]] = expected
        np.testing.assert_array_equal(replaced, places)


@pytest.mark.parametrize("name", every(3, NAMES))
def test_parts_add_up_to_the_whole(name):
    c, _, _, batch = _setup(name)
    outputs, terms, metrics, weights = _run(name)
    rows = batch["tokens"].shape[0]

    def part(tree, rows):
        keep = lambda x: x if x.shape[0] != 8 else x[rows]
        return jax.tree.map(keep, tree._replace(matrix=None))._replace(matrix=tree.matrix)

    sums = None
    for some in (slice(0, 3), slice(3, rows)):
        cut = {k: v[some] for k, v in batch.items()}
        own = objectives.get(name).losses(part(outputs, some), cut, c.objective)
        own = (*own, objectives.get(name).weights(cut))
        own = jax.tree.map(lambda x: x if isinstance(x, str) else float(x), own)
        values = [own[0], {k: v[0] for k, v in own[1].items()}, own[2]]
        sums = values if sums is None else jax.tree.map(lambda a, b: a + b, sums, values)
    whole = [terms, {k: v[0] for k, v in metrics.items()}, weights]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, whole)


# One term, two, of weights, of examples; that all add up is shown above.
ACCUMULATED = ("causal_lm", "bert", "seq2seq", "classification")


@pytest.mark.parametrize("name", [
    name if name in ACCUMULATED else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES if name != "replaced_token_detection"
])  # fmt: skip
def test_accumulated_gradients_equal_the_large_batch(name):
    # (ELECTRA's parts draw other replacements; that they add up is shown above.)
    c, model, params, batch = _setup(name)
    results = []
    for parts in (1, 4):
        c.train.microbatches = parts
        tx = optax.sgd(1.0)
        step = jax.jit(make_train_step(model, objectives.get(name), tx, c))
        state, metrics = step(init_state(model, tx, c, params), batch)
        results.append((state.params, metrics))
    c.train.microbatches = 1
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    jax.tree.map(same, *results)
    assert results[0][1]["tokens"] == objectives.tokens(batch)
    both = {k for k in batch if k.endswith("segment_ids")}
    assert objectives.tokens(batch) == sum((batch[k] > 0).sum() for k in both)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    _, terms, metrics, weights = _run(name)
    batch = _setup(name)[3]
    garbage = {}
    for field, values in batch.items():
        side = "encoder_segment_ids" if field.startswith("encoder_") else "segment_ids"
        padding = batch[side] == 0
        if values.shape == padding.shape and not field.endswith(("segment_ids", "weights")):
            if field == "positions" or field == "encoder_positions":
                continue
            high = 2 if field == "types" else 256
            noise = np.random.default_rng(2).integers(0, high, values.shape).astype(values.dtype)
            values = np.where(padding, noise, values)
        garbage[field] = values
    garbage = batch | garbage
    if name == "replaced_token_detection":
        # Sampling has the same key, and so the same result, in an evaluation.
        assert not np.array_equal(garbage["tokens"], batch["tokens"])
    _, other, other_metrics, other_weights = _run(name, garbage)
    close = lambda a, b: a == b if isinstance(a, str) else np.testing.assert_allclose(a, b, 1e-5)
    jax.tree.map(close, (terms, metrics, weights), (other, other_metrics, other_weights))


def test_all_padding_is_no_loss():
    hidden = jnp.ones((2, 3, 4))
    outputs = Outputs(hidden, jnp.ones((5, 4)), heads={"sequence": jnp.ones((2, 2))})
    zero = np.zeros((2, 3), np.int32)
    fields = "segment_ids masked_positions masked_targets masked_weights".split()
    batch = dict.fromkeys(fields, zero) | {"next_sentence": zero[:, 0]}
    terms, _ = objectives.get("bert").losses(outputs, batch, base().objective)
    assert terms == {"masked": 0, "rows": 0}
    assert objectives.get("bert").weights(batch) == {"masked": 0, "rows": 0}
