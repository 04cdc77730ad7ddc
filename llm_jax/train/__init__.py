"""Training: state, step, loop, optimizer, checkpoints, metrics. Importing this imports no JAX."""


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Restart(RuntimeError):
    """The run cannot go on for now, but the same command will: a full disk, a process lost."""
