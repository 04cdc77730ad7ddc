"""Tests of synthetic tasks: independent evaluators, splits, weights, errors, resuming."""

import json
import re

import numpy as np
import pytest

from llm_jax.config import ConfigError
from llm_jax.data import tasks, tokenizers
from llm_jax.data.examples import Part
from llm_jax.objectives.completion import Completion
from tests import making

SPECS = {
    "recall": "task:recall?pairs=4&queries=3&vocab=16&length=20",
    "induction": "task:induction?vocab=5&length=12",
    "selective_copy": "task:selective_copy?tokens=3&vocab=6&length=16",
    "listops": "task:listops?depth=4&args=4&min_length=4&length=30",
    "needle": "task:needle?needles=3&keys=5&vocab=6&length=12",
    "permutations": "task:permutations?n=4&length=12",
    "modular": "task:modular?numbers=9&base=7",
}


@pytest.fixture
def tiny(config):
    """Returns the config of a tiny run on a task."""

    def make(spec, **data):
        config.objective.name, config.tokenizer.name = "completion", "words"
        config.model.max_length = 32
        config.data.update({"train": spec} | data)
        return config

    return make


def _examples(spec, split="train", seed=0):
    return tasks.Examples(tasks.parse(spec, "data.train"), split, seed)


def _words(document):
    """The words of a document, and the set of places that are scored."""
    words, places = [], set()
    for part in document["parts"]:
        found = part.text.split()
        places |= set(range(len(words), len(words) + len(found))) if part.scored else set()
        words += found
    return words, places


def _recall(words, options):
    """Each key's second occurrence is followed by what followed its first."""
    keys = words[: 2 * options.pairs : 2]
    assert len(set(keys)) == len(set(words[1 : 2 * options.pairs : 2])) == options.pairs
    asked = [i for i in range(2 * options.pairs, len(words)) if words[i] in keys]
    assert len(asked) == options.queries
    if options.queries <= options.pairs:
        assert len({words[i] for i in asked}) == len(asked)
    assert len(words) == options.length
    return {i + 1: words[words.index(words[i]) + 1] for i in asked}


def _induction(words, options):
    first = words.index("*")
    assert words.count("*") == 2 and words[-2] == "*" and len(words) == options.length
    assert first < len(words) - 3
    return {len(words) - 1: words[first + 1]}


def _copy(words, options):
    middle = words.index(":")
    data = [word for word in words[:middle] if word != "."]
    assert len(data) == options.tokens and len(words) == options.length
    return {middle + 1 + i: word for i, word in enumerate(data)}


def _value(words):
    """The value of a ListOps expression, by rewriting innermost lists until one digit is left."""
    text = " ".join(words)
    rules = {
        "MIN": min, "MAX": max, "SM": lambda x: sum(x) % 10,
        "MED": lambda x: int(np.median(x)),
    }  # fmt: skip

    def once(match):
        return str(rules[match[1]]([int(x) for x in match[2].split()]))

    while "[" in text:
        text = re.sub(r"\[(\w+) ([\d ]+) \]", once, text, count=1)
    return text


def _listops(words, options):
    equals = words.index("=")
    body = words[:equals]
    assert options.min_length <= len(body) <= options.length and equals == len(words) - 2
    depth = deepest = 0
    args = [0]
    for word in body:
        if word == "]":
            assert 2 <= args.pop() <= options.args
        else:
            args[-1] += 1
            if word.startswith("["):
                args.append(0)
        depth = len(args) - 1
        deepest = max(deepest, depth)
    assert depth == 0 and deepest < options.depth
    return {len(words) - 1: _value(body)}


def _needle(words, options):
    asked = words[-2]
    keys = [word for word in words if word.startswith("k")]
    assert len(words) == options.length and len(set(keys)) == options.needles == len(keys) - 1
    return {len(words) - 1: words[words.index(asked) + 1]}


def _permutations(words, options):
    """By products of matrices."""
    matrix = lambda word: np.eye(options.n, dtype=int)[[int(digit) for digit in word[1:]]]
    product = np.eye(options.n, dtype=int)
    for word in words[:-2]:
        product = product @ matrix(word)
    assert words[-2] == "=" and len(words) <= options.length
    return {len(words) - 1: "p" + "".join(map(str, product.argmax(1)))}


