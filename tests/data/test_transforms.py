"""Tests of masking and span corruption: rates from the papers, determinism, errors."""

import json
from collections import Counter

import numpy as np
import pytest

from configs import albert, bert, distilbert, electra, gpt2, gpt3, llama, roberta, t5, transformer
from llm_jax.config import ConfigError, base
from llm_jax.data import tokenizers
from llm_jax.objectives import masked_lm, span_corruption
from tests import making
from tests.slow import every

WORDS = "the of and sentence order language model token masked span noise king queen play".split()
KIND = {
    "causal_lm": "decoder",
    "prefix_lm": "decoder",
    "completion": "decoder",
    "masked_lm": "encoder",
    "bert": "encoder",
    "albert": "encoder",
    "replaced_token_detection": "encoder",
    "span_corruption": "encoder_decoder",
    "seq2seq": "encoder_decoder",
}


PAIRS = ("completion", "seq2seq")


def _config(name, length=32, packing=None):
    c = base()
    c.objective.name, c.model.kind = name, KIND[name]
    c.model.max_length, c.data.batch_size = length, 4
    c.tokenizer.name = "bytes"
    if c.model.kind == "encoder":
        c.model.head = "mlm"
    if name in ("bert", "albert"):
        c.model.pooler, c.model.num_labels, c.model.type_vocab_size = True, 2, 2
        c.model.head = "mlm,sequence"
    if name == "replaced_token_detection":
        c.model.head, c.model.generator_fraction = "detection", 0.5
    c.data.packing = "none" if name in ("bert", "albert", "prefix_lm") else "first_fit"
    c.data.packing = packing or c.data.packing
    return c


def _docs(n=30, seed=0, pairs=False):
    rng = np.random.default_rng(seed)
    sentence = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 9))) + "."
    if pairs:
        return [(sentence(), sentence()) for _ in range(n)]
    return [" ".join(sentence() for _ in range(rng.integers(1, 8))) for _ in range(n)]


def _made(config, docs):
    """The tokenizer and the transform of a config, on some text."""
    tokenizer = making.build_tokenizer(config, docs)
    return tokenizer, making.examples(config, tokenizer)


