"""Tests of jobs for Slurm, GKE and TPU VMs: files, errors, restarts."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import launch
from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.pod import submit
from llm_jax.pod.slices import find
from llm_jax.pod.submit import STOPPED, _slurm_seconds, make

ROOT = Path(__file__).resolve().parents[2]

TRAIN = ["--config.data.train=it's.txt"]
GIVEN = {
    "slurm": {"nodes": 4, "gpus": 8, "partition": "big", "setup": ". env/bin/activate"},
    "gke": {"topology": "v5p:4x4x4", "image": "registry/llm_jax:1", "claim": "runs"},
    "tpu-vm": {
        "topology": "v5p:4x4x4", "zone": "us-east5-a", "repository": "https://x/y.git",
        "bucket": "mine", "spot": True, "commit": "0a1b2c3",
    },
}  # fmt: skip


def job(on, changes=None, workdir="/runs/a b"):
    return make(on, "job", workdir, TRAIN, GIVEN[on] | (changes or {}), Path("/code"))


def test_a_slurm_script():
    found = job("slurm")
    lines = found.text.splitlines()
    for line in (
        "#SBATCH --job-name=job", "#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=8", "#SBATCH --partition=big", "#SBATCH --time=24:00:00",
        "#SBATCH --signal=B:TERM@300", "#SBATCH --requeue", f"cd {Path.cwd()} || exit 2",
        "#SBATCH --exclusive", "#SBATCH --mem=0", ". env/bin/activate",
    ):  # fmt: skip
        assert line in lines
    assert "--account" not in found.text and "#SBATCH --cpus" not in found.text
    run = "python /code/launch.py train '--workdir=/runs/a b' '--config.data.train=it'\"'\"'s.txt'"
    assert f"    {run} --stopped_code=75 --stall_seconds=3600 &" in lines
    assert found.command == ["sbatch", "job.sbatch"]


def test_a_share_of_slurms_machines_and_further_options():
    options = {"cpus": 12, "memory": "64G", "sbatch": ["--qos=high", "--reservation=a"]}
    lines = job("slurm", options).text.splitlines()
    for line in ("--cpus-per-task=12", "--mem=64G", "--qos=high", "--reservation=a"):
        assert f"#SBATCH {line}" in lines
    assert "#SBATCH --exclusive" not in lines


@pytest.mark.parametrize(
    ("text", "seconds"),  # man sbatch
    [("90", 5400), ("90:30", 5430), ("1:30:00", 5400), ("2-3", 183600), ("2-3:30", 185400),
     ("2-03:30:05", 185405), ("UNLIMITED", float("inf"))],
)  # fmt: skip
def test_time_limits(text, seconds):
    assert _slurm_seconds(text) == seconds
    assert f"#SBATCH --time={text}\n" in job("slurm", {"time": text}).text


BUCKET = {"claim": "", "bucket": "mine", "spot": True, "queue": "research", "retries": 3,
          "service_account": "trainer", "slices": 2, "topology": "v6e:16x16"}  # fmt: skip


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
    assert container["command"][:4] == ["python", "launch.py", "train", "--workdir=/runs/a b"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["volumes"] == [{"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}]
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 10
    assert "labels" not in manifest["metadata"] and "serviceAccountName" not in pod
    assert found.command == ["kubectl", "apply", "-f", "job.yaml"]


def test_a_jobset_of_a_bucket_a_queue_and_spot_chips():
    manifest = yaml.safe_load(job("gke", BUCKET).text)
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
    template = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    pod, spot = template["spec"], "cloud.google.com/gke-spot"
    assert pod["nodeSelector"][spot] == "true" and pod["serviceAccountName"] == "trainer"
    assert {"key": spot, "operator": "Equal", "value": "true"} in pod["tolerations"]
    (volume,) = pod["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "mine"


@pytest.mark.parametrize("changes", [{}, BUCKET])
def test_manifests_are_what_kubernetes_and_jobset_take(changes):
    """By the schemas of Kubernetes' own API and, through Kubeflow's, of JobSet's; none has more."""
    validate = pytest.importorskip("kubernetes_validate").validate
    models = pytest.importorskip("kubeflow_trainer_api.models")
    manifest = yaml.safe_load(job("gke", changes).text)
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": spec}
    validate(whole, "1.33", strict=True)
    (container,) = spec["template"]["spec"]["containers"]
    del container["resources"]  # which Kubeflow's reads otherwise
    for port in container["ports"]:
        port["protocol"] = "TCP"  # the default, which it fills in
    read = models.JobsetV1alpha2JobSet.model_validate(manifest)
    assert read.to_dict() == manifest  # a key that it does not know would be missing


