"""Command line of a checkout: `python launch.py --help`. The installed command is `llm-jax`."""

from llm_jax.signals import run


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; see `llm_jax.commands.main`."""
    from llm_jax.commands import main

    return main(argv)


if __name__ == "__main__":
    run()
