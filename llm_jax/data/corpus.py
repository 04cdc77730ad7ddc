"""The corpus that needs no download: the prose and code that ship with Python itself."""

import ast
import importlib.util
import sysconfig
from pathlib import Path

# Not prose and not code that a person wrote: tests, tables, generated files, vendored packages.
_SKIP_FOLDERS = {
    "__phello__", "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib",
    "lib-dynload", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
_SKIP_FILES = {"html/entities.py", "stringprep.py"}
_SKIP_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars")


def python_documents() -> list[str]:
    """Returns the language reference's topics and the standard library's modules, ordered."""
    return _topics() + _modules(Path(sysconfig.get_paths()["stdlib"]))


def _topics() -> list[str]:
    try:
        spec = importlib.util.find_spec("pydoc_data.topics")
    except ModuleNotFoundError:  # some distributions package it apart
        return []
    if spec is None or not spec.origin:
        return []
    # Read, not imported: the module is one literal dict, and importing it would keep it in memory.
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "topics":
            topics = ast.literal_eval(node.value)
            return [topics[name] for name in sorted(topics)]
    return []


def _modules(root: Path) -> list[str]:
    def wanted(path: Path) -> bool:
        name, folders = path.relative_to(root).as_posix(), path.relative_to(root).parts[:-1]
        skipped = name in _SKIP_FILES or name.startswith(_SKIP_PREFIXES)
        return not skipped and not _SKIP_FOLDERS.intersection(folders)

    paths = sorted(path for path in root.rglob("*.py") if wanted(path))
    texts = (path.read_text("utf-8", errors="replace") for path in paths)
    return [text for text in texts if text.strip()]
