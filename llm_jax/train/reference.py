"""Log-probabilities under DPO's reference model: the one that a run began with."""

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

FILE = "reference.json"  # of a run folder: {split: [[chosen, rejected] of each record]}


def attach(
    setup: Setup, tokenizer: Tokenizer, splits: Mapping[str, Sequence[Record]], workdir: str | Path,
    params: Any = None,
) -> None:
    """Gives each record its `reference`, where the objective asks for one.

    It is computed once, of the parameters at step 0, and kept in the run folder: the reference of
    DPO costs neither memory nor a second forward pass, and nothing that is trained can move it.

    Raises:
      ConfigError: a run that has lost it, or other records than it is of.
    """
    if not setup.objective.reference:
        return
    file = Path(workdir) / FILE
    if not file.is_file():
        if params is None:
            raise ConfigError(f"{file}: is not there; a run writes it when it begins")
        known = {name: _computed(setup, tokenizer, docs, params) for name, docs in splits.items()}
        if jax.process_index() == 0:
            write_json(file, known)
    else:
        known = read_json(file)
    for name, docs in splits.items():
        if len(known.get(name, ())) != len(docs) or not isinstance(docs, list):
            raise ConfigError(f"{file}: is of {len(known.get(name, ()))} records of data.{name}, "
                              f"which has {len(docs)}")
        for doc, pair in zip(docs, known[name], strict=True):
            doc["reference"] = pair


def _computed(setup: Setup, tokenizer: Tokenizer, docs: Sequence[Record], params: Any) -> list:
    """[[chosen, rejected]] of each record; 0 of one that gives no example."""
    examples, config = setup.objective.examples(tokenizer, setup.config), setup.config
    sides = [examples.sides(doc) if examples.example(doc, None, None) else [] for doc in docs]
    both = [x for some in sides for x in some]
    rows = [[*x["tokens"].tolist(), int(x["targets"][-1])] for x in both]
    starts = [int(np.flatnonzero(x["weights"])[0]) + 1 for x in both]
    with sharding.activate(setup.mesh):
        size = config.data.batch_size
        values = iter(log_likelihoods(setup.model, params, rows, starts, batch_size=size))
    return [[next(values)[0] for _ in some] or [0.0, 0.0] for some in sides]
