"""Tests of cleaning steps against reference libraries, brute force and constructed cases."""

import sys

import numpy as np
import pytest

from llm_jax.config import ConfigError
from llm_jax.data import cleaning

ENGLISH = "The keeper of the light went down to the shore, and that was all we have to tell. "


def cleaned(docs, *steps, split="train"):
    return list(cleaning.Cleaning(steps)([*docs], split))


def outcome(step, text):
    """Why a step leaves a text out; "" where it stays."""
    result = cleaning.made(step)({"text": text}, "train")
    return result if isinstance(result, str) else ""


BROKEN = "cafÃ© â€” na\u00efve &amp; “quoted” ﬁne\u0000 1\uff12"


def test_repair_is_ftfys_and_leaves_what_is_right_somewhere():
    ftfy = pytest.importorskip("ftfy")
    (doc,) = cleaned([{"text": BROKEN, "label": "Ã©"}], "ftfy")
    same = {"fix_character_width": False, "uncurl_quotes": False}
    assert doc == {"text": ftfy.fix_text(BROKEN, **same), "label": "Ã©"}
    assert doc["text"] == "café — na\u00efve & “quoted” fine 1\uff12"
    assert cleaned([{"text": "，“好”！", "label": "1"}], "ftfy")[0]["text"] == "，“好”！"


def test_repair_keeps_the_places_and_the_number_of_words():
    pytest.importorskip("ftfy")
    asked = {"context": "Ã© b", "question": "Ã©?", "answers": [{"text": "b", "answer_start": 3}]}
    (doc,) = cleaned([asked], "ftfy")
    assert doc == asked | {"question": "é?"}
    tagged = {"tokens": ["Ã©", "\u0007", "a"], "tags": ["X", "Ã©", "Y"]}
    (doc,) = cleaned([tagged], "ftfy")
    assert doc == {"tokens": ["é", "\u0007", "a"], "tags": tagged["tags"]}
    (doc,) = cleaned([{"messages": [{"role": "user", "content": "Ã©"}]}], "ftfy")
    assert doc == {"messages": [{"role": "user", "content": "é"}]}


def test_what_repair_leaves_nothing_of_is_left_out():
    pytest.importorskip("ftfy")
    assert cleaned([{"text": "\u0007"}, {"text": "a"}], "ftfy") == [{"text": "a"}]


@pytest.mark.parametrize(("kind", "found", "left"), [
    ("email", ["a.b+c@mail.example.org", "x_1@y.cn"], ["@user", "a@b", "at x dot y"]),
    ("ssn", ["219-09-9999"], ["000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567",
                              "123-45-0000", "1219-09-9999", "219-09-99991"]),
    # Test numbers that card networks publish; then one digit off, and an ISBN.
    ("card", ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6011111111111117"],
     ["4111 1111 1111 1112", "978-0-262-03561-3", "1234567890123456"]),
    ("ip", ["192.168.0.1", "8.8.8.8"], ["256.1.1.1", "1.2.3", "1.2.3.4.5", "v1.2.3.4"]),
    ("phone", ["+44 20 7946 0958", "+8613812345678", "(212) 555-0123", "212-555-0123",
               "1-212.555.0123", "13812345678"],
     ["2024-11-29", "1914-1918", "3.14159265", "12 300 000", "+5", "2125550"]),
])  # fmt: skip
def test_personal_data_is_found_and_nothing_else(kind, found, left):
    mark, words = f"[{kind.upper()}]", "Ask {} now, or ({})."
    for text in found:
        (doc,) = cleaned([{"text": words.format(text, text), "label": text}], f"pii:{kind}")
        assert doc == {"text": words.format(mark, mark), "label": text}
    for text in left:
        (doc,) = cleaned([{"text": words.format(text, text)}], f"pii:{kind}")
        assert doc["text"] == words.format(text, text)


def test_personal_data_is_not_shown_in_the_card():
    made = cleaning.Cleaning(["pii"])
    text = "a@b.org 4111111111111111 8.8.8.8 219-09-9999 +44 20 7946 0958"
    assert list(made([{"text": text}], "train")) == [{"text": "[EMAIL] [CARD] [IP] [SSN] [PHONE]"}]
    assert made.counts["pii", "train"] == {"changed": 1} and not made.shown


