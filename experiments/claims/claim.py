"""What a claim is, and how it is decided: a confidence interval against a range."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

BETTER = (0.0, math.inf)
LEVEL = 0.95  # of intervals
POWER = 0.8  # that `seeds_needed` asks for
MOST = 200  # seeds that it looks at

AGREES, DISAGREES, UNSEEN = "agrees", "disagrees", "cannot be seen at this size"
MARKS = {AGREES: "✓", DISAGREES: "✗", UNSEEN: "?"}


def equal(margin: float) -> tuple[float, float]:
    """The range of "as good as": two-sided equivalence within a margin (Schuirmann 1987)."""
    return (-margin, margin)


def no_worse(margin: float) -> tuple[float, float]:
    """The range of "at least as good as": non-inferiority within a margin."""
    return (-margin, math.inf)


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and the comparison that decides it.

    The effect is `metric` of `against` minus that of `variant`, so of a loss positive where
    `variant` is better; of each seed by itself, both having the same data in the same order.

    Attributes:
      paper: with section or table.
      says: the claim in the paper's own terms.
      published: its numbers.
      variant, against: labels of the study's variants.
      within: where the paper says that the effect is: BETTER, `equal` or `no_worse`.
      effect: {variant: metric of one seed} -> effect, where it is no difference of two.
      unit: of the effect.
      full: the config at the paper's size.
      scope: what of it carries over to that size, and what does not.
    """

    paper: str
    says: str
    published: str
    variant: str = ""
    against: str = ""
    within: tuple[float, float] = BETTER
    metric: str = "loss"
    effect: Callable[[Mapping[str, float]], float] | None = None
    unit: str = "nats"
    full: str = ""
    scope: str = ""

    def effects(self, values: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
        """Returns the effect of each seed of {variant: {seed: metric}} that has all it needs."""
        needed = [self.variant, self.against] if self.effect is None else list(values)
        seeds = set.intersection(*(set(values.get(label, ())) for label in needed))
        of = self.effect or (lambda value: value[self.against] - value[self.variant])
        return {s: of({label: values[label][s] for label in needed}) for s in sorted(seeds)}


def interval(effects: list[float]) -> tuple[float, float]:
    """Returns (mean, half the width of its 95 % interval, by Student's t); one value has none."""
    n, mean = len(effects), float(np.mean(effects))
    if n < 2:
        return mean, math.inf
    return mean, float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(effects))


def verdict(effects: list[float], within: tuple[float, float]) -> str:
    """AGREES where the whole interval is inside the range, DISAGREES where none of it is."""
    mean, half = interval(effects) if effects else (0.0, math.inf)
    low, high = within
    if low < mean - half and mean + half < high:
        return AGREES
    return DISAGREES if mean + half < low or mean - half > high else UNSEEN


def seeds_needed(effects: list[float], within: tuple[float, float]) -> int | None:
    """Returns how many seeds decide it with a probability of POWER, if these show the truth.

    The power of a t-test of the mean against the nearest bound of the range. None: more than MOST,
    or fewer than two effects to tell from.
    """
    if len(effects) < 2:
        return None
    distance = min(abs(np.mean(effects) - bound) for bound in within)
    spread = np.std(effects, ddof=1)
    if spread == 0:
        return 2
    for n in range(2, MOST + 1):
        critical = stats.t.ppf((1 + LEVEL) / 2, n - 1)
        if stats.nct.sf(critical, n - 1, distance / spread * math.sqrt(n)) >= POWER:
            return n
    return None
