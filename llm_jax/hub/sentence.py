"""Files of sentence-transformers: the pooling of token vectors to a text embedding."""

import logging
from pathlib import Path

from llm_jax.files import read_json, write_json

log = logging.getLogger(__name__)

FILE, POOLING = "modules.json", "1_Pooling"
TYPES = {"": "Transformer", POOLING: "Pooling", "2_Normalize": "Normalize"}


def pooling(folder: str | Path) -> str:
    """Returns a folder's objective.pooling, "mean" for unsupported ones; "": not specified.

    Our embeddings always have unit length.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return ""
    types = [str(module.get("type")).rpartition(".")[2] for module in read_json(path, list)]
    entries = read_json(Path(folder) / POOLING / "config.json") if "Pooling" in types else {}
    modes = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
    found = [k for k, old in modes.items() if entries.get("pooling_mode") == k or entries.get(old)]
    if len(found) != 1 or not set(types) <= set(TYPES.values()):
        log.warning("%s: %s, pooling %s; only mean and cls are supported, using mean", path,
                    ", ".join(types), entries)  # fmt: skip
        return "mean"
    return found[0]


def save(folder: Path, width: int, longest: int, mode: str) -> None:
    """Adds the files to the folder of a headless model."""
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(TYPES.items())
    ]
    (folder / POOLING).mkdir()
    (folder / "2_Normalize").mkdir()
    write_json(folder / POOLING / "config.json", {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": mode == "cls",
        "pooling_mode_mean_tokens": mode == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    })  # fmt: skip
    lengths = {"max_seq_length": longest, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", lengths)
    write_json(folder / FILE, modules)
