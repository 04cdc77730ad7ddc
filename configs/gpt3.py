"""GPT-3: Language Models are Few-Shot Learners (Brown 2020), table 2.1.

python launch.py train --config=configs/gpt3.py:125m --workdir=runs/gpt3 \\
    --config.data.train=FILE

GPT-2's architecture with alternating dense and locally banded sparse attention (section 2.1; the
band width is not published: 256 here), length 2,048, 300 billion tokens. The table's 24 heads for
1.3b and width 5,140 for 13b are inconsistent with the head size; 16 heads and 5,120 give the
table's parameter counts and are used here. Schedules are in tokens (appendix B): the batch grows
from 32,000 tokens over the first 8 billion (published: 4 to 12), the learning rate over 375
million, here linearly in steps; the cosine reaches a tenth at 260 billion, then stays constant.
Adam(0.9, 0.95, 1e-8), weight decay 0.1, clipping 1.0. The weights are not public.
"""

from ml_collections import ConfigDict

from llm_jax.config import base
from llm_jax.data.batches import batch_size

#           layers  width  heads  head  batch tokens    peak rate
VARIANTS = {
    "125m": (12, 768, 12, 64, 0.5e6, 6e-4),
    "350m": (24, 1024, 16, 64, 0.5e6, 3e-4),
    "760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4),
    "1.3b": (24, 2048, 16, 128, 1e6, 2e-4),
    "2.7b": (32, 2560, 32, 80, 1e6, 1.6e-4),
    "6.7b": (32, 4096, 32, 128, 2e6, 1.2e-4),
    "13b": (40, 5120, 40, 128, 2e6, 1e-4),
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
    c.data.ramp_start = 16
    c.data.ramp_steps = 1000
    mean = sum(batch_size(c.data, step) for step in range(1000)) / 1000
    c.data.ramp_steps = round(8e9 / (mean * 2048))
    c.optimizer.learning_rate = rate
    c.optimizer.b1, c.optimizer.b2, c.optimizer.eps = 0.9, 0.95, 1e-8
    c.optimizer.weight_decay = 0.1
    c.train.steps = steps_of(c.data, 300e9)
    c.optimizer.warmup_steps = warmup = steps_of(c.data, 375e6)
    c.optimizer.decay_steps = steps_of(c.data, 260e9) - warmup
    c.eval.every = c.checkpoint.every = 1000
    return c


def steps_of(data: ConfigDict, tokens: float) -> int:
    """Returns the number of steps that read `tokens` tokens from the start, with batch ramp-up."""
    step, rows = 0, tokens / 2048
    while step < data.ramp_steps and rows > 0:
        rows -= batch_size(data, step)
        step += 1
    return step + max(0, round(rows / data.batch_size))
