"""`python -m llm_jax` is the command llm-jax."""

from llm_jax.commands import run

run()