def _modular(words, options):
    assert words[-2] == "=" and len(words) <= 2 * options.numbers + 1
    return {len(words) - 1: str(eval("".join(words[:-2])) % options.base)}


EVALUATORS = {
    "recall": _recall, "induction": _induction, "selective_copy": _copy, "listops": _listops,
    "needle": _needle, "permutations": _permutations, "modular": _modular,
}  # fmt: skip


@pytest.mark.parametrize(("depth", "place"), [(0, 0), (0.5, 15), (1, 31)])
def test_a_needle_stands_where_it_is_told(depth, place):
    docs = _examples(f"task:needle?length=34&depth={depth}")
    for i in range(20):
        words, _ = _words(docs[i])
        assert abs(words.index(words[-2]) - place) <= 1


def test_permutations_of_two_are_parity():
    docs = _examples("task:permutations?n=2&length=20")
    for i in range(50):
        words, _ = _words(docs[i])
        assert words[-1] == ("p01", "p10")[words[:-2].count("p10") % 2]


@pytest.mark.parametrize("split", tasks.SPLITS)
@pytest.mark.parametrize("name", SPECS)
def test_what_is_scored_is_the_answer(name, split):
    docs = _examples(SPECS[name], split)
    for i in range(200):
        words, places = _words(docs[i])
        assert set(words) <= set(docs.task.words())
        answers = EVALUATORS[name](words, docs.task)
        assert places == set(answers) and len(words) <= docs.task.longest()
        assert all(words[place] == answer for place, answer in answers.items())


def test_more_queries_than_pairs_repeat_keys():
    docs = _examples("task:recall?pairs=2&queries=9&vocab=8&length=30")
    for i in range(50):
        words, places = _words(docs[i])
        assert places == set(_recall(words, docs.task)) and len(places) == 9


def test_recall_has_each_number_of_pairs_equally_often():
    docs = _examples("task:recall?pairs=12&min_pairs=3&queries=2&vocab=24&length=30")
    rows = (_words(docs[i])[0] for i in range(300))
    counts = np.bincount([sum(word[0] == "v" for word in set(row)) for row in rows])
    assert set(np.flatnonzero(counts)) == {3, 6, 12} and counts.max() < 130


def test_listops_as_published():
    task = tasks.parse("task:listops", "data.train")
    assert (task.min_length, task.length, task.depth, task.args) == (500, 2000, 10, 10)
    docs = tasks.Examples(task, "train", 0)
    lengths = []
    for i in range(10):
        words, _ = _words(docs[i])
        _listops(words, task)
        lengths.append(len(words))
    assert len(set(lengths)) > 5
    draws = _examples("task:listops?depth=9&args=2&min_length=4&length=99")
    words = [word for i in range(2000) for word in _words(draws[i])[0][:-2]]
    for operator in task.operators:
        assert abs(words.count(operator) / sum(w.startswith("[") for w in words) - 0.25) < 0.03
    assert task.operators["[MED"]([5, 8]) == 6


