"""Summaries: a small Transformer from nothing; `:decoder` a GPT with a prompt.

python launch.py train --config=configs/finetune/summarise.py --workdir=runs/summaries \\
    --config.data.train=train.jsonl --config.data.validation=dev.jsonl
python launch.py predict --workdir=runs/summaries --input=new.jsonl --output=summaries.jsonl

A row has a source and a target, from the columns that data.source_column and data.target_column
name. Evaluation writes summaries and scores them by ROUGE-1, 2 and L. Of a source that is too long
the end is left out. T5's way: objective.prefix="summarize: ".
"""

from llm_jax.config import base

VARIANTS = ("encoder_decoder", "decoder")


def get_config(variant="encoder_decoder"):
    c = base()
    c.model.kind = variant
    c.objective.name = "seq2seq" if variant == "encoder_decoder" else "completion"
    if variant == "decoder":
        c.objective.suffix = "\nTL;DR: "
    c.tokenizer.vocab_size = 8000
    c.data.batch_size = 16
    c.data.target_length = 128 if variant == "encoder_decoder" else 0
    c.model.max_length = 512
    c.model.num_layers = 3
    c.model.embed_dim = 256
    c.model.num_heads = 4
    c.model.mlp_dim = 1024
    c.model.positions = "sinusoidal"
    c.model.activation = "relu"
    c.model.scale_embeddings = True
    c.model.dropout = 0.2
    c.objective.label_smoothing = 0.1
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.warmup_steps = 500
    c.optimizer.b2 = 0.98
    c.train.steps = 3000
    c.eval.every = 1000
    c.eval.max_batches = 4
    c.eval.max_new_tokens = 64
    c.eval.scores = ("rouge",)
    return c