def _row(tokenizer, rng, length=512, chosen=None):
    """A row of ordinary tokens with specials and padding here and there."""
    ordinary = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.specials.values()]
    tokens = rng.choice(ordinary if chosen is None else chosen, length).astype(np.int32)
    segments = np.repeat([1, 2, 0], [length // 2, length - length // 2 - 40, 40]).astype(np.int32)
    tokens[[0, length // 2]], tokens[length // 2 - 1] = tokenizer.bos_id, tokenizer.eos_id
    tokens[segments == 0] = tokenizer.pad_id
    return {"tokens": tokens, "segment_ids": segments}


def _near(count, n, p, sigmas=5):
    """Whether a binomial count is what its probability says."""
    return abs(count - n * p) < sigmas * np.sqrt(n * p * (1 - p))


def test_masking_is_15_percent_as_80_10_10_and_never_special():
    config = _config("masked_lm", 512)
    tokenizer, what = _made(config, ["text"])
    special = set(tokenizer.specials.values())
    rng = np.random.default_rng(0)
    total = as_mask = kept = 0
    where, drawn = Counter(), Counter()
    for _ in range(400):
        row = _row(tokenizer, rng)
        ordinary = int((~np.isin(row["tokens"], list(special))).sum())
        out = what.row(row, rng)
        n = int(out["masked_weights"].sum())
        assert n == round(0.15 * ordinary)
        assert out["masked_positions"].shape == (77,)  # ceil(0.15 * 512)
        assert not out["masked_positions"][n:].any() and not out["masked_weights"][n:].any()
        places = out["masked_positions"][:n]
        assert (np.diff(places) > 0).all()
        assert np.array_equal(out["masked_targets"][:n], row["tokens"][places])
        assert not special & set(out["masked_targets"][:n].tolist())
        untouched = np.setdiff1d(np.arange(512), places)
        assert np.array_equal(out["tokens"][untouched], row["tokens"][untouched])
        shown = out["tokens"][places]
        hidden, same = shown == tokenizer.special("[MASK]"), shown == row["tokens"][places]
        total, as_mask, kept = total + n, as_mask + hidden.sum(), kept + same.sum()
        drawn.update(shown[~hidden & ~same].tolist())
        where.update(places.tolist())
    assert not special & set(drawn)
    assert _near(as_mask, total, 0.8)
    assert _near(kept, total, 0.1 + 0.1 / 256)  # a random token may be the one that was there
    assert _near(sum(drawn.values()), total, 0.1 * 255 / 256)
    expected = total * 0.1 / 256
    chi2 = sum((drawn[i] - expected) ** 2 / expected for i in range(256))
    assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)  # each as often
    counts = [where[i] for i in range(1, 255)]
    assert all(_near(k, 400, total / 400 / ordinary) for k in counts)  # anywhere alike


def test_electra_hides_all_that_is_chosen():
    tokenizer, what = _made(_config("replaced_token_detection", 512), ["text"])
    rng = np.random.default_rng(0)
    out = what.row(_row(tokenizer, rng), rng)
    places = out["masked_positions"][out["masked_weights"] > 0]
    assert (out["tokens"][places] == tokenizer.special("[MASK]")).all()


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "sentencepiece", "bytes", "chars"])
@pytest.mark.parametrize("objective", ["masked_lm", "albert"])
def test_whole_words_are_masked_whole(objective, name, tmp_path):
    config = _config(objective, 64)
    config.objective.whole_word = objective == "masked_lm"
    docs = [text.title() for text in _docs(60)]
    config.tokenizer.name, config.tokenizer.vocab_size = name, 60
    if name == "bpe":
        config.tokenizer.vocab_size = 280
    if name == "sentencepiece":
        config.tokenizer.path = _sentencepiece(docs, tmp_path)
    tokenizer, what = _made(config, docs)
    pieces, rng = tokenizer.pieces(), np.random.default_rng(0)
    continued = sum(map(len, map(tokenizer.encode, docs))) / len(" ".join(docs).split())
    assert continued > 1.5  # words of several tokens
    counted = 0
    for text in docs:
        ids = tokenizer.encode(text)[:62]
        row = {"tokens": np.concatenate([[tokenizer.bos_id], ids, [tokenizer.eos_id]])}
        row["segment_ids"] = np.ones_like(row["tokens"])
        out = what.row(row, rng)
        places = set(out["masked_positions"][out["masked_weights"] > 0].tolist())
        counted += len(places)
        for i in range(2, len(row["tokens"]) - 1):
            piece = pieces[row["tokens"][i]]
            if name == "wordpiece":
                inside = piece.startswith("##")
            else:
                inside = piece[0] not in "▁Ġ "
            if inside:
                assert (i in places) == (i - 1 in places)
    tokens = sum(min(62, len(tokenizer.encode(text))) for text in docs)
    assert 0.5 * 0.15 * tokens < counted <= 0.16 * tokens  # long words do not fit small budgets


def _sentencepiece(docs, folder):
    import sentencepiece

    (folder / "text.txt").write_text("\n".join(docs))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=36,
        minloglevel=2, hard_vocab_limit=False,
    )
    return str(folder / "m.model")


def test_as_many_are_masked_as_berts_code_has_it():
    """create_pretraining_data.py: max(1, int(round(n * 0.15))), at most what a row has room for."""
    tokenizer, what = _made(_config("masked_lm", 64), ["text"])
    rng = np.random.default_rng(0)
    for n in range(1, 63):
        tokens = np.pad(rng.integers(0, 256, n), 1, constant_values=tokenizer.bos_id)
        chosen = what.row.choose(tokens, np.ones(n + 2, int), rng)
        assert len(chosen) == len({*chosen}) == max(1, int(round(n * 0.15)))


def test_ngrams_follow_one_over_n():
    """ALBERT, 3.1: p(n) = (1/n) / sum_k 1/k, n up to 3; each place alike."""
    config = _config("albert", 512)
    tokenizer, what = _made(config, ["text"])
    rng = np.random.default_rng(0)
    lengths, places = Counter(), Counter()
    for _ in range(1500):
        spans_ = sorted(what.row._ngrams(400, 60, rng))
        assert all(a[1] <= b[0] for a, b in zip(spans_, spans_[1:], strict=False))
        assert 0 <= spans_[0][0] and spans_[-1][1] <= 400
        lengths.update(end - begin for begin, end in spans_)
        places.update(i for begin, end in spans_ for i in range(begin, end))
    total = sum(lengths.values())
    assert set(lengths) == {1, 2, 3}
    for n, p in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):
        # The last n-gram is the one that passes the budget, which favours long ones a little.
        assert abs(lengths[n] / total - p) < 0.01
    middle = [places[i] for i in range(10, 390)]
    assert np.std(middle) / np.mean(middle) < 0.1
    # In rows: one-token words, so that an n-gram is a run of n positions unless two touch.
    runs, rows, masked_tokens = Counter(), 300, 0
    for _ in range(rows):
        row = _row(tokenizer, rng, chosen=[ord(" ")])
        out = what.row(row, rng)
        at = out["masked_positions"][out["masked_weights"] > 0]
        masked_tokens += len(at)
        runs.update(map(len, np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)))
    assert masked_tokens / rows > 0.98 * round(0.15 * (512 - 40 - 3))
    share = runs[3] / runs[1]
    assert 0.2 < share < 0.6 and max(runs) > 3