@pytest.mark.parametrize(
    ("topology", "names"),
    [("v5p:4x4x4", ["--type=v5p", "--topology=4x4x4"]),
     ("v4:2x2x2", ["--type=v4", "--topology=2x2x2"]),
     ("v5e:4x4", ["--accelerator-type=v5litepod-16"]), ("v6e:8x8", ["--accelerator-type=v6e-64"]),
     ("v5e:1x1", ["--accelerator-type=v5litepod-1"])],
)  # fmt: skip
def test_a_queued_resource(topology, names):
    found = job("tpu-vm", {"topology": topology})
    assert {*names, "--spot", "--metadata-from-file=startup-script=job.sh"} <= {*found.command}
    for text in ("bucket=mine\n", "git clone https://x/y.git /opt/llm_jax", "commit=0a1b2c3\n"):
        assert text in found.text


def test_hosts_clone_the_commit_in_hand(monkeypatch):
    said = {"1234567": "", "": "outside a checkout", "1234567+changes": "uncommitted"}
    for commit, shown in said.items():
        monkeypatch.setattr(submit.record, "commit", lambda commit=commit: commit)
        if shown:
            with pytest.raises(ConfigError, match=f"--commit: .*{shown}"):
                job("tpu-vm", {"commit": ""})
        else:
            assert "commit=1234567\n" in job("tpu-vm", {"commit": ""}).text


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
    text = job(on, {"cpus": 2, "sbatch": ["--qos=a"]} if on == "slurm" else {}).text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shellcheck := shutil.which("shellcheck", path=path):
        subprocess.run([shellcheck, "-e", "SC1091", "-"], input=text, text=True, check=True)


# Google's xpk 1.16.0 has the same hosts and chips; of v5e it lists slices from 2x4 on.
@pytest.mark.parametrize(
    ("topology", "hosts", "chips"),
    [("v5e:1x1", 1, 1), ("v5e:2x4", 2, 4), ("v5e:16x16", 64, 4), ("v6e:1x1", 1, 1),
     ("v6e:8x16", 32, 4), ("v4:2x2x1", 1, 4), ("v4:8x8x16", 256, 4), ("v5p:2x4x4", 8, 4),
     ("v5p:16x16x24", 1536, 4), ("tpu7x:1x1x1", 1, 1), ("tpu7x:16x16x36", 2304, 4)],
)  # fmt: skip
def test_slices_that_exist(topology, hosts, chips):
    assert find(topology)[2:] == (hosts, chips)


@pytest.mark.parametrize(
    "topology",
    ["v5p:0x4x4", "v5p:2x2x3", "v5p:4x4x5", "v5p:8x4x4", "v5p:16x16x28", "v5p:4x4", "v5p:1x1x1",
     "v5p:04x4x4", "v5p:4x4x4x", "v5p:", "v4:16x16x20", "v5e:3x4", "v5e:4x2", "v5e:16x32",
     "v6e:7x4", "v6e:2x2x1", "tpu7x:2x2x3"],
)  # fmt: skip
def test_slices_that_do_not_exist(topology):
    with pytest.raises(ConfigError, match=f"--topology={topology}: .* has slices of .*2x2"):
        find(topology)


@pytest.mark.parametrize(
    ("on", "changes", "message"),
    [
        ("slurm", {"zone": "a"}, "--zone: not an option of --on=slurm, which takes --nodes"),
        ("slurm", {"nodes": 0}, "--nodes=0: must be at least 1"),
        ("slurm", {"setup": "a\nb"}, "--setup="),
        ("gke", {"image": ""}, "--image: --on=gke needs it"),
        ("gke", {"topology": "v5p"}, "--topology=v5p: v5p has slices of 2x2x1"),
        ("gke", {"topology": "v5p:4x4"}, "v5p has slices of 2x2x1, .*at most 6,144 chips"),
        ("gke", {"slices": 0}, "--slices=0: must be at least 1"),
        ("gke", {"claim": ""}, "--claim, --bucket: --on=gke needs one of them"),
        ("gke", {"bucket": "b"}, "--claim, --bucket: --on=gke needs one of them"),
        ("tpu-vm", {"topology": "tpu7x:2x2x1"}, "has no TPU VMs"),
        ("slurm", {"time": "banana"}, "--time=banana: must be minutes"),
        ("slurm", {"time": "1:2:3:4"}, "--time=1:2:3:4: must be minutes"),
        ("slurm", {"time": "6"}, "--time=6: must be more than the 360 s"),
        ("slurm", {"sbatch": ["qos=a"]}, "--sbatch=qos=a: must be options"),
        ("slurm", {"sbatch": ["-a\nrm"]}, "--sbatch="),
    ],
)
def test_what_cannot_be_is_refused(on, changes, message):
    with pytest.raises(ConfigError, match=message):
        job(on, changes)


def test_names_and_folders_are_checked():
    with pytest.raises(ConfigError, match="--name=My Job"):
        make("slurm", "My Job", "/runs/a", TRAIN, {}, None)
    for on in ("gke", "tpu-vm"):
        with pytest.raises(ConfigError, match="--workdir=runs/a: must be below /runs"):
            job(on, workdir="runs/a")


