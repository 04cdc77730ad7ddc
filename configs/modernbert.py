"""ModernBERT (Warner 2024, https://arxiv.org/abs/2412.13663, tables 3 and 4), as released.

python launch.py train --config=configs/modernbert.py:base --workdir=runs/modernbert \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

A pre-norm encoder without biases, with GeGLU and rotary positions (section 2.1): a full layer with
base 160,000, then two local layers with 64 tokens on each side and base 10,000. The first layer has
no attention norm, since it follows the embedding norm. Training (2.2): 30 % masking, 1.7 trillion
tokens in rows of 1,024 and 300 billion in rows of 8,192; here all in rows of 8,192, with the same
tokens per batch; a constant learning rate that decays over the last 50 billion tokens. AdamW
replaces StableAdamW.
"""

from llm_jax.config import base

#          layers  width  heads  mlp  peak rate  batch, of 1,024 tokens
VARIANTS = {
    "base": (22, 768, 12, 1152, 8e-4, 4608),
    "large": (28, 1024, 16, 2624, 5e-4, 4928),
}


def get_config(variant="base"):
    layers, width, heads, mlp, rate, batch = VARIANTS[variant]
    c = base()
    m = c.model
    m.kind = "encoder"
    m.head = "mlm"
    m.vocab_size = 50368
    m.max_length = 8192
    m.num_layers = layers
    m.embed_dim = width
    m.num_heads = heads
    m.mlp_dim = mlp
    m.activation = "geglu"
    m.positions = "rotary"
    m.rotary_base = 160_000.0
    local = "2 local window=65 rotary_base=1e4"
    m.layers = f"1 flash attention_norm=False, rest ({local}, 1 flash)"
    m.use_bias = False
    m.embed_norm = True
    m.dtype = "bfloat16"
    c.objective.name = "masked_lm"
    c.objective.mask_rate = 0.3
    c.tokenizer.name = "file"
    c.tokenizer.path = "tokenizer.json"
    c.data.train = "tfds:c4/en"
    c.data.batch_size = batch // 8
    c.optimizer.learning_rate = rate
    c.optimizer.b1, c.optimizer.b2, c.optimizer.eps = 0.9, 0.98, 1e-6
    c.optimizer.weight_decay = 1e-5
    c.optimizer.schedule = "wsd"
    c.optimizer.final_fraction = 0.0
    c.train.steps = round(2e12 / (c.data.batch_size * m.max_length))
    c.optimizer.decay_steps = c.train.steps // 40
    c.optimizer.warmup_steps = round(3e9 / (c.data.batch_size * m.max_length))
    return c
