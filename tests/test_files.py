"""Tests of JSON files: errors name the file, writes are atomic."""

import errno
import os
import subprocess
import sys

import pytest

from llm_jax import files
from llm_jax.config import ConfigError

BROKEN = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"a": 1, "b',
    "list": b"[1]",
    "number": b"7",
    "null": b"null",
    "not UTF-8": b'{"a": "\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "binary": bytes(range(256)),
    "a few levels too deep": b'{"a": ' * 150 + b"1" + b"}" * 150,
    "deep": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and cut": b"[" * 100_000,
    "huge number": b'{"a": ' + b"9" * 10_000 + b"}",
    "two": b"{} {}",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named(content, tmp_path):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"some\.json: "):
        files.read_json(path)


def test_what_is_no_file_is_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"has no some\.json"):
        files.read_json(tmp_path / "some.json")
    (tmp_path / "some.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for ever
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name in ("some.json", "pipe.json", "loop.json"):
        with pytest.raises(ConfigError, match=name):
            files.read_json(tmp_path / name)
    (tmp_path / "large.json").write_text('{"a": 1}')
    monkeypatch.setattr(files, "MAX_BYTES", 7)
    with pytest.raises(ConfigError, match=r"large\.json: has 8 bytes; the maximum is 7"):
        files.read_json(tmp_path / "large.json")


def test_what_is_written_is_read(tmp_path):
    content = {"a": [1, 2.5, None, "é \ud800"], "b": {"c": {}}}
    files.write_json(tmp_path / "some.json", content)
    assert files.read_json(tmp_path / "some.json") == content
    files.write_json(tmp_path / "some.json", [content])
    assert files.read_json(tmp_path / "some.json", expect=list) == [content]
    assert [p.name for p in tmp_path.iterdir()] == ["some.json"]


@pytest.mark.parametrize("function", ["write", "replace"])
def test_a_full_disk_leaves_what_was(function, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_json(tmp_path / "some.json", {"a": 1})
    target = (files.Path, "write_text") if function == "write" else (files.os, "replace")
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(tmp_path / "some.json", {"a": 2})
    assert files.read_json(tmp_path / "some.json") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["some.json"]


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_a_full_disk_is_known_behind_what_it_led_to(link):
    full = OSError(errno.EDQUOT, "over")
    for error in (full, RuntimeError(f"write failed: {os.strerror(errno.ENOSPC)}")):
        outer = ValueError("a checkpoint was not written")
        assert files.is_full(error) and not files.is_full(outer)
        setattr(outer, link, error)
        assert files.is_full(outer)


def test_importing_it_is_quick():
    script = "import sys, llm_jax.files; print({'jax', 'numpy', 'flax', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
