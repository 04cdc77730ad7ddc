"""Ctrl-C and SIGTERM before there is a step to save: the process ends immediately, with a message.

Python runs signal handlers between bytecodes of the main thread, which may spend minutes in a
compiler, or swallow the exception in a callback. Here a thread receives the signal through the C
handler's wakeup pipe (signal.set_wakeup_fd) and ends the process in any state. This module has no
slow imports, since it is active before JAX is imported.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable

ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def watch(argv: list[str]) -> None:
    """Makes SIGINT and SIGTERM end this process with code 128 + number and one line on stderr.

    With --json in argv, {"error": …} is the last line of stdout. Other handlers take precedence
    while they are set. Ignored signals, as under nohup, stay ignored.
    """
    as_json, once = "--json" in argv, threading.Lock()

    def end(number, _frame=None):
        if not once.acquire(blocking=False):  # another thread is ending the process
            return
        # The main thread may hold the locks of the streams: use only calls without locks.
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
    # Child processes do not share the wakeup pipe.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_listen, args=(read, end), daemon=True).start()


def _listen(pipe: int, end: Callable) -> None:
    while True:
        number = os.read(pipe, 1)[0]
        if signal.getsignal(number) is end:
            end(number)


def run() -> None:
    """Entry point of launch.py and llm-jax: runs the command line of this process."""
    watch(sys.argv)
    from llm_jax.commands import run

    run()
