"""Synthetic tasks that separate attention variants, at sizes that train in minutes on a CPU core.

python launch.py train --config=configs/ablations/tasks.py:recall --workdir=runs/recall \\
    --config.model.attention=dense
python launch.py eval --workdir=runs/recall

recall: multi-query associative recall (Zoology, Arora 2023), 3 pairs and 3 queries.
mqar: the same with 4 pairs and 12 queries, learned within 200 steps. With 8 pairs and 24 queries,
    one seed learned in 450 steps, another did not (experiments/attention_tasks).
induction: the word after a marker (Olsson 2022; Gu & Dao 2023), length 64.
selective_copy: copy 4 words among noise (Gu & Dao 2023), length 24.
listops: nested MIN, MAX, MED, SM (Nangia & Bowman 2018; Tay 2020), at most 18 words, 3 levels.

`accuracy` counts answers only. Two layers of dense attention, width 64, one seed, 1,000 held-out
examples: recall 0.998 after 300 steps, induction 1.000 after 300, selective_copy 1.000 and listops
0.66 (most frequent answer: 0.11) after 500; each within two minutes on a busy two-core CPU. With 4
pairs, 500 steps of 64 rows learn only which values remain, 0.52.

A comparison of attention variants, 3 seeds each, all with rotary positions;
experiments/attention_tasks has the results:
    python launch.py sweep --config=configs/ablations/tasks.py:mqar --workdir=runs/tasks/mqar

For examples beyond the training length, which ALiBi supports:
    --config.model.max_length=256 --config.data.test='task:induction?vocab=16&length=256'
then eval with --split=test. llm_jax/data/tasks.py lists all options and published values.
"""

from llm_jax.config import base
from llm_jax.sweep import Sweep

# Task, row length, batch size, steps.
VARIANTS = {
    "recall": ("pairs=3&queries=3&vocab=16&length=12", 12, 256, 300),
    "induction": ("vocab=16&length=64", 64, 64, 300),
    "selective_copy": ("tokens=4&vocab=16&length=24", 24, 128, 500),
    "listops": ("min_length=4&length=18&depth=3&args=4", 20, 128, 500),
    "mqar": ("pairs=4&queries=12&vocab=16&length=32", 32, 128, 400),
}
KINDS = {
    "softmax": {"model.attention": "flash"},
    "window 8": {"model.attention": "local", "model.window": 8},
    "linear": {"model.attention": "linear"},
    "gated linear": {"model.attention": "gated_linear"},
    "delta": {"model.attention": "gated_deltanet"},
}
SAME = {"model.positions": "rotary", "model.num_heads": 2}  # rotary is supported by all of them


def get_config(variant="recall"):
    options, length, rows, steps = VARIANTS[variant]
    c = base()
    c.data.train = f"task:{'recall' if variant == 'mqar' else variant}?{options}"
    c.data.batch_size = rows
    c.objective.name = "completion"
    c.tokenizer.name = "words"
    c.model.max_length = length
    c.model.num_layers = 2
    c.model.embed_dim = 64
    c.model.num_heads = 8
    c.model.positions = "alibi"
    c.model.scale_embeddings = True
    c.model.initializer_range = 0.1
    c.optimizer.learning_rate = 3e-3
    c.optimizer.schedule = "wsd"
    c.optimizer.warmup_steps = 50
    c.optimizer.b2 = 0.99
    c.optimizer.weight_decay = 0.0
    c.train.steps = steps
    c.train.log_every = 50
    c.eval.every = 100
    c.eval.max_batches = 0
    c.checkpoint.every = 1000
    return c


def get_sweep(variant="recall"):
    kinds = {name: SAME | keys for name, keys in KINDS.items()}
    return Sweep(axes=(kinds,), lengths=(), reaches=())
