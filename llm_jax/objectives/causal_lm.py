"""Predict the next token: also what a decoder on an encoder learns."""

from llm_jax.objectives.cross_entropy import cross_entropy


def weights(batch):
    """The number of target tokens."""
    return {"tokens": batch["weights"].sum()}


def losses(outputs, batch, cfg):
    """Cross-entropy of targets [B, T] where weights [B, T]; reads tokens, targets, weights."""
    total, sums = cross_entropy(
        outputs.hidden,
        outputs.matrix,
        batch["targets"],
        batch["weights"],
        bias=outputs.bias,
        label_smoothing=cfg.label_smoothing,
        z_loss=cfg.z_loss,
    )
    metrics = {"loss": (sums["loss"], "tokens"), "accuracy": (sums["correct"], "tokens")}
    return {"tokens": total}, metrics
