"""Tests of the provenance of recorded numbers."""

import shutil
import subprocess

import pytest

from llm_jax import record


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_commit_says_where_files_differ_from_it(tmp_path, monkeypatch):
    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, "-C", tmp_path, *args], capture_output=True, check=True)
        return done.stdout.decode().strip()

    file = tmp_path / "a.py"
    file.write_text("one")
    git("init")
    git("add", "a.py")
    git("commit", "-m", "first")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    said = lambda: record.commit.__wrapped__()  # it is cached
    assert said() == git("rev-parse", "--short", "HEAD")
    (tmp_path / "results.json").write_text("{}")  # nothing that has been computed with
    assert said() == git("rev-parse", "--short", "HEAD")
    file.write_text("two")
    assert said() == git("rev-parse", "--short", "HEAD") + "+changes"
