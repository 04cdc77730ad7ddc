"""Logits of folders, computed by the installed version of transformers.

    python tests/hub/reference.py FOLDER …   # each with inputs.npz; writes logits.npy next to it
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def logits(folder: Path) -> np.ndarray:
    """What the class named in config.json says of inputs.npz, in float32."""
    about = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, about["architectures"][0])
    model, info = kind.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    unread = {k: v for k, v in info.items() if v and k.endswith("_keys")}
    if unread:
        raise ValueError(f"{folder}: {unread}")
    inputs = {name: torch.tensor(value) for name, value in np.load(folder / "inputs.npz").items()}
    with torch.no_grad():
        out = model.eval()(**inputs)
    names = ("logits", "prediction_logits", "last_hidden_state")
    return next(out[name] for name in names if name in out).numpy()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        np.save(Path(argument) / "logits.npy", logits(Path(argument)))