def test_gaps_follow_the_power_law():
    def places(power):
        docs = _examples(f"task:recall?pairs=1&queries=1&vocab=8&length=22&power={power}")
        drawn = [min(_words(docs[i])[1]) // 2 for i in range(4000)]
        return np.bincount(drawn, minlength=11)[1:] / 4000

    wanted = np.arange(1, 11) ** -0.99
    np.testing.assert_allclose(places(0.01), wanted / wanted.sum(), atol=0.03)
    np.testing.assert_allclose(places(1), 0.1, atol=0.03)


@pytest.mark.parametrize("name", SPECS)
def test_examples_are_functions_of_seed_split_and_index(name):
    docs = _examples(SPECS[name])
    forwards = [docs[i] for i in range(20)]
    again = _examples(SPECS[name])
    assert [again[i] for i in reversed(range(20))] == forwards[::-1]
    assert docs[-1] == docs[len(docs) - 1] and len(docs) == 2**20
    assert [_examples(SPECS[name], seed=1)[i] for i in range(20)] != forwards
    with pytest.raises(IndexError):
        docs[len(docs)]


def test_splits_of_a_tiny_space_are_disjoint():
    spec = "task:induction?vocab=3&length=6&examples=3000"
    drawn = lambda docs: {docs[i]["parts"] for i in range(3000)}
    found = [drawn(_examples(spec, split)) for split in tasks.SPLITS]
    assert all(len(part) > 5 for part in found)
    assert len(set.union(*found)) == sum(map(len, found))
    other = _examples(spec, "validation", seed=7)
    assert not found[0] & drawn(other)  # whatever the seed


def test_a_task_brings_its_splits_and_longer_ones_may_follow(tiny):
    split = making.splits(tiny("task:induction?examples=50&length=16"))
    assert {name: len(docs) for name, docs in split.items()} == {
        "train": 50, "validation": 1000, "test": 1000
    }  # fmt: skip
    assert [split[name].split for name in split] == list(split)
    longer = tiny("task:induction?length=16", test="task:induction?length=30&examples=7")
    split = making.splits(longer)
    assert len(_words(split["test"][0])[0]) == 30 and len(split["test"]) == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("task:recal", "data.train='task:recal': unknown task 'recal'; known: recall, induction"),
        ("task:recall?pair=3", "no option 'pair'; its options and defaults are length=128"),
        ("task:recall?pairs=many", "pairs='many' must be an integer from 1 to 65536"),
        ("task:recall?pairs", "pairs='' must be an integer"),
        ("task:recall?pairs=0", "pairs='0' must be an integer from 1"),
        ("task:recall?pairs=4&min_pairs=5", "min_pairs=5 must be at most pairs=4"),
        ("task:recall?power=nan", "power='nan' must be a number from 0.001 to 1.0"),
        ("task:recall?pairs=40", "pairs=40 must be at most vocab / 2 = 32"),
        ("task:recall?length=31", r"length=31 must be at least 2 \(pairs \+ queries\) = 32"),
        ("task:selective_copy?length=16", r"length=16 must be at least 2 tokens \+ 1 = 17"),
        ("task:listops?length=400", "min_length=500 must be at most length=400"),
        ("task:listops?depth=2&args=2&min_length=5&length=9", "no example in 10,000 draws"),
        ("task:induction", "model.max_length=32: .* has examples of 256 tokens"),
    ],
)
def test_bad_specs_are_refused(tiny, spec, message):
    with pytest.raises(ConfigError, match=message):
        making.splits(tiny(spec))


def test_what_cannot_learn_a_task_is_refused(tiny):
    spec = SPECS["induction"]
    with pytest.raises(ConfigError, match="data.validation: its task has words .* such as '5'"):
        making.splits(tiny(spec, validation="task:induction?vocab=6&length=12"))
    config = tiny(spec, validation="")
    config.tokenizer.name = "chars"
    with pytest.raises(ConfigError, match="tokenizer.name='chars': data.train=.* needs 'words'"):
        making.splits(config)
    config.objective.name = "causal_lm"
    with pytest.raises(ConfigError, match="objective.name='causal_lm': .* needs 'completion'"):
        making.splits(config)


def _batches(config, split="train"):
    docs = making.splits(config)
    tokenizer = making.build_tokenizer(config, docs["train"])
    if split == "train":
        return tokenizer, making.train_iterator(config, tokenizer, docs["train"])
    return tokenizer, making.eval_batches(config, tokenizer, docs[split])


