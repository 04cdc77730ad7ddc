"""Tests that imports go in one direction: each package uses only those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "llm_jax"
MAY_USE = {
    "pattern": set(),
    "config": {"pattern"},
    "files": {"config"},
    "attention": set(),
    "data": {"config", "console", "files", "record"},
    "sharding": {"config"},
    "models": {"attention", "config"},
    "objectives": {"config", "data", "models"},
    "train": {
        "config", "console", "files", "attention", "data", "decode", "models", "objectives",
        "record", "sharding",
    },
    "decode": {"config", "attention", "data", "models", "objectives"},
    "hub": {"config", "files", "data", "models", "objectives", "pattern", "sharding", "train"},
    "console": set(),
    "audit": {
        "config", "data", "decode", "files", "library", "models", "record", "sweep", "train",
    },
    "commands": {
        "audit", "compress", "config", "console", "data", "decode", "files", "hub", "models",
        "objectives", "pod", "privacy", "sharding", "sweep", "train",
    },
    "privacy": {"config", "data", "models"},
    "compress": {
        "config", "console", "data", "files", "hub", "models", "objectives", "record", "sharding",
        "sweep", "train",
    },
    "record": {"files"},
    "pod": {
        "config", "console", "files", "data", "models", "objectives", "record", "sharding", "train",
    },
    "sweep": {
        "config", "console", "files", "attention", "data", "hub", "models", "objectives", "record",
        "sharding", "train",
    },
    "harness": {"data", "decode", "library"},
    "library": {
        "attention", "config", "data", "decode", "files", "hub", "models", "objectives", "train",
    },
}


def imports(path):
    """Names of modules imported anywhere in a file, 'llm_jax.x.y' or 'numpy'."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if is_module(name)]
            yield from modules or [node.module]


def is_module(name):
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_a_room_uses_only_those_before_it(room):
    path = ROOT / room
    file = path.with_suffix(".py")
    files = [file] if file.exists() else path.rglob("*.py")
    used = {name.split(".")[1] for f in files for name in imports(f) if name.startswith("llm_jax.")}
    assert used - {room, "BEGAN"} <= MAY_USE[room]


@pytest.mark.parametrize("room", ["attention", "data", "models"])
def test_what_a_room_must_not_know(room):
    used = {name.split(".")[0] for f in (ROOT / room).rglob("*.py") for name in imports(f)}
    forbidden = {
        "attention": {"flax", "ml_collections", "optax"},
        "data": {"jax", "flax", "tensorflow"},
        "models": {"optax", "orbax", "grain"},
    }
    assert not used & forbidden[room]


def test_no_module_imports_itself_in_a_circle():
    parts = {p: p.relative_to(ROOT.parent).with_suffix("").parts for p in ROOT.rglob("*.py")}
    names = {p: ".".join(x).removesuffix(".__init__") for p, x in parts.items()}
    graph = {n: {i for i in imports(p) if i in names.values() and i != n} for p, n in names.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in sorted(graph):
        visit(name)
