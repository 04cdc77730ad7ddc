"""OLMo 3 (2025, https://arxiv.org/abs/2512.13961), as released.

python launch.py train --config=configs/olmo3.py:7b --workdir=runs/olmo3 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

OLMo 2 with three local layers (window 4,096) per full layer; full layers have YaRN from 8,192 to
65,536 tokens. Training settings are those of OLMo 2's nearest size.
"""

from configs import olmo2

VARIANTS = ("7b", "32b")


def get_config(variant="7b"):
    c = olmo2.get_config(variant)
    c.model.vocab_size = 100278
    c.model.max_length = 65536
    c.model.layers = "3 local window=4096 rotary_scaling=none, 1 flash"
    c.model.rotary_scaling = "yarn"
    c.model.rotary_factor = 8.0
    c.model.rotary_original_length = 8192
    c.data.batch_size //= 16
    return c
