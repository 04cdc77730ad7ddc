"""Counts the parameters of every published size and writes one page per paper.

python experiments/papers.py

Each experiments/PAPER/README.md has the docstring of the config, the parameter counts recorded in
results/parameters.json (llm_jax and `transformers`), and the rows of experiments/parity.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
import transformers  # noqa: E402

from llm_jax import config, hub, record  # noqa: E402
from llm_jax.hub.families import FAMILIES  # noqa: E402
from llm_jax.hub.family import to_hf  # noqa: E402
from llm_jax.models.flops import count_params  # noqa: E402

# Papers, and their parity cases. Reformer's directory has its own script.
PAPERS = {
    "transformer": "marian", "bert": "bert", "roberta": "roberta", "distilbert": "distilbert",
    "albert": "albert", "electra": "electra", "gpt2": "gpt2", "gpt3": "", "t5": "t5",
    "llama": "llama",
}  # fmt: skip


def reference_count(model) -> tuple[str, int] | None:
    """Returns (class, parameters) of the same config in `transformers`; None if it has no such."""
    try:
        hf = to_hf(FAMILIES[hub.family_of(model)], model)
    except (config.ConfigError, KeyError):
        return None
    name = hf["architectures"][0]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"pad_token_id": 0} | hf))
        built = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        reference = getattr(transformers, name)(built)
    # Marian keeps its sinusoids as a parameter that is not learned.
    found = sum(p.numel() for p in reference.parameters() if p.requires_grad)
    if built.tie_word_embeddings and not hf.get("tie_word_embeddings", True):
        # T5's config class takes all for tied until weights are read that tell otherwise.
        found += reference.get_output_embeddings().weight.numel()
    return name, found


def count(paper: str) -> None:
    """Records the counts of all variants of one paper."""
    rows = []
    for variant in importlib.import_module(f"configs.{paper}").VARIANTS:
        c = config.load(f"configs/{paper}.py:{variant}")
        c.model.generator_fraction = 0.0  # what ELECTRA keeps is the discriminator
        model = config.resolve(c.model, 0)
        found = reference_count(model)
        rows.append([variant, count_params(model), *(found or (None, None))])
        print(paper, *rows[-1], file=sys.stderr)
    record.write(HERE / paper / "results" / "parameters.json", counts=rows)


def write(paper: str, cases: str) -> None:
    """Writes experiments/PAPER/README.md from its records."""
    doc = importlib.import_module(f"configs.{paper}").__doc__.strip()
    found = json.loads((HERE / paper / "results" / "parameters.json").read_text())
    title, rest = doc.split("\n", 1)
    link = f"[configs/{paper}.py](../../configs/{paper}.py)"
    text = f"# {title}\n\nConfig: {link}\n"
    command, _, about = rest.strip().partition("\n\n")
    text += f"\n```\n{command}\n```\n\n{about}\n\n## Parameter counts\n\n"
    rows = [
        [v, f"{ours:,}", cls or "none", f"{theirs:,}" if theirs else "",
         "" if not theirs else "same" if ours == theirs else "**differs**"]
        for v, ours, cls, theirs in found["counts"]
    ]  # fmt: skip
    text += record.table(["size", "llm_jax", "transformers class", "transformers", ""], rows)
    parity = [p for p in sorted((HERE / "parity" / "results").glob("*.json"))
              if cases and json.loads(p.read_text())["family"] == cases]  # fmt: skip
    if parity:
        text += "\n\n## Parity with `transformers`\n\n"
        text += "Largest differences in float32, as defined in [parity](../parity/README.md).\n\n"
        results = [json.loads(p.read_text()) for p in parity]
        text += record.table(
            ["case", "reference", "logits", "gradient", "losses of 100 steps"],
            [[r["case"], r["reference"], f"{r.get('logits', r['features']):.1e}",
              f"{r['gradient']:.1e}", f"{r['training']:.1e}" if "training" in r else ""]
             for r in results],
        )  # fmt: skip
    text += "\n\n## Not measured\n\nThe paper's scores: no model of its size was trained here. "
    text += "[experiments](../README.md) has claims of papers at small sizes.\n"
    text += f"\nCounted by `{found['command']}`, commit {found['commit']}, {found['time']}.\n"
    (HERE / paper / "README.md").write_text(text)


if __name__ == "__main__":
    for paper, cases in PAPERS.items():
        count(paper)
        write(paper, cases)
