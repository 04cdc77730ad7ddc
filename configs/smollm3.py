"""SmolLM3 (Hugging Face 2025, https://huggingface.co/blog/smollm3), as released.

python launch.py train --config=configs/smollm3.py --workdir=runs/smollm3 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

LLaMA of which every fourth layer has no positions (NoPE, Yang 2025). The blog tells of
11.2 trillion tokens: 2.36 million a step, AdamW(0.9, 0.95) at 2e-4, decay 0.1 but not of
embeddings, clip 1.0, 2,000 steps of warm-up, and a linear decay over the last tenth; its rows of
4,096 were lengthened to 65,536 behind that, with the rotary base 5,000,000 that stands here.
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
