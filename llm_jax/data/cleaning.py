"""Data cleaning: text repair, quality filters and deduplication, as named steps in STEPS.

A step maps (record, split) to the record, possibly changed, or to the reason for its removal, a
string. It reads the text of all fields. Words are separated by whitespace; each Chinese or Japanese
character is a word.
"""

import hashlib
import importlib
import inspect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType

from llm_jax.config import ConfigError
from llm_jax.data import files
from llm_jax.data.fields import Record, field, full

Step = Callable[[Record, str], Record | str]

PACKAGES = {"ftfy": "ftfy", "near": "datasketch", "language": "lingua-language-detector"}
LABELS = ("label", "tags", "answers")  # ignored when records are compared
SHOWN = 2  # documents per step shown in a data card
SHINGLE = 5  # words
BEGINNING = 1000  # characters used to detect the language
_HAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]|[^\s{_HAN}]+")
_BULLET = re.compile(r"\s*[-*•‣●○■▪➤]")
_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def words(text: str) -> list[str]:
    """Splits text at whitespace and around Chinese and Japanese characters."""
    return _WORD.findall(text)


def texts(record: Record) -> dict[str, str]:
    """Returns the text of each text field; several texts are joined by newlines."""
    found = {name: "\n".join(field(name).texts(value)) for name, value in record.items()}
    return {name: text for name, text in found.items() if text}


def repair() -> Step:
    """Unicode repair by ftfy, except for texts with answer offsets.

    Keeps full-width characters and curly quotes, which are correct in Chinese and German, say.
    """
    ftfy = _library("ftfy", "ftfy")
    how = ftfy.TextFixerConfig(fix_character_width=False, uncurl_quotes=False)
    return lambda record, split: _changed(record, lambda text: ftfy.fix_text(text, how))


def stop_words(file: str) -> Step:
    """Removes the words listed in a file, one per line, case-insensitively."""
    stop = {word.casefold() for word in files.lines(file)}
    rest = lambda text: " ".join(word for word in text.split() if word.casefold() not in stop)
    return lambda record, split: _changed(record, rest)


