"""Temperature, top_k and top_p: the rules that any set of odds must obey."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.sampling import apply_temperature, keep_top_k, keep_top_p

FRUIT = {"apple": 0.5, "pear": 0.3, "plum": 0.2}


@st.composite
def some_odds(draw):
    weights = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=12))
    return {f"word{i}": weight / sum(weights) for i, weight in enumerate(weights)}


def order(odds):
    return sorted(odds, key=odds.get)


def close(odds):
    return pytest.approx(odds, abs=1e-9)


@given(some_odds(), st.floats(0, 50), st.integers(0, 15), st.floats(0.01, 1))
def test_odds_stay_odds(odds, temperature, k, top_p):
    for changed in (apply_temperature(odds, temperature), keep_top_k(odds, k), keep_top_p(odds, top_p)):
        assert changed.keys() == odds.keys()
        assert sum(changed.values()) == pytest.approx(1) and min(changed.values()) >= 0


@given(some_odds(), st.floats(0.05, 5))
def test_temperature_is_softmax_of_divided_logits(odds, temperature):
    powers = {word: math.exp(math.log(p / max(odds.values())) / temperature) for word, p in odds.items()}
    assert apply_temperature(odds, temperature) == close({w: p / sum(powers.values()) for w, p in powers.items()})


@given(some_odds())
def test_one_changes_nothing_zero_leaves_the_best_and_heat_levels_all(odds):
    assert apply_temperature(odds, 1) == close(odds)
    best = [word for word in odds if odds[word] == max(odds.values())]
    assert apply_temperature(odds, 0) == close({word: (word in best) / len(best) for word in odds})
    assert apply_temperature(odds, 1e9) == pytest.approx({word: 1 / len(odds) for word in odds}, abs=1e-6)


@given(some_odds(), st.floats(0.2, 5), st.floats(0.2, 5))
def test_warmer_is_never_more_certain(odds, one, other):
    cool, warm = sorted([one, other])
    assert max(apply_temperature(odds, cool).values()) >= max(apply_temperature(odds, warm).values()) - 1e-9


@given(some_odds(), st.integers(1, 15))
def test_top_k_keeps_k_and_their_proportions(odds, k):
    kept = {word: p for word, p in keep_top_k(odds, k).items() if p}
    assert len(kept) == min(k, len(odds))
    assert min(odds[word] for word in kept) >= max([odds[word] for word in odds if word not in kept], default=0)
    total = sum(odds[word] for word in kept)
    assert kept == close({word: odds[word] / total for word in kept})
    assert keep_top_k(odds, 0) == close(odds)


@given(some_odds(), st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_that_reach_p(odds, top_p):
    kept = [odds[word] for word, p in keep_top_p(odds, top_p).items() if p]
    assert sum(kept) >= top_p - 1e-6
    assert sum(kept) - min(kept) < top_p
    assert keep_top_p(odds, 1) == close(odds)


def test_a_worked_example():
    assert apply_temperature(FRUIT, 0.5) == close({"apple": 25 / 38, "pear": 9 / 38, "plum": 4 / 38})
    assert keep_top_k(FRUIT, 2) == close({"apple": 0.625, "pear": 0.375, "plum": 0})
    assert keep_top_p(FRUIT, 0.8) == keep_top_k(FRUIT, 2)
    assert keep_top_p(FRUIT, 0.5) == keep_top_k(FRUIT, 1)


def test_a_temperature_below_zero_is_refused():
    with pytest.raises(ValueError, match="temperature is -1; it must be 0 or more"):
        apply_temperature(FRUIT, -1)


@pytest.mark.parametrize("temperature", [0.001, 0.0001, 1e-300])
def test_a_tiny_temperature_is_no_crash(temperature):
    assert apply_temperature(FRUIT, temperature) == close({"apple": 1, "pear": 0, "plum": 0})