def test_stop_words_go_in_any_case(tmp_path):
    (tmp_path / "stop.txt").write_text("the\nof\n")
    step = f"stop_words:{tmp_path}/stop.txt"
    assert cleaned([{"text": "The end  of it"}, {"text": "of the"}], step) == [{"text": "end it"}]


@pytest.mark.parametrize(("n", "why"), [(49, "short"), (50, ""), (100_000, ""), (100_001, "long")])
def test_length_is_gophers(n, why):
    assert outcome("length", "a " * n) == outcome("length", "好" * n) == why


def lines(*counts):
    """Lines of ten words each, so many times."""
    each = [" ".join(f"w{i}x{j}" for j in range(10)) for i in range(len(counts))]
    return "\n".join(line for line, n in zip(each, counts, strict=True) for _ in range(n))


@pytest.mark.parametrize(("text", "why"), [
    (lines(*[1] * 9), ""),
    (lines(2, *[1] * 8), ""),
    (lines(5, *[1] * 5), "repeated lines"),
    (lines(*[1] * 40) + "\n\n".join(["", *["ab"] * 30]), "repeated lines"),  # few characters
    ("a long first paragraph\nof two lines\n\n" * 2 + lines(*[1] * 9), "repeated paragraphs"),
    ("word next " * 12 + lines(*[1] * 9), "one 2-gram"),
    ("q " * 300, "one 2-gram"),
    (lines(*[1] * 3).replace("\n", " ") * 2, "repeated 5-grams"),
    (ENGLISH, ""),
    ("a b c", ""),
])  # fmt: skip
def test_repetition_by_hand(text, why):
    assert outcome("repetition", text) == why


def slowly(text):
    """The rules of Rae 2021, table A1, from n-grams compared one with the other."""
    units = text.split()
    size = sum(map(len, units))
    grams = lambda n: [units[i : i + n] for i in range(len(units) - n + 1)]
    for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        most = max((grams(n).count(g) for g in grams(n)), default=0)
        often = [g for g in grams(n) if grams(n).count(g) == most]
        if most > 1 and most * sum(map(len, often[0])) > limit * size:
            return f"one {n}-gram"
    limits = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    for n, limit in limits.items():
        found = grams(n)
        again = [i for i, g in enumerate(found) if g in found[:i]]
        covered = {j for i in again for j in range(i, i + n)}
        if sum(len(units[j]) for j in covered) > limit * size:
            return f"repeated {n}-grams"
    return ""


def test_repetition_is_that_of_brute_force():
    rng, seen = np.random.default_rng(0), set()
    for i in range(56):
        text = rng.choice([f"w{x}" for x in range(rng.integers(3, 80))], 80).tolist()
        text[40 : 40 + i % 14] = text[10 : 10 + i % 14]
        text = " ".join(text)
        assert outcome("repetition", text) == slowly(text), text
        seen.add(slowly(text))
    assert len(seen) > 4


@pytest.mark.parametrize(("text", "why"), [
    (ENGLISH, ""),
    ("to be of " * 20, "mean word length"),
    (f"{ENGLISH} {'incomprehensibilities ' * 20}", "mean word length"),
    (ENGLISH + "# " * 3, "symbols"),
    (ENGLISH + "so … and … or … now", "symbols"),
    ("\n".join(f"- {ENGLISH}" for _ in range(9)), "bullets"),
    ("\n".join(f"- {ENGLISH}" for _ in range(9)) + f"\n{ENGLISH}", ""),
    ("\n".join([f"{ENGLISH.strip()} …"] * 4 + [ENGLISH] * 6), "ellipses"),
    ("\n".join([f"{ENGLISH.strip()} …"] * 3 + [ENGLISH] * 7), ""),
    (ENGLISH + "1234 " * 6, "no letters"),
    ("Keeper went down there, many people walked beside their horses.", "stop words"),
    ("The keeper went down there, many people walked beside the horses.", "stop words"),
    ("The keeper went down there, many people walked beside and away.", ""),
])  # fmt: skip
def test_quality_is_gophers(text, why):
    assert outcome("quality", text) == why


def test_stop_words_of_quality_are_asked_for_by_number():
    assert outcome("quality:0", "Keeper went down there") == ""


def test_exact_duplicates_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    docs = [{"source": a, "target": b} for a, b in rng.choice([*"abcdef"], (40, 2)).tolist()]
    first = [doc for i, doc in enumerate(docs) if doc not in docs[:i]]
    assert cleaned(docs, "exact") == first and 5 < len(first) < 40


