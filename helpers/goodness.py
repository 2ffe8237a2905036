"""Do draws follow given odds? Pearson's chi-square test, with the p-value from its closed form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.errors import WorkshopError

#: Cells that expect fewer draws than this are put together: below it the test's distribution is no longer chi-square.
FEWEST_EXPECTED = 5
REST = "rest"


class GoodnessError(WorkshopError):
    """Draws or odds that the test cannot be made with."""


@dataclass(frozen=True)
class Fit:
    """The outcome of a chi-square test: `p_value` is how often true odds would give draws as far off, or farther.

    `counts` and `expected` hold the cells compared, those that expect too few draws put together, the last
    one, as "rest" or " snowy + rest".
    """

    statistic: float
    degrees: int
    p_value: float
    counts: dict[str, int]
    expected: dict[str, float]


def chi_square(counts: Mapping[str, int], odds: Mapping[str, float]) -> Fit:
    """Test draws, {token: how often it came}, against odds, {token: probability}.

    What the odds leave of 1, and every drawn token they do not list, belongs to the rest. A token that came although
    its probability is 0 gives the p-value 0. Raises GoodnessError without draws, or when one cell is all there is.
    """
    draws = sum(counts.values())
    if not draws:
        raise GoodnessError("No draws to test: pass {token: how often it came} with at least one draw.")
    listed = {token: p * draws for token, p in odds.items() if p * draws >= FEWEST_EXPECTED}
    rest = draws * (1 - sum(odds[token] for token in listed))
    if rest < 1e-6 * draws:
        rest = 0.0
    name = REST
    while 0 < rest < FEWEST_EXPECTED and listed:
        smallest = min(listed, key=listed.__getitem__)
        name = f"{smallest} + {name}"
        rest += listed.pop(smallest)
    seen = {token: counts.get(token, 0) for token in listed}
    if rest or sum(seen.values()) < draws:
        listed[name], seen[name] = rest, draws - sum(seen.values())
    if len(listed) < 2:
        raise GoodnessError(f"{draws} draws with these odds give one cell, and nothing to compare; draw more often.")
    statistic = sum(_term(seen[token], listed[token]) for token in listed)
    return Fit(statistic, len(listed) - 1, chi_square_tail(statistic, len(listed) - 1), seen, listed)


def _term(seen: int, expected: float) -> float:
    if expected:
        return (seen - expected) ** 2 / expected
    return math.inf if seen else 0.0


def chi_square_tail(statistic: float, degrees: int) -> float:
    """The probability that a chi-square variable with so many degrees of freedom exceeds the statistic.

    Q(x; 1) = erfc(sqrt(x/2)), Q(x; 2) = exp(-x/2), Q(x; k+2) = Q(x; k) + (x/2)^(k/2) exp(-x/2) / Gamma(k/2 + 1).
    Raises ValueError for a negative statistic and for no degree. Source: Abramowitz and Stegun, 26.4.4, 26.4.5 and 26.4.8.
    """
    if statistic < 0 or degrees < 1:
        raise ValueError(f"statistic {statistic} must be 0 or more, and degrees {degrees} 1 or more.")
    half = statistic / 2
    if half in (0, math.inf):
        return float(half == 0)
    known = 2 - degrees % 2
    tail = math.exp(-half) if known == 2 else math.erfc(math.sqrt(half))
    for k in range(known, degrees, 2):
        tail += math.exp(k / 2 * math.log(half) - half - math.lgamma(k / 2 + 1))
    return min(tail, 1.0)
