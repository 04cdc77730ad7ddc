"""Ablation sweeps: named variants of a config, trained over seeds and compared. No JAX."""

from llm_jax.sweep.spec import Sweep

__all__ = ["Sweep"]
