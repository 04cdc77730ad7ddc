"""Tests of sequence classification, from data files to the export in transformers."""

import functools
import json
import re
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import llm_jax
from llm_jax import config as configs
from llm_jax import hub, models, objectives
from llm_jax.config import ConfigError
from llm_jax.data import sources, tokenizers
from llm_jax.models import heads
from llm_jax.objectives import classification, scores
from llm_jax.objectives.labels import cross_entropy
from llm_jax.train import report, state
from llm_jax.train.evaluate import Evaluation
from llm_jax.train.loop import Trainer
from tests import making

TOKENIZER = tokenizers.Bytes()


def settings(**changes):
    keys = {
        "objective.name": "classification", "model.kind": "encoder", "model.head": "sequence",
        "model.pooler": True, "model.type_vocab_size": 2, "model.max_length": 16,
        "model.num_layers": 1, "model.embed_dim": 16, "model.num_heads": 2,
        "data.packing": "none", "data.batch_size": 8, "tokenizer.name": "bytes",
        "train.log_every": 10,
    }  # fmt: skip
    c = configs.base()
    c.update_from_flattened_dict(keys | {k.replace("__", "."): v for k, v in changes.items()})
    configs.check(c)
    return c


def made(labels=("0", "1"), **changes):
    c = settings(**changes)
    c.data.labels = labels
    return making.examples(c, TOKENIZER)


