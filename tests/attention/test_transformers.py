"""Tests of attention variants against the same mechanisms in transformers."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from llm_jax import config as configs
from llm_jax.attention import (
    Mask,
    Scoring,
    bigbird,
    delta,
    dense,
    differential,
    landmarks,
    local,
)
from llm_jax.models.attention import Attention
from llm_jax.models.latent import LatentAttention
from llm_jax.models.positions import rotary_rates, rotary_strength

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, N, H = 2, 48, 4, 8
RNG = np.random.default_rng(0)


def close(ours, theirs):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def pull(theirs, cotangent, *inputs):
    """The reference's gradient of <theirs, cotangent>."""
    return torch.autograd.grad(theirs, inputs, torch.from_numpy(cotangent))


def heads(linear, x, N=N):
    """A torch Linear applied to x [B, T, D] -> [B, T, N, H]."""
    return linear(x).unflatten(-1, (N, -1)).detach().numpy()


def test_gemma2_softcap():
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    q, k, v = draw(B, T, N, H), draw(B, T, 2, H), draw(B, T, 2, H)
    module = SimpleNamespace(num_key_value_groups=2, training=False, head_dim=H)
    hidden = torch.full((1, 1, T, T), -1e30).triu(1)
    inputs = [torch.from_numpy(x.swapaxes(1, 2).copy()).requires_grad_() for x in (q, k, v)]
    theirs, _ = eager_attention_forward(module, *inputs, hidden, scaling=0.5, softcap=2.0)
    ours, back = jax.vjp(
        lambda *x: dense.attend(*x, Mask(causal=True), Scoring(scale=0.5, softcap=2.0)), q, k, v
    )
    close(ours, theirs)
    for mine, yours in zip(back(jnp.asarray(q)), pull(theirs, q, *inputs), strict=True):
        close(mine.swapaxes(1, 2), yours)


def test_gpt_oss_sinks():
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    q, k, v, sinks = draw(B, T, N, H), draw(B, T, 2, H), draw(B, T, 2, H), draw(N)
    hidden = torch.full((1, 1, T, T), -1e30).triu(1)
    inputs = [torch.from_numpy(x.swapaxes(1, 2).copy()).requires_grad_() for x in (q, k, v)]
    inputs.append(torch.from_numpy(sinks).requires_grad_())
    module = SimpleNamespace(num_key_value_groups=2, training=False, sinks=inputs[3])
    theirs, _ = eager_attention_forward(module, *inputs[:3], hidden, scaling=H**-0.5)
    ours, back = jax.vjp(
        lambda q, k, v, sinks: dense.attend(q, k, v, Mask(causal=True), Scoring(sinks=sinks)),
        q, k, v, sinks,
    )  # fmt: skip
    close(ours, theirs)
    *mine, mine_sinks = back(jnp.asarray(q))
    *yours, yours_sinks = pull(theirs, q, *inputs)
    close(mine_sinks, yours_sinks)
    for a, b in zip(mine, yours, strict=True):
        close(a.swapaxes(1, 2), b)


def test_qwen3_next_gated_delta_rule():
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    length = 150
    q, k, v = (draw(B, length, N, H) for _ in range(3))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    rate, decay = 1 / (1 + np.exp(-draw(B, length, N))), -np.abs(draw(B, length, N))
    inputs = [torch.from_numpy(x).requires_grad_() for x in (q, k, v, decay, rate)]
    theirs, state = torch_chunk_gated_delta_rule(*inputs, output_final_state=True)

    def rule(q, k, v, decay, rate):
        rate = rate[..., None]
        return delta.delta_rule(q * H**-0.5, rate * k, k, rate * v, decay, Mask(causal=True))

    (ours, after), back = jax.vjp(rule, q, k, v, decay, rate)
    close(ours, theirs)
    close(after, state)
    found = back((jnp.asarray(v), 0 * after))
    for mine, yours in zip(found, pull(theirs, v, *inputs), strict=True):
        close(mine, yours)


