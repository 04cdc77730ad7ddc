"""ELECTRA (Clark 2020): a discriminator detects the tokens that a small generator replaced."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax.models.model import Model, Outputs, logits, positions_of


class Electra(Model):
    """ELECTRA's discriminator with a generator that shares its embeddings (section 3.2).

    As in the authors' code, they share the token, position and type tables and the embedding norm;
    the generator has its own projection.

    Without the parameters in 'generator', it is an ordinary Model, to be fine-tuned.
    """

    def setup(self):
        super().setup()
        self.generator = Model(generator_config(self.cfg), self.embed)

    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> Outputs:
        """For a masked batch, returns the generator's Outputs with the discriminator's heads and
        "replaced" [B, T], true where the sampled token differs from the original. For any other
        batch, returns the discriminator's Outputs.

        Sampling uses the 'dropout' key in training, and a fixed key otherwise.
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
        # Unused slots of masked_positions are 0: they must not change the row's first token.
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
    """Returns the generator's config: cfg with generator_fraction of its width (section 3.2).

    Depth, head size and token embedding size are unchanged; the head is a masked-LM head.
    """
    g = ConfigDict(cfg.to_dict())
    g.num_heads = max(1, round(cfg.num_heads * cfg.generator_fraction))
    g.num_kv_heads = min(cfg.num_kv_heads, g.num_heads)
    g.embed_dim = g.num_heads * cfg.head_dim
    g.mlp_dim = max(1, round(cfg.mlp_dim * cfg.generator_fraction))
    g.head, g.pooler, g.generator_fraction = "mlm", False, 0.0
    return FrozenConfigDict(g)