def labelled(labels):
    return [{"text": str(i), "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_scikit_learn(seed, classes):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(40, classes)) + (np.arange(classes) == 0)  # some are never guessed
    label = rng.integers(0, max(2, classes - seed), 40)  # some never occur
    guess = logits.argmax(-1)
    ours = scores.classes(scores.confusion(label, guess, classes))
    expected = metrics.precision_recall_fscore_support(
        label, guess, average="macro", zero_division=0
    )
    assert [ours[k] for k in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(label, guess))
    assert ours["f1_micro"] == pytest.approx(metrics.f1_score(label, guess, average="micro"))
    assert ours["matthews"] == pytest.approx(metrics.matthews_corrcoef(label, guess))


def test_examples_of_texts_and_pairs():
    start, end = TOKENIZER.bos_id, TOKENIZER.eos_id
    one = made().example({"text": "ab", "label": "1"}, None, None)
    assert one["tokens"].tolist() == [start, *b"ab", end]
    assert one["types"].tolist() == [0] * 4 and one["label"].tolist() == [1]
    both = made().example({"text": "ab", "pair": "cde", "label": "0"}, None, None)
    assert both["tokens"].tolist() == [start, *b"ab", end, *b"cde", end]
    assert both["types"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert "types" not in made(model__type_vocab_size=0).example(
        {"text": "ab", "label": "1"}, None, None
    )


@pytest.mark.parametrize("a", [1, 5, 6, 7, 8, 30])
@pytest.mark.parametrize("b", [1, 6, 7, 8, 30])
def test_the_longer_text_is_cut(a, b):
    piece = {"text": "x" * a, "pair": "y" * b, "label": "0"}
    tokens = made().example(piece, None, None)["tokens"].tolist()
    kept = [a, b]
    while sum(kept) > 13:  # token by token, of the second where both are as long
        kept[kept.index(max(kept)) if kept[0] != kept[1] else 1] -= 1
    assert [tokens.count(ord(c)) for c in "xy"] == kept
    assert len(tokens) <= 16 and tokens[-1] == TOKENIZER.eos_id
    alone = made().example({"text": "x" * a, "label": "0"}, None, None)["tokens"]
    assert len(alone) == min(a + 2, 16) and alone[-1] == TOKENIZER.eos_id


def test_labels_are_the_training_sets_in_order():
    c = settings()
    objective = objectives.get("classification")
    objective.resolve(c, labelled(("10", "2", "2", "0")))
    assert c.data.labels == ("0", "2", "10") and c.model.num_labels == 3
    c = settings()
    objective.resolve(c, labelled(("no", "Yes", "maybe", "no")))
    assert c.data.labels == ("Yes", "maybe", "no")
    for labels, change, message in (
        (["a", "a"], {}, "data.label_column='label': .* only the label a"),
        (["a", "b"], {"model__num_labels": 3}, "model.num_labels=3: data.labels has 2: a, b"),
    ):
        with pytest.raises(ConfigError, match=message):
            objective.resolve(settings(**change), labelled(labels))
    with pytest.raises(ConfigError, match="data.label_column: '2' is not in data.labels "):
        made().example({"text": "a", "label": "2"}, None, None)
    # Data has numbers, an imported model names.
    assert made(("bad", "good")).example({"text": "a", "label": "1"}, None, None)["label"] == [1]
    with pytest.raises(ConfigError, match="'0' is not in"):  # names that are numbers are names
        made(("1", "2")).example({"text": "a", "label": "0"}, None, None)


@pytest.mark.parametrize(("names", "warns"), [
    (("0.5", "-1"), True), (("1", "2"), False), (("0.5", "v1.0"), False), (("a", "b"), False),
])  # fmt: skip
def test_classes_that_are_numbers_are_warned_of(names, warns, caplog):
    c = settings()
    objectives.get("classification").resolve(c, [{"text": "a", "label": x} for x in names])
    assert ("objective.name=regression to predict numbers" in caplog.text) == warns


SWAPPED = {
    "classification": (
        [{"text": str(i % 2), "label": f"text {i}"} for i in range(9)],
        "label_column='label': has 9 .*text_column='text' only 2; .*text_column=label .*=text",
    ),
    "regression": (
        [{"text": f"{i}.5", "label": f"text {i}"} for i in range(9)],
        "'text 0' is not a number, .*text_column holds numbers: are the two swapped",
    ),
    "tagging": (
        [{"tokens": ["O", "B"] * 3, "tags": [f"word{i}" for i in range(6)]}],
        "tags_column='tags': has 6 .*tokens_column='tokens' only 2; .*tokens_column=tags",
    ),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_labels_that_look_like_texts_name_the_other_column(name):
    documents, message = SWAPPED[name]
    config = configs.base()
    config.objective.name = name
    with pytest.raises(ConfigError, match=message):
        objectives.get(name).resolve(config, documents)


def test_columns_are_read_by_name_or_number(tmp_path):
    rows = [("good film", "really", "1"), ("bad film", "no", "0"), ("so so", "hm", "1")]
    (tmp_path / "a.tsv").write_text("\n".join(["sentence\tmore\tgold", *map("\t".join, rows)]))
    (tmp_path / "b.tsv").write_text("\n".join(map("\t".join, rows)))
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"sentence": a, "more": b, "gold": int(c)}) for a, b, c in rows)
    )
    named = {"data__text_column": "sentence", "data__label_column": "gold"}
    pair = named | {"data__pair_column": "more"}
    numbered = {"data__text_column": "0", "data__label_column": "2"}
    cases = ("a.tsv", named), ("a.tsv", pair), ("b.tsv", numbered), ("c.jsonl", pair)
    for file, columns in cases:
        c = settings(**columns)
        docs = sources.documents(
            str(tmp_path / file), c.data, classification.Classification.columns(c)
        )
        expected = [{"text": a, "pair": b, "label": label} for a, b, label in rows]
        assert docs == [
            {k: v for k, v in doc.items() if k != "pair" or "data__pair_column" in columns}
            for doc in expected
        ]
    c = settings(**named | {"data__label_column": "sentiment"})
    with pytest.raises(ConfigError, match="data.label_column: 'sentiment' is not in"):
        sources.documents(str(tmp_path / "a.tsv"), c.data, ("text", "label"))