def test_span_corruption_of_512_tokens_has_the_papers_numbers():
    config = _config("span_corruption", 512)
    _, what = _made(config, ["text"])
    # random_spans_helper: 568 tokens -> 512 in, 114 out; here the last sentinel comes to them.
    assert what.stride == 568
    assert what.lengths(config) == {"encoder_tokens": 512} | dict.fromkeys(
        ("tokens", "targets", "weights"), 115
    )
    rng = np.random.default_rng(0)
    found = [span_corruption.noise_mask(568, config.objective, rng) for _ in range(2000)]
    lengths = []
    for mask in found:
        assert mask.sum() == 85 and not mask[0] and mask[-1]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
        ones = edges[1::2] - edges[::2]
        assert len(ones) == 28
        lengths += ones.tolist()
    assert np.mean(lengths) == pytest.approx(85 / 28)
    # A span's length when 85 are cut in 28 at random: p(1) = C(83, 26) / C(84, 27) = 27 / 84.
    assert _near(lengths.count(1), len(lengths), 27 / 84)
    rates = np.mean(found, axis=0)[20:-20]
    assert rates.min() > 0.08 and rates.max() < 0.22  # every place, but for the ends


@pytest.mark.parametrize(
    ("inputs", "window", "targets"),
    [(64, 70, 14), (128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)],
)
def test_windows_are_those_of_t5s_random_spans_helper(inputs, window, targets):
    """By hand from its definition: of n tokens round(0.15 n) are noise, in round(that / 3) spans;
    inputs are kept + spans + 1, targets noise + spans + 1, n the most that fits.
    """
    config = _config("span_corruption", inputs)
    tokenizer, what = _made(config, ["text"])
    assert what.stride == window
    assert what.lengths(config)["targets"] == targets + 1  # the last sentinel, as in its figure 2
    example = what.example(np.zeros(window, np.uint16), np.random.default_rng(0), None)
    noise, spans = round(0.15 * window), round(round(0.15 * window) / 3)
    sentinels = example["encoder_tokens"] > 258
    assert sentinels.sum() == spans and (~sentinels).sum() == window - noise + 1
    assert (example["targets"] == 0).sum() == noise


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.3, 8.0), (0.15, 1.0)])
def test_span_corruption_can_be_undone(rate, mean):
    config = _config("span_corruption", 64)
    config.objective.mask_rate, config.objective.span_length = rate, mean
    tokenizer, what = _made(config, ["text"])
    sentinels = {tokenizer.special(f"<extra_id_{i}>"): i for i in range(100)}
    rng = np.random.default_rng(0)
    for n in [*range(2, what.stride + 1)] * 3:
        window = rng.integers(0, 256, n)
        example = what.example(window.astype(np.uint16), rng, None)
        inputs, targets = example["encoder_tokens"].tolist(), example["targets"].tolist()
        assert len(inputs) <= 64 and len(targets) <= what.lengths(config)["targets"]
        if n == what.stride:  # full
            assert len(inputs if rate < 0.5 else targets) in (63, 64)
            assert len(targets) == what.lengths(config)["targets"]
        assert example["tokens"].tolist() == [tokenizer.bos_id, *targets[:-1]]
        assert (example["weights"] == 1).all()
        assert inputs.pop() == targets.pop() == tokenizer.eos_id
        spans_, current = {}, None
        for token in targets:
            if token in sentinels:
                assert sentinels[token] == len(spans_)  # in order, each once
                current = spans_[token] = []
            else:
                current.append(token)
        assert spans_.pop(targets[-1]) == []  # the last sentinel ends it
        assert [sentinels[t] for t in inputs if t in sentinels] == list(range(len(spans_)))
        assert all(spans_.values())
        text = [t for token in inputs for t in spans_.get(token, [token])]
        assert text == window.tolist()


