"""ELECTRA (Clark 2020): a small generator fills in, a discriminator tells what is not original."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax.models.model import Model, Outputs, logits, positions_of


class Electra(Model):
    """The discriminator, with a generator on the same embeddings (section 3.2).

    As in the authors' code, tables of tokens, positions and types and the norm of their sum are
    shared; the generator has a projection of its own.

    Without its parameters in 'generator' it is a Model like any other: the one to keep.
    """

    def setup(self):
        super().setup()
        self.generator = Model(generator_config(self.cfg), self.embed)

    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> Outputs:
        """A masked batch -> the generator's Outputs with the discriminator's heads, and "replaced"
        [B, T] among them: where the token sampled is not the original. Else: the discriminator's.

        Sampling has the 'dropout' key in training and always the same key without it.
        """
        if "masked_positions" not in batch:
            return super().__call__(batch, deterministic=deterministic)
        tokens, places = batch["tokens"], batch["masked_positions"]
        positions = positions_of(batch)
        embeddings = self.encoder.look_up(
            tokens, positions, batch.get("types"), deterministic=deterministic
        )
        generated = self.generator(batch | {"embeddings": embeddings}, deterministic=deterministic)
        key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)
        sampled = jax.random.categorical(key, jax.lax.stop_gradient(logits(generated)))

        rows = jnp.arange(len(tokens))[:, None]
        # Unused slots of masked_positions are 0: the row's first token must stay as it is.
        used = batch["masked_weights"] > 0
        filled = tokens.at[rows, places].set(jnp.where(used, sampled, tokens[rows, places]))
        differs = used & (sampled != batch["masked_targets"])
        replaced = jnp.zeros(tokens.shape, bool).at[rows, places].max(differs)
        judged = {k: v for k, v in batch.items() if not k.startswith("masked_")}
        judge = super().__call__(judged | {"tokens": filled}, deterministic=deterministic)
        return generated._replace(
            features=judge.features, heads=judge.heads | {"replaced": replaced}
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
    g.head, g.pooler, g.generator_fraction = "mlm", False, 0.0
    return FrozenConfigDict(g)