def _write(path, count, seed):
    """A label that one word decides."""
    rng = np.random.default_rng(seed)
    rows = [("".join(rng.choice(list("abcd"), 6)), int(rng.integers(2))) for _ in range(count)]
    lines = [f"{text}{'+-'[label]}\t{label}" for text, label in rows]
    path.write_text("\n".join(["text\tlabel", *lines]))
    return [label for _, label in rows]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learned it, and the labels of its validation set, which fills 2.6 batches."""
    folder = tmp_path_factory.mktemp("classes")
    _write(folder / "train.tsv", 300, seed=0)
    labels = _write(folder / "valid.tsv", 21, seed=1)
    c = settings(
        data__train=str(folder / "train.tsv"), data__validation=str(folder / "valid.tsv"),
        train__steps=120, eval__every=120, checkpoint__every=120, optimizer__learning_rate=3e-3,
        optimizer__warmup_steps=10, model__norm_place="post", model__embed_norm=True,
        model__head_dropout=0.1,
    )  # fmt: skip
    return folder, c, labels


class _Silent:
    def start(self, facts, step, steps):
        self.facts = facts

    def note(self, text): ...
    def progress(self, step, values): ...


@pytest.fixture(scope="module")
def trained(run):
    folder, c, labels = run
    reporter = _Silent()
    trainer = Trainer(c, folder / "run", reporter, jax.devices()[:1])
    return trainer, trainer.run(), reporter


def test_a_run_shows_and_keeps_its_labels_and_scores_the_whole_set(run, trained):
    folder, c, labels = run
    trainer, last, reporter = trained
    assert reporter.facts["labels"] == "0, 1"
    kept = json.loads((folder / "run" / "config.json").read_text())
    assert kept["data"]["labels"] == ["0", "1"] and kept["model"]["num_labels"] == 2
    assert last["eval_accuracy"] > 0.9
    found = trainer.evaluate()
    gold = [int(record["label"]) for record in found.records]
    assert gold == labels  # in order, each once, and no row of padding
    guess = np.array([int(answer["label"]) for answer in found.answers])
    assert found.values["accuracy"] == pytest.approx((guess == labels).mean())
    assert found.values["examples"] == 21
    assert found.values["tokens"] == 21 * 9  # seven letters, start and end
    for answer in found.answers:
        shares = answer["probabilities"]
        assert answer["label"] == max(shares, key=shares.get)
        assert sum(shares.values()) == pytest.approx(1)


def test_the_exported_classifier_is_transformers_own(trained, run, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, _, _ = run
    trainer, _, _ = trained
    model = trainer.setup.config.model
    hub.save(model, trainer.params(), None, tmp_path / "hf", labels=("bad", "good"))
    opened = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs = opened(tmp_path / "hf").eval()
    assert theirs.config.id2label == {0: "bad", 1: "good"} and theirs.num_labels == 2
    tokens = np.random.default_rng(0).integers(0, 259, (3, 12))
    mask = np.arange(12) < [[12], [7], [3]]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int)))
    ours = trainer.setup.model.apply(
        {"params": trainer.params()}, {"tokens": tokens, "attention_mask": mask}
    )
    np.testing.assert_allclose(ours.heads["sequence"], expected.logits, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_a_transformers_classifier_is_read(classes, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, max_position_embeddings=12, num_labels=classes,
        initializer_range=0.3,
    )).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    lm = llm_jax.load(tmp_path)
    assert lm.config.model.num_labels == classes and lm.config.model.head == "sequence"
    tokens = np.random.default_rng(0).integers(0, 30, (2, 9))
    types = np.arange(9) > np.array([[4], [6]])
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), token_type_ids=torch.tensor(types.astype(int)))
    found = lm.outputs({"tokens": tokens, "types": types.astype(int)}).heads["sequence"]
    np.testing.assert_allclose(found, expected.logits, atol=1e-4)


@pytest.mark.data
@pytest.mark.slow
def test_sst2_from_scratch_beats_the_majority(shared_data, tmp_path):
    files = {name: str(shared_data / "sst2" / f"{name}.tsv") for name in ("train", "dev")}
    c = configs.load("configs/finetune/classify.py", [
        f"data.train={files['train']}", f"data.validation={files['dev']}",
        "data.text_column=0", "data.label_column=1", "optimizer.learning_rate=5e-4",
        "train.steps=300", "eval.every=300",
    ])  # fmt: skip
    last = Trainer(c, tmp_path / "run", _Silent(), jax.devices()[:1]).run()
    gold = [line.rpartition("\t")[2].strip() for line in open(files["dev"])]
    majority = max(gold.count(label) for label in set(gold)) / len(gold)
    assert last["eval_examples"] == len(gold)
    assert last["eval_accuracy"] > majority + 0.15 and last["eval_f1"] > 0.65


@pytest.mark.slow
def test_docs_extending_runs_as_it_stands(run, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    for table in (objectives.OBJECTIVES, heads.HEADS, hub.FAMILIES):  # as they were, afterwards
        for name, row in list(table.items()):
            monkeypatch.setitem(table, name, row)
    monkeypatch.setitem(objectives.OBJECTIVES, "sentiment", None)
    monkeypatch.setitem(heads.HEADS, "mood", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    space = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/extending.md", "exec"), space)
    assert space["last"]["eval_matthews"] > 0.8
    opened = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs = opened(space["hf_folder"]).eval()
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    tokens = np.random.default_rng(0).integers(0, 256, (2, 10))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits
    trainer = space["trainer"]
    found = trainer.setup.model.apply({"params": trainer.params()}, {"tokens": tokens})
    np.testing.assert_allclose(found.heads["mood"], expected, atol=1e-4)
    assert hub.load(space["hf_folder"])[0].head == "mood"


@pytest.mark.parametrize("labels", [["a"] * 6 + ["b"] * 2, ["b", "c", "a", "a"]])
def test_balanced_weights_are_those_of_scikit_learn(labels):
    utils = pytest.importorskip("sklearn.utils.class_weight")
    c = settings(objective__class_weights=("balanced",))
    objectives.get("classification").resolve(c, labelled(labels))
    expected = utils.compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert c.objective.class_weights == pytest.approx(expected)
    c = settings(objective__class_weights=(1.0, 2.0, 3.0, 4.0))
    with pytest.raises(ConfigError, match="objective.class_weights=.*weight for each"):
        objectives.get("classification").resolve(c, labelled(labels))


def test_a_class_weight_is_of_its_classs_loss():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    batch = {"tokens": np.zeros((6, 4), int), "label": label}
    outputs = models.Outputs(None, None, heads={"sequence": logits})
    terms = {}
    for weights in ((), (1.0, 0.0, 5.0)):
        cfg = settings(objective__class_weights=weights).objective
        terms[weights], metrics = classification.losses(outputs, batch, cfg)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), label]
    assert terms[()]["rows"] == pytest.approx(nll.sum(), rel=1e-5)
    expected = (nll * np.array([1, 0, 5])[label]).sum()
    assert terms[1.0, 0.0, 5.0]["rows"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss"][0] == pytest.approx(nll.sum(), rel=1e-5)  # comparable between the two


def test_regression_is_a_squared_error_and_its_scores_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    c = settings(objective__name="regression")
    objective, what = objectives.get("regression"), making.examples(c, TOKENIZER)
    gold, guess = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    records = [{"text": "a", "label": str(x)} for x in gold]
    label = np.array([what.example(x, None, None)["label"][0] for x in records])
    batch = {"label": np.append(label, 9), "tokens": np.zeros((6, 4), int)}
    batch["segment_ids"] = np.ones((6, 4), int) * (np.arange(6) < 5)[:, None]  # the last: padding
    outputs = models.Outputs(None, None, heads={"sequence": np.append(guess, 1)[:, None]})
    terms, metrics = objective.losses(outputs, batch, c.objective)
    assert terms["rows"] == metrics["loss"][0]
    assert terms["rows"] == pytest.approx(((gold - guess) ** 2).sum(), rel=1e-5)
    values = objective.predict(outputs, batch)["value"]
    found = what.score(records, [what.answer({}, [{"value": x}]) for x in values[:5]])
    assert found["pearson"] == pytest.approx(stats.pearsonr(gold, guess)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(gold, guess)[0])
    assert found["mse"] == pytest.approx(np.mean((gold - guess) ** 2))
    for label in ("x", "", "nan", "-inf", "1e999"):
        with pytest.raises(ConfigError, match=f"data.label_column: '{label}' is not a number"):
            objective.resolve(c, [{"text": "a", "label": "1"}, {"text": "a", "label": label}])


def test_a_number_that_training_does_not_have_may_be_held_out(tmp_path):
    for name, number in (("train", "0.25"), ("dev", "1.5")):
        (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\n{name} text\t{number}\n")
    c = configs.base()
    c.objective.name, c.data.packing, c.model.head = "regression", "none", "sequence"
    c.data.text_column, c.data.label_column = "text", "label"
    c.data.train, c.data.validation = str(tmp_path / "train.tsv"), str(tmp_path / "dev.tsv")
    (held_out,) = objectives.get("regression").splits(c)["validation"]
    assert held_out["label"] == "1.5"


@pytest.mark.slow
def test_regression_learns_a_number(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 300), ("valid", 30)):
        words = ["".join(rng.choice(list("ab"), 8)) for _ in range(count)]
        lines = [f"{word}\t{word.count('a') / 4:.2f}" for word in words]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]))
    c = settings(
        objective__name="regression", data__train=str(tmp_path / "train.tsv"),
        data__validation=str(tmp_path / "valid.tsv"), train__steps=80, eval__every=80,
        optimizer__learning_rate=3e-3, optimizer__warmup_steps=10, data__batch_size=16,
        model__norm_place="post", model__embed_norm=True, model__positions="none",
    )  # fmt: skip
    trainer = Trainer(c, tmp_path / "run", _Silent(), jax.devices()[:1])
    last = trainer.run()
    assert trainer.setup.config.model.num_labels == 1
    assert last["eval_loss"] == pytest.approx(last["eval_mse"], rel=1e-4)
    assert last["eval_pearson"] > 0.8


def test_a_decoders_head_reads_the_last_token():
    c = settings(model__kind="decoder", model__pooler=False, model__num_labels=3).model
    model = models.build(configs.resolve(c, 30))
    tokens = np.random.default_rng(0).integers(0, 30, (3, 8))
    lengths = np.array([[8], [5], [2]])
    right = np.arange(8) < lengths
    params = jax.jit(lambda key: models.init_params(model, key))(jax.random.key(0))
    apply = jax.jit(model.apply)
    for real in (right, right[:, ::-1]):  # padding on either side
        found = apply({"params": params}, {"tokens": tokens, "attention_mask": real.astype(int)})
        last = found.features[np.arange(3), [np.flatnonzero(row)[-1] for row in real]]
        expected = last @ params["sequence"]["kernel"]  # its bias is drawn as 0
        np.testing.assert_allclose(found.heads["sequence"], expected, atol=1e-5)


def test_a_report_counts_as_scikit_learn_and_shows_what_is_wrong(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    names = ("bad", "fair", "good")
    gold, guess = rng.choice(names, 40), rng.choice(names, 40)
    records = [{"text": f"text {i}" * (i + 1), "label": str(x)} for i, x in enumerate(gold)]
    sure = rng.uniform(0.4, 1, 40)
    answers = [{"label": str(x), "probabilities": {str(x): p}}
               for x, p in zip(guess, sure, strict=True)]  # fmt: skip
    what = made(names)
    table = report._confusion(what, records, answers)
    assert (table == metrics.confusion_matrix(gold, guess, labels=names)).all()
    values = what.score(records, answers)
    report.write(tmp_path, Evaluation(values, records, answers), what, "validation, step 3")
    text = (tmp_path / "report.md").read_text()
    assert f"| accuracy | {values['accuracy']:.4g} |" in text
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    quarters = [line for line in text.splitlines() if re.match(r"\| \d+ to \d+ \| 10 \|", line)]
    means = [float(line.split("|")[3]) for line in quarters]
    assert np.mean(means) == pytest.approx(values["accuracy"], abs=1e-3)
    wrong = np.flatnonzero(gold != guess)
    surest = sorted(wrong, key=lambda i: -sure[i])[: report.WORST]
    places = [text.index(json.dumps(answers[i])) for i in surest]
    assert places == sorted(places) and text.count("```") == 2 * report.WORST


def test_any_label_can_stand_in_a_report(tmp_path):
    """By number what is long or not in the picture's font; nothing is read as mathematics."""
    names = ("$x_$", "a$b", "好", 'say "no"', "x" * 99)
    records = [{"text": "a ``` b", "label": name} for name in names]
    answers = [{"label": name, "probabilities": {name: 1.0}} for name in names[::-1]]
    what = made(names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = what.score(records, answers)
        report.write(tmp_path, Evaluation(values, records, answers), what, "test, step 1")
    text = (tmp_path / "report.md").read_text()
    assert f"The figure uses numbers for 2 好, 4 {'x' * 99}." in text


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_lins(gamma, smoothing):
    """Equation 4 of Lin 2017 class by class; of gamma 0 the cross-entropy of PyTorch."""
    torch = pytest.importorskip("torch")
    logits, label = np.random.default_rng(0).normal(size=(6, 4)) * 3, np.arange(6) % 4
    cfg = settings(objective__focal_gamma=gamma, objective__label_smoothing=smoothing).objective
    loss = lambda x: cross_entropy(x, label, cfg)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = np.eye(4)[label] * (1 - smoothing) + smoothing / 4
    expected = (wanted * (1 - p) ** gamma * -np.log(p)).sum(-1)
    np.testing.assert_allclose(loss(logits), expected, rtol=1e-5)
    if not gamma:
        theirs = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(label), label_smoothing=smoothing, reduction="none"
        )
        np.testing.assert_allclose(loss(logits), theirs, rtol=1e-5)
    sure = jax.grad(lambda x: loss(x).sum())(np.eye(4)[label] * 200.0)
    assert np.isfinite(sure).all()


