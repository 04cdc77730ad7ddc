"""Studies, a file each: get_config and get_sweep as of configs/ablations, and CLAIMS.

What many of them share is here.
"""

import os

from configs import shakespeare

DATA = os.environ.get("LLM_JAX_DATA", "data")  # a folder with tiny_shakespeare/input.txt and others
RATES = {f"rate {rate}": {"optimizer.learning_rate": rate} for rate in (6e-3, 1.5e-2, 4e-2)}


def text():
    """Characters of tiny Shakespeare, 300 thousand in rows of 64; validated on 32 thousand."""
    c = shakespeare.get_config()
    c.data.train = f"{DATA}/tiny_shakespeare/input.txt"
    c.data.validation_fraction = 0.05
    c.data.test_fraction = 0.05  # for `launch.py sweep` of a study, which scores on it
    c.data.batch_size = 24
    c.model.num_layers = 2
    c.model.embed_dim = 64
    c.model.use_bias = True
    c.optimizer.warmup_steps = 20
    c.train.steps = 200
    c.eval.every = 100
    c.eval.max_batches = 21
    c.checkpoint.every = 200
    c.sample.prompts = ()
    return c


def decoder():
    """A pre-norm decoder as LLaMA's: RMSNorm, SwiGLU, rotary positions, no biases.

    Initialised by fan-in: a deviation of 0.02 is too little for 64 dimensions, and seeds then
    differ in when they begin to learn.
    """
    c = text()
    c.model.norm = "rmsnorm"
    c.model.activation = "swiglu"
    c.model.mlp_dim = 168
    c.model.positions = "rotary"
    c.model.use_bias = False
    c.model.tie_embeddings = False
    c.model.init = "fan_in"
    return c


def encoder():
    """A post-norm encoder as BERT's that learns masked tokens, without next sentences.

    Rotary positions and initialisation by fan-in: with learned positions and a deviation of 0.02,
    runs this short learn little more than how frequent each character is, and seeds differ in when
    they begin to learn more. A first protocol, of 200 steps with a deviation of 0.02, decided few
    of the claims of masked LM.
    """
    c = text()
    c.model.init = "fan_in"
    c.train.steps = c.checkpoint.every = 500
    c.eval.every = 250
    c.model.kind = "encoder"
    c.model.norm_place = "post"
    c.model.activation = "gelu"
    c.model.embed_norm = True
    c.model.head = "mlm"
    c.objective.name = "masked_lm"
    c.model.positions = "rotary"
    c.optimizer.learning_rate = 4e-3
    return c
