"""Tests of heads read from and written for transformers: same logits, same answers."""

import json
import os
import re
import subprocess

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import llm_jax  # noqa: E402
from llm_jax import config as configs  # noqa: E402
from llm_jax import hub, models, objectives  # noqa: E402
from llm_jax.data import tokenizers  # noqa: E402
from llm_jax.hub.families import FAMILIES  # noqa: E402

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20, "initializer_range": 0.3,
}  # fmt: skip
MORE = {
    "Bert": {}, "Roberta": {"pad_token_id": 1, "type_vocab_size": 1}, "DistilBert": {},
    "Albert": {"embedding_size": 8}, "Electra": {"embedding_size": 8},
    "GPT2": {"pad_token_id": 1},
    "Llama": {"pad_token_id": 1, "num_key_value_heads": 1, "tie_word_embeddings": True},
}  # fmt: skip
QUICK = ("Bert", "GPT2")
TASKS = {"SequenceClassification": "sequence", "TokenClassification": "token",
         "QuestionAnswering": "span"}  # fmt: skip


def made(name, task, **more):
    torch.manual_seed(0)
    sizes = SIZES | MORE[name] | more
    if name == "GPT2":
        sizes["n_inner"] = sizes.pop("intermediate_size")
    if name == "DistilBert":  # whose own names these are
        own = {"hidden_size": "dim", "num_hidden_layers": "n_layers",
               "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim"}  # fmt: skip
        sizes = {own.get(key, key): value for key, value in sizes.items()}
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}For{task}")(config).eval()


def batch(seed=0):
    """Tokens of which none is RoBERTa's padding, and rows of different lengths."""
    tokens = np.random.default_rng(seed).integers(2, 40, (3, 9))
    return tokens, (np.arange(9) < [[9], [6], [3]]).astype(int)


def theirs_of(model, tokens, mask):
    filled = np.where(mask, tokens, 1)
    with torch.no_grad():
        out = model(torch.tensor(filled), attention_mask=torch.tensor(mask))
    return np.stack([out.start_logits, out.end_logits], -1) if "start_logits" in out else out.logits


@pytest.mark.parametrize(
    ("name", "task", "labels"),
    [
        pytest.param(name, task, n, marks=() if name in QUICK and n != 1 else pytest.mark.slow)
        for name in MORE for task in TASKS for n in (1, 2, 5)
        if task != "QuestionAnswering" or (n == 2 and name != "Llama")
    ],
)  # fmt: skip
def test_a_head_is_read_and_written(name, task, labels, tmp_path):
    theirs = made(name, task, num_labels=labels)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params, _ = hub.load(tmp_path / "theirs")
    assert model.head == TASKS[task]
    tokens, mask = batch()
    expected = theirs_of(theirs, tokens, mask)
    ours = models.build(model).apply(
        {"params": params}, {"tokens": tokens, "attention_mask": mask}
    ).heads[model.head]  # fmt: skip
    real = mask > 0 if ours.shape[:2] == mask.shape else slice(None)
    np.testing.assert_allclose(np.asarray(ours)[real], np.asarray(expected)[real], atol=1e-4)

    names = [f"name {i}" for i in range(labels)] if task != "QuestionAnswering" else ()
    assert hub.save(model, params, None, tmp_path / "ours", labels=names) == name.lower()
    if model.kind == "decoder":  # without a tokenizer none is named, and a batch needs one
        auto_config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
        auto_config.update({"pad_token_id": 1})
        auto_config.save_pretrained(tmp_path / "ours")
    auto = getattr(transformers, f"AutoModelFor{task}")
    again, info = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(theirs)
    assert list(again.config.id2label.values()) == names or not names
    found = theirs_of(again.eval(), tokens, mask)
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(expected)[real], atol=1e-5)
    back, same, _ = hub.load(tmp_path / "ours")
    assert back == model
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_pooler_that_nobody_reads_is_kept(tmp_path):
    """Token classifiers of before 2020 have one."""
    theirs = made("Bert", "TokenClassification")
    theirs.bert.pooler = transformers.models.bert.modeling_bert.BertPooler(theirs.config)
    theirs.save_pretrained(tmp_path)
    model, params, _ = hub.load(tmp_path)
    assert model.head == "token" and model.pooler and "pooler" in params


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Roberta", "Albert", "Electra"])
def test_a_classifier_without_its_dense_layer_is_refused(name, tmp_path):
    """And not taken for one that has none."""
    made(name, "SequenceClassification").save_pretrained(tmp_path)
    table = FAMILIES[name.lower()]
    dense = (table.modules | table.by_head["sequence"])["pooler/dense"]
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {key: x for key, x in tensors.items() if not key.startswith(f"{dense}.")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(configs.ConfigError, match=f"missing: {dense}.weight"):
        hub.load(tmp_path)


TEXTS = ["Ann went to the low house.", "Is it newer?", "a", "Lower, lowest; widest (slow)!"]
WORDS = [re.sub(r"[^\w ]", "", text) for text in TEXTS]  # a pipeline over bytes cuts at blanks
PAIRS = ["It is.", "A wide house, newer than the lowest one", "b", "no"]


def exported(name, task, labels, folder):
    """A folder with random weights and a tokenizer of its own kind; and what is read from it."""
    config = configs.base()
    kind = "bpe" if name in ("Roberta", "GPT2", "Llama") else "wordpiece"
    config.tokenizer.name, config.tokenizer.vocab_size = kind, 300 if kind == "bpe" else 80
    specials = ["<s>", "</s>", "<pad>", "<mask>", "<unk>"] if name == "Roberta" else []
    tokenizer = tokenizers.build(config.tokenizer, (TEXTS + PAIRS) * 20, specials)
    size = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64}
    size |= {"num_labels": len(labels)} if labels else {}
    made(name, task, **size).save_pretrained(folder / "raw")
    model, params, _ = hub.load(folder / "raw")
    hub.save(model, params, tokenizer, folder / "hf", labels=labels)
    return llm_jax.load(folder / "hf")