def trained_on(**changes):
    """Loss and metrics of a batch of eight; its config, model, parameters, batch and key."""
    c = settings(model__num_labels=2, **changes)
    c.data.labels, c.model = ("0", "1"), configs.resolve(c.model, TOKENIZER.vocab_size)
    docs = [{"text": "abcdefgh"[: i + 1], "label": str(i % 2)} for i in range(8)]
    batch = next(iter(making.eval_batches(c, TOKENIZER, docs)))
    model, objective = models.build(c.model), objectives.get("classification")
    draw = lambda key: jax.tree.map(lambda x: 8 * x, models.init_params(model, key))
    params, key = jax.jit(draw)(jax.random.key(0)), jax.random.key(7)
    loss = jax.jit(functools.partial(state.loss, model, objective, c))
    total, metrics = loss(params, batch, key)
    return float(total), metrics, model, params, batch, key


def surprise(logits, label):
    return -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(label)), label].mean()


def test_r_drop_adds_how_far_two_passes_are_apart():
    """Liang 2021, equations 2 to 4, halved, on two passes."""
    changes = {"objective__r_drop": 3.0, "model__dropout": 0.3}
    total, metrics, model, params, batch, key = trained_on(**changes)
    twice = {name: np.concatenate([x, x]) for name, x in batch.items()}
    apply = jax.jit(functools.partial(model.apply, deterministic=False))
    found = apply({"params": params}, twice, rngs={"dropout": key}).heads["sequence"]
    logits = np.split(np.asarray(found), 2)
    p, q = (np.asarray(jax.nn.softmax(x)) for x in logits)
    apart = [(a * np.log(a / b)).sum(-1).mean() for a, b in ((p, q), (q, p))]
    assert min(apart) > 1e-3
    expected = sum(surprise(x, batch["label"]) for x in logits) / 2
    assert total == pytest.approx(expected + 3 * sum(apart) / 2, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)


