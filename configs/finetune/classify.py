"""Classification of a text, or of a pair of texts (Devlin 2019, 4.1).

python launch.py train --config=configs/finetune/classify.py --workdir=runs/sst2 \\
    --config.init_from=HF_FOLDER_OR_WORKDIR \\
    --config.data.train=train.tsv --config.data.validation=dev.tsv \\
    --config.data.text_column=sentence --config.data.label_column=label

Columns of a file without a header are numbers, from 0; data.pair_column names the second text of a
pair. Without init_from, the small BERT below trains from scratch, which needs a higher learning
rate: --config.optimizer.learning_rate=5e-4.
"""

from llm_jax.config import base


def get_config():
    c = base()
    c.objective.name = "classification"
    c.tokenizer.name = "wordpiece"
    c.tokenizer.vocab_size = 8000
    c.data.packing = "none"
    c.data.batch_size = 32
    c.model.kind = "encoder"
    c.model.norm_place = "post"
    c.model.head = "sequence"
    c.model.pooler = True
    c.model.type_vocab_size = 2
    c.model.max_length = 128
    c.model.num_layers = 2
    c.model.embed_dim = 128
    c.model.num_heads = 4
    c.model.embed_norm = True
    c.model.activation = "gelu"
    c.model.dropout = c.model.attention_dropout = c.model.head_dropout = 0.1
    c.optimizer.learning_rate = 5e-5
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_steps = 0.1
    c.optimizer.final_fraction = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.01
    c.train.steps = 600
    c.eval.every = 200
    c.eval.max_batches = 0
    return c
