"""Tests of imported runs trained with frozen parameters, another optimizer, or LoRA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import launch
import llm_jax
from llm_jax import config as configs
from llm_jax import hub, models, sharding
from llm_jax.data import tokenizers
from llm_jax.train import groups, optimizer, state
from llm_jax.train.metrics import read
from llm_jax.train.run import Setup, load_params
from tests.hub.test_hub import ENCODER, make, same
from tests.hub.test_launch import call, refused
from tests.hub.test_tokenizer_matrix import trained
from tests.slow import but

pytest.importorskip("qwix")
TOKENS = np.random.default_rng(0).integers(0, 200, (4, 16))
LORA = {"model.lora_rank": 3, "model.lora_alpha": 6.0}


def flags(keys):
    return [f"--config.{key}={value}" for key, value in keys.items()]


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {groups.name(path): np.asarray(x) for path, x in leaves}


def loss(lm, text_file):
    """Of the first tokens of the text, the same ones each time."""
    tokens = lm.tokenizer.encode(text_file.read_text()[:400])[:64].reshape(4, 16)
    scores = jax.nn.log_softmax(lm.logits({"tokens": tokens})[:, :-1])
    return -float(jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean())


def logits_of_transformers(folder, adapter=None):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter:
        theirs = pytest.importorskip("peft").PeftModel.from_pretrained(theirs, adapter).eval()
    with torch.no_grad():
        return theirs(torch.tensor(TOKENS)).logits.numpy()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 of random weights, made by transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = trained("bytes", ["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    vocab = tokenizer.get_vocab_size()
    config = transformers.GPT2Config(**size, vocab_size=vocab, initializer_range=0.3)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def keys(text_file):
    """A run of three steps."""
    return {"data.train": text_file, "data.batch_size": 8, "data.validation_fraction": 0.1,
            "train.steps": 3, "eval.max_batches": 1, "optimizer.warmup_steps": 0,
            "optimizer.learning_rate": 0.02, "optimizer.schedule": "constant",
            "sample.prompts": "()"}  # fmt: skip


@pytest.fixture
def imported(gpt2, keys, tmp_path):
    def begin(name, changes=()):
        assert launch.main(["import", f"--from={gpt2}", f"--workdir={tmp_path / name}",
                            *flags(dict(changes))]) == 0  # fmt: skip
        return tmp_path / name

    return begin


@pytest.mark.slow
def test_lora_trains_its_arrays_alone_and_is_exported_merged(
    gpt2, imported, keys, text_file, capsys
):
    """Whether the import or the training asks for it; stopped and resumed, and in one go."""
    run, other = imported("run"), imported("other", LORA)
    workdir, base = f"--workdir={run}", flat(hub.load(gpt2)[1])
    before = llm_jax.load(other)  # adapted already, of the same function
    assert before.config.model.lora_rank == 3 and flat(before.params).keys() > base.keys()
    np.testing.assert_allclose(before.logits({"tokens": TOKENS}), logits_of_transformers(gpt2),
                               atol=1e-5)  # fmt: skip

    capsys.readouterr()
    call(capsys, "train", workdir, *flags(keys | LORA | {"train.steps": 2}))
    assert call(capsys, "train", workdir, "--config.train.steps=3")["step"] == 3
    call(capsys, "train", f"--workdir={other}", *flags(keys))
    lm, straight = llm_jax.load(run), llm_jax.load(other)
    after, adapters = flat(lm.params), {p for p in flat(lm.params) if "_lora_" in p}
    same(lm.params, straight.params)
    assert after.keys() - base.keys() == adapters and len(adapters) == 2 * 6
    assert all(np.array_equal(after[path], base[path]) for path in base)
    assert all(np.any(after[path]) for path in adapters)
    assert loss(lm, text_file) < loss(before, text_file) - 0.1
    moments = flat_names(load_params(run)[0].abstract_state().opt_state)
    held = {path.partition("mu/")[2] for path in moments if "mu/" in path}
    assert held == adapters

    target = run.with_name("hf")
    call(capsys, "export", workdir, f"--to={target}")
    ours = np.asarray(lm.logits({"tokens": TOKENS}))
    assert np.abs(ours - logits_of_transformers(gpt2)).max() > 1e-2
    np.testing.assert_allclose(logits_of_transformers(target), ours, atol=1e-5)
    np.testing.assert_allclose(llm_jax.load(target).logits({"tokens": TOKENS}), ours, atol=1e-5)
    assert call(capsys, "generate", workdir, "--prompt=the", "--max_new_tokens=3")["samples"]
    assert call(capsys, "eval", workdir)["loss"] == read(run)[-1]["eval_loss"]
    assert "model.lora_rank: 3 there, 4 here" in refused(
        capsys, "train", workdir, "--config.model.lora_rank=4"
    )
    adapter = run.with_name("adapter")
    call(capsys, "export", workdir, f"--to={adapter}", "--adapter")
    np.testing.assert_allclose(logits_of_transformers(gpt2, adapter), ours, atol=1e-5)


# The values between -1 and 1 that a weight over its block's largest may have: Dettmers 2023,
# appendix E; the integers of qwix have half a step more than their largest.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]  # fmt: skip
VALUES = {"nf4": NF4, "int4": np.arange(-8, 8) / 7.5, "int8": np.arange(-128, 128) / 127.5}


@pytest.mark.slow
@pytest.mark.parametrize("held", VALUES)
def test_qlora_holds_the_nearest_values_and_trains_adapters_alone(
    held, gpt2, imported, keys, capsys
):
    """Stopped and resumed, and in one go; exported merged, and as an adapter."""
    run, other = imported("run"), imported("other")
    keys, base = keys | LORA | {"model.lora_quantize": held}, flat(hub.load(gpt2)[1])
    call(capsys, "train", f"--workdir={run}", *flags(keys | {"train.steps": 2}))
    call(capsys, "train", f"--workdir={run}", *flags(keys))
    call(capsys, "train", f"--workdir={other}", *flags(keys))
    lm = llm_jax.load(run)
    same(lm.params, llm_jax.load(other).params)
    found = flat(lm.params)
    kernels = [path for path in base if path.endswith("/kernel")]
    assert len(kernels) == 6
    for path in kernels:
        codes, scale = (found[f"{path}/array/{x}"] for x in ("qvalue", "scale"))
        assert codes.dtype.name == {"nf4": "uint4"}.get(held, held) and codes.size > 4 * scale.size
        sizes = [(m, n // m) for n, m in zip(codes.shape, scale.shape, strict=True)]
        blocks = base[path].reshape([n for pair in sizes for n in pair])
        inside = tuple(range(1, blocks.ndim, 2))
        shares = blocks / np.abs(blocks).max(inside, keepdims=True)
        nearest = np.array(VALUES[held])[np.abs(shares[..., None] - VALUES[held]).argmin(-1)]
        nearest *= np.abs(blocks).max(inside, keepdims=True)
        merged = flat(models.merge(lm.config.model, lm.params)[1])[path]
        a, b = (found[f"{path}_lora_{x}"] for x in "ab")
        left = (merged - 2 * (a @ b).reshape(merged.shape)).reshape(blocks.shape)
        # As near, since two may be the nearest: a block's largest is half a step from both.
        np.testing.assert_allclose(abs(left - blocks), abs(nearest - blocks), atol=1e-5)
    held_apart = {path for path in base if "/kernel" not in path}
    assert all(np.array_equal(base[path], found[path]) for path in held_apart)

    capsys.readouterr()
    target, adapter = run.with_name("hf"), run.with_name("adapter")
    call(capsys, "export", f"--workdir={run}", f"--to={target}")
    ours = np.asarray(lm.logits({"tokens": TOKENS}))
    np.testing.assert_allclose(logits_of_transformers(target), ours, atol=1e-4)
    assert call(capsys, "eval", f"--workdir={run}")["loss"] == read(run)[-1]["eval_loss"]
    call(capsys, "export", f"--workdir={run}", f"--to={adapter}", "--adapter")
    near = np.abs(logits_of_transformers(gpt2, adapter) - ours).mean()
    assert near < np.abs(logits_of_transformers(gpt2) - ours).mean()


def flat_names(tree):
    return [groups.name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.slow
def test_an_import_may_be_trained_by_another_optimizer_with_frozen_layers(
    gpt2, imported, keys, capsys
):
    run, base = imported("run", {"optimizer.name": "adafactor"}), flat(hub.load(gpt2)[1])
    frozen = (("embed/.*", 0), (".*/mlp/.*", 0.0))
    changes = {"optimizer.name": "lion", "optimizer.clip_norm": 0.5, "train.ema_decay": 0.5}
    changes |= {"optimizer.rate_factors": frozen, "train.steps": 1}
    assert launch.main(["train", f"--workdir={run}", *flags(keys | changes)]) == 0
    averaged = flat(llm_jax.load(run).params)
    assert {p for p in base if np.array_equal(base[p], averaged[p])} == {
        p for p in base if p.startswith("embed/") or "/mlp/" in p
    }
    # Of step 0, where no average was kept, the parameters are their own.
    same(llm_jax.load(run, 0).params, hub.load(gpt2)[1])
    assert launch.main(["eval", f"--workdir={run}"]) == 0
    assert "optimizer.name" in refused(
        capsys, "train", f"--workdir={run}", "--config.optimizer.name=adamw"
    )


@pytest.mark.slow
def test_a_head_that_an_import_drew_is_trained_beside_lora(tmp_path, capsys, text_file):
    tokenizer = tokenizers.build(
        configs.ConfigDict({"name": "wordpiece", "vocab_size": 60, "specials": ()}),
        [text_file.read_text()],
    )
    model, params = make(ENCODER | {"head": "none", "type_vocab_size": 2}, tokenizer.vocab_size)
    hub.save(model, params, tokenizer, tmp_path / "hf")
    run = f"--workdir={tmp_path / 'run'}"
    new = call(
        capsys, "import", f"--from={tmp_path / 'hf'}", run, "--config.model.head=mlm"
    )["new"]  # fmt: skip
    before = flat(llm_jax.load(tmp_path / "run").params)
    small = {"data.train": text_file, "data.batch_size": 8, "eval.max_batches": 1}
    small |= {"optimizer.warmup_steps": 0, "optimizer.learning_rate": 0.1, "train.steps": 2}
    call(capsys, "train", run, *flags(small | LORA))
    after = flat(llm_jax.load(tmp_path / "run").params)
    changed = {p for p in before if not np.array_equal(before[p], after[p])}
    assert changed == {p for p in before if p.split("/")[0] in new} and changed


@pytest.mark.parametrize("name", [pytest.param("muon", marks=pytest.mark.slow), "adafactor"])
def test_an_optimizer_sees_the_adapters_of_each_layer_by_themselves(name):
    """As so many runs of Optax's own, on layers of very different size."""
    config = configs.base()
    config.model.update(num_layers=3, embed_dim=160, num_heads=2, mlp_dim=192, lora_rank=130)
    config.model = configs.resolve(config.model, 30)
    config.optimizer.update(name=name, learning_rate=1.0, schedule="constant", warmup_steps=0,
                            weight_decay=0.0, clip_norm=0.0)  # fmt: skip
    setup = Setup(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    rng = np.random.default_rng(0)
    scale = np.array([1e-3, 1.0, 50.0])[:, None, None]
    draw = lambda p: jnp.asarray(scale * rng.normal(size=p.shape), jnp.float32)
    trained = groups.split(config, setup.params)[0]
    params, grads = jax.tree.map(draw, trained), jax.tree.map(draw, trained)
    assert set(flat_names(params)) == {p for p in setup.groups if "_lora_" in p}
    tx = optimizer.build(config, setup.groups)
    updates = flat(jax.jit(tx.update)(grads, tx.init(params), params)[0])
    params, grads = flat(params), flat(grads)
    alone = optax.adafactor(1.0)
    if name == "muon":
        alone = optax.chain(
            optax.contrib.scale_by_muon(beta=config.optimizer.muon_momentum), optax.scale(-1.0)
        )
    for path, g in grads.items():
        for layer in range(3):
            p = jnp.asarray(params[path][layer])
            want = alone.update(jnp.asarray(g[layer]), alone.init(p), p)[0]
            want *= 0.2 * np.sqrt(max(p.shape)) if name == "muon" else 1.0
            np.testing.assert_allclose(updates[path][layer], want, rtol=2e-3, atol=1e-4 *
                                       np.abs(want).max(), err_msg=path)  # fmt: skip


def test_lora_without_a_product_is_refused(caplog):
    config = configs.base()
    config.model.update(num_experts=4, lora_rank=2, lora_targets=("up",))
    config.model = configs.resolve(config.model, 30)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with pytest.raises(configs.ConfigError, match=r"targets=\('up',\): matches no.*num_experts=4"):
        Setup(config, mesh)
    config.model.lora_targets = ()
    caplog.clear()
    adapted = {path for path, group in Setup(config, mesh).groups.items() if group.rate}
    assert adapted and all("/attention/" in path for path in adapted)
    assert "experts get no adapters" in caplog.text
    with pytest.raises(configs.ConfigError, match="'nf4': incompatible with model.rev"):
        configs.load("", [f"model.{x}" for x in
                          ("lora_rank=2", "lora_quantize=nf4", "reversible=True")])  # fmt: skip


@pytest.mark.parametrize("held", but(["nf4"], ["none", "nf4", "int4", "int8"]))
def test_merging_keeps_the_function(held):
    """Attention's heads and an encoder-decoder's cross-attention too."""
    from tests.tiny_models import tiny_model

    model, params = tiny_model(kind="encoder_decoder", lora_rank=3, lora_alpha=5.0)
    params = jax.tree.map(lambda x: 0.5 * x, params)  # where rounding is not blown up
    model = models.build(configs.ConfigDict(model.cfg.to_dict() | {"lora_quantize": held}))
    params = state.fill(model, 0, params)
    tokens = {"tokens": TOKENS % 11, "encoder_tokens": TOKENS % 11}
    run = lambda model, p: models.logits(jax.jit(model.apply)({"params": p}, tokens))
    cfg, merged = models.merge(model.cfg, params)
    y, expected = run(models.build(cfg), merged), run(model, params)
    np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max())
