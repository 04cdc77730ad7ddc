"""Training: state, step, loop, optimizer, checkpoints, metrics. Importing this imports no JAX."""


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""
