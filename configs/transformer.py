"""The Transformer: Attention Is All You Need (Vaswani 2017), table 3, base and big.

python launch.py train --config=configs/transformer.py:base --workdir=runs/transformer \\
    --config.data.train=train.en,train.de

Post-norm encoder-decoder with sinusoidal positions; source, target and output share one embedding
matrix, scaled by sqrt(embed_dim); label smoothing 0.1; learning rate embed_dim^-0.5 min(step^-0.5,
step 4000^-1.5) with Adam(0.9, 0.98, 1e-9); 25,000 tokens per batch; a shared vocabulary of 37,000,
trained on the text. Line i of train.en corresponds to line i of train.de; the default data are
TFDS's wmt14_translate, which must be prepared. Published: 65M and 213M parameters, BLEU 27.3 and
28.4 on WMT 2014 English-German.
"""

from llm_jax.config import base

#            width  mlp  heads  dropout  steps
VARIANTS = {
    "base": (512, 2048, 8, 0.1, 100_000),
    "big": (1024, 4096, 16, 0.3, 300_000),
}


def get_config(variant="base"):
    width, mlp, heads, dropout, steps = VARIANTS[variant]
    c = base()
    c.model.kind = "encoder_decoder"
    c.model.vocab_size = 37000
    c.model.max_length = 256
    c.model.num_layers = 6
    c.model.embed_dim = width
    c.model.mlp_dim = mlp
    c.model.num_heads = heads
    c.model.norm_place = "post"
    c.model.activation = "relu"
    c.model.positions = "sinusoidal"
    c.model.scale_embeddings = True
    c.model.init = "fan_in"
    c.model.dropout = dropout
    c.objective.name = "seq2seq"
    c.objective.label_smoothing = 0.1
    c.tokenizer.vocab_size = 37000
    c.data.train = "tfds:wmt14_translate/de-en"
    c.data.source_column = "en"
    c.data.target_column = "de"
    c.data.batch_size = 128
    c.optimizer.learning_rate = (width * 4000) ** -0.5
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.warmup_steps = 4000
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip_norm = 0.0
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-9
    c.train.steps = steps
    c.eval.every = c.checkpoint.every = 1000
    return c
