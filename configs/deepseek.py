"""DeepSeek-V2 (2024, https://arxiv.org/abs/2405.04434) and V3 (2024, 2412.19437), as released.

python launch.py train --config=configs/deepseek.py:v2-lite --workdir=runs/deepseek \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

Multi-head latent attention: keys and values of all heads from a latent vector of 512 per token and
64 shared rotary dimensions; YaRN from 4,096 to 163,840 tokens, applied to the attention scale.
Dense layers, then mixtures of experts with shared experts. V2: softmax gates, experts from the best
three of eight groups (lite: no groups). V3: sigmoid gates, selected with a bias from the best four
of eight groups, normalised and scaled; the bias update for load balancing (2.1.2) and multi-token
prediction (2.2) are not implemented. Training (V2: 3.1.2, lite: appendix B; V3: 4.2): warm-up of
2,000 steps and tokens per batch as published, in rows of the released length; a cosine schedule
instead of their step decays.
"""

import math

from configs import llama

#             layers width heads query  mlp  expert experts shared chosen groups top  scale
VARIANTS = {
    "v2-lite": (27, 2048, 16, 0, 10944, 1408, 64, 2, 6, 1, 1, 1.0),
    "v2": (60, 5120, 128, 1536, 12288, 1536, 160, 2, 6, 8, 3, 16.0),
    "v3": (61, 7168, 128, 1536, 18432, 2048, 256, 1, 8, 8, 4, 2.5),
}
#           rows of 4,096  peak rate  trillion tokens
TRAINING = {"v2-lite": (4608, 4.2e-4, 5.7), "v2": (9216, 2.4e-4, 8.1), "v3": (15360, 2.2e-4, 14.8)}


def get_config(variant="v2-lite"):
    layers, width, heads, query, mlp, expert, experts, shared, chosen, groups, top, scale = (
        VARIANTS[variant]
    )
    c = llama.get_config("2-7b")
    m, third = c.model, variant == "v3"
    m.vocab_size = 129280 if third else 102400
    m.max_length = 163840
    m.num_layers, m.embed_dim = layers, width
    m.layers = f"{3 if third else 1} num_experts=0 mlp_dim={mlp}, rest"
    m.attention = "latent"
    m.num_heads = m.num_kv_heads = heads
    m.head_dim = 128
    m.latent_kv, m.latent_query, m.latent_rotary = 512, query, 64
    m.rotary_interleaved = True
    m.rotary_scaling = "yarn"
    m.rotary_factor, m.rotary_original_length, m.rotary_strength = 40.0, 4096, 1.0
    m.attention_scale = 192**-0.5 * (0.1 * (1.0 if third else 0.707) * math.log(40.0) + 1) ** 2
    m.mlp_dim = expert
    m.num_experts, m.shared_experts, m.experts_per_token = experts, shared, chosen
    m.router_groups, m.router_top_groups, m.router_scale = groups, top, scale
    m.router_normalized = third
    m.router_bias = third
    m.router_scores = "sigmoid" if third else "softmax"
    m.router_balance = 0.0001 if third else 0.003
    m.norm_epsilon = 1e-6
    rows, rate, trillions = TRAINING[variant]
    c.data.batch_size = rows * 4096 // m.max_length
    c.optimizer.learning_rate = rate
    c.train.steps = round(trillions * 1e12 / (rows * 4096))
    return c