def test_t5s_sentinels_are_named_and_ordered_as_published(tmp_path):
    config = _config("span_corruption", 64)
    config.tokenizer.name = "sentencepiece"
    config.tokenizer.path = _sentencepiece(_docs(60), tmp_path)
    tokenizer, _ = _made(config, [])
    assert tokenizer.special("<extra_id_0>") == tokenizer.vocab_size - 1
    assert tokenizer.special("<extra_id_99>") == tokenizer.vocab_size - 100


def test_prefix_lm_learns_what_follows_the_prefix():
    config = _config("prefix_lm", 16)
    tokenizer, what = _made(config, ["text"])
    rng, found = np.random.default_rng(0), Counter()
    for _ in range(3000):
        s = np.concatenate([[tokenizer.bos_id], rng.integers(0, 256, 16)])
        example = what.example(s, rng, None)
        (k,) = example["prefix"]
        assert np.array_equal(example["tokens"], s[:-1])
        assert np.array_equal(example["targets"], s[1:])
        learned = example["targets"][example["weights"] > 0]
        assert np.array_equal(learned, s[k:])  # nothing that the prefix shows
        found[int(k)] += 1
    assert set(found) == set(range(1, 17))
    assert all(_near(n, 3000, 1 / 16) for n in found.values())


def _pairs_of(batches, tokenizer):
    for batch in batches:
        for i, row in enumerate(batch["tokens"]):
            real = batch["segment_ids"][i] > 0
            tokens = row[real].copy()
            used = batch["masked_weights"][i] > 0
            tokens[batch["masked_positions"][i][used]] = batch["masked_targets"][i][used]
            yield tokens, batch["types"][i][real], int(batch["next_sentence"][i])


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_sentence_pairs(name):
    config = _config(name, 64)
    # Each document counts up from a number of its own, so that a token tells where it is from.
    docs = ["".join(chr(i * 40 + j) for j in range(40)) * 30 for i in range(40, 80)]
    config.tokenizer.name = "chars"
    tokenizer = making.build_tokenizer(config, docs)
    iterator = making.train_iterator(config, tokenizer, docs)
    labels = []
    for tokens, types, label in _pairs_of((next(iterator) for _ in range(250)), tokenizer):
        ends = np.flatnonzero(tokens == tokenizer.eos_id)
        assert tokens[0] == tokenizer.bos_id and len(ends) == 2 and ends[1] == len(tokens) - 1
        assert np.array_equal(types, np.arange(len(tokens)) > ends[0])
        a, b = tokens[1 : ends[0]], tokens[ends[0] + 1 : -1]
        assert len(a) and len(b)
        joined = np.diff(np.concatenate([a, b])) % 40 == 1
        assert np.delete(joined, len(a) - 1).all()  # each is a stretch of text
        same_document = a[0] // 40 == b[0] // 40
        if name == "bert":
            assert same_document == (label == 0)
            assert joined[len(a) - 1] or label == 1
        else:
            assert same_document
            first, second = (a, b) if label == 0 else (b, a)
            assert (second[0] - first[-1]) % 40 == 1
        labels.append(label)
    assert _near(sum(labels), len(labels), 0.5)


def test_sentences_are_cut_at_their_ends():
    config = _config("bert", 128)
    tokenizer, what = _made(config, ["text"])
    rng = np.random.default_rng(0)
    for text in _docs(50):
        ids = tokenizer.encode(text)[:125]
        other = tokenizer.encode(" or. but. no. yes. maybe." * 12)
        example = what.example(ids, rng, lambda n: other[:n])  # noqa: B023
        begin = int(np.argmax(example["types"]))  # of B; before it the last of A and [SEP]
        if "." in text[: len(ids) - 1]:
            assert example["tokens"][begin - 2] == ord(".")
            assert example["tokens"][begin] == ord(" ") or example["next_sentence"][0] == 0


