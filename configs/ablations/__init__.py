"""Base config of the ablations: a small decoder on bytes of the built-in text."""

from llm_jax.config import base


def small():
    """Returns a pre-norm decoder: 4 layers, width 128, rotary positions, rows of 256 bytes."""
    c = base()
    c.tokenizer.name = "bytes"
    c.model.max_length = 256
    c.model.num_layers = 4
    c.model.embed_dim = 128
    c.model.num_heads = 4
    c.model.positions = "rotary"
    c.model.use_bias = False
    c.model.scale_residual_init = True
    c.data.batch_size = 8
    c.data.validation_fraction = 0.03
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 30
    c.train.steps = 300
    c.train.log_every = 20
    c.eval.every = 30
    c.eval.max_batches = 20
    c.checkpoint.every = 300
    return c
