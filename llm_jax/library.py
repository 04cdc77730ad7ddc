"""Python API: `llm_jax.load(folder)` for logits, hidden states, attention weights and text."""

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from llm_jax import attention, decode, hub, models, objectives
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data.examples import Record
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.files import read_json
from llm_jax.models import Model, Outputs
from llm_jax.train import ensemble
from llm_jax.train.predict import answerer, document, predict


def load(
    folder: str | Path | Sequence[str | Path], step: int | str | None = None
) -> "Pretrained":
    """Loads the model of a run folder (the EMA of its parameters, if any) or Hugging Face folder.

    Args:
      folder: several run folders form an ensemble: `predict` averages their probabilities.
      step: checkpoint of a run folder; None: the newest.

    Raises:
      ConfigError: no such folder or step, an unknown kind of folder, or damaged weights.
    """
    several = isinstance(folder, Sequence) and not isinstance(folder, str)
    if not several and not (Path(folder) / "checkpoints").is_dir():
        if step is not None:
            raise ConfigError(f"step={step}: {folder} is not a run folder and has no steps")
        cfg, params, tokenizer = hub.load(folder)
        config = configs.base()
        config.model, config.objective.name = cfg, objectives.suited(cfg).name
        if cfg.num_labels:
            config.data.labels = hub.labels(read_json(Path(folder) / "config.json"))
        config.data.packing = "none"
        config.objective.pooling = hub.pooling(folder) or config.objective.pooling
        return Pretrained(config, models.build(cfg), jax.device_put(params), tokenizer)
    setup, tokenizer, params, _ = ensemble.load(list(folder) if several else [folder], step)
    return Pretrained(setup.config, setup.model, params, tokenizer)


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """A model with its parameters and tokenizer.

    Attributes:
      config: the config of the run; for a Hugging Face folder, config.model and defaults.
      model: the Linen module, batch -> Outputs.
      params: its parameters, a tree of float32 arrays.
      tokenizer: None if a Hugging Face folder has none.
    """

    config: ConfigDict
    model: Model
    params: Any
    tokenizer: Tokenizer | None
    _memory: decode.Memory = dataclasses.field(default_factory=decode.Memory)

    def batch(self, texts: Sequence[str], targets: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Tokenises texts with the special tokens of the model, padded on the right.

        Returns tokens and segment_ids (1: real, 0: padding) [B, T]; for an encoder-decoder,
        encoder_tokens and encoder_segment_ids of the texts, and tokens and segment_ids of the
        decoder input: the start token and `targets`.

        Raises:
          ConfigError: no tokenizer, or a text of more than model.max_length tokens.
        """
        if isinstance(texts, str) or not len(texts):
            raise ConfigError(f"batch({texts!r}): takes a list of at least one text")
        if self.tokenizer is None:
            raise ConfigError("the folder has no tokenizer; pass a batch of ids: {'tokens': ids}")
        before, behind = self.tokenizer.around(self.model.cfg.kind)
        rows = [[*before, *self.tokenizer.encode(text), *behind] for text in texts]
        if self.model.cfg.kind != "encoder_decoder":
            return self._padded(rows, "")
        targets, start = targets or [""] * len(texts), self.tokenizer.bos_id
        decoder = [[start, *self.tokenizer.encode(text)] for text in targets]
        return self._padded(rows, "encoder_") | self._padded(decoder, "")

    def outputs(self, batch: dict[str, Any]) -> Outputs:
        """Runs the model on a batch: returns hidden vectors, features and outputs of the heads."""
        return _apply(self.model, (), self.params, batch)[0]

    def logits(self, batch: dict[str, Any]) -> jax.Array:
        """Returns logits [B, T, V], float32, of the next token (masked models: of this position).

        Raises:
          ConfigError: a model without a language modelling head; see `outputs(batch).heads`.
        """
        outputs = self.outputs(batch)
        if outputs.matrix is None:
            raise ConfigError(f"model.head={self.model.cfg.head!r} has no vocabulary logits; "
                              f"outputs(batch).heads has {', '.join(outputs.heads) or 'none'}")
        return models.logits(outputs)

    def hidden_states(self, batch: dict[str, Any], side: str = "") -> jax.Array:
        """Returns hidden states [layers + 1, B, T, D]: the input of each layer, then the output.

        The output includes the final norm, if any, as in transformers' `output_hidden_states`.

        Args:
          side: "encoder" or "decoder" of an encoder-decoder; default: the decoder.
        """
        side = self._side(side)
        if self.model.cfg.reversible:
            raise ConfigError("model.reversible=True: does not store hidden states")
        outputs, kept = _apply(self.model, ("hidden",), self.params, batch)
        last = outputs.encoded if side != self._side("") else outputs.features
        return jnp.concatenate([_by_layer(kept["hidden"][side], "input"), last[None]])

    def attention_weights(self, batch: dict[str, Any], side: str = "") -> jax.Array:
        """Returns attention weights [layers, B, N, T, T] of the self-attention layers.

        Raises:
          ConfigError: an attention variant whose output is not a weighted sum of values.
        """
        cfg = ConfigDict(self.model.cfg.to_dict())
        stack = self._side(side)
        for kind in {layer.attention for layer in configs.layers(cfg, configs.depths(cfg)[stack])}:
            if "weights" not in attention.get(kind).supports or cfg.reversible:
                raise ConfigError(f"model.attention={kind!r}, model.reversible={cfg.reversible}: "
                                  f"weights need {attention.ABILITIES['weights']}")
        # Kernels do not materialise the weights; dense attention is the same function.
        for key in ("attention", "layers"):
            cfg[key] = re.sub(r"\b(flash|blockwise)\b", "dense", cfg[key])
        model = models.build(cfg)
        kept = _apply(model, ("weights",), self.params, batch)[1]
        return _by_layer(kept["weights"][stack], "self")

    def predict(self, records: Sequence[str | Record]) -> list[Record]:
        """Returns the prediction for each text or record: its label, entities, answer …

        A record has the input fields of the objective: {"text": …}, {"tokens": […]},
        {"context": …, "question": …}. The prediction for an invalid one is {"error": …}.
        docs/tasks.md shows each.

        Raises:
          ConfigError: an objective without predictions.
        """
        return self._answers(self.config.objective.name, records)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns unit-length embeddings of texts [N, D] float32; truncates long texts.

        For encoders, with the objective.pooling of the run or sentence-transformers folder.
        """
        if isinstance(texts, str) or self.model.cfg.kind != "encoder":
            raise ConfigError(f"embed({texts!r}), model.kind={self.model.cfg.kind!r}: needs a list "
                              "of texts and an encoder")
        return np.array([x["vector"] for x in self._answers("contrastive", texts)], np.float32)

    def _answers(self, name: str, records: Sequence[str | Record]) -> list[Record]:
        objective = objectives.get(name)
        examples = objective.examples(self.tokenizer, self.config)
        answer = answerer(self.model, objective, examples)
        records = [{"text": x} if isinstance(x, str) else x for x in records]
        documents = (document(examples, x, f"record {i}") for i, x in enumerate(records))
        return list(predict(answer, self.params, documents, self.config.data.batch_size))

    def generate(self, prompts: Sequence[decode.Prompt], **options: Any) -> list[dict]:
        """Completes prompts or fills in masks; see llm_jax.decode.complete for the options."""
        if isinstance(prompts, str):
            raise ConfigError(f"generate({prompts!r}): takes a list of prompts")
        options = {"objective": self.config.objective} | options
        return decode.complete(self.model, self.params, self.tokenizer, prompts, **options)

    def chat(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        """Returns the assistant's reply to messages, [{"role": "user", "content": …}, …].

        Reuses the KV cache for messages shared with the last call.
        """
        return self.generate([messages], **{"memory": self._memory} | options)[0]["completion"]

    def _side(self, side: str) -> str:
        kind = self.model.cfg.kind
        sides = ("decoder", "encoder") if kind == "encoder_decoder" else (kind,)
        if side and side not in sides:
            raise ConfigError(f"side={side!r}: the model has {' and '.join(sides)}")
        return side or sides[0]

    def _padded(self, rows: list[list[int]], prefix: str) -> dict[str, np.ndarray]:
        longest, limit = max(map(len, rows)), self.model.cfg.max_length
        if longest > limit:
            raise ConfigError(f"a text of {longest} tokens: model.max_length is {limit}")
        tokens = np.full((len(rows), longest), self.tokenizer.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        return {f"{prefix}tokens": tokens, f"{prefix}segment_ids": segments}


@partial(jax.jit, static_argnums=(0, 1))
def _apply(model: Model, collections: tuple[str, ...], params: Any, batch: dict):
    return model.apply({"params": params}, batch, mutable=list(collections))


def _by_layer(kept: dict, name: str) -> jax.Array:
    """Stacks values stored by the layers of a stack to [layers, …], in layer order."""
    number = lambda key: int(key.partition("_")[2] or 0)  # block, or block_0, block_1, …
    in_order = lambda tree: [tree[key] for key in sorted(tree, key=number)]
    parts = []
    for scan in in_order(kept["stack"]):
        blocks = [x if name == "input" else x["attention"] for x in in_order(scan)]
        turns = jnp.stack([block[name][0] for block in blocks], axis=1)
        parts.append(turns.reshape(-1, *turns.shape[2:]))
    return jnp.concatenate(parts)
