"""GPT-2: Language Models are Unsupervised Multitask Learners (Radford 2019), table 2.

python launch.py train --config=configs/gpt2.py:124m --workdir=runs/gpt2 \\
    --config.data.train=FILE

124m, 355m, 774m, 1.5b: 12 to 48 layers, width 768 to 1600, length 1,024. The paper's WebText is not
public; data.train accepts any text. Batches of 512 sequences (section 2.3); dropout 0.1 as in
GPT-1. Learning rate, optimizer and number of steps are not published: peak rates, Adam, weight
decay and the cosine decay to a tenth are GPT-3's (table 2.1, appendix B), warm-up and 600,000 steps
nanoGPT's. A tokenizer of 50,257 tokens is trained on the text; to use GPT-2's own, set
tokenizer.name=file and tokenizer.path=tokenizer.json.
"""

from llm_jax.config import base

#           layers  width  heads  peak rate
VARIANTS = {
    "124m": (12, 768, 12, 6e-4),
    "355m": (24, 1024, 16, 3e-4),
    "774m": (36, 1280, 20, 2.5e-4),
    "1.5b": (48, 1600, 25, 2e-4),
}


def get_config(variant="124m"):
    layers, width, heads, rate = VARIANTS[variant]
    c = base()
    c.model.vocab_size = 50257
    c.model.max_length = 1024
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.scale_residual_init = True
    c.model.dropout = c.model.attention_dropout = 0.1
    c.model.dtype = "bfloat16"
    c.tokenizer.vocab_size = 50257
    c.data.train = "tfds:c4/en"
    c.data.batch_size = 512
    c.optimizer.learning_rate = rate
    c.optimizer.b1, c.optimizer.b2, c.optimizer.eps = 0.9, 0.95, 1e-8
    c.optimizer.weight_decay = 0.1
    c.optimizer.warmup_steps = 2000
    c.train.steps = 600_000
    c.eval.every = c.checkpoint.every = 1000
    return c
