"""The tables, one a family, in files by lineage; llm_jax/hub/family.py says how they are read.

A new family is one table: the config keys that make it, how config.json calls the others, and the
name of each module.
"""

from typing import Any

from llm_jax.config import ConfigError
from llm_jax.hub.families import bert, deepseek, experts, gemma, gpt2, llama, mamba, reformer, t5
from llm_jax.hub.family import Family

# In the order in which a config is tried; the first that expresses it is its family.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        gpt2.GPT2, llama.LLAMA, llama.MISTRAL, experts.MIXTRAL, llama.QWEN2, llama.QWEN3,
        llama.OLMO2, gemma.GEMMA2, gemma.GEMMA3, llama.OLMO3, llama.SMOLLM3, llama.PHI3,
        experts.QWEN3_MOE, experts.QWEN3_NEXT, experts.GPT_OSS, deepseek.DEEPSEEK_V3,
        deepseek.DEEPSEEK_V2, bert.BERT, bert.ROBERTA, bert.DISTILBERT, bert.ELECTRA, bert.ALBERT,
        bert.MODERNBERT, t5.T5, t5.SWITCH, t5.MARIAN, reformer.REFORMER, mamba.MAMBA2,
    )
}


def get(name: Any) -> Family:
    """Returns the family of that name; ConfigError lists those there are."""
    if name not in FAMILIES:
        raise ConfigError(f"config.json: model_type={name!r} is not in llm_jax; there are "
                          f"{', '.join(FAMILIES)}")
    return FAMILIES[name]