def answers(lm, objective, records, labels):
    config = configs.base()
    config.model, config.objective.name, config.data.labels = lm.config.model, objective, labels
    config.data.packing, config.data.pair_column = "none", "pair"
    objective = objectives.get(objective)
    what = objective.examples(lm.tokenizer, config)
    found = []
    for record in records:
        (row,) = what.examples(record, None, None)
        batch = {key: row[key][None] for key in ("tokens", "types") if key in row}
        out = objective.predict(lm.outputs(batch), batch)
        found.append(what.answer(record, [{key: np.asarray(x)[0] for key, x in out.items()}]))
    return found


@pytest.mark.parametrize(
    "name", ["Bert", "GPT2", *(pytest.param(x, marks=pytest.mark.slow)
                               for x in ("DistilBert", "Electra", "Llama"))]
)  # fmt: skip
def test_a_pipeline_classifies_as_we_do(name, tmp_path):
    labels = ("bad", "fair", "good")
    lm = exported(name, "SequenceClassification", labels, tmp_path)
    theirs = transformers.pipeline("text-classification", str(tmp_path / "hf"), top_k=None)
    records = [{"text": text} for text in TEXTS]
    records += [{"text": a, "pair": b} for a, b in zip(TEXTS, PAIRS, strict=True)]
    given = [{"text": x["text"], "text_pair": x.get("pair")} for x in records]
    found = theirs(given, batch_size=4)
    for scores, ours in zip(found, answers(lm, "classification", records, labels), strict=True):
        expected = {x["label"]: x["score"] for x in scores}
        assert ours["probabilities"] == pytest.approx(expected, abs=1e-4)


def test_a_decoders_classifier_needs_padding_that_ends_no_text(tmp_path):
    lm = exported("GPT2", "SequenceClassification", ("no", "yes"), tmp_path)
    lm.tokenizer.frame = [], [lm.tokenizer.pad_id]
    with pytest.raises(configs.ConfigError, match="ends a text with its padding token, id 0"):
        hub.save(lm.model.cfg, lm.params, lm.tokenizer, tmp_path / "again")


@pytest.mark.parametrize("name", ["Bert", "Albert", "GPT2"])
def test_a_pipeline_finds_the_entities_that_we_do(name, tmp_path):
    labels = ("O", "B-X", "I-X", "B-Y")
    lm = exported(name, "TokenClassification", labels, tmp_path)
    theirs = transformers.pipeline(
        "token-classification", str(tmp_path / "hf"), aggregation_strategy="first"
    )
    records = [{"text": text} for text in (TEXTS if name != "GPT2" else WORDS)]
    for record, ours in zip(records, answers(lm, "tagging", records, labels), strict=True):
        expected = theirs(record["text"])
        found = [(x["start"], x["end"], x["type"]) for x in ours["entities"]]
        assert found == [(x["start"], x["end"], x["entity_group"]) for x in expected]
        scores = [x["score"] for x in ours["entities"]]
        np.testing.assert_allclose(scores, [x["score"] for x in expected], atol=1e-4)


