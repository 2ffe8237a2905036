"""The chi-square test: its tail against tables and simulation, and what it says of draws that do or do not fit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.goodness import REST, GoodnessError, chi_square, chi_square_tail

BOSTON = {"sunny": 0.5, "rainy": 0.3, "snowy": 0.2}


@pytest.mark.parametrize(
    "degrees, statistic", [(1, 3.841), (2, 5.991), (3, 7.815), (4, 9.488), (5, 11.070), (10, 18.307), (30, 43.773)]
)
def test_tail_is_that_of_the_tables(degrees, statistic):
    """The 5% points printed in any statistics book."""
    assert chi_square_tail(statistic, degrees) == pytest.approx(0.05, abs=1e-4)


@given(st.integers(1, 60))
def test_tail_goes_from_one_to_nothing(degrees):
    points = [chi_square_tail(x, degrees) for x in (0, 0.5, degrees, 3 * degrees + 20, 1e4, math.inf)]
    assert points[0] == 1 and points[-1] == 0
    assert points == sorted(points, reverse=True)


@pytest.mark.parametrize("arguments", [(-1, 2), (1, 0)])
def test_tail_refuses_what_has_no_meaning(arguments):
    with pytest.raises(ValueError, match="must be 0 or more, and degrees"):
        chi_square_tail(*arguments)


def test_p_value_is_the_share_of_true_draws_that_are_as_far_off():
    rng = np.random.default_rng(0)
    draws = rng.multinomial(300, list(BOSTON.values()), size=4000)
    values = np.array([chi_square(dict(zip(BOSTON, map(int, row), strict=True)), BOSTON).p_value for row in draws])
    for level in (0.01, 0.05, 0.5):
        assert (values <= level).mean() == pytest.approx(level, abs=3 * math.sqrt(level / 4000) + 0.003)


def test_a_worked_example():
    """Expected 50, 30, 20; seen 44, 35, 21: 36/50 + 25/30 + 1/20 = 1.603, two degrees, exp(-0.802) = 0.449."""
    fit = chi_square({"sunny": 44, "rainy": 35, "snowy": 21}, BOSTON)
    assert (round(fit.statistic, 3), fit.degrees) == (1.603, 2)
    assert fit.p_value == pytest.approx(math.exp(-fit.statistic / 2))


def test_draws_of_other_odds_are_found_out():
    cooled = {"sunny": 1316, "rainy": 474, "snowy": 210}  # 2,000 draws at temperature 0.5
    assert chi_square(cooled, BOSTON).p_value < 1e-12


@given(st.lists(st.integers(50, 1000), min_size=3, max_size=12), st.integers(500, 5000))
def test_cells_hold_all_draws_and_expect_enough(weights, draws):
    odds = {f"t{i}": 0.9999 * w / sum(weights) for i, w in enumerate(weights)}
    counts = {token: round(p * draws) for token, p in odds.items()}
    total = sum(counts.values())
    fit = chi_square(counts, odds)
    assert sum(fit.counts.values()) == total and sum(fit.expected.values()) == pytest.approx(total)
    assert min(fit.expected.values()) >= 5
    assert 0 <= fit.p_value <= 1


def test_rare_words_go_together_and_unlisted_ones_with_them():
    odds = {"a": 0.5, "b": 0.47, "c": 0.02, "d": 0.009}
    fit = chi_square({"a": 100, "b": 95, "c": 3, "x": 2}, odds)
    assert set(fit.expected) == {"a", "b", REST}
    assert fit.counts[REST] == 5 and fit.expected[REST] == pytest.approx(6)


def test_what_cannot_come_and_came_leaves_no_doubt():
    assert chi_square({"sunny": 50, "rainy": 30, "snowy": 20, "foggy": 1}, BOSTON).p_value == 0
    assert chi_square({"a": 90, "b": 10}, {"a": 1.0, "b": 0.0}).p_value == 0


@pytest.mark.parametrize(
    "counts, odds, said",
    [({}, BOSTON, "No draws"), ({"a": 0}, BOSTON, "No draws"), ({"sunny": 2, "rainy": 1}, BOSTON, "draw more often")],
)
def test_too_few_draws_are_refused(counts, odds, said):
    with pytest.raises(GoodnessError, match=said):
        chi_square(counts, odds)
