"""T5 (Raffel 2020): v1.0 small to 11b (section 3.1.1 and appendix A), and the v1.1 release.

python launch.py train --config=configs/t5.py:small --workdir=runs/t5 \\
    --config.data.train=FILE --config.tokenizer.path=spiece.model

Encoder-decoder with relative position biases shared by all layers, RMSNorm, no biases; v1.1: gated
GELU, untied output matrix, no dropout in pretraining. Span corruption of 15 % in spans of 3,
batches of 128 sequences of 512 tokens, Adafactor with rate 1 / sqrt(max(step, 10^4)), that is 0.01
for 10,000 steps without warm-up, 2^19 steps (section 3.1.2); dropout 0.1, also in the feed-forward
network and after the final norm (section 2.1: "within the feed-forward network, …, and at the input
and output of the entire stack"). spiece.model is the published vocabulary; without it,
--config.tokenizer.name=bpe trains a tokenizer.
"""

from llm_jax.config import base

#                layers  width  mlp  heads  head
VARIANTS = {
    "small": (6, 512, 2048, 8, 64),
    "base": (12, 768, 3072, 12, 64),
    "large": (24, 1024, 4096, 16, 64),
    "3b": (24, 1024, 16384, 32, 128),
    "11b": (24, 1024, 65536, 128, 128),
    "v1.1-small": (8, 512, 1024, 6, 64),
    "v1.1-base": (12, 768, 2048, 12, 64),
    "v1.1-large": (24, 1024, 2816, 16, 64),
    "v1.1-xl": (24, 2048, 5120, 32, 64),
    "v1.1-xxl": (24, 4096, 10240, 64, 64),
}


def get_config(variant="small"):
    layers, width, mlp, heads, head = VARIANTS[variant]
    newer = variant.startswith("v1.1")
    c = base()
    c.model.kind = "encoder_decoder"
    c.model.vocab_size = 32128
    c.model.max_length = 512
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.mlp_dim = mlp
    c.model.num_heads = heads
    c.model.head_dim = head
    c.model.norm = "rmsnorm"
    c.model.norm_epsilon = 1e-6
    c.model.activation = "geglu_tanh" if newer else "relu"
    c.model.use_bias = False
    c.model.positions = "relative"
    c.model.attention_scale = 1.0
    c.model.init = "fan_in"
    c.model.tie_embeddings = not newer
    c.model.scale_output = not newer
    c.model.dropout = c.model.attention_dropout = 0.0 if newer else 0.1
    c.model.mlp_dropout = c.model.final_dropout = c.model.dropout
    c.model.dtype = "bfloat16"
    c.objective.name = "span_corruption"
    c.tokenizer.name = "sentencepiece"
    c.tokenizer.path = "spiece.model"
    c.data.train = "tfds:c4/en"
    c.data.batch_size = 128
    c.optimizer.name = "adafactor"
    c.optimizer.learning_rate = 1e-2
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.warmup_steps = 0
    c.optimizer.hold_steps = 10_000
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip_norm = 0.0
    c.train.steps = 2**19
    c.eval.every = c.checkpoint.every = 5000
    return c