def jaccard(a, b):
    shingles = lambda words: {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
    a, b = shingles(a), shingles(b)
    return len(a & b) / len(a | b)


@pytest.mark.parametrize(("kept", "n"), [(40, 100), (64, 100), (70, 100), (78, 100), (95, 100)])
def test_near_duplicates_are_found_as_often_as_their_exact_jaccard_says(kept, n):
    """1 - (1 - s^8)^14 of pairs, within four standard deviations of so many draws."""
    pytest.importorskip("datasketch")
    rng, found, expected = np.random.default_rng(kept), 0, []
    for _ in range(60):
        a = [f"w{x}" for x in rng.permutation(10**5)[: 2 * n]]
        a, b = a[:n], [*a[:kept], *a[n : 2 * n - kept]]
        expected.append(1 - (1 - jaccard(a, b) ** 8) ** 14)
        found += len(cleaned([{"text": " ".join(x)} for x in (a, b)], "near")) == 1
    spread = np.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(found - sum(expected)) <= 4 * spread + 1


TEXT = "it was a bright cold day in april and the clocks were striking thirteen"


@pytest.mark.parametrize(("one", "other", "left"), [
    ({"text": TEXT}, {"text": TEXT.upper().replace(" ", ", ")}, 1),
    ({"text": TEXT, "label": "0"}, {"text": TEXT, "label": "1"}, 1),
    ({"text": "好的" * 20}, {"text": "好的" * 20 + "。"}, 1),
    ({"text": "!!!"}, {"text": "???"}, 2),
    ({"text": "yes"}, {"text": "no"}, 2),
    ({"context": TEXT, "question": "What day was it?"},
     {"context": TEXT, "question": "Which month?"}, 2),
    ({"source": TEXT, "target": "es war ein kalter tag"}, {"source": TEXT, "target": "hell"}, 2),
    ({"tokens": TEXT.split(), "predicate": 1}, {"tokens": TEXT.split(), "predicate": 12}, 2),
    ({"text": TEXT, "pair": "b"}, {"text": "b", "pair": TEXT}, 2),
])  # fmt: skip
def test_near_duplicates_are_near_in_every_field(one, other, left):
    pytest.importorskip("datasketch")
    assert len(cleaned([one, other], "near")) == left
    exact = len(cleaned([one, other], "exact"))
    assert exact >= left


def test_held_out_sets_stay_as_they_are_and_train_has_none_of_them():
    clean = cleaning.Cleaning(["length:2", "exact"])
    held = [{"text": "a"}, {"text": "b c"}, {"text": "b c"}]
    assert list(clean(held, "test")) == held
    docs = [{"text": "a"}, {"text": "b c"}, {"text": "c d"}, {"text": "c d"}]
    assert list(clean(docs, "train")) == [{"text": "c d"}]
    assert clean.counts == {
        ("length:2", "test"): {"short": 1}, ("exact", "test"): {"as in test": 1},
        ("length:2", "train"): {"short": 1},
        ("exact", "train"): {"as in test": 1, "as in train": 1},
    }  # fmt: skip


@pytest.mark.parametrize(("step", "module"), [("ftfy", "ftfy"), ("near", "datasketch"),
                                              ("language:en", "lingua")])  # fmt: skip
def test_a_missing_library_is_named_before_anything_is_read(step, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"--clean={step.split(':')[0]}: needs .*requirements-ta"):
        cleaning.Cleaning([step])


@pytest.mark.parametrize("step", ["language", "language:english", "language:en:xx/de"])
def test_a_language_is_named_by_its_code(step):
    pytest.importorskip("lingua")
    with pytest.raises(ConfigError, match="must be like language:CODES .*codes such as en"):
        cleaning.Cleaning([step])


@pytest.mark.slow
def test_language_of_each_field():
    pytest.importorskip("lingua")
    english = "The weather has been wonderful all through this week."
    german = "Das Wetter ist die ganze Woche über wunderbar gewesen."
    pairs = [(english, german), (german, german), (english, english)]
    docs = [{"source": source, "target": target} for source, target in pairs]
    either, each = cleaning.Cleaning(["language:en/de"]), cleaning.Cleaning(["language:en:de"])
    assert list(either(docs, "train")) == docs
    assert list(each(docs, "train")) == docs[:1]
    found = {"en + de": 1, "de + de": 1, "en + en": 1}
    assert each.steps["language:en:de"].found["train"] == found
