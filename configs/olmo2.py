"""OLMo 2 (2025, https://arxiv.org/abs/2501.00656, tables 1 to 3).

python launch.py train --config=configs/olmo2.py:1b --workdir=runs/olmo2 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

LLaMA with norms on the outputs of sublayers, and QK norm over all heads (section 3.2). Training
settings are from the released files (allenai/OLMo: configs/official-0425, official-1124;
allenai/OLMo-core: OLMo-2-0325-32B-train.py): AdamW(0.9, 0.95, 1e-8), weight decay 0.1 except
embeddings, clipping 1.0, z-loss 1e-5; warm-up, then a cosine to a tenth over 5 trillion tokens
(32b: 6.5), here to its end for all. Batches are rows of 4,096. 13b's learning rate is the paper's;
its file has 3e-4. Theirs applies weight decay to the scales of norms; here norms are excluded.
"""

from configs import llama

#         layers  width  heads  kv heads  mlp  batch  warm-up  peak rate  trillion tokens
VARIANTS = {
    "1b": (16, 2048, 16, 16, 8192, 512, 4000, 4e-4, 5),
    "7b": (32, 4096, 32, 32, 11008, 1024, 2000, 3e-4, 5),
    "13b": (40, 5120, 40, 40, 13824, 2048, 1000, 9e-4, 5),
    "32b": (64, 5120, 40, 8, 27648, 2048, 2000, 6e-4, 6.5),
}


def get_config(variant="1b"):
    layers, width, heads, kv_heads, mlp, batch, warmup, rate, trillions = VARIANTS[variant]
    c = llama.get_config("2-7b")
    c.model.vocab_size = 100352
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.num_kv_heads = kv_heads
    c.model.mlp_dim = mlp
    c.model.norm_epsilon = 1e-6
    c.model.norm_place = "reordered"
    c.model.qk_norm = True
    c.model.qk_norm_joint = True
    c.model.rotary_base = 5e5
    c.objective.z_loss = 1e-5
    c.data.batch_size = batch
    c.optimizer.learning_rate = rate
    c.optimizer.warmup_steps = warmup
    c.optimizer.eps = 1e-8
    c.optimizer.decay_factors = (("embed/.*", 0.0),)
    c.train.steps = round(trillions * 1e12 / (batch * 4096))
    return c
