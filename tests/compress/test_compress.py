"""Tests of pruning, layer removal, quantisation and distillation."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import llm_jax
from llm_jax import attention, commands, compress, models, record, sharding
from llm_jax import config as configs
from llm_jax.commands import main
from llm_jax.compress import distill, methods
from llm_jax.config import ConfigError
from llm_jax.files import read_config
from llm_jax.hub import runs
from llm_jax.models import Outputs
from llm_jax.sharding import name
from llm_jax.train import groups
from llm_jax.train import state as train_state
from llm_jax.train.run import Setup


def prepared(config):
    """(setup, state) on one device."""
    config.model = configs.resolve(config.model, 259)
    setup = Setup(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    return setup, setup.draw_state(jax.tree.map(lambda x: x.sharding, setup.abstract_state()))


@pytest.fixture(scope="module")
def drawn(tiny):
    """A config of four layers and its parameters."""
    setup, state = prepared(tiny({"model.num_layers": 4}))
    return setup.config, jax.tree.map(np.asarray, state.params)


def flat(tree):
    return {name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def matrices(config, tree):
    """{path: [layers, inputs, outputs]} of the stack's."""
    D, F, inner = config.model.embed_dim, config.model.mlp_dim, config.model.embed_dim
    rows = {"query": D, "key": D, "value": D, "out": inner, "up": D, "gate": D, "down": F}
    each = {path: x for path, x in flat(tree).items() if path.endswith("/kernel")}
    return {path: x.reshape(len(x), rows[path.split("/")[-2]], -1) for path, x in each.items()}


