"""Predict the tokens that were hidden (Devlin 2019, 3.1); alone, RoBERTa's objective."""

from llm_jax.objectives.cross_entropy import cross_entropy


def weights(batch):
    """The number of masked positions."""
    return {"masked": batch["masked_weights"].sum()}


def losses(outputs, batch, cfg):
    """Cross-entropy of masked_targets [B, P] where masked_weights [B, P].

    The model has gathered outputs.hidden [B, P, D] at the batch's masked_positions.
    """
    total, sums = cross_entropy(
        outputs.hidden,
        outputs.matrix,
        batch["masked_targets"],
        batch["masked_weights"],
        bias=outputs.bias,
        label_smoothing=cfg.label_smoothing,
        z_loss=cfg.z_loss,
    )
    metrics = {"loss": (sums["loss"], "masked"), "accuracy": (sums["correct"], "masked")}
    return {"masked": total}, metrics
