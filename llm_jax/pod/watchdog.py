"""A watchdog on progress: a run that takes no step for too long says where it stands, and ends."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOLD = 300  # seconds without a step, twice that, four times …, at which a line is written
ROOT = Path(__file__).parents[1]


@contextmanager
def watchdog(seconds: int, who: str) -> Iterator[list[Callable[[Any], None]]]:
    """Yields hooks of a Trainer; when they are not called for so many seconds, the process ends.

    All threads' stacks are then on stderr, and the exit code is 1. It is a thread in C that does
    so, whoever holds Python's lock. 0 seconds: no hooks, and nothing ends.
    """
    if not seconds:
        yield []
        return
    steps, over = [(time.monotonic(), "")], threading.Event()  # of the last: when, and which

    def step(info):
        steps[0] = time.monotonic(), f" after step {info.step}"
        faulthandler.dump_traceback_later(seconds, exit=True)

    def tell():
        since, next_ = steps[0][0], TOLD
        while not over.wait(min(TOLD / 10, 10)):
            at, last = steps[0]
            since, next_ = at, (next_ if at == since else TOLD)
            if time.monotonic() - since > next_:
                print(f"{who}: no step for {next_} s{last}; it is {where()}", file=sys.stderr,
                      flush=True)  # fmt: skip
                next_ *= 2

    threading.Thread(target=tell, daemon=True).start()
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield [step]
    finally:
        over.set()
        faulthandler.cancel_dump_traceback_later()


def where() -> str:
    """The line of this package that the main thread is in."""
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame and not frame.f_code.co_filename.startswith(str(ROOT)):
        frame = frame.f_back
    if frame is None:
        return "outside this package"
    code = frame.f_code
    return f"in {code.co_name}, {Path(code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
