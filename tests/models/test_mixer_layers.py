"""Tests of complete layers of hybrid models against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import config as configs
from llm_jax.attention import Mask
from llm_jax.models.attention import Attention

torch = pytest.importorskip("torch")
D, N, K, H, V, W = 24, 4, 2, 8, 6, 4
OURS = {"embed_dim": D, "num_heads": N, "head_dim": H, "short_conv": W, "output_gate": True,
        "use_bias": False, "positions": "none"}  # fmt: skip


def qwen3_next():
    """Its layer, our config, and our parameters from its state dict: kernels [in, heads, size]."""
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    layer = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=D, linear_num_value_heads=N, linear_num_key_heads=K, linear_key_head_dim=H,
            linear_value_head_dim=V, linear_conv_kernel_dim=W, num_hidden_layers=1,
            layer_types=["linear_attention"], rms_norm_eps=1e-3,
        ),
        0,
    )  # fmt: skip
    changes = {"attention": "gated_deltanet", "num_key_heads": K, "value_dim": V,
               "norm_epsilon": 1e-3}  # fmt: skip

    def params(p):
        G = N // K  # value heads to a key head, beside which they lie
        sizes = np.cumsum([H, H, G * V])
        mixed = p["in_proj_qkvz.weight"].reshape(K, -1, D)
        query, key, value, gate = np.split(mixed, sizes, axis=1)
        beta, decay = np.split(p["in_proj_ba.weight"].reshape(K, -1, D), 2, axis=1)
        taps = np.split(p["conv1d.weight"], [K * H, 2 * K * H])
        heads = {"query": (K, H), "key": (K, H), "value": (N, V)}
        kernels = {"query": (query, K, H), "key": (key, K, H), "value": (value, N, V),
                   "gate": (gate, N, V), "beta": (beta, N, 1)}  # fmt: skip
        kernel = lambda x, *shape: {"kernel": np.moveaxis(x.reshape(*shape, D), -1, 0)}
        return {name: kernel(*x) for name, x in kernels.items()} | {
            f"{name}_conv": {"kernel": x[:, 0].T.reshape(W, *shape)}
            for (name, shape), x in zip(heads.items(), taps, strict=True)
        } | {
            "decay": kernel(decay, N) | {"bias": p["dt_bias"]}, "log_speed": p["A_log"],
            "norm": p["norm.weight"], "out": {"kernel": p["out_proj.weight"].T.reshape(N, V, D)},
        }  # fmt: skip

    return layer, changes, params


def kimi_linear():
    from transformers import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    layer = KimiLinearDeltaAttention(
        KimiLinearConfig(
            hidden_size=D, linear_num_heads=N, linear_head_dim=H, linear_conv_kernel_dim=W,
            num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=1e-3,
        ),
        0,
    )  # fmt: skip
    changes = {"attention": "kda", "output_gate_rank": H, "norm_epsilon": 1e-3}

    def params(p):
        kernel = lambda name, *shape: {"kernel": p[f"{name}.weight"].T.reshape(-1, *shape)}
        taps = np.split(p["conv1d.weight"], 3)
        names = {"query": "q", "key": "k", "value": "v"}
        out = {name: kernel(f"{short}_proj", N, H) for name, short in names.items()}
        out |= {f"{name}_conv": {"kernel": x[:, 0].T.reshape(W, N, H)}
                for name, x in zip(names, taps, strict=True)}  # fmt: skip
        return out | {
            "decay_down": kernel("forget_gate.f_a_proj", H),
            "decay": kernel("forget_gate.f_b_proj", N, H)
            | {"bias": p["forget_gate.dt_bias"].reshape(N, H)},
            "log_speed": p["forget_gate.A_log"].reshape(N), "beta": kernel("b_proj", N, 1),
            "gate_down": kernel("g_a_proj", H), "gate": kernel("g_b_proj", N, H),
            "norm": p["o_norm.weight"],
            "out": {"kernel": p["o_proj.weight"].T.reshape(N, H, D)},
        }  # fmt: skip

    return layer, changes, params


@pytest.mark.parametrize("make", [qwen3_next, kimi_linear])
def test_the_layer_is_that_of_transformers(make):
    layer, changes, params = make()
    generator = torch.Generator().manual_seed(0)
    for p in layer.parameters():  # some of which nothing has set
        p.data = 0.5 * torch.randn(p.shape, generator=generator)
    x = torch.randn((2, 21, D), generator=generator, requires_grad=True)
    right = layer(x)
    right.sin().sum().backward()

    m = configs.base().model
    m.update(OURS | changes)
    cfg = FrozenConfigDict(configs.resolve(m, 44))
    attention = Attention(cfg, cfg.attention)
    p = params({name: np.asarray(x) for name, x in layer.state_dict().items()})
    p = jax.tree.map(jnp.asarray, p)

    @jax.jit
    def run(x):
        y = attention.apply({"params": p}, x, Mask(causal=True))
        return jnp.sin(y).sum(), y

    gradient, y = jax.grad(run, has_aux=True)(jnp.asarray(x.detach().numpy()))
    np.testing.assert_allclose(y, right.detach(), atol=1e-4)
    np.testing.assert_allclose(gradient, x.grad, atol=1e-4 * np.abs(x.grad).max())
