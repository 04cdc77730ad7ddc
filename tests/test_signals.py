"""Tests of Ctrl-C and SIGTERM before the first step: one line, exit code 128 + signal."""

import json
import signal
import subprocess
import sys
import time

import pytest

# A main thread that no exception leaves, as behind some compilers' callbacks.
STUCK = """
import sys, time
from llm_jax import signals
signals.watch(sys.argv)
print("ready", flush=True)
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""
# launch.py, which says when signals are heard of.
LAUNCH = """
from llm_jax import signals
watch = signals.watch
signals.watch = lambda argv: (watch(argv), print("ready", flush=True))
signals.run()
"""
# What is ignored stays ignored, as SIGINT is behind a shell's "&". Set here, not in preexec_fn:
# that would fork a process which has JAX's threads.
START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


def heard(process, number, out=""):
    """Checks how a process ends that is sent a signal; `out`: what it has printed already."""
    process.send_signal(number)
    try:
        rest, err = process.communicate(timeout=300)
    finally:
        process.kill()
    code, text = ENDS[number]
    assert (process.returncode, err.splitlines()[-1]) == (code, f"error: {text}"), err
    assert "Traceback" not in err
    return (out + rest).splitlines(), {"error": text}


def start(*code_and_arguments):
    command = [sys.executable, "-c", START, *code_and_arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["plain", "json"])
@pytest.mark.parametrize("number", ENDS)
def test_a_signal_ends_a_process_that_would_not(number, options):
    process = start(STUCK, *options)
    assert process.stdout.readline() == "ready\n"
    lines, error = heard(process, number)
    assert [json.loads(line) for line in lines] == [error] * len(options)


def test_other_handlers_keep_their_signals_and_children_their_own():
    code = STUCK.partition("print")[0] + (
        "import os, signal\n"
        "before = signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.2)\n"
        "signal.signal(signal.SIGTERM, before)\n"
        "if not (child := os.fork()):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0); time.sleep(0.2)\n"
        "print('alive', flush=True); time.sleep(60)\n"
    )
    process = start(code)
    assert [process.stdout.readline() for _ in range(2)] == ["mine\n", "alive\n"]
    heard(process, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("seconds", [0.5, 2, 4, 8])
def test_a_command_ends_while_it_imports_and_compiles(seconds, number, overrides, tmp_path):
    args = [f"--config.{o}" for o in overrides({"train.steps": 10**6, "model.scan": False,
                                                "model.num_layers": 16})]  # fmt: skip
    process = start(LAUNCH, "train", f"--workdir={tmp_path}", "--json", *args)
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    lines, error = heard(process, number)
    assert json.loads(lines[-1]) == error
