"""Replaced token detection: ELECTRA's objective (Clark 2020, 2)."""

import dataclasses

import jax.numpy as jnp
import optax

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.objectives import masked_lm


class ReplacedTokenDetection(masked_lm.MaskedLM):
    """As MaskedLM, but all that is chosen becomes [MASK]; the model samples the replacements
    (Clark 2020, section 2).
    """

    def masking(self):
        return masked_lm.Masking(
            self.tokenizer, self.config, self.config.objective.whole_word, shares=(1.0, 0.0, 0.0)
        )


def weights(batch):
    """The numbers of masked positions and of tokens."""
    return masked_lm.weights(batch) | {"tokens": models.real(batch).sum()}


def losses(outputs, batch, cfg):
    """The generator's masked cross-entropy + detection_weight x binary cross-entropy.

    The second is of heads.detection [B, T] against heads.replaced [B, T], over all real tokens.
    """
    terms, of_generator = masked_lm.losses(outputs, batch, cfg)
    metrics = {f"generator_{name}": value for name, value in of_generator.items()}
    scores, replaced = outputs.heads["detection"], outputs.heads["replaced"]
    real = models.real(batch)
    nll = optax.sigmoid_binary_cross_entropy(scores, replaced.astype(jnp.float32))
    nll = jnp.where(real, nll, 0).sum()
    right = ((scores > 0) == replaced) & real
    sums = {"loss": nll, "accuracy": right.sum(), "replaced": (replaced & real).sum()}
    metrics |= {name: (x.astype(jnp.float32), "tokens") for name, x in sums.items()}
    return terms | {"tokens": cfg.detection_weight * nll}, metrics


def refuse(config):
    """There must be a generator."""
    if not config.model.generator_fraction:
        raise ConfigError("model.generator_fraction=0: objective.name='replaced_token_detection' "
                          "needs a generator; set a share of the model's width, such as 0.25")


OBJECTIVE = dataclasses.replace(
    masked_lm.OBJECTIVE,
    name="replaced_token_detection",
    examples=ReplacedTokenDetection,
    weights=weights,
    losses=losses,
    heads=("detection",),
    refuse=refuse,
)
