"""Plans the training of every family at its published size, and writes experiments/COST.md.

    python experiments/cost.py

Nothing is trained or compiled: parameters and FLOPs are counted from shapes, all else follows from
the assumptions below, which stand on the page too.
"""

import math
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from llm_jax import config, record  # noqa: E402
from llm_jax.models.flops import count_params  # noqa: E402
from llm_jax.sharding.hardware import CHIPS  # noqa: E402
from llm_jax.train.run import flops_per_token  # noqa: E402

CHIP, WATTS, DOLLARS = "h100", 700, 3.0  # of one; power by NVIDIA's data sheet, price an hour
UTILISATION = 0.4  # of the peak rate
OVERHEAD = 1.1  # of the building's power over the chips'
BYTES = 16  # a parameter: itself, its gradient and two moments in float32
SHARE = 0.5  # of a chip's memory that they may take
DAYS = 30  # that a run may last

# Recipe: (tokens a row, tokens in all, where these come from, what is published of the compute).
RUNS = {
    "transformer:base": (32, 100e3 * 50e3, "sections 5.1 and 5.2: 100,000 steps of 25,000 tokens "
                         "a side", "3.3e18 FLOPs (table 2)"),
    "transformer:big": (32, 300e3 * 50e3, "as base, 300,000 steps", "2.3e19 FLOPs (table 2)"),
    "gpt2:1.5b": (1024, 600e3 * 2**19, "assumed: nanoGPT's 600,000 steps, of which the "
                  "paper tells nothing", ""),
    "gpt3:125m": (2048, 300e9, "table 2.1", "2.25e20 FLOPs (table D.1)"),
    "gpt3:175b": (2048, 300e9, "table 2.1", "3.14e23 FLOPs (table D.1)"),
    "bert:base": (128, 1e6 * 256 * 166.4, "appendix A.2: 256 rows, 90 % of steps at length 128, "
                  "counted as if all were", "16 TPU v2/v3 chips, 4 days"),
    "bert:large": (128, 1e6 * 256 * 166.4, "as base", "64 TPU chips, 4 days"),
    "roberta:large": (512, 500e3 * 8192 * 512, "table 9", "3.2e21 FLOPs (Clark 2020, table 2)"),
    "albert:xxlarge": (512, 125e3 * 4096 * 512, "section 4.1", ""),
    "electra:small": (128, 1e6 * 128 * 128, "appendix A", "1.4e18 FLOPs (table 1)"),
    "electra:base": (512, 766e3 * 256 * 512, "appendix A", "6.4e19 FLOPs (table 1)"),
    "electra:large": (512, 400e3 * 2048 * 512, "appendix A", "7.1e20 FLOPs (table 2)"),
    "t5:base": (512, 2**35, "section 3.1.2: 2^19 steps of 128 rows, the studies' baseline", ""),
    "t5:11b": (512, 1e6 * 2**11 * 512, "section 3.7", "3.3e22 FLOPs (Brown 2020, table D.1)"),
    "switch:base-128": (512, 100e3 * 2**20, "assumed: 100,000 steps (table 1) of 2^20 tokens", ""),
    "reformer:enwik8-3": (65_536, 20e3 * 8 * 65_536, "assumed: 20,000 steps, section 5's of "
                          "12 layers", ""),
    "llama:1-7b": (2048, 1.0e12, "table 2", "82,432 A100 hours, 36 MWh (table 15)"),
    "llama:1-65b": (2048, 1.4e12, "table 2", "1,022,362 A100 hours, 449 MWh (table 15)"),
    "llama:2-70b": (4096, 2.0e12, "table 1", "1,720,320 A100 hours (table 2)"),
    "llama:3-8b": (8192, 15e12, "model card", "1.3 million H100 hours (model card)"),
    "llama:3-70b": (8192, 15e12, "model card", "6.4 million H100 hours (model card)"),
    "llama:3-405b": (8192, 15.6e12, "section 3.4", "3.8e25 FLOPs (section 1)"),
    "gemma2:27b": (8192, 13e12, "section 3.1", ""),
    "gemma3:27b": (32_768, 14e12, "section 2.2", ""),
    "qwen2:72b": (4096, 7e12, "Qwen2, section 3.1", ""),
    "qwen3:235b-a22b": (4096, 36e12, "section 3.1", ""),
    "qwen3_next:80b-a3b": (4096, 15e12, "blog", ""),
    "phi3:mini-4k": (4096, 3.3e12, "section 2", ""),
    "olmo2:7b": (4096, 4.05e12, "table of the models", ""),
    "olmo3:7b": (8192, 5.9e12, "pretraining's mix", ""),
    "modernbert:large": (1024, 2e12, "section 2.2, all counted at length 1,024", ""),
    "smollm3:3b": (4096, 11.2e12, "blog", "384 H100, 24 days: 221,184 hours (blog)"),
    "mamba2:2.7b": (2048, 300e9, "appendix D.2", ""),
    "deepseek:v3": (4096, 14.8e12, "section 4.1", "2.664 million H800 hours (table 1)"),
}  # fmt: skip
UNKNOWN = "DistilBERT, Mistral, Mixtral and gpt-oss do not publish how many tokens they saw."

