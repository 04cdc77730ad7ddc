"""Synthetic tasks that separate attention variants, generated on the fly.

A task is named by `task:NAME?option=value&option=value`, as `task:recall?pairs=8&length=128`; TASKS
lists them, and their dataclass fields are the options. An example is a pure function of (task,
seed, split, index), so nothing is stored and access is random.
"""

import contextlib
import hashlib
import itertools
import math
import random
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.examples import Part, Record

PREFIX = "task:"
SPLITS = ("train", "validation", "test")
COUNTS = {"train": 2**20, "validation": 1000, "test": 1000}  # defaults of `examples`
TRIES = 10_000  # draws for an example before the task is considered impossible

# (words, indices of the words to predict); None: draw again.
Drawn = tuple[list[str], Collection[int]] | None


def _option(default, low, high):
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Task:
    """Base class of tasks; a subclass defines options, vocabulary and examples.

    Raises:
      ValueError: incompatible options.
    """

    length: int = _option(128, 2, 2**20)
    examples: int = _option(0, 0, 2**31)  # per epoch or evaluation; 0: COUNTS

    def words(self) -> list[str]:
        """Returns the vocabulary, which must not depend on the length."""
        raise NotImplementedError

    def longest(self) -> int:
        """Returns the number of words of the longest example."""
        return self.length

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draws an example; None if the draw is invalid."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Recall(Task):
    """Multi-query associative recall (Zoology: Arora 2023, arXiv:2312.04927, section 3 and E).

    `pairs` keys with their values, followed by `queries` of those keys, each followed by its value,
    which is predicted; '.' fills the gaps. Position g of a query is drawn with probability
    proportional to g^(power - 1): 0.01 as published, 1 uniform. Half of the vocabulary are keys.
    As published, keys are queried once; if there are more queries than pairs, they are drawn
    independently. min_pairs: the number of pairs is min_pairs, doubled zero or more times up to
    `pairs`, uniformly; 0: always `pairs`.
    """

    pairs: int = _option(8, 1, 2**16)
    min_pairs: int = _option(0, 0, 2**16)
    queries: int = _option(8, 1, 2**16)
    vocab: int = _option(64, 4, 2**17)
    power: float = _option(0.01, 0.001, 1.0)

    def words(self):
        return [f"{kind}{i}" for kind in "kv" for i in range(self.vocab // 2)] + ["."]

    def __post_init__(self):
        if self.min_pairs > self.pairs:
            raise ValueError(f"min_pairs={self.min_pairs} must be at most pairs={self.pairs}")
        if self.pairs > self.vocab // 2:
            raise ValueError(f"pairs={self.pairs} must be at most vocab / 2 = {self.vocab // 2}")
        if (need := 2 * (self.pairs + self.queries)) > self.length:
            raise ValueError(f"length={self.length} must be at least 2 (pairs + queries) = {need}")

    def draw(self, rng):
        pairs = self.pairs
        if self.min_pairs:
            pairs = self.min_pairs << int(rng.integers((pairs // self.min_pairs).bit_length()))
        keys, values = (rng.choice(self.vocab // 2, pairs, replace=False) for _ in "kv")
        words = ["."] * self.length
        words[: 2 * pairs : 2] = [f"k{i}" for i in keys]
        words[1 : 2 * pairs : 2] = [f"v{i}" for i in values]
        places = np.arange(1, self.length // 2 - pairs + 1)
        p = places ** (self.power - 1)
        chosen = rng.choice(places, self.queries, replace=False, p=p / p.sum())
        asked = rng.choice(pairs, self.queries, replace=self.queries > pairs)
        starts = (2 * (pairs + chosen - 1)).tolist()
        for start, pair in zip(starts, asked, strict=True):
            words[start : start + 2] = f"k{keys[pair]}", f"v{values[pair]}"
        return words, {start + 1 for start in starts}


@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """Induction heads (Olsson 2022, arXiv:2209.11895; as in H3 and Mamba, arXiv:2312.00752, 4.1.2).

    Random words with one '*' at a random position, and another '*' at the end; the word after the
    first '*' is predicted. Published: vocab 16, length 256 in training, up to 2^20 in evaluation.
    """

    length: int = _option(256, 4, 2**20)
    vocab: int = _option(16, 2, 2**16)

    def words(self):
        return [*map(str, range(self.vocab)), "*"]

    def draw(self, rng):
        words = [str(i) for i in rng.integers(self.vocab, size=self.length)]
        first = int(rng.integers(self.length - 3))
        words[first] = words[-2] = "*"
        words[-1] = words[first + 1]
        return words, {self.length - 1}


@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(Task):
    """Selective copying (Mamba: Gu & Dao 2023, arXiv:2312.00752, 4.1.1).

    `tokens` random words at random positions among '.', then ':' and these words in order, which
    are predicted. Published: vocab 16, 16 tokens, length 4096.
    """

    tokens: int = _option(8, 1, 2**16)
    vocab: int = _option(16, 2, 2**16)

    def words(self):
        return [*map(str, range(self.vocab)), ".", ":"]

    def __post_init__(self):
        if (need := 2 * self.tokens + 1) > self.length:
            raise ValueError(f"length={self.length} must be at least 2 tokens + 1 = {need}")

    def draw(self, rng):
        noise = self.length - self.tokens - 1
        data = [str(i) for i in rng.integers(self.vocab, size=self.tokens)]
        words = ["."] * noise
        places = np.sort(rng.choice(noise, self.tokens, replace=False))
        for place, word in zip(places, data, strict=True):
            words[place] = word
        return [*words, ":", *data], range(noise + 1, self.length)


@dataclass(frozen=True, kw_only=True)
class ListOps(Task):
    """ListOps (Nangia & Bowman 2018, arXiv:1804.06028; Long Range Arena: Tay 2020, 2.2.1).

    A nested expression of MIN, MAX, MED (rounded down) and SM (sum modulo 10), then '=' and its
    value, a digit. An argument is a list with probability 1/4, up to `depth` levels, and otherwise
    a digit; a list has 2 to `args` arguments. Expressions of min_length to length words are kept.
    Published: depth 10, args 10, length 500 to 2000.
    """

    length: int = _option(2000, 4, 2**17)
    min_length: int = _option(500, 4, 2**17)
    depth: int = _option(10, 2, 100)
    args: int = _option(10, 2, 100)

    def words(self):
        return [*map(str, range(10)), *self.operators, "]", "="]

    operators = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda values: int(statistics.median(values)),
        "[SM": lambda values: sum(values) % 10,
    }

    def longest(self):
        return self.length + 2

    def __post_init__(self):
        if self.min_length > self.length:
            raise ValueError(f"min_length={self.min_length} must be at most length={self.length}")

    def draw(self, rng):
        # Python's generator is many times faster than NumPy's for single numbers.
        words: list[str] = []
        value = self._list(random.Random(int(rng.integers(2**63))), 1, words)
        if not self.min_length <= len(words) <= self.length:
            return None
        return [*words, "=", str(value)], {len(words) + 1}

    def _list(self, draw: random.Random, level: int, words: list[str]) -> int:
        operator = draw.choice(list(self.operators))
        words.append(operator)
        values = []
        for _ in range(draw.randint(2, self.args)):
            if len(words) > self.length:
                return 0  # the expression is too long and is discarded
            if level + 1 < self.depth and draw.random() < 0.25:
                values.append(self._list(draw, level + 1, words))
            else:
                values.append(draw.randrange(10))
                words.append(str(values[-1]))
        words.append("]")
        return self.operators[operator](values)


@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """A needle in a haystack (RULER: Hsieh 2024, arXiv:2404.06654, section 3, NIAH).

    `needles` keys, each followed by its value, at random positions among random words; at the end
    one of the keys, whose value is predicted. This key is at relative `depth`, from 0 (start) to 1;
    below 0: random.
    """

    length: int = _option(256, 8, 2**20)
    needles: int = _option(1, 1, 2**16)
    keys: int = _option(16, 1, 2**16)
    vocab: int = _option(16, 2, 2**16)
    depth: float = _option(-1.0, -1.0, 1.0)

    def words(self):
        kinds = {"k": self.keys, "v": self.vocab, "w": self.vocab}
        return [f"{kind}{i}" for kind, n in kinds.items() for i in range(n)]

    def __post_init__(self):
        if self.needles > self.keys:
            raise ValueError(f"needles={self.needles} must be at most keys={self.keys}")
        if (need := 2 * self.needles + 2) > self.length:
            raise ValueError(f"length={self.length} must be at least 2 needles + 2 = {need}")

    def draw(self, rng):
        places = self.length - 2 - self.needles  # one for each needle or word
        chosen = rng.choice(places, self.needles, replace=False)
        if self.depth >= 0:
            at = round(self.depth * (places - 1))
            chosen = np.append(at, rng.permutation(np.setdiff1d(chosen, at))[: self.needles - 1])
        keys = rng.choice(self.keys, self.needles, replace=False)
        values = rng.integers(self.vocab, size=self.needles)
        needles = {p: f"k{k} v{v}" for p, k, v in zip(chosen, keys, values, strict=True)}
        noise = rng.integers(self.vocab, size=places)
        hay = " ".join(needles.get(place, f"w{noise[place]}") for place in range(places)).split()
        return [*hay, f"k{keys[0]}", f"v{values[0]}"], {len(hay) + 1}


@dataclass(frozen=True, kw_only=True)
class Permutations(Task):
    """State tracking: the word problem of a symmetric group (Merrill 2024, arXiv:2404.08819).

    1 to `length` - 2 permutations of n elements, then '=' and their product, applied from left to
    right. n=2 is parity; n=5 is as hard as any regular language (Barrington 1989).
    """

    length: int = _option(18, 3, 2**17)
    n: int = _option(3, 2, 6)

    def words(self):
        return ["=", *("p" + "".join(map(str, p)) for p in itertools.permutations(range(self.n)))]

    def draw(self, rng):
        count = int(rng.integers(1, self.length - 1))
        drawn = [rng.permutation(self.n) for _ in range(count)]
        state = np.arange(self.n)
        for permutation in drawn:
            state = permutation[state]
        return ["p" + "".join(map(str, p)) if p is not None else "=" for p in
                [*drawn, None, state]], {count + 1}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Modular(Task):
    """Modular arithmetic without brackets (Deletang 2022, arXiv:2207.02098, table 1).

    1 to `numbers` numbers below `base` joined by +, - and *, with the usual precedence, then '='
    and the value modulo base.
    """

    numbers: int = _option(8, 1, 2**16)
    base: int = _option(5, 2, 100)

    def words(self):
        return [*map(str, range(self.base)), *"+-*="]

    def longest(self):
        return 2 * self.numbers + 1

    def draw(self, rng):
        numbers = rng.integers(self.base, size=rng.integers(1, self.numbers + 1)).tolist()
        operators = rng.choice(list("+-*"), len(numbers) - 1).tolist()
        terms = [numbers[0]]
        for operator, number in zip(operators, numbers[1:], strict=True):
            if operator == "*":
                terms[-1] = terms[-1] * number % self.base
            else:
                terms.append(number if operator == "+" else -number)
        words = [str(numbers[0])]
        for operator, number in zip(operators, numbers[1:], strict=True):
            words += [operator, str(number)]
        return [*words, "=", str(sum(terms) % self.base)], {len(words) + 1}


TASKS: dict[str, type[Task]] = {
    "recall": Recall, "induction": Induction, "selective_copy": SelectiveCopy, "listops": ListOps,
    "needle": Needle, "permutations": Permutations, "modular": Modular,
}  # fmt: skip


class Examples(Sequence):
    """The documents of a split of a task: records of parts.

    Splits are disjoint for all seeds: the hash of a document determines its split (train 6/8,
    validation and test 1/8 each), and documents of other splits are redrawn.
    """

    mean = 2048  # nominal tokens per document: keeps chunks small, as examples are slow to draw

    def __init__(self, task: Task, split: str, seed: int):
        self.task, self.split, self.seed = task, split, seed

    def __len__(self) -> int:
        return self.task.examples or COUNTS[self.split]

    def __getitem__(self, i: int) -> Record:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), i % len(self)))
        for _ in range(TRIES):
            drawn = self.task.draw(rng)
            text = " ".join(drawn[0]) if drawn else ""
            place = hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8
            if drawn and {0: "validation", 1: "test"}.get(place, "train") == self.split:
                return {"parts": _parts(*drawn)}
        raise ConfigError(f"data.{self.split}: {self.task} found no example in {TRIES:,} draws; "
                          "increase its length")


def _parts(words: list[str], answers: Collection[int]) -> tuple[Part, ...]:
    runs = itertools.groupby(range(len(words)), lambda i: i in answers)
    parts = [Part(" ".join(words[i] for i in run), scored) for scored, run in runs]
    return (*parts, Part("", False))  # the end of the text is not predicted


def parse(spec: str, key: str) -> Task:
    """Parses a task spec; ConfigError names `key` and the allowed values."""
    name, _, text = spec.removeprefix(PREFIX).partition("?")
    if name not in TASKS:
        raise ConfigError(f"{key}={spec!r}: unknown task {name!r}; known: {', '.join(TASKS)}")
    known, options = {x.name: x for x in fields(TASKS[name])}, {}
    for item in filter(None, text.split("&")):
        option, _, value = item.partition("=")
        if option not in known:
            usual = ", ".join(f"{x.name}={x.default}" for x in known.values())
            raise ConfigError(f"{key}={spec!r}: task {name} has no option {option!r}; its options "
                              f"and defaults are {usual}")
        kind, (low, high) = known[option].type, known[option].metadata["range"]
        options[option] = math.nan
        with contextlib.suppress(ValueError):
            options[option] = kind(value)
        if not low <= options[option] <= high:
            what = "an integer" if kind is int else "a number"
            raise ConfigError(f"{key}={spec!r}: {option}={value!r} must be {what} from {low} "
                              f"to {high}")
    try:
        return TASKS[name](**options)
    except ValueError as error:
        raise ConfigError(f"{key}={spec!r}: {error}") from error


def read(config: ConfigDict, spec: str, split: str, parts: bool = True) -> Examples:
    """Returns the examples of the task `spec` for a split.

    parts: whether the objective supports records of parts.

    Raises:
      ConfigError: an invalid spec, or a config that does not fit the task.
    """
    key = f"data.{split}"
    task = parse(spec, key)
    objective, tokenizer = config.objective.name, config.tokenizer.name
    if not parts:
        raise ConfigError(f"objective.name={objective!r}: {key}={spec!r} needs 'completion'")
    if tokenizer != "words":
        raise ConfigError(f"tokenizer.name={tokenizer!r}: {key}={spec!r} needs 'words'")
    if (longest := task.longest()) > config.model.max_length:
        raise ConfigError(f"model.max_length={config.model.max_length}: {key}={spec!r} has "
                          f"examples of {longest} tokens; set at least that")
    examples = Examples(task, split, config.seed)
    examples[0]  # raise errors here instead of in a pipeline thread
    return examples
