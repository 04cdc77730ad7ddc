"""Gemma 3, the text models (2025, https://arxiv.org/abs/2503.19786, table 1; 270m as released).

python launch.py train --config=configs/gemma3.py:1b --workdir=runs/gemma3 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

Five local layers per global layer (section 2): a window of 1,024 (512 in 270m and 1b) with rotary
base 10,000, and full attention with base 1,000,000, scaled by 8 for 128K tokens (from 4b). Norms
before and after each sublayer, with scales 1 + w, and QK norm. Numbers of tokens are from section
2.2. Batch size and learning rate are not published: those of LLaMA 2's nearest size are used.
"""

from configs import llama

#          layers  width  heads  kv heads  head dim  mlp  window  trillion tokens
VARIANTS = {
    "270m": (18, 640, 4, 1, 256, 2048, 512, 6),
    "1b": (26, 1152, 4, 1, 256, 6912, 512, 2),
    "4b": (34, 2560, 8, 4, 256, 10240, 1024, 4),
    "12b": (48, 3840, 16, 8, 256, 15360, 1024, 12),
    "27b": (62, 5376, 32, 16, 128, 21504, 1024, 14),
}


def get_config(variant="1b"):
    layers, width, heads, kv_heads, head, mlp, window, trillions = VARIANTS[variant]
    c = llama.get_config({"12b": "2-13b", "27b": "2-70b"}.get(variant, "2-7b"))
    m, small = c.model, window == 512
    m.vocab_size = 262144 if small else 262208
    m.max_length = 32768 if small else 131072
    m.num_layers = layers
    m.layers = f"5 local window={window} rotary_base=1e4 rotary_scaling=none, 1 flash"
    m.rotary_base = 1e6
    if not small:
        m.rotary_scaling = "linear"
        m.rotary_factor = 8.0
    m.embed_dim = width
    m.num_heads = heads
    m.num_kv_heads = kv_heads
    m.head_dim = head
    m.attention_scale = 168**-0.5 if variant == "27b" else 0.0
    m.mlp_dim = mlp
    m.activation = "geglu_tanh"
    m.norm_epsilon = 1e-6
    m.norm_place = "sandwich"
    m.norm_zero_centered = True
    m.qk_norm = True
    m.scale_embeddings = True
    m.tie_embeddings = True
    c.data.batch_size = 2**22 // m.max_length
    c.train.steps = round(trillions * 1e12 / 2**22)
    return c
