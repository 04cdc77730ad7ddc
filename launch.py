"""llm_jax's one command, of a checkout: `python launch.py --help`. Installed it is `llm-jax`."""

from llm_jax.signals import run


def main(argv: list[str] | None = None) -> int:
    """Runs one verb, as `llm_jax.commands.main`."""
    from llm_jax.commands import main

    return main(argv)


if __name__ == "__main__":
    run()
