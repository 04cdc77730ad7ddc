"""JSON and text files: errors name the file, writes are atomic. No JAX.

All JSON files are read here: those of run folders, sweeps and Hugging Face folders.
"""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError

MAX_BYTES = 2**30  # a tokenizer.json with a large vocabulary has about 2**25
MAX_DEPTH = 100  # maximum nesting of objects and lists
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAMES = {dict: "object", list: "list"}


def read_json(path: str | Path, expect: type = dict) -> Any:
    """Reads a JSON file: an object, or a list if expect=list.

    Raises:
      ConfigError: see `read_text`; or not JSON, nested deeper than MAX_DEPTH, or not of the
        expected type. Names the file.
    """
    return parse_json(read_text(path), str(path), expect)


def read_text(path: str | Path) -> str:
    """Reads a text file.

    Raises:
      ConfigError: missing, not a file, unreadable, larger than MAX_BYTES, not UTF-8; names it.
    """
    path = Path(path)
    if not path.exists():
        if path.parent == Path():
            raise ConfigError(f"{path}: no such file")
        raise ConfigError(f"{path.parent}: has no {path.name}")
    if not path.is_file():
        raise ConfigError(f"{path}: is not a file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: has {size:,} bytes; the maximum is {MAX_BYTES:,}")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def parse_json(text: str, where: str, expect: type = dict) -> Any:
    """Parses JSON text; `where` names it in the ConfigErrors of `read_json`."""
    if not text.strip():
        raise ConfigError(f"{where}: is empty, not JSON")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{where}: is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ConfigError(f"{where}: not readable as JSON ({error})") from error
    if not isinstance(content, expect):
        name = NAMES.get(expect, "object or list")
        raise ConfigError(f"{where}: holds a {type(content).__name__}, not a JSON {name}")
    level = [content]
    for _ in range(MAX_DEPTH):
        children = (x.values() if isinstance(x, dict) else x for x in level)
        level = [x for values in children for x in values if isinstance(x, (dict, list))]
        if not level:
            return content
    raise ConfigError(f"{where}: is nested deeper than {MAX_DEPTH} levels")


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Writes content as JSON, atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text, atomically."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # unique per process
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # if the disk was full


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a full disk, a quota or a file size limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(number) in str(error) for number in FULL):  # errors of C++ libraries
            return True
        error = error.__cause__ or error.__context__
    return False


def folder_named(path: str | Path) -> Path:
    """Returns the path; ConfigError if --workdir= is empty, or a URL."""
    if not str(path).strip():
        raise ConfigError("--workdir=: is empty; name a folder")
    check_local(f"--workdir={path}", path)
    return Path(path)


def check_local(named: str, path: str | Path) -> None:
    """Raises ConfigError for a URL, as gs://bucket/runs; `named` is the option or key."""
    if re.match(r"\w+://", str(path)):
        raise ConfigError(f"{named}: is a URL, not a folder or file; mount the bucket (gcsfuse "
                          "BUCKET /runs, or its CSI driver) and use a path below the mount point")


def check_source(folder: str | Path) -> None:
    """Raises ConfigError if a Hugging Face or run folder does not exist."""
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder}: no such folder; models are not downloaded by name; download "
                          "one with `hf download NAME --local-dir=FOLDER` (of huggingface_hub)")


def read_config(workdir: str | Path) -> ConfigDict:
    """Returns the config of a run folder; ConfigError if it is not one."""
    file = folder_named(workdir) / "config.json"
    if not file.exists():
        raise ConfigError(f"--workdir={workdir}: has no config.json; it is not a run folder")
    content = read_json(file)
    if "model_type" in content:
        raise ConfigError(f"--workdir={workdir}: is a Hugging Face folder, not a run folder; "
                          f"import it first: import --from={workdir} --workdir=RUN, or start a new "
                          f"run from it: --config.init_from={workdir}")
    if not {"model", "data", "train"} <= content.keys():
        raise ConfigError(f"{file}: is not the config of a run, it has no model, data and train; "
                          "name another folder")
    try:
        return configs.from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