TEXT = f"""# Cost of the published training runs

An estimate for one published size of each family, on {CHIP.upper()} GPUs. It is **arithmetic** from
the shapes of the configs and the assumptions below: nothing was run or compiled.

- FLOPs: 6 per weight and token, plus attention without its mask (`llm_jax.models.flops`). Of the
  experts, only those that a token is routed to count. Recomputation by remat does not count.
- Tokens: as stated at the given place of the paper, or *assumed*. These numbers, and those of the
  column "published", were written down from knowledge of the papers and not checked against their
  text again. "Published" is the compute that the paper states, for other chips and conventions.
- Time: {UTILISATION:.0%} of the data-sheet rate, {CHIPS[CHIP].flops / 1e12:.0f} TFLOP/s (bfloat16,
  dense). Grattafiori 2024 reports 38 to 43 % for Llama 3 405B; small models reach less.
- Chips: the smallest power of two for which parameters, gradients and Adam's moments in float32
  ({BYTES} bytes per parameter) take at most {SHARE:.0%} of the memory, and the run at most {DAYS}
  days. `launch.py plan` computes whether a run fits ([pod](pod/README.md)).
- Energy: the rated power of {WATTS} W per chip, times {OVERHEAD:g} for the data centre, as in
  Touvron 2023 (section 6). Hosts and network are not included.
- Price: {DOLLARS:g} dollars per chip and hour, an assumption. Failures, evaluation and experiments
  before the run are not included.

"""


def planned(spec: str) -> list:
    """Returns a recipe's line of the table."""
    length, tokens, source, published = RUNS[spec]
    name, _, variant = spec.partition(":")
    c = config.load(f"configs/{name}.py:{variant}")
    c.model = config.resolve(c.model, 0)
    c.model.max_length = length
    parameters, flops = count_params(c.model), flops_per_token(c)
    total, chip = flops * tokens, CHIPS[CHIP]
    hours = total / (UTILISATION * chip.flops) / 3600
    least = max(parameters * BYTES / (SHARE * chip.hbm), hours / (24 * DAYS), 1)
    chips = 2 ** math.ceil(math.log2(least))
    return [
        spec, f"{parameters / 1e6:,.0f} M", f"{tokens:.3g}", f"{total:.3g}", f"{chips:,}",
        f"{parameters * BYTES / chips / 1e9:.1f}", f"{hours / chips:,.1f}", f"{hours:,.0f}",
        f"{hours * WATTS / 1000 * OVERHEAD:,.0f}", f"{hours * DOLLARS:,.0f}", source, published,
    ]  # fmt: skip


def main() -> None:
    header = ["recipe", "parameters", "tokens", "FLOPs", "chips", "GB a chip, without activations",
              "hours", "chip hours", "kWh", "dollars", "tokens from", "published"]  # fmt: skip
    rows = [planned(spec) for spec in RUNS]
    made = record.provenance()
    last = f"\n\n{UNKNOWN}\n\n`{made['command']}`, commit {made['commit']}, {made['time']}.\n"
    (HERE / "COST.md").write_text(TEXT + record.table(header, rows) + last)


if __name__ == "__main__":
    main()