def stand_ins(folder, **bodies):
    """Commands in place of a system's own, and the environment that finds them."""
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("codes", "again"),  # of srun, one after the other; and whether the job goes back each time
    [
        ([0], [False]),
        ([2], [False]),
        ([STOPPED] * 4, [True] * 4),  # time limits are no crashes
        ([1, 137, 1], [True, True, False]),
        ([1, STOPPED, 134, STOPPED, 1], [True, True, True, True, False]),
        ([1, 1, "saved", 1, 1, 1], [True, True, True, True, False]),
    ],
)
def test_slurm_starts_again_what_has_more_to_do(codes, again, tmp_path, monkeypatch):
    """Two crashes without a checkpoint between them are allowed; by stand-ins for its commands."""
    monkeypatch.chdir(tmp_path)
    script = make("slurm", "job", str(tmp_path / "run"), TRAIN, {"retries": 2}, None).text
    asked = tmp_path / "asked"
    found, step = [], 10
    environ = stand_ins(tmp_path / "tools", srun="exit $CODE", scontrol=f"echo $* > {asked}")
    for code in codes:
        if code == "saved":
            step += 10
            (tmp_path / "run" / "checkpoints" / f"{step}").mkdir(parents=True)
            (tmp_path / "run" / "checkpoints" / "99.tmp").mkdir()
            continue
        asked.unlink(missing_ok=True)
        done = subprocess.run(["bash"], input=script, text=True, env=environ | {"CODE": str(code)})
        assert done.returncode == code
        found.append(asked.exists() and asked.read_text() == "requeue 7\n")
    assert found == again


@pytest.mark.parametrize(
    ("codes", "code", "runs"),
    [
        ([0], 0, 1),
        ([STOPPED, 0], 0, 2),  # another host's maintenance: billed chips are not left idle
        ([1, 1, 1, 0], 1, 3),
        ([1, STOPPED, 1, 2, 0], 2, 4),
    ],
)
def test_a_tpu_vm_goes_on(codes, code, runs, tmp_path):
    """The loop at the end of the start-up script, with what it starts replaced."""
    text = job("tpu-vm", {"retries": 2}, workdir=f"/runs/{tmp_path.name}").text
    start = text.index("leaving=")
    (tmp_path / "codes").write_text("\n".join(map(str, codes)))
    run = f"n=$(cat {tmp_path}/codes | head -n 1); sed -i 1d {tmp_path}/codes; exit $n"
    environ = stand_ins(tmp_path / "tools", python=run, sleep="exit 0")
    done = subprocess.run(["bash", "-e"], input=text[start:], text=True, env=environ)
    assert done.returncode == code
    assert (tmp_path / "codes").read_text().split() == [str(c) for c in codes[runs:]]


def test_a_host_that_goes_down_passes_the_signal_on(tmp_path):
    text = job("tpu-vm").text
    body = f"trap 'exit {STOPPED}' TERM; echo > {tmp_path}/on; while :; do sleep 0.05; done"
    environ = stand_ins(tmp_path / "tools", python=body)
    (tmp_path / "loop").write_text(text[text.index("leaving=") :])
    with subprocess.Popen(["bash", "-e", str(tmp_path / "loop")], env=environ) as shell:
        while not (tmp_path / "on").exists():
            time.sleep(0.02)
        shell.terminate()
        assert shell.wait(20) == STOPPED


def documented() -> list[str]:
    text = (ROOT / "docs" / "pod.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    return [line.strip() for block in blocks for line in block.splitlines() if " submit " in line]


@pytest.mark.parametrize("command", documented())
def test_examples_of_the_documentation_run(command, tmp_path, monkeypatch):
    """As they stand, but for --go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit.record, "commit", lambda: "1234567")
    words = [word for word in shlex.split(command) if word != "--go"]
    assert words[:3] == ["python", "launch.py", "submit"]
    assert launch.main(words[2:]) == 0 and len(list(tmp_path.iterdir())) == 1


def test_the_command(tmp_path, monkeypatch, capsys):
    config = str(Path(launch.__file__).parent / "configs" / "quickstart.py")
    monkeypatch.chdir(tmp_path)
    command = ["submit", "--on=slurm", f"--config={config}", "--workdir=/runs/a", "--nodes=2"]
    assert launch.main([*command, "--config.train.steps=7", "--json"]) == 0
    out = capsys.readouterr().out
    assert "sbatch llm-jax.sbatch" in out and json.loads(out.splitlines()[-1])["code"] is None
    text = Path("llm-jax.sbatch").read_text()
    assert "--config.train.steps=7 --stopped_code=75 --stall" in text and text in out
    assert launch.main([*command, "--config.train.steps=none"]) == 2
    assert launch.main([*command, "--zone=here"]) == 2
    assert "--zone: not an option of --on=slurm" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert launch.main([*command, "--go"]) == 2
    assert "--go: sbatch is not installed" in capsys.readouterr().err