@pytest.mark.parametrize("packing", ["first_fit", "none"])
@pytest.mark.parametrize("name", SPECS)
def test_weights_are_on_answers_after_packing(tiny, name, packing):
    config = tiny(SPECS[name], packing=packing)
    tokenizer, batches = _batches(config)
    options = tasks.parse(SPECS[name], "data.train")
    several = 0
    for _ in range(10):
        batch = next(batches)
        several += int(batch["segment_ids"].max() > 1)
        assert not batch["weights"][batch["segment_ids"] == 0].any()
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                where = batch["segment_ids"][row] == segment
                fields = [batch[k][row][where] for k in ("tokens", "targets", "weights")]
                tokens, targets, weights = fields
                assert tokens[0] == tokenizer.bos_id and np.array_equal(tokens[1:], targets[:-1])
                words = tokenizer.decode(targets).split()
                words += ["."] * (options.length - len(words)) * (name == "recall")  # cut
                answers = EVALUATORS[name](words, options)
                assert set(np.flatnonzero(weights)) == set(answers)
                assert set(weights) <= {0.0, 1.0} and weights[-1] == 1
    if packing == "none":
        assert not several
    elif name != "recall":  # of 20 words in rows of 32
        assert several


def test_validation_counts_each_answer_once(tiny):
    config = tiny(SPECS["recall"], validation=SPECS["recall"] + "&examples=23")
    _, batches = _batches(config, "validation")
    assert sum(batch["weights"].sum() for batch in batches) == 23 * 3


@pytest.mark.parametrize("packing", ["first_fit", "none"])
def test_restored_iterator_continues_bitwise(tiny, packing):
    config = tiny(SPECS["listops"] + "&examples=30", packing=packing)
    config.tokenizer.specials = ("[MASK]",)
    _, iterator = _batches(config)
    states, batches = [], []
    for _ in range(12):  # several epochs
        states.append(json.dumps(iterator.get_state()))
        batches.append(next(iterator))
    assert max(map(len, states)) < 2000
    for i in (0, 5, 11):
        _, again = _batches(config)
        again.set_state(json.loads(states[i]))
        found = next(again)
        assert all(np.array_equal(found[name], batches[i][name]) for name in found)


def _completion(config, tokenizer=None):
    return Completion(tokenizer or tokenizers.Bytes(), config)


def test_a_dialogue_scores_the_assistants_tokens(tiny):
    what = _completion(tiny("unused"))
    tokenizer = what.tokenizer
    turns = (Part("hi>", False), Part("hello.", True), Part("why>", False), Part("so.", True))
    fields = what.example({"parts": turns}, None, None)
    s = [tokenizer.bos_id, *b"hi>hello.why>so.", tokenizer.eos_id]
    assert fields["tokens"].tolist() == s[:-1] and fields["targets"].tolist() == s[1:]
    scored = [target for target, w in zip(s[1:], fields["weights"], strict=True) if w]
    assert scored == [*b"hello.so.", tokenizer.eos_id]
    first = what.example({"parts": (*turns[:3], Part("so.", False))}, None, None)
    assert first["targets"].tolist() == [*b"hi>hello."]  # what follows teaches nothing
    assert what.example({"parts": (Part("hi", False), Part("", False))}, None, None) is None
    assert what.example({"parts": (Part("x" * 32, False), Part("late", True))}, None, None) is None
    cut = what.example({"parts": (Part("x" * 30, False), Part("late", True))}, None, None)
    assert cut["targets"].tolist() == [*b"x" * 30, *b"la"]


def test_prompts_and_completions_of_a_file(tiny, tmp_path):
    rows = [{"source": f"{i}+{i}=", "target": str(2 * i)} for i in range(40)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = tiny(str(tmp_path / "sums.jsonl"), validation_fraction=0.2)
    config.tokenizer.name = "chars"
    tokenizer, batches = _batches(config, "validation")
    batch = next(iter(batches))
    scored = batch["targets"][batch["weights"] > 0]
    assert (scored == tokenizer.eos_id).sum() == batch["segment_ids"].max(-1).sum()
    assert set(tokenizer.decode(scored)) <= set("0123456789")


def test_words_are_kept_and_unknown_ones_shown(tmp_path):
    tokenizer = tokenizers.Words(["a", "[MIN", "b"], ["[MASK]"])
    ids = tokenizer.encode(" [MIN a\nb [MASK] ")
    assert ids.tolist() == [1, 0, 2, tokenizer.unk_id]
    tokenizer.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.decode([*ids, again.eos_id]) == "[MIN a b \ufffd"
    assert again.specials == tokenizer.specials and again.vocab_size == 8
    assert again.encode("").dtype == np.int32
