"""Jobs of Slurm, GKE and TPU VMs: their files, what is refused, and when a job starts again."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

import launch
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.pod.submit import STOPPED, make

TRAIN = ["train", "--workdir=/runs/a b", "--config.data.train=it's.txt"]
GIVEN = {
    "slurm": {"nodes": 4, "gpus": 8, "partition": "big", "setup": ". env/bin/activate"},
    "gke": {"topology": "v5p:4x4x4", "image": "registry/llm_jax:1", "claim": "runs"},
    "tpu-vm": {
        "topology": "v5p:4x4x4", "zone": "us-east5-a", "repository": "https://x/y.git",
        "bucket": "mine", "spot": True,
    },
}  # fmt: skip


def job(on, changes=None):
    return make(on, "job", TRAIN, GIVEN[on] | (changes or {}), Path("/code"))


def test_a_slurm_script():
    found = job("slurm")
    lines = found.text.splitlines()
    for line in (
        "#SBATCH --job-name=job", "#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=8", "#SBATCH --partition=big", "#SBATCH --time=24:00:00",
        "#SBATCH --signal=B:TERM@300", "#SBATCH --requeue", f"cd {Path.cwd()}",
        ". env/bin/activate",
    ):  # fmt: skip
        assert line in lines
    assert "--account" not in found.text
    run = "python /code/launch.py train '--workdir=/runs/a b' '--config.data.train=it'\"'\"'s.txt'"
    assert f"srun --kill-on-bad-exit=1 {run} --stopped_code=75 &" in lines
    assert found.command == ["sbatch", "job.sbatch"]


def test_a_jobset():
    found = job("gke")
    manifest = yaml.safe_load(found.text)
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("JobSet", "job")
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 16  # 64 chips, 4 a host
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["python", "launch.py", *TRAIN, "--stopped_code=75"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 10
    assert found.command == ["kubectl", "apply", "-f", "job.yaml"]


@pytest.mark.parametrize(
    ("topology", "name"),
    [("v5p:4x4x4", "v5p-128"), ("v4:2x2x2", "v4-16"), ("v5e:4x4", "v5litepod-16"),
     ("v6e:8x8", "v6e-64")],
)  # fmt: skip
def test_a_queued_resource(topology, name):
    found = job("tpu-vm", {"topology": topology})
    assert f"--accelerator-type={name}" in found.command and "--spot" in found.command
    assert "--metadata-from-file=startup-script=job.sh" in found.command
    for text in ("gcsfuse --implicit-dirs mine /runs", "git clone --depth=1 https://x/y.git"):
        assert text in found.text


@pytest.mark.parametrize(
    ("on", "keys", "message"),
    [
        ("gke", ["mesh.data=1", "mesh.fsdp=63"], "mesh.fsdp=63.* to 63, which must equal the 64 "),
        ("tpu-vm", ["mesh.fsdp=48"], "mesh.data=-1.*mesh.fsdp=48.* must divide the 64 devices"),
    ],
)
def test_a_mesh_that_the_chips_cannot_make(on, keys, message):
    with pytest.raises(ConfigError, match=message):
        configs.mesh_sizes(configs.load("", keys).mesh, job(on).devices)
    configs.mesh_sizes(configs.load("", ["mesh.fsdp=64"]).mesh, job(on).devices)


def test_several_slices():
    (replicated,) = yaml.safe_load(job("gke", {"slices": 3}).text)["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 3 and replicated["template"]["spec"]["parallelism"] == 16
    command = job("tpu-vm", {"slices": 3}).command
    assert {"--node-count=3", "--node-prefix=job"} <= {*command} and "--node-id=job" not in command


@pytest.mark.parametrize("on", ["slurm", "tpu-vm"])
def test_scripts_are_bash(on):
    subprocess.run(["bash", "-n"], input=job(on).text, text=True, check=True)


@pytest.mark.parametrize(
    ("on", "changes", "message"),
    [
        ("slurm", {"zone": "a"}, "--zone: is not for --on=slurm, which takes --nodes"),
        ("slurm", {"nodes": 0}, "--nodes=0: must be at least 1"),
        ("slurm", {"setup": "a\nb"}, "--setup="),
        ("gke", {"image": ""}, "--image: --on=gke needs it"),
        ("gke", {"topology": "v5p"}, "--topology=v5p: must be like v5p:4x4x4"),
        ("gke", {"topology": "v5p:4x4"}, "v5p has 3 axes"),
        ("gke", {"slices": 0}, "--slices=0: must be at least 1"),
        ("tpu-vm", {"topology": "v6e:1x1"}, "multiple of the 4 chips"),
    ],
)
def test_what_cannot_be_is_refused(on, changes, message):
    with pytest.raises(ConfigError, match=message):
        job(on, changes)


def test_names_are_checked():
    with pytest.raises(ConfigError, match="--name=My Job"):
        make("slurm", "My Job", TRAIN, {}, None)


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (STOPPED, 99, True), (1, 9, True), (137, 0, True), (1, 10, False),
     (2, 0, False)],
)  # fmt: skip
def test_slurm_starts_again_what_has_more_to_do(code, restarts, again, tmp_path):
    """The script under stand-ins for Slurm's commands."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {"srun": f"exit {code}", "scontrol": f"echo $* > {tmp_path}/asked"}.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    script = make("slurm", "job", TRAIN, {}, None).text
    environ = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environ["SLURM_RESTART_COUNT"] = str(restarts)
    found = subprocess.run(["bash"], input=script, text=True, env=environ, check=False)
    assert found.returncode == code
    assert (tmp_path / "asked").exists() == again
    if again:
        assert (tmp_path / "asked").read_text() == "requeue 7\n"


def test_the_command(tmp_path, monkeypatch, capsys):
    config = str(Path(launch.__file__).parent / "configs" / "quickstart.py")
    monkeypatch.chdir(tmp_path)
    command = ["submit", "--on=slurm", f"--config={config}", "--workdir=/runs/a", "--nodes=2"]
    assert launch.main([*command, "--config.train.steps=7", "--json"]) == 0
    out = capsys.readouterr().out
    assert "sbatch llm-jax.sbatch" in out and json.loads(out.splitlines()[-1])["code"] is None
    text = Path("llm-jax.sbatch").read_text()
    assert "--config.train.steps=7 --stopped_code=75" in text and text in out
    assert launch.main([*command, "--config.train.steps=none"]) == 2
    assert launch.main([*command, "--zone=here"]) == 2
    assert "--zone: is not for --on=slurm" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert launch.main([*command, "--go"]) == 2
    assert "--go: sbatch is not installed here" in capsys.readouterr().err
