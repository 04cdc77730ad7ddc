"""Tests of FLOPs computed from a config against XLA's count for the compiled program."""

import jax
import jax.numpy as jnp
import pytest

from llm_jax import config, models
from llm_jax.models.flops import train_flops
from tests.slow import every

# One tile, chunk or block of rows, since XLA counts one turn of a loop; wide enough that what is
# not a product is little.
T, S, V = 64, 48, 160
SMALL = {
    "num_layers": 2, "embed_dim": 128, "num_heads": 4, "mlp_dim": 64, "max_length": T,
    "positions": "rotary", "scan": False, "window": 8, "global_tokens": 2, "block": 8,
    "random_blocks": 1, "stride": 4, "landmarks": 16, "latent_kv": 40, "latent_rotary": 16,
    "random_features": 32,
}  # fmt: skip
ENCODER = {"kind": "encoder"}
CASES = {
    "dense": {},
    "grouped": {"num_kv_heads": 2, "qk_norm": True},
    "patterned": {"attention": "dense,latent"},
    "shared": {"share_layers": True, "num_layers": 3},
    "gated": {"output_gate": True},
    "cross": {"kind": "encoder_decoder", "num_kv_heads": 2, "num_decoder_layers": 1},
    "cross, gated": {"kind": "encoder_decoder", "output_gate": True},
    "latent": {"attention": "latent"},
    "latent queries": {"attention": "latent", "latent_query": 96},
    "longformer": {"attention": "longformer"},
    "bigbird": {"attention": "bigbird"},
    "lsh": {"attention": "lsh", "positions": "learned", "lsh_chunk": 16},
    "reversible": {"reversible": True, "tie_embeddings": False, "num_layers": 1},
    "talking_heads": {"attention": "talking_heads"},
    "differential": {"attention": "differential"},
    "moba": {"attention": "moba", "selected_blocks": 3},
    "nsa": {"attention": "nsa", "selected_blocks": 4},
    "dsa": {"attention": "dsa", "index_topk": 16, "index_heads": 2, "index_dim": 32},
    "forgetting": {"attention": "forgetting"},
    "path": {"attention": "path"},
    "stick_breaking": {"attention": "stick_breaking"},
    "linear": {"attention": "linear"},
    "performer": {"attention": "performer"},
    "gated_linear": {"attention": "gated_linear"},
    "gated_deltanet": {"attention": "gated_deltanet", "value_dim": 48},
    "kda": {"attention": "kda"},
    # Two steps a token; one of conjugate gradients, since XLA counts one turn of a loop.
    "gated_deltaproduct": {"attention": "gated_deltaproduct", "max_length": T // 2},
    "rwkv7": {"attention": "rwkv7", "max_length": T // 2},
    "mesa_net": {"attention": "mesa_net", "solver_steps": 1},
    "ttt_linear": {"attention": "ttt_linear", "ttt_batch": T},
    "short convolutions": {"attention": "gated_deltanet", "short_conv": 4},
    "retnet": {"attention": "retnet", "value_dim": 64},
    "gla": {"attention": "gla", "value_dim": 64},
    "hgrn2": {"attention": "hgrn2"},
    "gsa": {"attention": "gsa", "slots": 16},
    "rwkv6": {"attention": "rwkv6"},
    "based": {"attention": "based", "head_dim": 8, "value_dim": 32},
    "rebased": {"attention": "rebased", "head_dim": 8, "value_dim": 32},
    "mamba2": {"attention": "mamba2", "num_key_heads": 2, "value_dim": 48},
    "mamba3": {"attention": "mamba3", "num_key_heads": 2, "value_dim": 48},
    "log_linear": {"attention": "log_linear"},
    "linformer": ENCODER | {"attention": "linformer"},
    "nystrom": ENCODER | {"attention": "nystrom"},
}


def test_a_translator_by_hand():
    """Six a weight and token of its side; keys and values across are made of the source.

    Two layers a side: four projections and the feed-forward layer, across two of each side more.
    """
    D, F, T, S = 128, 64, 8, 40
    side = 4 * D * D + 2 * D * F
    weights = 2 * S * side + 2 * T * side + 2 * (T + S) * 2 * D * D + T * D * V
    scores = 2 * 4 * D * (S * S + T * T + T * S)
    ours = train_flops(resolved({"kind": "encoder_decoder"}), 1, T, S)
    assert ours == pytest.approx(6 * weights + 3 * scores)


def resolved(changes):
    cfg = config.base().model
    cfg.update(SMALL | changes)
    return config.resolve(cfg, V)


@pytest.mark.parametrize("case", every(3, CASES))
def test_near_what_xla_counts(case):
    cfg = resolved(CASES[case])
    model = models.build(cfg)
    params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
    batch = {"tokens": jnp.zeros((1, cfg.max_length), jnp.int32)}
    if cfg.kind == "encoder_decoder":
        batch["encoder_tokens"] = jnp.zeros((1, S), jnp.int32)
    forward = lambda params, batch: models.logits(model.apply({"params": params}, batch))
    counted = jax.jit(forward).lower(params, batch).cost_analysis()["flops"]
    ours = train_flops(cfg, 1, cfg.max_length, S if cfg.kind == "encoder_decoder" else 0) / 3
    # XLA counts norms, softmaxes and the like too.
    assert 0.94 < ours / counted < 1.02


@pytest.mark.parametrize(
    "kind, other, more",
    [
        # Of 4 heads of 32, made of a stream 128 wide.
        ("gated_linear", "linear", 128 * 4),
        ("longformer", "local", 3 * 128 * 128),
    ],
)
def test_what_a_kind_asks_of_each_token_is_counted(kind, other, more):
    of = lambda kind: train_flops(resolved({"attention": kind, "global_tokens": 0}), 1, T)
    assert of(kind) - of(other) == 2 * 6 * T * more  # two layers


FROZEN = {
    "none": ({}, lambda path: True),
    "lora": ({"lora_rank": 8}, lambda path: "_lora_" in path),
    "lora and embeddings": ({"lora_rank": 8}, lambda path: "_lora_" in path or "embed" in path),
    "all but the final norm": ({}, lambda path: "final_norm" in path),
    "feed-forward layers": ({}, lambda path: "/mlp/" not in path),
    "a whole encoder": (
        {"kind": "encoder_decoder", "positions": "none", "tie_embeddings": False},
        lambda path: path.startswith(("decoder", "output")),
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_a_step_costs_what_is_computed_of_it(case):
    """Gradients of frozen weights are not, nor of activations before all that is trained."""
    changes, trained = FROZEN[case]
    cfg = resolved(changes | {"num_layers": 4, "mlp_dim": 256})
    if cfg.lora_rank:
        pytest.importorskip("qwix")
    model = models.build(cfg)
    params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    learned = [i for i, (path, _) in enumerate(leaves) if trained(name(path))]
    assert learned
    batch = {"tokens": jnp.zeros((1, T), jnp.int32), "encoder_tokens": jnp.zeros((1, S), jnp.int32)}

    def gradients(some, all_):
        def loss(some):
            leaves = list(all_)
            for i, x in zip(learned, some, strict=True):
                leaves[i] = x
            params = jax.tree.unflatten(tree, leaves)
            return models.logits(model.apply({"params": params}, batch)).sum()

        return jax.grad(loss)(some)

    values = [x for _, x in leaves]
    program = jax.jit(gradients).lower([values[i] for i in learned], values).compile()
    sides = (T, S) if cfg.kind == "encoder_decoder" else (T,)
    ours = train_flops(cfg, 1, *sides, trained=trained)
    assert 0.9 < ours / program.cost_analysis()["flops"] < 1.1
