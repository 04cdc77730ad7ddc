"""Generation: sampling, speculative decoding and beam search with a KV cache, and mask filling."""

from llm_jax.decode.beam import Hypothesis, beam_search
from llm_jax.decode.cache import Memory
from llm_jax.decode.request import Request
from llm_jax.decode.sample import generate
from llm_jax.decode.score import fill, log_likelihoods
from llm_jax.decode.speculative import Draft
from llm_jax.decode.text import Prompt, complete, read, stream

__all__ = [
    "Draft", "Hypothesis", "Memory", "Prompt", "Request", "beam_search", "complete", "fill",
    "generate", "log_likelihoods", "read", "stream",
]  # fmt: skip
