"""A hook of the loop: a profile of chosen steps, for XProf, TensorBoard or Perfetto."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces steps start to stop - 1, counted from 0, on process 0; steps=(): none."""

    def __init__(self, workdir: str | Path, steps: Sequence[int]):
        self.folder = Path(workdir) / "profile"
        wanted = steps and jax.process_index() == 0
        self.start, self.stop = steps if wanted else (None, None)
        self.running = False

    def begin(self, step: int) -> None:
        """Starts the trace if it starts with the next step; `step` counts those taken."""
        if step == self.start:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def __call__(self, info: Any) -> None:
        """Ends the trace once its last step is computed."""
        if self.running and info.step == self.stop:
            jax.block_until_ready(info.metrics)
            self.close()
        self.begin(info.step)

    def close(self) -> None:
        """Writes what has been traced of a run that ends early."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
