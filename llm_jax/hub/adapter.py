"""Exports LoRA matrices as a PEFT adapter: adapter_config.json and adapter_model.safetensors."""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy.linalg import block_diag

from llm_jax.config import ConfigError
from llm_jax.files import write_json
from llm_jax.hub import families, files
from llm_jax.hub.family import Piece, plan, to_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WRITE = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}


def save(
    family: str, model: ConfigDict, params: Mapping, trained: Collection[str], folder: Path,
    base: str,
) -> None:
    """Writes a PEFT adapter: with it, the base model equals the merged export of `hub.save`.

    A module that concatenates several of our kernels (GPT-2's c_attn) gets the sum of their ranks,
    with stacked A and block-diagonal B, scaled by alpha / rank.

    Args:
      family: one of hub.FAMILIES.
      model: config.model, resolved, with lora_rank.
      params: parameters including LoRA matrices.
      trained: paths of all trained parameters.
      base: folder or name of the base model, for adapter_config.json.

    Raises:
      ConfigError: no LoRA, or trained parameters other than LoRA matrices and heads.
    """
    rank, task = model.lora_rank, TASKS.get(model.head)
    if not rank:
        raise ConfigError("model.lora_rank=0: the run has no adapter; export the whole model")
    heads = (model.head, "pooler") if task else ()  # PEFT needs them, even if they are frozen
    whole = (path for path in trained if "_lora_" not in path and path.split("/")[0] not in heads)
    if more := sorted(whole):
        raise ConfigError(f"{', '.join(more[:3])}: trained in addition to LoRA, but not part of an "
                          "adapter; export the whole model")
    table = families.get(family)
    wanted = plan(table, ConfigDict(model.to_dict() | {"lora_rank": 0}))
    if model.head == "none":  # names have no prefix then
        wanted = {name.removeprefix(table.prefix): pieces for name, pieces in wanted.items()}
    tensors, ranks, saved = {}, {}, set()
    for name, pieces in wanted.items():
        module = name.removesuffix(".weight")
        if found := _factors(params, pieces):
            tensors |= {f"{module}.lora_{x}.weight": y for x, y in zip("AB", found, strict=True)}
            ranks[module] = len(found[0])
        elif pieces[0].path[0] in heads:
            tensors |= to_tensors(wanted, params, [name], np.float32)
            inside = name.removeprefix(table.prefix)
            saved.add(inside.rpartition(".")[0] if inside != name else name.split(".")[0])
    named = _suffixes(ranks, {name.removesuffix(".weight") for name in wanted})
    wide = {target: n for target, module in named.items() if (n := ranks[module]) != rank}
    about = {
        "peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True,
        "task_type": task or WRITE.get(model.kind),
        "r": rank, "lora_alpha": model.lora_alpha, "use_rslora": False, "bias": "none",
        "target_modules": sorted(named), "modules_to_save": sorted(saved) or None,
        "rank_pattern": wide, "fan_in_fan_out": not table.linear,
        "alpha_pattern": {target: model.lora_alpha * n / rank for target, n in wide.items()},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    files.save({f"base_model.model.{name}": x for name, x in tensors.items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, about)


def _factors(params: Mapping, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns A [k rank, inputs], B [outputs, k rank] for a tensor with k adapters, or None."""
    above, blocks = [], []
    for piece in pieces:
        node = functools.reduce(lambda node, part: node[part], piece.path[:-1], params)
        pair = [node.get(f"{piece.path[-1]}_lora_{x}") for x in "ab"]
        if pair[0] is None:
            blocks.append(np.zeros((piece.theirs[piece.cut], 0)))
            continue
        a, b = (np.asarray(x[piece.index], np.float32) for x in pair)
        above.append(a.T)
        blocks.append(b.T)
    if not above:
        return None
    factors = np.concatenate(above), block_diag(*blocks)
    return tuple(np.ascontiguousarray(x, np.float32) for x in factors)  # required by safetensors


def _suffixes(adapted: Collection[str], modules: Collection[str]) -> dict[str, str]:
    """Returns {shortest unique suffix of a module name: the module}."""
    ending = lambda name, n: ".".join(name.split(".")[-n:])
    longest = max(name.count(".") + 1 for name in modules)
    named = {}
    for name in adapted:
        for n in range(1, longest + 1):
            if all(other in adapted for other in modules if ending(other, n) == ending(name, n)):
                named[ending(name, n)] = name
                break
    return named