def test_alberts_segments_are_whole_sentences():
    config, docs = _config("albert", 128), _docs(60)
    tokenizer = making.build_tokenizer(config, docs)
    starts = set()
    for tokens, types, _ in _pairs_of(making.eval_batches(config, tokenizer, docs), tokenizer):
        a, b = tokens[types == 0][1:-1], tokens[types == 1][:-1]
        text = [tokenizer.decode(part) for part in (a, b)]
        if (text[0] + text[1]).count(".") >= 3:  # else there were no two whole sentences
            assert all(part.endswith(".") for part in text)
            assert all(part.lstrip().split()[0].strip(".") in WORDS for part in text)
        starts.update(part for part in text if not part.startswith(" "))
    assert starts & {doc[: len(part)] for doc in docs for part in starts}  # their first, too


def test_one_document_gives_random_seconds_from_itself():
    config = _config("bert")
    tokenizer = making.build_tokenizer(config, [])
    labels = [label for _, _, label in _pairs_of(
        making.eval_batches(config, tokenizer, [" ".join(_docs())]), tokenizer)]
    assert 0.2 < np.mean(labels) < 0.8


def test_seq2seq_examples():
    config = _config("seq2seq", 16)
    config.data.target_length, config.objective.prefix = 8, "to: "
    tokenizer, what = _made(config, _docs(pairs=True))
    example = what.example({"source": "source", "target": "target"}, None, None)
    eos, bos = tokenizer.eos_id, tokenizer.bos_id
    assert example["encoder_tokens"].tolist() == [*b"to: source", eos]
    assert example["tokens"].tolist() == [bos, *b"target"]
    assert example["targets"].tolist() == [*b"target", eos]
    assert example["weights"].tolist() == [1] * 7
    piece = {"source": "a source too long", "target": "a target too long"}
    example = what.example(piece, None, None)
    assert example["encoder_tokens"].tolist() == [*b"to: a source to", eos]
    assert example["targets"].tolist() == [*b"a target"]  # no end: there was more
    assert example["tokens"].tolist() == [bos, *b"a targe"]
    docs = _docs(pairs=True)
    config.model.max_length = config.data.target_length = 128
    seen = []
    for batch in making.eval_batches(config, tokenizer, docs):
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                there = batch["encoder_segment_ids"][row] == segment
                here = batch["segment_ids"][row] == segment
                assert np.array_equal(batch["encoder_positions"][row][there], range(there.sum()))
                seen.append((tokenizer.decode(batch["encoder_tokens"][row][there])[4:],
                             tokenizer.decode(batch["targets"][row][here])))
    assert sorted(seen) == sorted(docs)


def _same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", every(2, KIND))
@pytest.mark.parametrize("packing", ["first_fit", "none"])
def test_batches_are_decided_by_the_seed_and_resume(name, packing):
    if packing == "first_fit" and name in ("bert", "albert", "prefix_lm"):
        with pytest.raises(ConfigError, match="data.packing='first_fit': .* needs 'none'"):
            making.objective(_config(name, packing=packing))
        return
    config, docs = _config(name, packing=packing), _docs(pairs=name in PAIRS)
    tokenizer = making.build_tokenizer(config, docs)
    start = lambda: making.train_iterator(config, tokenizer, docs)
    iterator, states, batches = start(), [], []
    for _ in range(30):  # several epochs
        states.append(json.dumps(iterator.get_state()))
        batches.append(next(iterator))
    lengths = making.objective(config).examples.lengths(config)
    for batch in batches:
        assert {len(values) for values in batch.values()} == {4}
        for field, n in lengths.items():  # with one example a row, no longer than needed
            assert batch[field].shape[1] == n or packing == "none" and batch[field].shape[1] < n
        assert {batch[field].dtype for field in batch} <= {np.dtype("int32"), np.dtype("float32")}
        assert batch["segment_ids"].shape == batch["positions"].shape == batch["tokens"].shape
        padding = batch["segment_ids"] == 0
        assert (batch["tokens"][padding] == tokenizer.pad_id).all()
        if "weights" in batch:
            assert not batch["weights"][padding].any()
    again = start()
    assert all(_same(next(again), batch) for batch in batches)
    for i in range(0, 30, 4):
        again = start()
        again.set_state(json.loads(states[i]))
        assert _same(next(again), batches[i])
    config.seed = 1
    assert not _same(next(start()), batches[0])
    key = "encoder_tokens" if name == "span_corruption" else "tokens"
    if name not in PAIRS:  # they do not change, but for their order
        assert len({batch[key].tobytes() for batch in batches}) == 30


