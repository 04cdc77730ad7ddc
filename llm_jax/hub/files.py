"""Files of a Hugging Face folder: safetensors, single or sharded, and config.json."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  gives NumPy bfloat16, which safetensors then reads and writes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_jax.config import ConfigError
from llm_jax.files import read_json, write_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
FLOATS = {"F64", "F32", "F16", "BF16"}


class Tensors:
    """The tensors of a folder by name, read one at a time.

    Raises:
      ConfigError: no safetensors (pickles are not read), a missing shard, a damaged file.
    """

    def __init__(self, folder: Path):
        self._files, self._where = {}, {}
        for name in _shards(folder):
            path = folder / name
            try:
                self._files[name] = safe_open(path, framework="numpy")
                names = self._files[name].keys()
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{path}: not a readable safetensors file ({error})") from error
            self._where |= dict.fromkeys(names, name)
        # Names in early converted TensorFlow checkpoints.
        old = {".gamma": ".weight", ".beta": ".bias"}
        self._names, self._scales = {}, {}
        for name in self._where:
            if name.endswith("_blocks") and f"{name[:-7]}_scales" in self._where:
                self._names[name[:-7]] = name
                self._scales[name] = f"{name[:-7]}_scales"
            if name in self._scales or name in self._scales.values():
                continue
            stem, dot, last = name.rpartition(".")
            self._names[stem + old.get(dot + last, dot + last)] = name

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def rename(self, function: Callable[[str], str]) -> None:
        """Renames each tensor to function(name)."""
        self._names = {function(name): stored for name, stored in self._names.items()}

    def own_name(self, name: str) -> str:
        """Returns the name of a tensor in the file."""
        return self._names[name]

    def drop(self, name: str) -> None:
        """Ignores a tensor from now on."""
        del self._names[name]

    def _slice(self, stored: str):
        return self._files[self._where[stored]].get_slice(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, from the header."""
        stored = self._names[name]
        shape = tuple(self._slice(stored).get_shape())
        if stored not in self._scales:
            return shape
        if shape[:-1] != tuple(self._slice(self._scales[stored]).get_shape()) or shape[-1] != 16:
            return ()
        *experts, outputs, groups, _ = shape
        return (*experts, 32 * groups, outputs)

    def dtype(self, name: str) -> str:
        """Returns safetensors' name of the dtype: F32, BF16, ...; BF16 for MXFP4."""
        stored = self._names[name]
        if stored not in self._scales:
            return self._slice(stored).get_dtype()
        found = {self._slice(x).get_dtype() for x in (stored, self._scales[stored])}
        return "BF16" if found == {"U8"} else "no MXFP4"

    def get(self, name: str) -> np.ndarray:
        """Reads a tensor; scalars have shape [1]."""
        stored = self._names[name]
        read = lambda name: self._files[self._where[name]].get_tensor(name)
        if stored in self._scales:
            return _dequantised(read(stored), read(self._scales[stored]))
        return np.atleast_1d(read(stored))


# Values of E2M1: sign, exponent, mantissa (OCP Microscaling Formats 1.0, section 5.3.3).
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])


def _dequantised(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Dequantises gpt-oss's MXFP4: blocks [E, O, G, 16], scales [E, O, G] -> float32 [E, 32 G, O].

    A byte has two values, the low four bits first; 32 values share an exponent with bias 127.
    """
    pairs = np.stack([blocks & 15, blocks >> 4], axis=-1)
    values = np.ldexp(E2M1[pairs], scales.astype(np.int32)[..., None, None] - 127)
    return values.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)


def _shards(folder: Path) -> list[str]:
    """Returns the files to read; as in transformers, a single file takes precedence over shards."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get("weight_map")
        names = set(index.values()) if isinstance(index, dict) else set()
        absent = [
            str(name) for name in names
            if not isinstance(name, str) or Path(name).name != name
            or not (folder / name).is_file()
        ]  # fmt: skip
        if absent or not names:
            says = f"missing files: {', '.join(sorted(absent))}" if absent else (
                "has no weight_map from tensors to files"
            )
            raise ConfigError(f"{folder / INDEX}: {says}")
        return sorted(names)
    others = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    advice = f" {_conversion(folder, others)}" if others else ""
    has = f"has {', '.join(others[:3])} but " if others else ""
    raise ConfigError(f"{folder}: {has}no {WEIGHTS} and no {INDEX}.{advice}")


def _conversion(folder: Path, others: list[str]) -> str:
    """Returns instructions for converting other weight files to safetensors."""
    classes = read_json(folder / CONFIG).get("architectures")
    classes = classes[0] if classes and isinstance(classes, list) else ""
    name = classes if isinstance(classes, str) and classes.isidentifier() else "AutoModel"
    named = any(other.startswith("pytorch_model") for other in others)
    libraries, argument = "PyTorch and transformers", ""
    if not named and others[-1].endswith(".h5"):
        libraries, argument = "TensorFlow and transformers<5", ", from_tf=True"
    elif not named and others[-1].endswith(".msgpack"):
        libraries, argument = "Flax and transformers<5", ", from_flax=True"
    elif not named:
        libraries += " (which looks for tensors in pytorch_model.bin: rename the file)"
    advice = (
        f"with {libraries}: from transformers import {name}; "
        f"{name}.from_pretrained({str(folder)!r}{argument}).save_pretrained(NEW_FOLDER)"
    )
    return ("llm_jax reads safetensors only: unpickling can run arbitrary code. If you trust "
            f"it, convert it once, {advice}")


def write(
    folder: Path, sizes: Mapping[str, int], tensors: Callable[[list[str]], dict[str, np.ndarray]],
    limit: float,
) -> None:
    """Writes tensors(names) to files of at most `limit` bytes, or a single larger tensor.

    sizes: {name: bytes}, in order. Only the tensors of one file are in memory at a time.
    """
    groups: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if groups[-1] and total + size > limit:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += size
    if len(groups) == 1:
        save(tensors(groups[0]), folder / WEIGHTS)
        return
    where = {}
    for i, names in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        save(tensors(names), folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    write_json(folder / INDEX, index)


def save(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a safetensors file."""
    path.touch()  # with the default mode: save_file would restrict it to the user
    mode = path.stat().st_mode
    save_file(tensors, path, {"format": "pt"})
    path.chmod(mode)
