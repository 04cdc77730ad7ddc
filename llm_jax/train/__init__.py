"""Training: state, step, loop, optimizer, checkpoints, metrics. Does not import JAX by itself."""


class Diverged(RuntimeError):
    """Training diverged: too many consecutive steps with a non-finite loss or gradient."""


class Restart(RuntimeError):
    """A temporary failure (full disk, lost process): the same command resumes the run."""