@pytest.mark.parametrize("global_tokens", [0, 3])
def test_longformer(global_tokens):
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = transformers.LongformerConfig(
        hidden_size=N * H, num_attention_heads=N, attention_window=[8], num_hidden_layers=1,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer, x = LongformerSelfAttention(config, 0).eval(), torch.from_numpy(draw(B, T, N * H))
    padding = torch.zeros(B, T)
    padding[:, :global_tokens] = 10_000
    padding[0, 40:] = -10_000
    theirs = layer(
        x, padding, is_index_masked=padding < 0, is_index_global_attn=padding > 0,
        is_global_attn=global_tokens > 0,
    )[0]  # fmt: skip
    names = "query_global", "key_global", "value_global"
    far = {"_".join(n.split("_")[::-1]): heads(getattr(layer, n), x) for n in names}
    segments = np.ones((B, T), np.int32)
    segments[0, 40:] = 0
    ours = local.attend_longformer(
        *(heads(getattr(layer, n), x) for n in ("query", "key", "value")),
        Mask(segments, segments), window=5, global_tokens=global_tokens, **far,
    )  # fmt: skip
    real = segments[..., None] > 0
    close(ours.reshape(B, T, -1) * real, theirs.detach().numpy() * real)


def test_bigbird():
    from transformers.models.big_bird.modeling_big_bird import (
        BigBirdBlockSparseAttention,
        BigBirdModel,
    )  # fmt: skip

    block, count = 4, 12
    config = transformers.BigBirdConfig(
        hidden_size=N * H, num_attention_heads=N, block_size=block, num_random_blocks=2,
        max_position_embeddings=T, use_bias=True,
    )  # fmt: skip
    layer, x = (
        BigBirdBlockSparseAttention(config, seed=1).eval(),
        torch.from_numpy(draw(B, T, N * H)),
    )
    real = torch.ones(B, T)
    real[0, 42:] = 0
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(real, block)
    theirs = layer(x, band, rows, columns, blocked, blocked)[0]
    np.random.seed(1)  # as the layer does before it chooses
    chosen = np.stack([layer._bigbird_block_rand_mask(T, T, block, block, 2, last_idx=1024)
                       for _ in range(N)])  # fmt: skip
    seen = np.full((N, count, 7), -1)
    for n, i in np.ndindex(N, count):
        own = {0, count - 1, *range(max(0, i - 1), min(count, i + 2))}
        extra = [] if i in (0, count - 1) else chosen[n, i - 1]
        row = [*sorted(own), *extra]
        seen[n, i, : len(row)] = row
    segments = real.numpy().astype(np.int32)
    q, k, v = (heads(getattr(layer, name), x) for name in ("query", "key", "value"))
    mask = Mask(segments, segments)
    ours = bigbird.attend(q, k, v, mask, block=block, random_blocks=2, seen=seen)
    mine = ours.reshape(B, T, -1) * segments[..., None]
    close(mine, theirs.detach().numpy() * segments[..., None])


def test_nystromformer():
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = transformers.NystromformerConfig(
        hidden_size=N * H, num_attention_heads=N, num_landmarks=12, segment_means_seq_len=T,
        conv_kernel_size=33, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer, x = NystromformerSelfAttention(config).eval(), torch.from_numpy(draw(1, T, N * H))
    layer.init_option = "exact"  # the paper's, a matrix at a time
    q, k, v = (heads(getattr(layer, name), x) for name in ("query", "key", "value"))
    kernel = layer.conv.weight.detach().numpy()[:, 0, :, 0].T
    ours = landmarks.attend_nystrom(q, k, v, Mask(), landmarks=12, convolution=kernel)
    close(ours.reshape(1, T, -1), layer(x)[0])


def test_diffllama():
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    config = transformers.DiffLlamaConfig(
        hidden_size=N * H, num_attention_heads=N, num_key_value_heads=2, rms_norm_eps=1e-5,
        attention_bias=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    layer, x = DiffLlamaAttention(config, 0).eval(), torch.from_numpy(draw(B, T, N * H))
    layer.lambda_init = differential.START
    layer.o_proj = torch.nn.Identity()
    still = torch.ones(B, T, H), torch.zeros(B, T, H)
    theirs = layer(x, still, torch.full((1, 1, T, T), -1e30).triu(1))[0]
    # There the first half of the heads is paired with the second, here neighbours are.
    pairs = lambda x: x[:, :, np.arange(x.shape[2]).reshape(2, -1).T.ravel()]
    q, k, v = (pairs(heads(getattr(layer, f"{name}_proj"), x, n)) for name, n in
               (("q", N), ("k", 2), ("v", 2)))  # fmt: skip
    names = "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"
    learned = {name: getattr(layer, name).detach().numpy() for name in names}
    ours = differential.attend(q, k, v, Mask(causal=True), **learned, scale=np.ones(2 * H))
    close(ours.reshape(B, T, -1), theirs)


@pytest.mark.parametrize("query_rank", [None, 12])
def test_deepseek_v3_latents(query_rank):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    C, R, D = 16, 4, N * H
    config = transformers.DeepseekV3Config(
        hidden_size=D, num_attention_heads=N, num_key_value_heads=N, q_lora_rank=query_rank,
        kv_lora_rank=C, qk_rope_head_dim=R, qk_nope_head_dim=H, v_head_dim=H,
        rope_interleave=False, attention_bias=False, attn_implementation="eager",
    )  # fmt: skip
    layer, x = theirs.DeepseekV3Attention(config, 0).eval(), draw(B, T, D)
    rotary = theirs.DeepseekV3RotaryEmbedding(config)
    places = torch.arange(T)[None]
    expected = layer(
        torch.from_numpy(x), rotary(torch.from_numpy(x), places),
        torch.full((1, 1, T, T), -1e30).triu(1),
    )[0]  # fmt: skip
    m = configs.base().model
    m.update({
        "embed_dim": D, "num_heads": N, "head_dim": H, "positions": "rotary", "norm": "rmsnorm",
        "use_bias": False, "latent_kv": C, "latent_rotary": R, "latent_query": query_rank or 0,
        "norm_epsilon": 1e-6,
    })  # fmt: skip
    cfg = FrozenConfigDict(configs.resolve(m, 10))
    weight = lambda name: getattr(layer, name).weight.detach().numpy()
    up = weight("kv_b_proj").T.reshape(C, N, 2 * H)
    params = {
        "key_value_down": {"kernel": weight("kv_a_proj_with_mqa").T},
        "latent_norm": {"scale": weight("kv_a_layernorm")},
        "up_key": up[..., :H],
        "up_value": up[..., H:],
        "out": {"kernel": weight("o_proj").T.reshape(N, H, D)},
    }
    if query_rank:
        params["query_down"] = {"kernel": weight("q_a_proj").T}
        params["query_norm"] = {"scale": weight("q_a_layernorm")}
        params["query"] = {"kernel": weight("q_b_proj").T.reshape(query_rank, N, H + R)}
    else:
        params["query"] = {"kernel": weight("q_proj").T.reshape(D, N, H + R)}
    model = LatentAttention(cfg, "latent")
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    close(model.apply({"params": params}, x, Mask(causal=True), positions=positions), expected)


def test_mamba2_mixer():
    """The whole layer, with its convolution and two groups of heads."""
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    D, V, G, S, W = 16, 8, 2, 6, 4
    config = transformers.Mamba2Config(
        hidden_size=D, num_heads=N, head_dim=V, expand=2, state_size=S, n_groups=G, conv_kernel=W,
        chunk_size=16, num_hidden_layers=1, use_conv_bias=True,
    )  # fmt: skip
    layer, x = Mamba2Mixer(config, 0).eval(), draw(B, T, D)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.from_numpy(draw(*weight.shape)) * 0.5)
        expected = layer(torch.from_numpy(x))
    weights = {name: weight.detach().numpy() for name, weight in layer.named_parameters()}
    shapes = {"z": (N, V), "value": (N, V), "key": (G, S), "query": (G, S), "step": (N,)}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1]
    parts = np.split(weights["in_proj.weight"].T, ends, axis=1)
    params = {name: {"kernel": part.reshape(D, *shape)} for (name, shape), part in
              zip(shapes.items(), parts, strict=True)}  # fmt: skip
    params["step"]["bias"] = weights["dt_bias"]
    convolved, taps = ("value", "key", "query"), weights["conv1d.weight"][:, 0].T
    for name, kernel, bias in zip(
        convolved, *(np.split(a, ends[1:3] - ends[0], axis=-1)
                     for a in (taps, weights["conv1d.bias"])), strict=True,
    ):  # fmt: skip
        shape = shapes[name]
        params[f"{name}_conv"] = {"kernel": kernel.reshape(W, *shape), "bias": bias.reshape(shape)}
    params |= {"log_speed": weights["A_log"], "skip": weights["D"],
               "norm": weights["norm.weight"].reshape(N, V),
               "out": {"kernel": weights["out_proj.weight"].T.reshape(N, V, D)}}  # fmt: skip
    m = configs.base().model
    m.update({
        "embed_dim": D, "num_heads": N, "head_dim": S, "value_dim": V, "num_key_heads": G,
        "short_conv": W, "short_conv_bias": True, "use_bias": False, "positions": "none",
    })  # fmt: skip
    model = Attention(FrozenConfigDict(configs.resolve(m, 10)), "mamba2")
    close(model.apply({"params": params}, x, Mask(causal=True)), expected)


@pytest.mark.parametrize("length", [512, 2**20])  # of the second YaRN's ramp has no end
@pytest.mark.parametrize("scaling", ["linear", "llama3", "yarn"])
def test_rotary_scaling(scaling, length):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": scaling, "rope_theta": 10_000.0, "factor": 4.0,
        "original_max_position_embeddings": length, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    }  # fmt: skip
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=2048,
        rope_parameters=parameters,
    )  # fmt: skip
    theirs, strength = ROPE_INIT_FUNCTIONS[scaling](config, torch.device("cpu"))
    m = configs.base().model
    m.update({"rotary_scaling": scaling, "rotary_factor": 4.0, "rotary_original_length": length})
    m.update({"embed_dim": 64, "num_heads": 1})
    cfg = FrozenConfigDict(configs.resolve(m, 10))
    np.testing.assert_allclose(rotary_rates(cfg), theirs.numpy(), rtol=1e-5)
    assert abs(rotary_strength(cfg) - strength) < 1e-6


def test_ntk_stretches_the_slowest_wave_by_the_factor():
    m = configs.base().model
    m.update({"embed_dim": 64, "num_heads": 1, "rotary_factor": 4.0})
    cfg = configs.resolve(m, 10)
    plain = rotary_rates(FrozenConfigDict(cfg))
    cfg.rotary_scaling = "ntk"
    ratio = plain / rotary_rates(FrozenConfigDict(cfg))
    np.testing.assert_allclose(ratio[np.array([0, -1])], [1, 4], rtol=1e-5)
