"""Qwen3-Next (Qwen 2025, https://qwen.ai/blog?id=qwen3_next), as released.

python launch.py train --config=configs/qwen3_next.py --workdir=runs/qwen3_next \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

Three Gated DeltaNet layers per full attention layer, which has an output gate and rotary positions
on a quarter of the head dimensions; 512 experts, ten per token, and a gated shared expert. The
released multi-token prediction layer is not supported. Training settings are not published: those
of Qwen3 30b-a3b are used.
"""

from configs import qwen3

VARIANTS = ("80b-a3b",)
LINEAR = "num_heads=32 num_key_heads=16 head_dim=128 value_dim=128 short_conv=4"


def get_config(variant="80b-a3b"):
    c = qwen3.get_config("30b-a3b")
    m = c.model
    m.max_length = 262144
    m.layers = f"3 gated_deltanet {LINEAR} positions=none qk_norm=False, 1 flash"
    m.num_heads = 16
    m.num_kv_heads = 2
    m.head_dim = 256
    m.rotary_base = 1e7
    m.rotary_dim = 64
    m.norm_zero_centered = True
    m.output_gate = True
    m.mlp_dim = 512
    m.num_experts = 512
    m.experts_per_token = 10
    m.shared_experts = 1
    m.shared_gate = True
    c.data.batch_size = 16
    return c
