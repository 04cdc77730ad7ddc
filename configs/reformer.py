"""Reformer: The Efficient Transformer (Kitaev 2020): published checkpoints and the paper's runs.

python launch.py train --config=configs/reformer.py:enwik8-3 --workdir=runs/reformer \\
    --config.data.train=enwik8

enwik8, crime-and-punishment: google/reformer-enwik8 (12 layers, a context of 65,536 bytes) and
    google/reformer-crime-and-punishment (6 layers, 524,288 tokens), as in their config.json,
    except for the first one's separate dropout of 0.1 in LSH attention; layers with LSH attention
    and with chunked local attention, axial positions and an output matrix over both streams. Their
    ids differ from our byte tokenizer: to train the first from scratch, add
    --config.model.vocab_size=0.
enwik8-3: the 3-layer model of section 5's ablations, with its width, heads, batches of 8 x 65,536
    bytes, Adafactor and "typical" LSH chunks of 128. The number of hashes (4 here), steps, learning
    rate and dropout are not published. 12 layers reached 1.19 bits per byte on the test set in
    20,000 steps with dropout 0.1, and 1.05 with further steps and tuning.
wmt-base, wmt-big: reversible Transformers of table 4, with dense attention (section 5: "the
    examples in the WMT14 test set are all shorter than 128 tokens"), otherwise as in
    configs/transformer.py. Published: BLEU 27.6 on WMT 2014 English-German for base in 100,000
    steps; 29.1 for big in 300,000, without tied embeddings, which this config has.
"""

from configs import transformer
from llm_jax.config import base

VARIANTS = ("enwik8", "enwik8-3", "crime-and-punishment", "wmt-base", "wmt-big")


def get_config(variant="enwik8"):
    if variant.startswith("wmt-"):
        c = transformer.get_config(variant.removeprefix("wmt-"))
        c.model.norm_place = "pre"
        c.model.reversible = True
        return c
    c = base()
    m = c.model
    m.activation = "relu"
    m.norm_epsilon = 1e-12
    m.attention_bias = False
    m.output_bias = True
    m.tie_embeddings = False
    m.positions = "axial"
    m.reversible = True
    c.data.batch_size = 8
    c.optimizer.name = "adafactor"
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.weight_decay = 0.0
    c.train.steps = 20_000
    c.eval.every = c.checkpoint.every = 1000
    if variant == "crime-and-punishment":
        m.vocab_size = 320
        m.max_length = 524_288
        m.num_layers = 6
        m.embed_dim = 256
        m.num_heads = 2
        m.head_dim = 64
        m.mlp_dim = 512
        m.attention = "chunked,lsh"
        m.window = 64
        m.lsh_chunk = 64
        m.lsh_buckets = (64, 128)
        m.axial_shape = (512, 1024)
        m.axial_dims = (64, 192)
        m.dropout = m.attention_dropout = m.mlp_dropout = m.final_dropout = 0.05
        c.tokenizer.name = "sentencepiece"
        c.data.batch_size = 1
        return c
    m.max_length = 65_536
    m.embed_dim = 1024
    m.num_heads = 8
    m.mlp_dim = 4096
    m.lsh_hashes = 4
    m.axial_shape = (128, 512)
    m.axial_dims = (256, 768)
    c.tokenizer.name = "bytes"
    if variant == "enwik8":
        m.vocab_size = 258
        m.num_layers = 12
        m.attention = "chunked,chunked,lsh,chunked"
        m.window = 128
        m.lsh_chunk = 256
        m.lsh_buckets = (512,)
        m.dropout = m.attention_dropout = m.mlp_dropout = m.final_dropout = 0.2
    else:
        m.vocab_size = 259
        m.num_layers = 3
        m.attention = "lsh"
        m.lsh_chunk = 128
    return c
