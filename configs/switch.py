"""Switch Transformer (Fedus 2021, https://arxiv.org/abs/2101.03961): base with 8 to 256 experts.

python launch.py train --config=configs/switch.py:base-8 --workdir=runs/switch \\
    --config.data.train=FILE --config.tokenizer.path=spiece.model

T5 base with a mixture of experts in every second feed-forward layer, one expert per token, capacity
factor 1.25 (sections 2.2 and 3.1); sizes as released. Load balancing loss 0.01 (equation 4), mean
over layers, as in T5X's MoE models (`_expert_losses`: "we take the mean across MoE layers").
"""

from configs import t5

VARIANTS = {f"base-{n}": n for n in (8, 16, 32, 64, 128, 256)}


def get_config(variant="base-8"):
    c = t5.get_config("base")
    c.model.num_experts = VARIANTS[variant]
    c.model.expert_every = 2
    c.model.experts_per_token = 1
    c.model.expert_capacity = 1.25
    c.model.router_balance = 0.01
    return c
