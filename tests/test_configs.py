"""Tests that every published size has the exact number of parameters, by shapes only."""

import importlib

import pytest

from llm_jax import config
from llm_jax.models.flops import count_params
from tests.slow import every

# The count of the released weights, as `transformers` gives it for the published config; for
# GPT-3, whose weights are not public, the formula's, beside the paper's rounded figure below.
COUNTS = {
    ("bert", "base"): 110_106_428,
    ("bert", "large"): 336_226_108,
    ("roberta", "base"): 124_697_433,
    ("roberta", "large"): 355_412_057,
    ("distilbert", "base"): 66_985_530,
    ("gpt2", "124m"): 124_439_808,
    ("gpt2", "355m"): 354_823_168,
    ("gpt2", "774m"): 774_030_080,
    ("gpt2", "1.5b"): 1_557_611_200,
    ("llama", "1-7b"): 6_738_415_616,
    ("llama", "1-13b"): 13_015_864_320,
    ("llama", "1-33b"): 32_528_943_616,
    ("llama", "1-65b"): 65_285_660_672,
    ("llama", "2-70b"): 68_976_648_192,
    ("llama", "8b"): 8_030_261_248,
    ("llama", "70b"): 70_553_706_496,
    ("llama", "405b"): 405_853_388_800,
    ("mixtral", "8x7b"): 46_702_792_704,
    ("mixtral", "8x22b"): 140_620_634_112,
    ("gpt_oss", "20b"): 20_914_757_184,
    ("gpt_oss", "120b"): 116_829_156_672,
    ("deepseek", "v2-lite"): 15_706_484_224,
    ("deepseek", "v2"): 235_741_434_880,
    ("deepseek", "v3"): 671_026_419_200,
    ("gemma2", "2b"): 2_614_341_888,
    ("gemma2", "9b"): 9_241_705_984,
    ("gemma2", "27b"): 27_227_128_320,
    ("olmo3", "7b"): 7_298_011_136,
    ("olmo3", "32b"): 32_233_522_176,
    ("smollm3", "3b"): 3_075_098_624,
    ("phi3", "mini-4k"): 3_821_079_552,
    ("phi3", "medium-4k"): 13_960_238_080,
    ("phi3", "4-14b"): 14_659_507_200,
    ("modernbert", "base"): 149_655_232,
    ("modernbert", "large"): 395_881_664,
    ("qwen3", "30b-a3b"): 30_532_122_624,
    ("qwen3", "235b-a22b"): 235_093_634_560,
    ("mamba2", "130m"): 128_989_632,
    ("mamba2", "370m"): 368_346_624,
    ("mamba2", "780m"): 780_161_280,
    ("mamba2", "1.3b"): 1_343_757_312,
    ("mamba2", "2.7b"): 2_702_599_680,
    ("mamba2", "codestral-7b"): 7_285_403_648,
    ("qwen3_next", "80b-a3b"): 79_674_391_296,
    ("gemma3", "270m"): 268_098_176,
    ("gemma3", "1b"): 999_885_952,
    ("gemma3", "4b"): 3_880_263_168,
    ("gemma3", "12b"): 11_766_034_176,
    ("gemma3", "27b"): 27_009_346_304,
    ("mistral", "7b"): 7_241_732_096,
    ("mistral", "7b-v0.3"): 7_248_023_552,
    ("mistral", "nemo-12b"): 12_247_782_400,
    ("mistral", "small-24b"): 23_572_403_200,
    ("olmo2", "1b"): 1_484_916_736,
    ("olmo2", "7b"): 7_298_617_344,
    ("olmo2", "13b"): 13_716_198_400,
    ("olmo2", "32b"): 32_234_279_936,
    ("qwen2", "0.5b"): 494_032_768,
    ("qwen2", "1.5b"): 1_543_714_304,
    ("qwen2", "3b"): 3_085_938_688,
    ("qwen2", "7b"): 7_615_616_512,
    ("qwen2", "14b"): 14_770_033_664,
    ("qwen2", "32b"): 32_763_876_352,
    ("qwen2", "72b"): 72_706_203_648,
    ("qwen3", "0.6b"): 596_049_920,
    ("qwen3", "1.7b"): 1_720_574_976,
    ("qwen3", "4b"): 4_022_468_096,
    ("qwen3", "8b"): 8_190_735_360,
    ("qwen3", "14b"): 14_768_307_200,
    ("qwen3", "32b"): 32_762_123_264,
    ("reformer", "enwik8"): 149_182_722,
    ("reformer", "crime-and-punishment"): 2_748_224,
    ("switch", "base-8"): 619_339_008,
    ("switch", "base-128"): 7_415_217_408,
    ("t5", "small"): 60_506_624,
    ("t5", "base"): 222_903_552,
    ("t5", "large"): 737_668_096,
    ("t5", "3b"): 2_851_598_336,
    ("t5", "11b"): 11_307_321_344,
    ("t5", "v1.1-small"): 76_961_152,
    ("t5", "v1.1-base"): 247_577_856,
    ("t5", "v1.1-large"): 783_150_080,
    ("t5", "v1.1-xl"): 2_849_757_184,
    ("t5", "v1.1-xxl"): 11_135_332_352,
}

# What the paper's table prints, in millions, and how far its rounding and its vocabulary go.
PRINTED = {
    ("transformer", "base"): (65, 0.05),
    ("transformer", "big"): (213, 0.01),
    ("albert", "base"): (12, 0.05),
    ("albert", "large"): (18, 0.05),
    ("albert", "xlarge"): (60, 0.05),
    ("albert", "xxlarge"): (235, 0.06),
    ("gpt3", "125m"): (125, 0.01),
    ("gpt3", "350m"): (356, 0.01),
    ("gpt3", "760m"): (760, 0.01),
    ("gpt3", "1.3b"): (1316, 0.01),
    ("gpt3", "2.7b"): (2651, 0.01),
    ("gpt3", "6.7b"): (6658, 0.01),
    ("gpt3", "13b"): (12853, 0.01),
    ("gpt3", "175b"): (174600, 0.01),
}

FAMILIES = (
    "albert", "bert", "deepseek", "distilbert", "gemma2", "gemma3", "gpt2", "gpt3", "gpt_oss",
    "llama", "mamba2", "mistral", "mixtral", "modernbert", "olmo2", "olmo3", "phi3", "qwen2",
    "qwen3_next",
    "qwen3", "reformer", "roberta", "smollm3", "switch", "t5", "transformer",
)  # fmt: skip


def variants():
    for family in FAMILIES:
        for variant in importlib.import_module(f"configs.{family}").VARIANTS:
            yield family, variant


@pytest.mark.parametrize(("family", "variant"), every(3, variants()))
def test_builds_with_the_published_count(family, variant):
    c = config.load(f"configs/{family}.py:{variant}")
    count = count_params(config.resolve(c.model, 0))
    if (family, variant) in COUNTS:
        assert count == COUNTS[family, variant]
    if (family, variant) in PRINTED:
        millions, tolerance = PRINTED[family, variant]
        assert abs(count / 1e6 / millions - 1) < tolerance
