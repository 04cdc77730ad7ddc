"""Watchdog: a run that stalls prints its stacks and ends."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOLD = 300  # seconds without a step before the first message; doubles each time
ROOT = Path(__file__).parents[1]


@contextmanager
def watchdog(seconds: int, who: str) -> Iterator[list[Callable[[Any], None]]]:
    """Yields Trainer hooks; if they are not called for `seconds`, the process ends.

    It prints the stacks of all threads to stderr and exits with code 1, from a C thread, which does
    not need Python's GIL. 0 seconds: no hooks and no watchdog.
    """
    if not seconds:
        yield []
        return
    steps, over = [(time.monotonic(), "")], threading.Event()  # time and name of the last step

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
    """Returns the line of this package that the main thread executes."""
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame and not frame.f_code.co_filename.startswith(str(ROOT)):
        frame = frame.f_back
    if frame is None:
        return "outside this package"
    code = frame.f_code
    return f"in {code.co_name}, {Path(code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
