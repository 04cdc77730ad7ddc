"""Tables of model families, in files by lineage; see llm_jax/hub/family.py.

A new family is one table: its values of config.model, the names of config.json entries, and the
names of modules.
"""

from typing import Any

from llm_jax.config import ConfigError
from llm_jax.hub.families import bert, deepseek, experts, gemma, gpt2, llama, mamba, reformer, t5
from llm_jax.hub.family import Family

# In order of preference: the first family that can express a config is used.
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
    """Returns the family of that name; ConfigError lists the known families."""
    if name not in FAMILIES:
        raise ConfigError(f"config.json: model_type={name!r} is not supported; known are "
                          f"{', '.join(FAMILIES)}")
    return FAMILIES[name]
