"""Mixtral (Jiang 2024, https://arxiv.org/abs/2401.04088, table 1; 8x22b as released).

python launch.py train --config=configs/mixtral.py:8x7b --workdir=runs/mixtral \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

LLaMA with eight experts per layer, two per token, dropless. Data, steps and learning rate are not
published: those of LLaMA 2's size nearest to the active parameters (13B and 39B) are used, with 4
million tokens per batch and 2 trillion in total. router_balance: 0.02 and 0.001 from the released
config.json files (`router_aux_loss_coef`); transformers computes the loss over the tokens of all
layers together. 8x22b has v0.1's vocabulary of 32,000; v0.3 and the instruct model have 32,768.
--config.mesh.expert=8 puts each expert on its own chips.
"""

from configs import llama

#          layers  width  heads  kv heads  mlp  length  peak rate  balance
VARIANTS = {
    "8x7b": (32, 4096, 32, 8, 14336, 32768, 3e-4, 0.02),
    "8x22b": (56, 6144, 48, 8, 16384, 65536, 1.5e-4, 0.001),
}


def get_config(variant="8x7b"):
    layers, width, heads, kv_heads, mlp, length, rate, balance = VARIANTS[variant]
    c = llama.get_config("2-7b")
    c.model.max_length = length
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.num_kv_heads = kv_heads
    c.model.mlp_dim = mlp
    c.model.rotary_base = 1e6
    c.model.num_experts = 8
    c.model.experts_per_token = 2
    c.model.router_balance = balance
    c.data.batch_size = 2**22 // length
    c.optimizer.learning_rate = rate
    return c
