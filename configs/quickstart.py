"""A small GPT on Python's documentation and source code: a first run without downloads.

python launch.py

Pre-norm GPT (Radford 2019), BPE tokenizer with 2,048 tokens, trained on the same text. Validation
loss about 4.1 (uniform: 7.6) after two and a half minutes on two CPU cores.
"""

from llm_jax.config import base


def get_config():
    c = base()
    c.tokenizer.vocab_size = 2048
    c.model.max_length = 128
    c.model.num_layers = 4
    c.model.embed_dim = 192
    c.model.num_heads = 6
    c.model.scale_residual_init = True
    c.data.batch_size = 16
    c.data.validation_fraction = 0.03
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 50
    c.train.steps = 500
    c.train.log_every = 10
    c.eval.every = 250
    c.eval.max_batches = 20
    c.checkpoint.every = 250
    c.sample.prompts = ("The ", "def ", "class ")
    c.sample.max_new_tokens = 60
    return c
