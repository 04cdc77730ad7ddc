"""Ctrl-C and SIGTERM before there is a step to save: the process ends at once, and says so.

Python runs a signal's handler between bytecodes of the main thread, which may spend minutes in a
compiler, or swallow the exception in somebody's callback. Here a thread hears of the signal from
the C handler's wakeup pipe (signal.set_wakeup_fd), and ends the process whatever else goes on.
Imports nothing slow: it is on before JAX is imported.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable

ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def watch(argv: list[str]) -> None:
    """Has SIGINT and SIGTERM end this process with 128 + their number and one line on stderr.

    With --json in argv, {"error": …} is the last line of stdout. It holds until other handlers are
    set, and again when those are put back. What was ignored, as behind nohup, stays ignored.
    """
    as_json, once = "--json" in argv, threading.Lock()

    def end(number, _frame=None):
        if not once.acquire(blocking=False):  # the other thread is at it
            return
        # The main thread may hold the streams: only what needs no lock.
        os.write(2, f"error: {ENDING[number]}\n".encode())
        if as_json:
            os.write(1, json.dumps({"error": ENDING[number]}).encode() + b"\n")
        os._exit(128 + number)

    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in ENDING:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, end)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # A child's signals are not its parent's.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_listen, args=(read, end), daemon=True).start()


def _listen(pipe: int, end: Callable) -> None:
    while True:
        number = os.read(pipe, 1)[0]
        if signal.getsignal(number) is end:
            end(number)


def run() -> None:
    """Runs the command line of this process; the one entry of launch.py and llm-jax."""
    watch(sys.argv)
    from llm_jax.commands import run

    run()
