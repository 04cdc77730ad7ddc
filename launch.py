"""llm_jax's one command, of a checkout: `python launch.py --help`. Installed it is `llm-jax`."""

from llm_jax.commands import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    run()