def test_mixup_mixes_embeddings_and_labels_in_the_same_share():
    """Guo 2019, section 3.2, with the rows in reverse for partners; vectors are added by hand."""
    changes = {"objective__mixup": 0.8, "model__type_vocab_size": 0}
    total, _, model, params, batch, key = trained_on(**changes)
    share = float(jax.random.beta(jax.random.fold_in(key, 1), 0.8, 0.8))
    assert 0.02 < share < 0.98
    table, places = params["embed"]["embedding"], params["encoder"]["embeddings"]["positions"]
    x = table[batch["tokens"]] + places["embedding"][batch["positions"]]
    seen = np.maximum(batch["segment_ids"], batch["segment_ids"][::-1])
    both = batch | {"embeddings": share * x + (1 - share) * x[::-1], "segment_ids": seen}
    logits = model.apply({"params": params}, both).heads["sequence"]
    one, other = (surprise(logits, label) for label in (batch["label"], batch["label"][::-1]))
    assert abs(one - other) > 1e-3
    assert total == pytest.approx(share * one + (1 - share) * other, rel=1e-4)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_does_not_have_is_refused_first(split, tmp_path):
    for name, label in (("train", "good"), ("other", "neutral")):
        rows = [f"a {name} {i}\t{label if i % 2 else 'bad'}\n" for i in range(4)]
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + "".join(rows))
    c = configs.load("configs/finetune/classify.py", [f"data.train={tmp_path / 'train.tsv'}",
                     f"data.{split}={tmp_path / 'other.tsv'}"])  # fmt: skip
    with pytest.raises(ConfigError, match=f"data.{split}: 2 rows have the label 'neutral', which"):
        objectives.get("classification").splits(c)
