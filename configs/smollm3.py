"""SmolLM3 (Hugging Face 2025, https://huggingface.co/blog/smollm3), as released.

python launch.py train --config=configs/smollm3.py --workdir=runs/smollm3 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

LLaMA with no positions in every fourth layer (NoPE, Yang 2025). Training by the blog: 11.2 trillion
tokens, 2.36 million per step, AdamW(0.9, 0.95) at 2e-4, weight decay 0.1 except embeddings,
clipping 1.0, warm-up of 2,000 steps, and a linear decay over the last tenth; rows of 4,096 were
later extended to 65,536, with the rotary base of 5,000,000 used here.
"""

from configs import llama

VARIANTS = ("3b",)


def get_config(variant="3b"):
    c = llama.get_config("2-7b")
    m = c.model
    m.vocab_size = 128256
    m.max_length = 65536
    m.num_layers = 36
    m.layers = "3 flash, 1 flash positions=none"
    m.embed_dim = 2048
    m.num_heads = 16
    m.num_kv_heads = 4
    m.mlp_dim = 11008
    m.norm_epsilon = 1e-6
    m.rotary_base = 5e6
    m.tie_embeddings = True
    c.data.batch_size = 36
    c.optimizer.learning_rate = 2e-4
    c.optimizer.eps = 1e-8
    c.optimizer.decay_factors = (("embed/.*", 0.0),)
    c.optimizer.schedule = "wsd"
    c.optimizer.final_fraction = 0.0
    c.train.steps = round(11.2e12 / 2.36e6)
    c.optimizer.decay_steps = c.train.steps // 10
    return c
