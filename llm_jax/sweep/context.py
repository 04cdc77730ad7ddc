"""Loss of a trained model by position, within the training length and beyond.

python -m llm_jax.sweep.context RUN_FOLDER/context.json '{"reaches": [1, 2, 4]}'
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import models, record, sharding
from llm_jax.config import ConfigError
from llm_jax.data import pipeline, sources
from llm_jax.data.examples import Record
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.objectives.cross_entropy import token_losses
from llm_jax.train import groups
from llm_jax.train.run import Setup, load_params

BINS = 8  # number of bins of the training length
TEXT = 2**17  # tokens of validation text; the same documents for every length


def measure(workdir: str | Path, reaches: list[int], tokens: int = TEXT) -> dict[str, Any]:
    """Returns {'length', 'bin', 'reaches': {multiple of length: result of `at_reach`}}.

    If a model does not support a length, the result is {'reason': text}.
    """
    setup, tokenizer, params, step = load_params(workdir)
    documents = some(setup.objective.splits(setup.config)["validation"], tokenizer, tokens)
    length = setup.config.model.max_length
    width = max(1, length // BINS)
    by_reach = {}
    for reach in reaches:
        try:
            longer = stretched(setup, params, reach)
            by_reach[str(reach)] = at_reach(longer, params, tokenizer, documents, width)
        except ValueError as error:  # ConfigError is one
            by_reach[str(reach)] = {"reason": str(error)}
    return {"step": step, "length": length, "bin": width, "reaches": by_reach}


def some(documents: Sequence[Record], tokenizer: Tokenizer, least: int) -> list[Record]:
    """Returns a fixed random sample of documents with at least `least` tokens, or all documents."""
    chosen, tokens = [], 0
    for i in np.random.default_rng(0).permutation(len(documents)):
        if tokens >= least:
            break
        chosen.append(documents[int(i)])
        tokens += sum(len(tokenizer.encode(text)) for text in sources.texts(chosen[-1:]))
    return chosen


def stretched(setup: Setup, params: Any, reach: int) -> Setup:
    """Returns the same run with rows `reach` times as long."""
    config = ConfigDict(setup.config.to_dict())
    if config.model.kind != "decoder":
        raise ConfigError(f"model.kind={config.model.kind!r}: only decoders have these losses")
    config.model.max_length *= reach
    configs.check(config)
    longer = Setup(config, setup.mesh)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    others = jax.tree.leaves(models.abstract_params(longer.model))
    for (path, x), other in zip(leaves, others, strict=True):
        if x.shape != other.shape:
            raise ConfigError(f"the shape of {groups.name(path)} depends on model.max_length")
    return longer


def at_reach(
    setup: Setup, params: Any, tokenizer: Tokenizer, documents: list[Record], width: int
) -> dict[str, Any]:
    """Mean loss and number of tokens, in total and in bins of `width` positions of a document."""
    config = setup.config
    count = -(-config.model.max_length // width)

    @jax.jit
    def sums(params, batch):
        outputs = setup.model.apply({"params": params}, batch)
        losses = token_losses(
            outputs.hidden, outputs.matrix, batch["targets"],
            bias=outputs.bias, softcap=outputs.softcap,
        )  # fmt: skip
        bins = jnp.where(batch["weights"] > 0, batch["positions"] // width, count)
        add = lambda x: jnp.zeros(count + 1).at[bins].add(x)[:count]
        return add(losses), add(jnp.ones_like(losses))

    batches = pipeline.eval_batches(setup.objective.examples(tokenizer, config), documents)
    with sharding.activate(setup.mesh):
        parts = [jax.device_get(sums(params, sharding.put(batch, setup.mesh))) for batch in batches]
    loss, tokens = np.sum(np.array(parts, np.float64), axis=0)
    if not np.isfinite(loss).all():
        raise ConfigError(f"at {config.model.max_length} tokens the loss is not finite")
    means = [a / n if n else None for a, n in zip(loss, tokens, strict=True)]
    return {"loss": loss.sum() / tokens.sum(), "tokens": int(tokens.sum()), "bins": means}


def main(argv: list[str]) -> None:
    """Measures a run and writes the result and the request to the file in its folder."""
    file, asked = Path(argv[0]), json.loads(argv[1])
    record.write(file, asked=asked, **measure(file.parent, asked["reaches"]))


if __name__ == "__main__":
    main(sys.argv[1:])
