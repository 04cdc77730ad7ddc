"""Log-probabilities under DPO's reference model, the initial model of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax import sharding
from llm_jax.config import ConfigError
from llm_jax.data.examples import Record
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.decode import log_likelihoods
from llm_jax.files import read_json, write_json
from llm_jax.train.run import Setup

FILE = "reference.json"  # in a run folder: {split: [[chosen, rejected] for each record]}


def attach(
    setup: Setup, tokenizer: Tokenizer, splits: Mapping[str, Sequence[Record]], workdir: str | Path,
    params: Any = None,
) -> None:
    """Adds reference log-probabilities to each record, if the objective needs them.

    They are computed once, from the parameters at step 0, and stored in the run folder, so that
    DPO's reference model needs no memory and no second forward pass during training.

    Raises:
      ConfigError: the file is missing, or belongs to other records.
    """
    if not setup.objective.reference:
        return
    file = Path(workdir) / FILE
    if not file.is_file():
        if params is None:
            raise ConfigError(f"{file}: missing; a run writes it when it starts")
        known = {name: _computed(setup, tokenizer, docs, params) for name, docs in splits.items()}
        if jax.process_index() == 0:
            write_json(file, known)
    else:
        known = read_json(file)
    for name, docs in splits.items():
        if len(known.get(name, ())) != len(docs) or not isinstance(docs, list):
            raise ConfigError(f"{file}: has {len(known.get(name, ()))} records for data.{name}, "
                              f"which has {len(docs)}")
        for doc, pair in zip(docs, known[name], strict=True):
            doc["reference"] = pair


def _computed(setup: Setup, tokenizer: Tokenizer, docs: Sequence[Record], params: Any) -> list:
    """Computes [chosen, rejected] for each record; 0 for records without an example."""
    examples, config = setup.objective.examples(tokenizer, setup.config), setup.config
    sides = [examples.sides(doc) if examples.example(doc, None, None) else [] for doc in docs]
    both = [x for some in sides for x in some]
    rows = [[*x["tokens"].tolist(), int(x["targets"][-1])] for x in both]
    starts = [int(np.flatnonzero(x["weights"])[0]) + 1 for x in both]
    with sharding.activate(setup.mesh):
        size = config.data.batch_size
        values = iter(log_likelihoods(setup.model, params, rows, starts, batch_size=size))
    return [[next(values)[0] for _ in some] or [0.0, 0.0] for some in sides]