def luhn(text: str) -> bool:
    """Whether the digits of a text have a valid Luhn check digit (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return sum(digits[::2] + [sum(divmod(2 * d, 10)) for d in digits[1::2]]) % 10 == 0


# Rules for personal data: a pattern and a further check, applied in this order.
PERSONAL: dict[str, tuple[str, Callable[[str], bool]]] = {
    "email": (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", lambda text: True),
    # United States social security numbers, without numbers that are never assigned.
    "ssn": (r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])", lambda text: True),
    "card": (r"(?<![\w.])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|"
             r"\d{4}([ -])\d{6}\2\d{4,5})(?!\w)", luhn),
    "ip": (r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)",
           lambda text: all(int(part) < 256 for part in text.split("."))),
    # International numbers with a +, North American ones with separators, Chinese mobile numbers.
    "phone": (r"(?<![\w+.-])(?:\+\d{1,3}(?:[ .-]?(?:\(\d{1,4}\)|\d{1,4})){2,5}|"
              r"(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[.-]\d{4}|1[3-9]\d{9})(?![\w-])",
              lambda text: 8 <= sum(c.isdigit() for c in text) <= 15),
}  # fmt: skip


def scrub(*kinds: str) -> Step:
    """Replaces personal data by [EMAIL], [SSN], [CARD], [IP] or [PHONE], by rules.

    kinds: as email:card; default all. Does not detect names and addresses, and does not change
    texts with answer offsets.
    """
    if unknown := set(kinds) - PERSONAL.keys():
        raise ValueError(f"{min(unknown)!r} is not one of {', '.join(PERSONAL)}")
    chosen = [kind for kind in PERSONAL if kind in (kinds or PERSONAL)]
    rules = [(f"[{kind.upper()}]", re.compile(PERSONAL[kind][0], re.ASCII), PERSONAL[kind][1])
             for kind in chosen]  # fmt: skip

    def scrubbed(text: str) -> str:
        for mark, pattern, holds in rules:
            put = lambda m, mark=mark, holds=holds: mark if holds(m[0]) else m[0]
            text = pattern.sub(put, text)
        return text

    return lambda record, split: _changed(record, scrubbed)


def length(minimum: str = "50", maximum: str = "100000") -> Step:
    """Keeps documents of minimum to maximum words (default: Gopher; Rae 2021, appendix A.1.1)."""
    low, high = int(minimum), int(maximum)

    def step(record: Record, split: str) -> Record | str:
        n = len(words("\n".join(texts(record).values())))
        return "short" if n < low else "long" if n > high else record

    return step


def repetition() -> Step:
    """Removes repetitive documents by the limits of MassiveText (Rae 2021, table A1).

    Repeats are occurrences after the first; a character counts once, even if it is in several
    repeats. For the most frequent n-gram, which must occur twice, all occurrences count.
    """
    return lambda record, split: _repeats("\n".join(texts(record).values())) or record


def quality(minimum: str = "2") -> Step:
    """Gopher's quality rules for English (Rae 2021, A.1.1); minimum: number of stop words.

    Mean word length 3 to 10; at most 0.1 hashes or ellipses per word, 90 % of lines with a bullet,
    30 % ending in an ellipsis; a letter in 80 % of words; two of eight stop words.
    """
    least = int(minimum)
    return lambda record, split: _faults("\n".join(texts(record).values()), least) or record


def language(*codes: str) -> Step:
    """Keeps documents in these languages (ISO 639-1), by lingua, whose models use 1 GB of memory.

    en: every field; en/de: each field in one of them; en:de: the first field, and all others.
    `found`: the number of documents per split and language.
    """
    lingua = _library("lingua", "language")
    known = {name.lower() for name in dir(lingua.IsoCode639_1) if len(name) == 2}
    wanted = [{*code.split("/")} for code in codes]
    if not codes or not known.issuperset(set().union(*wanted)):
        raise ValueError(f"languages must be codes such as en: {', '.join(sorted(known))}")
    detect = lingua.LanguageDetectorBuilder.from_all_languages().build().detect_language_of

    def step(record: Record, split: str) -> Record | str:
        found = [detect(text[:BEGINNING]) for text in texts(record).values()]
        names = [tongue.iso_code_639_1.name.lower() if tongue else "none" for tongue in found]
        step.found[split][" + ".join(names)] += 1
        right = all(name in wanted[min(i, len(wanted) - 1)] for i, name in enumerate(names))
        return record if right else " + ".join(names)

    step.found = defaultdict(Counter)
    return step


def exact() -> Step:
    """Removes exact duplicates of earlier documents, ignoring labels; 16 bytes per document."""
    seen: dict[bytes, str] = {}

    def step(record: Record, split: str) -> Record | str:
        asked = sorted((name, value) for name, value in record.items() if name not in LABELS)
        return _first(seen, [_digest(_utf8(repr(asked)), 16)], split, record)

    return step


def near(bands: str = "14", rows: str = "8") -> Step:
    """Removes near duplicates of earlier documents, by MinHash of word 5-grams (Broder 1997).

    Documents whose fields have Jaccard similarities s are detected with probability
    1 - (1 - prod(s)^rows)^bands; defaults: FineWeb's (Penedo 2024), one half at s = 0.68. Ignores
    case and punctuation. The index has `bands` digests of 8 bytes per kept document.
    """
    b, r = int(bands), int(rows)
    blank = _library("datasketch", "near").MinHash(b * r)
    seen: dict[bytes, str] = {}

    def signature(text: str) -> list[bytes]:
        found = words(re.sub(r"[^\w\s]", " ", text.casefold())) or [text]
        starts = range(max(1, len(found) - SHINGLE + 1))
        made = blank.copy()
        made.update_batch({_utf8(" ".join(found[i : i + SHINGLE])) for i in starts})
        return [band.tobytes() for band in made.hashvalues.reshape(b, r)]

    def step(record: Record, split: str) -> Record | str:
        spoken = texts(record)
        other = {name: value for name, value in record.items() if name not in (*spoken, *LABELS)}
        signs = zip(*map(signature, spoken.values()), strict=True)
        keys = [_digest(b"".join([b"%d" % i, *sign, _utf8(repr(other))]), 8)
                for i, sign in enumerate(signs)]  # fmt: skip
        return _first(seen, keys, split, record)

    return step


STEPS: dict[str, Callable[..., Step]] = {
    "ftfy": repair, "length": length, "repetition": repetition, "quality": quality,
    "language": language, "exact": exact, "near": near, "stop_words": stop_words,
    "pii": scrub,
}  # fmt: skip


def made(text: str) -> Step:
    """Creates the step described by "NAME:ARGUMENT:…".

    Raises:
      ConfigError: an unknown name, an invalid argument, or a missing library.
    """
    name, *values = text.split(":")
    if name not in STEPS:
        raise ConfigError(f"--clean={text}: unknown step {name!r}; known: {', '.join(STEPS)}")
    try:
        return STEPS[name](*values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        usage = ":".join([name, *map(str.upper, inspect.signature(STEPS[name]).parameters)])
        raise ConfigError(f"--clean={text}: must be like {usage} ({error})") from error


class Cleaning:
    """Applies cleaning steps to the splits of a dataset, evaluation splits first.

    Evaluation splits are not changed, so that scores are comparable: only the effect of each step
    is counted, and their duplicates are removed from train.

    Attributes:
      counts: {(step, split): {"changed" or reason of removal: number of documents}}.
      shown: {step: {likewise: a document of train, before and after}}, SHOWN per step, except for
        personal data.
    """

    def __init__(self, steps: Sequence[str]):
        self.steps = {text: made(text) for text in steps}
        self.counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
        self.shown: dict[str, dict[str, tuple[Record, Record | str]]] = defaultdict(dict)

    def __call__(self, docs: Iterable[Record], split: str) -> Iterator[Record]:
        """Yields the cleaned documents of a split; call it for train last.

        Raises:
          ConfigError: no document of train is left.
        """
        left = 0
        for doc in docs:
            for name, step in self.steps.items():
                after = step(doc, split)
                if isinstance(after, dict) and not full(after):
                    after = "blank"
                left_out = isinstance(after, str)
                if left_out or after != doc:
                    why = after if left_out else "changed"
                    self.counts[name, split][why] += 1
                    secret = name.partition(":")[0] == "pii"
                    if split == "train" and not secret and len(self.shown[name]) < SHOWN:
                        self.shown[name].setdefault(why, (doc, after))
                if split == "train":
                    if left_out:
                        break
                    doc = after
            else:
                left += 1
                yield doc
        if split == "train" and not left:
            did = {step: dict(n) for (step, of), n in self.counts.items() if of == "train"}
            raise ConfigError(f"--clean: removes all documents of data.train ({did})")


def _library(name: str, step: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"--clean={step}: needs {PACKAGES[step]}: pip install -r "
                          "requirements-tasks.txt") from error


def _changed(record: Record, change: Callable[[str], str]) -> Record:
    """Applies `change` to the texts of a record; the number of tokens must not change."""

    def of(name: str, value):
        places = name == "context" and "answers" in record
        if places or not field(name).texts(value):
            return value
        if name == "messages":
            return [part | {"content": change(part["content"])} for part in value]
        if isinstance(value, list):
            return [change(token).strip() or token for token in value]
        return change(value)

    return {name: of(name, value) for name, value in record.items()}


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(raw: bytes, size: int) -> bytes:
    return hashlib.blake2b(raw, digest_size=size).digest()


def _first(seen: dict[bytes, str], keys: list[bytes], split: str, record: Record) -> Record | str:
    """Returns the record if none of its keys was seen before, and adds the keys."""
    if twin := next((seen[key] for key in keys if key in seen), ""):
        return f"as in {twin}"
    seen.update(dict.fromkeys(keys, split))
    return record


def _repeats(text: str) -> str:
    """Returns the first limit of table A1 that a text exceeds, or ""."""
    for name, between in (("lines", r"\n"), ("paragraphs", r"\n{2,}")):
        parts = [part.strip() for part in re.split(between, text) if part.strip()]
        again = len(parts) - len(set(parts))
        size = sum(map(len, parts))
        if again > 0.3 * len(parts) or size - sum(map(len, set(parts))) > 0.2 * size:
            return f"repeated {name}"
    units = words(text)
    sizes = [len(unit) for unit in units]
    for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        counts = Counter(zip(*(units[i:] for i in range(n)), strict=False))
        gram, count = next(iter(counts.most_common(1)), ((), 0))
        if count > 1 and count * sum(map(len, gram)) > limit * sum(sizes):
            return f"one {n}-gram"
    for n in range(5, 11):
        seen, inside = set(), bytearray(len(units))
        for i, gram in enumerate(zip(*(units[i:] for i in range(n)), strict=False)):
            if gram in seen:
                inside[i : i + n] = b"\1" * n
            seen.add(gram)
        if sum(itertools.compress(sizes, inside)) > (20 - n) / 100 * sum(sizes):
            return f"repeated {n}-grams"
    return ""


def _faults(text: str, stop: int) -> str:
    """Returns the first of Gopher's rules that a text violates, or ""."""
    units, lines = words(text), [line for line in text.splitlines() if line.strip()]
    n = len(units) or 1
    ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    ellipses = text.count("...") + text.count("…")
    rules = {
        "mean word length": not 3 <= sum(map(len, units)) / n <= 10,
        "symbols": max(text.count("#"), ellipses) > 0.1 * n,
        "bullets": sum(bool(_BULLET.match(line)) for line in lines) > 0.9 * len(lines),
        "ellipses": ends > 0.3 * len(lines),
        "no letters": sum(any(c.isalpha() for c in unit) for unit in units) < 0.8 * n,
        "stop words": len(_STOP_WORDS & {unit.lower() for unit in units}) < stop,
    }
    return next((name for name, broken in rules.items() if broken), "")
