"""gpt-oss (OpenAI 2025, https://arxiv.org/abs/2508.10925, section 2 and table 1), as released.

python launch.py train --config=configs/gpt_oss.py:20b --workdir=runs/gpt_oss \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

Local layers with a window of 128 alternate with full layers, with a learned attention sink per head
and biases; YaRN from 4,096 to 131,072 tokens; four experts per token with a clamped SwiGLU, biases
in experts and router. Imports dequantise the released MXFP4 experts. Batch size, steps and learning
rates are not published: those of LLaMA 2's size nearest to the active parameters are used.
"""

from configs import llama

#         layers  experts
VARIANTS = {"20b": (24, 32), "120b": (36, 128)}


def get_config(variant="20b"):
    c = llama.get_config("2-7b")
    m = c.model
    m.num_layers, m.num_experts = VARIANTS[variant]
    m.vocab_size = 201088
    m.max_length = 131072
    m.embed_dim = 2880
    m.num_heads = 64
    m.num_kv_heads = 8
    m.head_dim = 64
    m.mlp_dim = 2880
    m.layers = "1 local window=128, 1 flash"
    m.attention_sinks = True
    m.use_bias = True
    m.rotary_base = 150_000.0
    m.rotary_scaling = "yarn"
    m.rotary_factor = 32.0
    m.rotary_original_length = 4096
    m.rotary_truncate = False
    m.activation = "clamped_swiglu"
    m.experts_per_token = 4
    m.expert_bias = True
    m.router_balance = 0.9  # the value of config.json
    c.data.batch_size = 32
    return c
