"""`python -m llm_jax` runs the command llm-jax."""

from llm_jax.signals import run

if __name__ == "__main__":
    run()
