"""Chat: a small GPT trained on an assistant's replies in multi-turn conversations.

python launch.py train --config=configs/finetune/chat.py --workdir=runs/chat \\
    --config.data.train=talk.jsonl
python launch.py chat --workdir=runs/chat

A row has `messages`, [{"role": "user", "content": …}, …], or alternating texts. They are formatted
by the tokenizer's chat template (default llm_jax.data.chat.DEFAULT). Trains from scratch, or from a
model with --config.init_from=FOLDER.
"""

from llm_jax.config import base


def get_config():
    c = base()
    c.objective.name = "chat"
    c.tokenizer.vocab_size = 4096
    c.data.batch_size = 32
    c.model.positions = "rotary"
    c.model.norm = "rmsnorm"
    c.model.activation = "swiglu"
    c.model.use_bias = False
    c.model.max_length = 256
    c.model.num_layers = 4
    c.model.embed_dim = 256
    c.model.num_heads = 4
    c.model.dropout = 0.1
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 0.1
    c.train.steps = 1000
    c.eval.scores = ("distinct",)
    c.eval.max_new_tokens = 64
    return c
