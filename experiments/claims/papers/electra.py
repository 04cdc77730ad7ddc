"""ELECTRA: replaced token detection against masked LM, by what a tagger gains from them.

Encoders of 2 layers, 64 wide, over 4,000 sub-words, pretrained for 400 steps on the validation text
of WikiText-2 (1.1 MB), then fine-tuned for 100 steps to tag the parts of speech of Universal
PropBank (2,077 sentences; validated on 2,002 others). The effect is of the tagger's cross-entropy
per word. All at one learning rate in pretraining, and one in fine-tuning.
"""

from experiments.claims.claim import Claim
from experiments.claims.papers import DATA, encoder
from llm_jax.sweep import Sweep

ELECTRA = {"objective.name": "replaced_token_detection", "model.head": "detection",
           "model.generator_fraction": 0.25}  # fmt: skip
PRETRAINED = {
    "masked LM": {},
    "ELECTRA": ELECTRA,
    "ELECTRA, large generator": ELECTRA | {"model.generator_fraction": 0.75},
}
TAGGER = {
    "objective.name": "tagging", "model.head": "token", "data.packing": "none",
    "data.train": f"{DATA}/propbank_ewt/test.conllu",
    "data.validation": f"{DATA}/propbank_ewt/dev.conllu",
    "data.tokens_column": "form", "data.tags_column": "upos",
    "optimizer.learning_rate": 1e-3, "train.steps": 100, "optimizer.warmup_steps": 10,
    "data.test_fraction": 0.0, "eval.every": 100, "eval.max_batches": 0, "checkpoint.every": 100,
}  # fmt: skip
TAGGERS = {f"tagger, {name}": TAGGER | {"init_from": f"{{{name}}}"} for name in PRETRAINED}
TAGGERS["tagger, nothing"] = TAGGER


def get_config():
    c = encoder()
    c.data.train = f"{DATA}/wikitext2/valid.txt"
    c.tokenizer.name = "wordpiece"
    c.tokenizer.vocab_size = 4000
    c.model.num_heads = 4
    c.optimizer.learning_rate = 3e-3
    c.train.steps = c.checkpoint.every = 400
    c.eval.every = 200
    return c


def get_sweep():
    return Sweep(axes=(PRETRAINED | TAGGERS,), seeds=4, lengths=(), reaches=())


FULL = "configs/electra.py:small"
CLAIMS = [
    Claim(
        paper="ELECTRA: Clark 2020, figure 2 and table 1",
        says="Replaced token detection teaches more than masked LM in as many steps",
        published="GLUE 79.9 of ELECTRA-Small, 75.1 of BERT-Small",
        variant="tagger, ELECTRA", against="tagger, masked LM", full=FULL,
        scope="At equal steps; ELECTRA's cost more for the generator, a quarter of the width.",
    ),
    Claim(
        paper="ELECTRA: Clark 2020, figure 3",
        says="A generator of three quarters of the width is worse than one of a quarter",
        published="best with a generator of a quarter to a half of the size",
        variant="tagger, ELECTRA", against="tagger, ELECTRA, large generator", full=FULL,
        scope="A generator this small and this young hardly fools a discriminator at any size.",
    ),
    Claim(
        paper="BERT: Devlin 2019, section 5.2; ELECTRA: Clark 2020",
        says="Pretraining as a masked LM helps a task behind it",
        published="all tasks, against no pretraining",
        variant="tagger, masked LM", against="tagger, nothing", full="configs/bert.py:base",
        scope="Of 2,077 labelled sentences and a megabyte of text.",
    ),
]  # fmt: skip
