"""Tests of `pip install .`: the command llm-jax with the recipes, in any folder."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = (
    "model.num_layers=1", "model.embed_dim=32", "model.num_heads=2", "model.max_length=32",
    "tokenizer.name=bytes", "train.steps=2", "data.batch_size=8", "eval.max_batches=1",
    "sample.max_new_tokens=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs the installed command with some arguments in a folder that is not the checkout."""
    tmp = tmp_path_factory.mktemp("install")
    source = tmp / "source"  # building leaves files behind
    source.mkdir()
    for name in ("llm_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    here = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    subprocess.run([*pip, "wheel", ".", "--no-deps", *here, "-qw", tmp], cwd=source, check=True)
    (wheel,) = tmp.glob("*.whl")
    into = ["--no-deps", "--target", tmp / "site"]
    subprocess.run([*pip, "install", "-q", *into, wheel], check=True)
    shutil.rmtree(source)
    environ = os.environ | {"PYTHONPATH": str(tmp / "site")}

    def call(*arguments):
        return subprocess.run(
            [tmp / "site" / "bin" / "llm-jax", *arguments],
            cwd=tmp, env=environ, text=True, capture_output=True, check=False,
        )  # fmt: skip

    return call


@pytest.mark.slow
def test_the_command_trains_the_quickstart_anywhere(installed):
    found = installed("--help")
    assert found.returncode == 0 and "llm-jax generate --workdir" in found.stdout
    assert "launch.py" not in found.stdout
    found = installed("--workdir=a run", "--json", *(f"--config.{key}" for key in TINY))
    assert found.returncode == 0, found.stderr
    summary = json.loads(found.stdout.splitlines()[-1])
    assert summary["finished"] and summary["step"] == 2
    assert "\n  llm-jax eval '--workdir=a run'\n" in found.stdout
    found = installed("eval", "--workdir=a run", "--json")
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2:124m", "configs/albert.py:base", "ablations/norms"])
def test_recipes_come_along(installed, name):
    """Refused by its second mistake alone: the recipe, and what it imports, was read."""
    found = installed("train", "--workdir=r", f"--config={name}", "--config.train.steps=0")
    assert found.returncode == 2
    assert found.stderr == "error: train.steps=0: must be at least 1 and at most 2147483647\n"


@pytest.mark.slow
def test_jobs_come_along(installed):
    found = installed("submit", "--workdir=r", "--config=quickstart", "--on=slurm", "--nodes=2")
    assert found.returncode == 0, found.stderr
    command = "llm-jax train --workdir=r --config=quickstart --stopped_code=75"
    assert f"{command} --stall_seconds=" in found.stdout


@pytest.mark.slow
def test_a_sweep_starts_its_runs(installed):
    keys = [f"--config.{key}" for key in TINY]
    axis = ["--axis=model.norm=layernorm,rmsnorm", "--seeds=1", "--lengths=none", "--json"]
    found = installed("sweep", "--workdir=s", "--config=quickstart", *axis, *keys)
    assert json.loads(found.stdout.splitlines()[-1])["finished"] == 2, found.stderr
