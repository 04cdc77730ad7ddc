"""LLaMA 1 (Touvron 2023a, table 2), 2 (Touvron 2023b) and 3 (Grattafiori 2024, table 3).

python launch.py train --config=configs/llama.py:8b --workdir=runs/llama \\
    --config.data.train=FILE

Pre-norm decoder: RMSNorm, rotary positions, SwiGLU, no biases; grouped queries in 2-70b and
all of 3. 8b, 70b and 405b are LLaMA 3, with its pretraining length of 8,192 tokens; for its
extended context set model.rotary_scaling=llama3. tokenizer.path: the tokenizer of the model.

1 and 2 (2023a, section 2.2; 2023b, section 2.2): AdamW(0.9, 0.95), weight decay 0.1, clipping 1.0,
4 million tokens per batch, warm-up of 2,000 steps, cosine to a tenth over 1.0 (1-7b, 1-13b), 1.4
(1-33b, 1-65b) or 2.0 (all of 2) trillion tokens. 3 (section 3.4.1, for 405b; "similar recipes" for
8b and 70b): warm-up of 8,000 steps, cosine from 8e-5 to 8e-7 over 1,200,000 steps; the batch is the
second of its three, 8 million tokens. Adam's epsilon is 1e-5 as in 2: 1 and 3 do not publish it.
Weight decay and clipping of 3 are those of 2.
"""

from llm_jax.config import base

#              layers  width  heads  kv heads  mlp  peak rate  trillion tokens
VARIANTS = {
    "1-7b": (32, 4096, 32, 32, 11008, 3e-4, 1.0),
    "1-13b": (40, 5120, 40, 40, 13824, 3e-4, 1.0),
    "1-33b": (60, 6656, 52, 52, 17920, 1.5e-4, 1.4),
    "1-65b": (80, 8192, 64, 64, 22016, 1.5e-4, 1.4),
    "2-7b": (32, 4096, 32, 32, 11008, 3e-4, 2.0),
    "2-13b": (40, 5120, 40, 40, 13824, 3e-4, 2.0),
    "2-70b": (80, 8192, 64, 8, 28672, 1.5e-4, 2.0),
    "3-8b": (32, 4096, 32, 8, 14336, 3e-4, None),
    "3-70b": (80, 8192, 64, 8, 28672, 1.5e-4, None),
    "3-405b": (126, 16384, 128, 8, 53248, 8e-5, None),
}
VARIANTS |= {name.removeprefix("3-"): v for name, v in VARIANTS.items() if name[0] == "3"}


def get_config(variant="8b"):
    layers, width, heads, kv_heads, mlp, rate, trillions = VARIANTS[variant]
    generation = int(variant[0]) if variant[1] == "-" else 3
    c = base()
    c.model.vocab_size = 128256 if generation == 3 else 32000
    c.model.max_length = {1: 2048, 2: 4096, 3: 8192}[generation]
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.num_kv_heads = kv_heads
    c.model.mlp_dim = mlp
    c.model.norm = "rmsnorm"
    c.model.norm_epsilon = 1e-6 if generation == 1 else 1e-5
    c.model.activation = "swiglu"
    c.model.positions = "rotary"
    c.model.rotary_base = 500_000.0 if generation == 3 else 10_000.0
    c.model.use_bias = False
    c.model.tie_embeddings = False
    c.model.attention = "flash"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.tokenizer.name = "file"
    c.tokenizer.path = "tokenizer.json"
    c.data.train = "tfds:c4/en"
    c.data.batch_size = 2048 if generation == 1 else 1024
    c.mesh.data, c.mesh.fsdp = 1, -1  # parameters and optimizer state exceed one chip
    c.optimizer.learning_rate = rate
    c.optimizer.b1, c.optimizer.b2, c.optimizer.eps = 0.9, 0.95, 1e-5
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip_norm = 1.0
    c.optimizer.final_fraction = 0.01 if generation == 3 else 0.1
    c.optimizer.warmup_steps = 8000 if generation == 3 else 2000
    tokens = c.data.batch_size * c.model.max_length
    c.train.steps = 1_200_000 if generation == 3 else round(trillions * 1e12 / tokens)
    c.eval.every = c.checkpoint.every = 1000
    return c
