"""GPT-3: Language Models are Few-Shot Learners (Brown 2020), table 2.1.

python launch.py train --config=configs/gpt3.py:125m --workdir=runs/gpt3 \\
    --config.data.train=FILE

GPT-2's architecture, with dense and locally banded sparse attention alternating over the
layers (section 2.1; the band's width is not published: 256 here), length 2,048, 300 billion
tokens. Heads and head sizes as printed, also where they do not multiply to the width
(1.3b: 24 x 128 for 2,048; 13b: 40 x 128 for 5,140). No weights are public.
"""

from llm_jax.config import base

#           layers  width  heads  head  tokens a batch  peak rate
VARIANTS = {
    "125m": (12, 768, 12, 64, 0.5e6, 6e-4),
    "350m": (24, 1024, 16, 64, 0.5e6, 3e-4),
    "760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4),
    "1.3b": (24, 2048, 24, 128, 1e6, 2e-4),
    "2.7b": (32, 2560, 32, 80, 1e6, 1.6e-4),
    "6.7b": (32, 4096, 32, 128, 2e6, 1.2e-4),
    "13b": (40, 5140, 40, 128, 2e6, 1e-4),
    "175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4),
}


def get_config(variant="125m"):
    layers, width, heads, head, tokens, rate = VARIANTS[variant]
    c = base()
    c.model.vocab_size = 50257
    c.model.max_length = 2048
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.head_dim = head
    c.model.attention = "dense,local"
    c.model.window = 256
    c.model.scale_residual_init = True
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.tokenizer.vocab_size = 50257
    c.data.train = "tfds:c4/en"
    c.data.batch_size = round(tokens / 2048 / 32) * 32
    # From 32k tokens to all, linearly over the first 4 to 12 billion (appendix B): here 8.
    c.data.ramp_start = 16
    c.data.ramp_steps = round(8e9 / ((c.data.batch_size + 16) / 2 * 2048))
    c.optimizer.learning_rate = rate
    c.optimizer.weight_decay = 0.1
    c.train.steps = round(300e9 / (c.data.batch_size * 2048))
    c.optimizer.warmup_steps = round(375e6 / (c.data.batch_size * 2048))
    c.eval.every = c.checkpoint.every = 1000
    return c
