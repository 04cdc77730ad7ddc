"""GPT on tiny Shakespeare by characters, in nanoGPT's two settings.

python launch.py train --config=configs/shakespeare.py:small --workdir=runs/shakespeare \\
    --config.data.train=tiny_shakespeare/input.txt

small: 4 layers, width 128, context 64, 2,000 steps of 12 sequences. nanoGPT's README reports a
    validation loss of 1.88 after about three minutes on a laptop's CPU. This small model tolerates
    three times nanoGPT's learning rate of 1e-3; experiments/shakespeare/ has both.
large: 6 layers, width 384, context 256, 5,000 steps of 64 sequences, dropout 0.2. nanoGPT's
    README reports a best validation loss of 1.4697.

Results: experiments/shakespeare/README.md. The text is the 1,115,394 characters of the char-rnn
repository's data/tinyshakespeare/input.txt; the first 90 % are for training.
"""

from llm_jax.config import base

VARIANTS = ("small", "large")


def get_config(variant="small"):
    large = variant == "large"
    c = base()
    c.data.train = "tiny_shakespeare/input.txt"
    c.data.validation_fraction = 0.1
    c.data.batch_size = 64 if large else 12
    c.tokenizer.name = "chars"
    c.model.max_length = 256 if large else 64
    c.model.num_layers = 6 if large else 4
    c.model.num_heads = 6 if large else 4
    c.model.embed_dim = 384 if large else 128
    c.model.dropout = c.model.attention_dropout = 0.2 if large else 0.0
    c.model.use_bias = False
    c.model.scale_residual_init = True
    c.optimizer.learning_rate = 1e-3 if large else 3e-3
    c.optimizer.b2 = 0.99
    c.optimizer.warmup_steps = 100
    c.train.steps = 5000 if large else 2000
    c.eval.every = 250
    c.eval.max_batches = 0
    c.checkpoint.every = 1000
    c.sample.prompts = ("ROMEO:",)
    c.sample.max_new_tokens = 200
    return c