@pytest.mark.parametrize("name", KIND)
def test_evaluation_is_always_the_same(name):
    config, docs = _config(name), _docs(7, pairs=name in PAIRS)
    tokenizer = making.build_tokenizer(config, docs)
    batches = making.eval_batches(config, tokenizer, docs)
    runs = [list(batches), list(batches), list(making.eval_batches(config, tokenizer, docs))]
    config.seed = 5
    runs.append(list(making.eval_batches(config, tokenizer, docs)))
    assert all(all(map(_same, run, runs[0])) for run in runs)
    halves = [lambda n: slice(0, n // 2), lambda n: slice(n // 2, n)]
    shares = [list(making.eval_batches(config, tokenizer, docs, rows)) for rows in halves]
    for batch, *parts in zip(runs[0], *shares, strict=True):
        joined = {k: np.concatenate([part[k] for part in parts]) for k in batch}
        assert _same(joined, batch)
    empty = runs[0][-1]["segment_ids"][:, 0] == 0  # rows that fill up the last batch
    for name_ in ("weights", "masked_weights"):
        if name_ in batch:
            assert not runs[0][-1][name_][empty].any()


def test_each_epoch_masks_afresh():
    config = _config("masked_lm", 64, packing="none")
    docs = ["one document of less than a row"]
    tokenizer = making.build_tokenizer(config, docs)
    config.data.batch_size = 1
    docs = docs * 3
    iterator = making.train_iterator(config, tokenizer, docs)
    assert len({next(iterator)["masked_positions"].tobytes() for _ in range(30)}) > 20


class _Source(list):
    """Not a list of documents to the pipeline: read as needed."""


@pytest.mark.parametrize("name", ["bert", "span_corruption", "masked_lm", "seq2seq"])
def test_large_sets_are_read_as_needed(name):
    from llm_jax.data.sources import Lazy, texts

    columns = {"source": "a", "target": "b"} if name == "seq2seq" else {"text": "a"}
    found = _docs(pairs=name == "seq2seq")
    records = [{"a": d[0], "b": d[1]} if name == "seq2seq" else {"a": d} for d in found]
    docs, config = Lazy(records, columns), _config(name)
    tokenizer = making.build_tokenizer(config, docs)
    plain = texts(docs)
    one = ["\n".join(doc) if name == "seq2seq" else doc for doc in found]
    assert [plain[i] for i in range(len(plain))] == one
    iterator = making.train_iterator(config, tokenizer, docs)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    batch = next(iterator)
    again = making.train_iterator(config, tokenizer, docs)
    again.set_state(state)
    assert _same(next(again), batch)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("masked_lm", {"model.kind": "decoder"},
         "model.kind='decoder': objective.name='masked_lm' needs 'encoder'; set model.kind=enc"),
        ("masked_lm", {"model.head": "lm"}, "model.head='lm': .* needs 'mlm'"),
        ("bert", {"model.pooler": False}, "model.pooler=False: .* needs True"),
        ("bert", {"model.num_labels": 3}, "model.num_labels=3: .* needs 2"),
        ("albert", {"model.type_vocab_size": 0}, "model.type_vocab_size=0"),
        ("prefix_lm", {"data.packing": "first_fit"}, "data.packing='first_fit'"),
        ("seq2seq", {"model.kind": "decoder"}, "model.kind='decoder'"),
        ("seq2seq", {"data.target_length": 99}, "data.target_length=99: .*max_length=32"),
        ("causal_lm", {"model.kind": "encoder"}, "model.kind='encoder'"),
        ("span_corruption", {"model.max_length": 3}, "model.max_length=3"),
        ("replaced_token_detection", {"model.generator_fraction": 0.0},
         "model.generator_fraction=0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, change, message):
    config = _config(name)
    config.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
        making.objective(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [("bert", r"tokenizer.specials: .* no '\[MASK\]'"), ("span_corruption", "'<extra_id_0>'")],
)
def test_a_tokenizer_without_the_specials_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        making.train_iterator(_config(name), tokenizers.Bytes(), ["some text"] * 99)


def test_a_mask_may_have_robertas_name():
    assert masked_lm.mask_id(tokenizers.Bytes(["<mask>"])) == 259


@pytest.mark.parametrize(
    "family", [albert, bert, distilbert, electra, gpt2, gpt3, llama, roberta, t5, transformer]
)
def test_every_recipe_fits_its_objective(family):
    for variant in family.VARIANTS:
        config = family.get_config(variant)
        assert making.objective(config).examples.lengths(config)["tokens"] > 0
