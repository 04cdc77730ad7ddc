"""ELECTRA (Clark 2020): a small generator fills in, a discriminator tells what is not original."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax.models import Model, Outputs
from llm_jax.models.layers import TokenEmbed


class Electra(nn.Module):
    """Two encoders on one token table (section 3.2); the discriminator is the model to keep."""

    cfg: FrozenConfigDict

    def setup(self):
        self.embed = TokenEmbed(self.cfg)
        self.generator = Model(generator_config(self.cfg), self.embed)
        self.discriminator = Model(self.cfg, self.embed)

    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> Outputs:
        """A masked batch -> the generator's Outputs with the discriminator's scores [B, T], and
        replaced [B, T]: where the sampled token is not the original.

        Sampling has the 'dropout' key in training and always the same key without it.
        """
        found = self.generator(batch, deterministic=deterministic)
        scores = jnp.einsum("bpd,vd->bpv", found.hidden, found.matrix.astype(found.hidden.dtype))
        scores = jax.lax.stop_gradient(scores.astype(jnp.float32) + found.bias)
        key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)
        sampled = jax.random.categorical(key, scores)

        tokens, places = batch["tokens"], batch["masked_positions"]
        rows = jnp.arange(len(tokens))[:, None]
        # An empty slot of masked_positions points at the row's first token, which it leaves alone.
        used = batch["masked_weights"] > 0
        wrong = used & (sampled != batch["masked_targets"])
        filled = tokens.at[rows, places].set(jnp.where(used, sampled, tokens[rows, places]))
        replaced = jnp.zeros(tokens.shape, bool).at[rows, places].max(wrong)
        judged = {k: v for k, v in batch.items() if not k.startswith("masked_")}
        judge = self.discriminator(judged | {"tokens": filled}, deterministic=deterministic)
        return judge._replace(
            hidden=found.hidden,
            matrix=found.matrix,
            bias=found.bias,
            scores=judge.scores,
            replaced=replaced,
        )


def generator_config(cfg: ConfigDict) -> FrozenConfigDict:
    """Returns cfg at generator_fraction of its width, with a masked-LM head (section 3.2).

    Depth and head size stay; the token table keeps its width and is projected down.
    """
    g = ConfigDict(cfg.to_dict())
    g.num_heads = max(1, round(cfg.num_heads * cfg.generator_fraction))
    g.num_kv_heads = min(cfg.num_kv_heads, g.num_heads)
    g.embed_dim = g.num_heads * cfg.head_dim
    g.mlp_dim = max(1, round(cfg.mlp_dim * cfg.generator_fraction))
    g.head, g.pooler, g.num_classes, g.generator_fraction = "mlm", False, 0, 0.0
    return FrozenConfigDict(g)