PIPELINES = """
import json, sys, transformers
answers = []
for folder, task, records, options in json.load(sys.stdin):
    run = transformers.pipeline(task, folder)
    answers.append([run(x, **options) for x in records])
print(json.dumps(answers, default=float))
"""


@pytest.mark.slow
def test_pipelines_of_transformers_4_answer_as_we_do(tmp_path):
    """Classes, entities and, as version 5 has no pipeline of them any more, answers."""
    python = os.environ.get("LLM_JAX_TRANSFORMERS_4")
    if not python:
        pytest.skip("LLM_JAX_TRANSFORMERS_4 does not name a python with transformers 4.57")
    labels, tags = ("bad", "f\u00e4ir \u597d", "3"), ("O", "B-X", "I-X", "B-Y")
    texts = [{"text": text} for text in WORDS]
    asked = [{"question": a, "context": b * 5} for a, b in zip(PAIRS, TEXTS, strict=True)]
    cases = [
        ("GPT2", "SequenceClassification", "classification", labels, texts),
        ("GPT2", "TokenClassification", "tagging", tags, texts),
        ("Bert", "QuestionAnswering", "question_answering", (), asked),
    ]
    ours, given = [], []
    options = [{"top_k": None}, {"aggregation_strategy": "first"},
               {"align_to_words": False, "max_answer_len": 30}]  # fmt: skip
    for (name, task, objective, names, records), how in zip(cases, options, strict=True):
        lm = exported(name, task, names, tmp_path / task)
        ours.append(answers(lm, objective, records, names))
        pipeline = {"classification": "text-classification", "tagging": "token-classification"}
        pipeline = pipeline.get(objective, "question-answering")
        inputs = [x.get("text", x) for x in records]
        given.append([str(tmp_path / task / "hf"), pipeline, inputs, how])
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, "-c", PIPELINES], input=json.dumps(given), text=True,
                          capture_output=True, check=True, env=offline)  # fmt: skip
    classes, entities, spans = json.loads(done.stdout.splitlines()[-1])
    for mine, theirs in zip(ours[0], classes, strict=True):
        scores = {x["label"]: x["score"] for x in theirs}
        assert mine["probabilities"] == pytest.approx(scores, abs=1e-4)
    for mine, theirs in zip(ours[1], entities, strict=True):
        found = [(x["start"], x["end"], x["type"]) for x in mine["entities"]]
        assert found == [(x["start"], x["end"], x["entity_group"]) for x in theirs]
    for mine, theirs in zip(ours[2], spans, strict=True):
        found = [mine["answer"][k] for k in ("text", "start", "end")]
        assert found == [theirs[k] for k in ("answer", "start", "end")]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    made("Bert", "SequenceClassification").save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"id2label": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"id2label": {"0": 7, "1": "\u597d \u00e9"}}, ("7", "\u597d \u00e9")),
        ({"classifier_dropout": 0.5, "problem_type": "single_label_classification"},
         ("LABEL_0", "LABEL_1")),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label=.*must name 0 to 1"),
        ({"id2label": {"no": "a", "yes": "b"}}, "id2label=.*must name 0 to 1"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"classifier.weight is \(2, 16\)"),
        ({"problem_type": "multi_label_classification"}, "problem_type='multi_label_classif"),
        ({"problem_type": "regression"}, "problem_type='regression' with 2 labels"),
    ],
)  # fmt: skip
def test_labels_are_those_of_config_json_or_refused(changes, expected, classifier, tmp_path):
    for file in classifier.iterdir():
        (tmp_path / file.name).symlink_to(file)
    about = json.loads((classifier / "config.json").read_text()) | changes
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(about))
    if isinstance(expected, str):
        with pytest.raises(configs.ConfigError, match=expected):
            llm_jax.load(tmp_path)
    else:
        lm = llm_jax.load(tmp_path)
        assert lm.config.data.labels == expected
        hub.save(lm.model.cfg, lm.params, None, tmp_path / "again", labels=expected)
        again = transformers.AutoConfig.from_pretrained(tmp_path / "again")
        assert tuple(again.id2label.values()) == expected
