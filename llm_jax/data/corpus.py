"""The built-in corpus, which needs no download: the documentation and source code of Python."""

import sysconfig
from pathlib import Path

# Excluded: tests, tables, generated files, vendored packages.
_SKIP_FOLDERS = {
    "__phello__", "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib",
    "lib-dynload", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
_SKIP_FILES = {"html/entities.py", "stringprep.py"}
_SKIP_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars")


def python_documents() -> list[str]:
    """Returns the language reference's topics and the standard library's modules, ordered."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:  # a separate package in some distributions
        topics = {}
    root = Path(sysconfig.get_paths()["stdlib"])

    def wanted(path: Path) -> bool:
        name, folders = path.relative_to(root).as_posix(), path.relative_to(root).parts[:-1]
        skipped = name in _SKIP_FILES or name.startswith(_SKIP_PREFIXES)
        return not skipped and not _SKIP_FOLDERS.intersection(folders)

    paths = sorted(path for path in root.rglob("*.py") if wanted(path))
    texts = [path.read_text("utf-8", errors="replace") for path in paths]
    return [topics[name] for name in sorted(topics)] + [text for text in texts if text.strip()]
