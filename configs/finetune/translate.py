"""Translation: a small Transformer (Vaswani 2017) from scratch; `:decoder`: a GPT with a prompt.

python launch.py train --config=configs/finetune/translate.py --workdir=runs/en-de \\
    --config.data.train=train.en,train.de --config.data.validation=val.en,val.de
python launch.py eval --workdir=runs/en-de --split=validation --max_batches=0
python launch.py predict --workdir=runs/en-de --input=new.en --output=new.jsonl

Data: parallel text files, or a table with the columns data.source_column and data.target_column.
Evaluation generates translations and scores them by sacreBLEU, with its signature, and chrF. For T5
set objective.prefix="translate English to German: ".
"""

from llm_jax.config import base

VARIANTS = ("encoder_decoder", "decoder")


def get_config(variant="encoder_decoder"):
    c = base()
    c.model.kind = variant
    c.objective.name = "seq2seq" if variant == "encoder_decoder" else "completion"
    if variant == "decoder":
        c.objective.suffix = "\n"
    c.tokenizer.vocab_size = 6000
    c.data.batch_size = 16
    c.model.max_length = 128
    c.model.num_layers = 2
    c.model.embed_dim = 192
    c.model.num_heads = 4
    c.model.positions = "sinusoidal"
    c.model.activation = "relu"
    c.model.scale_embeddings = True
    c.model.dropout = 0.15
    c.objective.label_smoothing = 0.1
    c.optimizer.learning_rate = 2e-3
    c.optimizer.final_fraction = 0.0
    c.optimizer.warmup_steps = 400
    c.optimizer.b2 = 0.98
    c.train.steps = 3200
    c.eval.every = 1000
    c.eval.max_batches = 4
    c.eval.scores = ("bleu", "chrf")
    return c