def test_pruning_takes_the_smallest_of_each_layers_matrices(drawn):
    config, params = drawn
    new, pruned = methods.apply(config, params, "prune:0.5")
    before, after = matrices(config, params), matrices(config, pruned)
    assert new.optimizer.keep_zeros and len(before) >= 6
    for path, x in before.items():
        for old, now in zip(x, after[path], strict=True):
            least = np.sort(np.abs(old), axis=None)[old.size // 2]
            np.testing.assert_array_equal(now, np.where(np.abs(old) < least, 0, old))
    for path in flat(params).keys() - before.keys():
        np.testing.assert_array_equal(flat(pruned)[path], flat(params)[path])


def test_two_of_four_inputs_stay(drawn):
    config, params = drawn
    _, pruned = methods.apply(config, params, "prune:2:4")
    after = matrices(config, pruned)
    for path, x in matrices(config, params).items():
        old, now = (y.swapaxes(1, 2).reshape(-1, 4) for y in (x, after[path]))
        for group, kept in zip(old[::7], now[::7], strict=True):
            largest = sorted(range(4), key=lambda i: abs(group[i]))[2:]
            assert [*np.flatnonzero(kept)] == sorted(largest)
            np.testing.assert_array_equal(kept[largest], group[largest])


def test_heads_that_add_least_add_nothing(drawn):
    config, params = drawn
    _, pruned = methods.apply(config, params, "heads:0.5")
    before, after = flat(params), flat(pruned)
    (path,) = (p for p in before if p.endswith("attention/out/kernel"))
    size = np.square(before[path]).sum((2, 3))  # [layers, heads]
    alive = np.abs(after[path]).sum((2, 3)) > 0
    assert (alive.sum(1) == 2).all()
    for row, kept in zip(size, alive, strict=True):
        assert row[kept].min() > row[~kept].max()
    query = after[path.replace("/out/", "/query/")]  # [layers, embed, heads, kv]
    np.testing.assert_array_equal(np.abs(query).sum((1, 3)) > 0, alive)


def test_every_second_layer_makes_a_student(drawn):
    config, params = drawn
    new, student = methods.apply(config, params, "layers:2")
    assert new.model.num_layers == 2
    wanted = jax.tree.map(lambda x: x.shape, models.abstract_params(new.model))
    assert jax.tree.map(jnp.shape, student) == wanted
    for path, x in flat(params).items():
        kept = x[[1, 3]] if "/stack/" in path else x
        np.testing.assert_array_equal(flat(student)[path], kept)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_kernels_of_low_rank_are_the_nearest_of_their_rank(drawn, rank):
    """What is lost is the smallest eigenvalues of W'W (Eckart and Young 1936); at 16, nothing."""
    pytest.importorskip("qwix")
    config, params = drawn
    new, factored = methods.apply(config, params, f"low_rank:{rank}")
    shapes = jax.tree.map(lambda x: x.shape, models.abstract_params(new.model))
    assert jax.tree.map(jnp.shape, factored) == shapes
    before, after = flat(params), flat(models.merge(new.model, factored)[1])
    kernels = matrices(config, {path: before[path] for path in before if "/stack/" in path})
    for path, x in matrices(config, {path: after[path] for path in kernels}).items():
        for old, now in zip(kernels[path].astype(float), x, strict=True):
            lost = np.linalg.eigvalsh(old.T @ old)[::-1][rank:].clip(0).sum()
            np.testing.assert_allclose(np.square(old - now).sum(), lost, rtol=1e-3, atol=1e-8)
            assert np.linalg.matrix_rank(now, tol=1e-4) <= rank
    for path in before.keys() - kernels.keys():
        np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.parametrize("name", [
    "adamw", *(pytest.param(x, marks=pytest.mark.slow) for x in ("muon", "adafactor", "lion")),
])  # fmt: skip
def test_a_pruned_model_keeps_its_zeros_in_training(name, tiny, batch):
    config = tiny({"optimizer.l1": 1e-3, "optimizer.keep_zeros": True, "optimizer.name": name,
                   "train.microbatches": 2, "train.ema_decay": 0.5})  # fmt: skip
    setup, state = prepared(config)
    _, pruned = methods.apply(config, state.params, "prune:0.5")
    state = state.replace(params=pruned, ema=pruned)
    step = jax.jit(train_state.make_train_step(setup.model, setup.objective, setup.tx, config))
    for seed in range(2):
        state, _ = step(state, batch(config, seed))
    for path, x in flat(pruned).items():
        now, average = flat(state.params)[path], flat(state.ema)[path]
        if path.endswith("/kernel"):
            assert (now[x == 0] == 0).all() and (average[x == 0] == 0).all()
        assert (now[x != 0] != x[x != 0]).mean() > 0.9


def test_zeros_are_not_kept_with_lora(tiny):
    """Its B is drawn as zeros, and would never move."""
    pytest.importorskip("qwix")
    with pytest.raises(ConfigError, match="keep_zeros=True: incompatible with model.lora_rank=2"):
        tiny({"model.lora_rank": 2, "optimizer.keep_zeros": True})


@pytest.mark.slow
@pytest.mark.parametrize("kind", attention.VARIANTS)
def test_no_matrix_is_drawn_with_zeros_that_would_be_kept(tiny, kind):
    encoder = {"model.kind": "encoder", "model.head": "mlm", "objective.name": "masked_lm"}
    changes = {} if "causal" in attention.get(kind).supports else encoder
    changes |= {} if "packing" in attention.get(kind).supports else {"data.packing": "none"}
    config = tiny({"model.attention": kind, "model.num_layers": 1} | changes)
    setup, state = prepared(config)
    found = groups.of(setup.config, models.abstract_params(setup.config.model))
    for path, x in flat(state.params).items():
        assert not found[path].matrix or (x != 0).all(), path


@pytest.mark.parametrize(("method", "told"), [
    ("prune:2", "must be a fraction above 0 and below 1"), ("prune:4:2", "must be like 2:4"),
    ("int8:3", "takes no argument"), ("layers:9", "must be 2 to model.num_layers=4"),
    ("small", "'small' is not one of int8, int4"), ("heads:0.1", "changes no parameter"),
    ("prune:1:99", "changes no parameter"), ("low_rank:0", "must be 1 to 16"),
    ("low_rank:17", "must be 1 to 16"), ("low_rank:half", "must be 1 to 16"),
])  # fmt: skip
def test_what_no_method_takes_is_refused(drawn, method, told):
    with pytest.raises(ConfigError, match=told):
        methods.apply(*drawn, method)


def make_run(tiny, workdir, changes):
    """A run at step 0."""
    config = tiny({"data.validation_fraction": 0.3, "train.steps": 1} | changes)
    documents = runs.objectives.get("causal_lm").splits(config)
    tokenizer = runs.objectives.get("causal_lm").build_tokenizer(config, documents["train"])
    config.model = configs.resolve(config.model, tokenizer.vocab_size)
    origin = {"from": "", "family": None, "new": [], "unused": []}
    runs.make_run(workdir, config, tokenizer, {}, origin)
    return workdir


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of two layers."""
    return make_run(tiny, tmp_path_factory.mktemp("compress") / "run", {})


@pytest.mark.parametrize("method", ["int8", pytest.param("int4", marks=pytest.mark.slow),
                                    pytest.param("nf4", marks=pytest.mark.slow)])  # fmt: skip
def test_the_command_holds_weights_in_few_bits(run, method, tmp_path, capsys):
    pytest.importorskip("qwix")
    out = tmp_path / "out"
    assert main(["compress", f"--workdir={run}", f"--to={out}", f"--method={method}"]) == 0
    report = (run / "compress" / "report.md").read_text()
    assert f"| out | {method} |" in report and (run / "compress" / "pareto.png").is_file()
    files = (run / "compress" / f"{x}.json" for x in ("run", "out"))
    before, after = (json.loads(file.read_text()) for file in files)
    assert after["bytes"] < 0.6 * before["bytes"]
    assert after["values"]["loss"] == pytest.approx(before["values"]["loss"], abs=0.05)
    assert after["values"]["loss"] != before["values"]["loss"]


@pytest.mark.slow
def test_a_run_of_int8_is_evaluated_writes_and_exports_what_it_is(tiny, tmp_path, capsys):
    pytest.importorskip("qwix")
    gpt2 = {"model.use_bias": True, "model.positions": "learned"}
    whole = make_run(tiny, tmp_path / "whole", gpt2)
    small = compress.compress(whole, tmp_path / "small", "int8")
    found = compress.measure(small)
    assert found["parameters"] == compress.measure(whole)["parameters"]
    assert main(["eval", f"--workdir={small}", "--json"]) == 0
    loss = json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]
    assert loss == pytest.approx(found["values"]["loss"], rel=1e-5)
    assert main(["export", f"--workdir={small}", f"--to={tmp_path / 'hf'}"]) == 0
    ours, theirs = llm_jax.load(small), llm_jax.load(tmp_path / "hf")
    rows = {"tokens": np.arange(24).reshape(2, 12), "segment_ids": np.ones((2, 12), int)}
    np.testing.assert_allclose(ours.logits(rows), theirs.logits(rows), rtol=1e-4, atol=1e-5)
    write = lambda lm: [x["tokens"] for x in lm.generate(["a b"], max_new_tokens=6, temperature=0)]
    assert write(ours) == write(theirs)


@pytest.mark.slow
def test_a_run_of_low_rank_is_small_and_stays_so_in_training(run, tmp_path, capsys):
    pytest.importorskip("qwix")
    small = compress.compress(run, tmp_path / "small", "low_rank:2")
    found, whole = compress.measure(small), compress.measure(run)
    assert found["bytes"] < 0.6 * whole["bytes"] and found["parameters"] == whole["parameters"]
    rows = {"tokens": np.arange(24).reshape(2, 12), "segment_ids": np.ones((2, 12), int)}
    lm = llm_jax.load(small)
    merged, params = models.merge(lm.config.model, lm.params)
    logits = models.logits(models.build(merged).apply({"params": params}, rows))
    np.testing.assert_allclose(lm.logits(rows), logits, rtol=1e-4, atol=1e-5)
    assert main(["train", f"--workdir={small}", "--config.train.steps=2"]) == 0
    trained = llm_jax.load(small)
    assert compress.measure(small)["bytes"] == found["bytes"]
    for path, x in flat(trained.params).items():
        same = np.array_equal(x, flat(lm.params)[path])
        assert same != ("_lora_" in path), path


def test_a_run_without_validation_documents_is_refused_and_leaves_no_folder(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["validation_fraction"] = 0.0
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has no validation set"):
        compress.compress(run, tmp_path / "out", "prune:0.5")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_adapters_are_merged_before_a_run_is_compressed(tiny, tmp_path):
    pytest.importorskip("qwix")
    factors = ((groups.ADAPTERS, 1.0), (".*", 0.0))
    workdir = make_run(tiny, tmp_path / "run", {"model.lora_rank": 2,
                                                "optimizer.rate_factors": factors})  # fmt: skip
    pruned = compress.compress(workdir, tmp_path / "pruned", "prune:0.5")
    assert main(["train", f"--workdir={pruned}", "--config.train.steps=1"]) == 0
    assert compress.measure(pruned)["nonzero"] < 0.9 * compress.measure(workdir)["nonzero"]


def test_a_table_is_of_one_score_and_of_as_many_batches(tmp_path):
    one = {"run": "one", "score": "loss", "max_batches": 2}
    record.write(tmp_path / "compress" / "one.json", **one)
    for change in ({"score": "accuracy"}, {"max_batches": 0}):
        with pytest.raises(ConfigError, match="unlike the other rows in the table"):
            compress.add(tmp_path, one | {"run": "other"} | change)


def test_hard_labels_alone_are_plain_training(tiny, batch):
    """Bit for bit, with gradient accumulation; from itself alone a student learns nothing."""
    config = tiny({"model.num_layers": 1})
    setup, state = prepared(config)
    rows, key, found = batch(config), jax.random.key(0), {}
    teacher = jax.tree.map(lambda x: x + 0.1, state.params)
    cases = ("plain", 0, None), ("hard", 0, teacher), ("soft", 1, state.params)
    for label, soft, theirs in cases:
        d = SimpleNamespace(soft=soft, temperature=2.0, hidden=0.0)
        objective = distill.distilled(setup.objective, setup.model, d)
        loss = partial(train_state.loss, setup.model, objective, config)
        made = distill.gradients if theirs is not None else train_state.gradients
        given = rows if theirs is None else rows | {distill.TEACHER: theirs}
        take = jax.jit(partial(made, loss), static_argnums=4)
        found[label] = take(state.params, given, key, objective.weights(rows), 2)
    (total, metrics), grads = found["plain"]
    (got, values), same = found["hard"]
    assert got == total and metrics == {name: values[name] for name in metrics}
    assert values["soft_loss"] > 0
    jax.tree.map(np.testing.assert_array_equal, same, grads)
    assert max(abs(x).max() for x in jax.tree.leaves(found["soft"][1])) < 1e-6


@pytest.mark.slow
def test_a_student_is_trained_by_the_command(run, tmp_path):
    out = tmp_path / "out"
    options = [f"--config.distill.teacher={run}", "--config.distill.hidden=1",
               "--config.train.steps=1", "--config.eval.max_batches=2"]  # fmt: skip
    assert main(["train", f"--workdir={out}", f"--config.init_from={run}", *options]) == 0
    (row,) = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert abs(row["soft_loss"]) < 1e-5 and abs(row["hidden_loss"]) < 1e-5  # it is its teacher
    assert main(["compress", f"--workdir={run}", f"--to={out}"]) == 0
    assert "| out | distilled |" in (run / "compress" / "report.md").read_text()


@pytest.mark.slow
def test_a_students_targets_are_what_its_teacher_writes(tmp_path, overrides):
    """Sequence-level distillation, as on the page."""
    rows = [{"source": f"a b {i}", "text": f"b a {i}"} for i in range(24)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = overrides({"objective.name": "seq2seq", "model.kind": "encoder_decoder",
                      "data.target_column": "text", "data.validation_fraction": 0.3,
                      "train.steps": 60, "optimizer.learning_rate": 1e-2})  # fmt: skip
    keys = [f"--config.{key}" for key in keys if not key.startswith("data.train=")]

    def train(name, file):
        return main(["train", f"--workdir={tmp_path / name}", *keys,
                     f"--config.data.train={tmp_path / file}"])  # fmt: skip

    assert train("teacher", "train.jsonl") == 0
    assert main(["predict", f"--workdir={tmp_path / 'teacher'}", "--input="
                 f"{tmp_path / 'train.jsonl'}", f"--output={tmp_path / 'distilled.jsonl'}"]) == 0
    lines = (tmp_path / "distilled.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert [row["source"] for row in written] == [row["source"] for row in rows]
    teacher = llm_jax.load(tmp_path / "teacher")
    said = teacher.generate([row["source"] for row in rows], temperature=0.0, max_new_tokens=8)
    texts = [x["completion"].strip() for x in said]
    assert [row["text"] for row in written] == texts != [row["text"] for row in rows]
    assert train("student", "distilled.jsonl") == 0
    config = read_config(tmp_path / "student")
    documents = runs.objectives.get("seq2seq").split(config, "train")
    assert {(x["source"], x["target"]) for x in documents} <= {(x["source"], x["text"])
                                                                for x in written}


def test_the_divergence_is_that_of_whole_distributions(monkeypatch):
    rng = np.random.default_rng(0)
    hidden, matrix = rng.normal(size=(2, 2, 7, 4)), rng.normal(size=(2, 11, 4))
    weight = rng.random((2, 7))
    monkeypatch.setattr(distill, "chunk_length", lambda *_: 3)
    ours, theirs = (Outputs(*(jnp.array(x, jnp.float32) for x in pair))
                    for pair in zip(hidden, matrix, strict=True))  # fmt: skip
    s, t = (np.einsum("btd,vd->btv", h, m) / 2.0 for h, m in zip(hidden, matrix, strict=True))
    each = (softmax(t, -1) * (log_softmax(t, -1) - log_softmax(s, -1))).sum(-1)
    got = distill.divergence(ours, theirs, jnp.array(weight), 2.0)
    np.testing.assert_allclose(got, (weight * each).sum(), rtol=1e-5)


def test_the_distance_is_a_mean_over_real_tokens():
    x, y = jnp.array([[[1.0, 0], [3, 0], [1, 1]]]), jnp.array([[[0, 2.0], [1, 0], [1, 0]]])
    assert distill.distance(x, y, jnp.array([[True, True, False]]))[0] == pytest.approx(0.5)


def test_bytes_of_what_is_stored():
    x = jnp.zeros(800).at[:100].set(1.0)
    assert compress.stored(x) == 100 * 4 + 100
    assert compress.stored(jnp.ones(800, jnp.int4)) == 400


def test_the_front_is_what_nothing_beats():
    made = lambda size, loss: {"bytes": size, "score": "loss", "values": {"loss": loss}}
    found = [made(1, 3.0), made(2, 3.5), made(2, 2.0), made(4, 2.0), made(5, 1.0)]
    assert compress._front(found) == [found[0], found[2], found[4]]


def test_a_teacher_of_another_kind_is_refused(run):
    _, tokenizer, _, _ = runs.load_params(run)
    config = configs.base()
    config.objective.name, config.distill.teacher = "bert", str(run)
    setup = SimpleNamespace(mesh=None)
    trainer = SimpleNamespace(setup=setup, config=config, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="'bert': incompatible with distill.teacher"):
        distill.make_step(trainer)
    config.objective.name, config.model.kind = "causal_lm", "encoder"
    with pytest.raises(ConfigError, match="model.kind differs from this run's"):
        distill.make_step(trainer)
    config.model = configs.resolve(read_config(run).model, 0)
    for key, value, told in (
        ("vocab_size", 300, r"model.vocab_size differs from this run's \(259, 300\)"),
        ("max_length", 17, "model.max_length=17: distill.teacher=.* reads at most 16 tokens"),
    ):
        right, config.model[key] = config.model[key], value
        with pytest.raises(ConfigError, match=told):
            distill.make_step(trainer)
        config.model[key] = right
    config.distill.teacher = str(run.parent)
    with pytest.raises(ConfigError, match="distill.teacher=.*: has no config.json"):
        distill.make_step(trainer)


@pytest.mark.parametrize("page", ["compress", "generation", "privacy"])
def test_the_pages_commands_are_understood(page, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    monkeypatch.setattr(commands, "read_config", lambda run: None)  # there are no such runs
    text = (root / "docs" / f"{page}.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^python launch.py (.*?)(?:  #.*)?$", text, re.MULTILINE)
    assert len(found) == {"compress": 9, "generation": 6, "privacy": 1}[page]
    for command in found:
        args, overrides = commands._read(shlex.split(command))
        configs.load(getattr(args, "config", ""), overrides)
        if getattr(args, "method", ""):
            assert args.method.partition(":")[0] in methods.METHODS
