"""Temperature, top_k, top_p, min_p and penalties: the rules that any set of odds must obey."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.sampling import apply_temperature, keep_min_p, keep_top_k, keep_top_p, penalize, server_odds

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


# --- min_p, penalties, and the order of all -------------------------------------------------------------------------


@given(some_odds(), st.floats(0, 1))
def test_min_p_keeps_what_comes_near_the_best(odds, min_p):
    kept = {word: p for word, p in keep_min_p(odds, min_p).items() if p}
    bar = min_p * max(odds.values())
    assert all(odds[word] >= bar * (1 - 1e-6) for word in kept)
    assert all(odds[word] <= bar * (1 + 1e-6) for word in odds if word not in kept)
    assert order(kept)[-1:] == [] or odds[order(kept)[-1]] == max(odds.values())
    assert keep_min_p(odds, 0) == close(odds)


@pytest.mark.parametrize("min_p", [-0.1, 1.1])
def test_a_min_p_that_is_no_share_is_refused(min_p):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        keep_min_p(FRUIT, min_p)


@given(some_odds(), st.floats(-2, 2), st.floats(-2, 2), st.lists(st.integers(0, 400), min_size=12, max_size=12))
def test_penalties_are_taken_off_the_logits(odds, frequency, presence, counts):
    written = {f"word{i}": count for i, count in enumerate(counts)}
    after = penalize(odds, written, frequency=frequency, presence=presence)
    assert sum(after.values()) == pytest.approx(1) and after.keys() == odds.keys()
    for one in odds:
        for other in odds:
            if min(after[one], after[other]) > 1e-200:
                takes = [frequency * written[w] + presence * (written[w] > 0) for w in (one, other)]
                gap = math.log(odds[one] / odds[other]) - takes[0] + takes[1]
                assert math.log(after[one] / after[other]) == pytest.approx(gap, abs=1e-6)


def test_what_was_not_written_is_not_penalized():
    assert penalize(FRUIT, {}, frequency=2, presence=2) == close(FRUIT)
    assert penalize(FRUIT, {"cherry": 9}, frequency=2) == close(FRUIT)
    once, thrice = (penalize(FRUIT, {"apple": n}, presence=1) for n in (1, 3))
    assert once == close(thrice) and once["apple"] < FRUIT["apple"]
    assert penalize(FRUIT, {"apple": 1}, frequency=-1)["apple"] > FRUIT["apple"]


def test_what_cannot_come_cannot_come_with_a_penalty_either():
    assert penalize({"a": 1.0, "b": 0.0}, {"a": 500, "b": 1}, frequency=2) == close({"a": 1, "b": 0})


@given(some_odds(), st.floats(0.2, 3), st.integers(0, 6), st.floats(0.05, 1), st.floats(0, 1))
def test_the_order_is_that_of_the_server(odds, temperature, k, top_p, min_p):
    by_hand = keep_min_p(apply_temperature(penalize(odds, {"word0": 1}, frequency=0.5), temperature), min_p)
    by_hand = keep_top_p(keep_top_k(by_hand, k), top_p)
    options = {"temperature": temperature, "top_k": k, "top_p": top_p, "min_p": min_p}
    assert server_odds(odds, written={"word0": 1}, frequency_penalty=0.5, **options) == close(by_hand)
    assert server_odds(odds) == close(odds)


def test_temperature_comes_before_top_p():
    """At 0.5 apple alone has 25/38 = 0.66, so that top_p = 0.6 leaves only it; the other order would leave two."""
    assert server_odds(FRUIT, temperature=0.5, top_p=0.6) == close({"apple": 1, "pear": 0, "plum": 0})
    assert sum(p > 0 for p in keep_top_p(FRUIT, 0.6).values()) == 2


def test_top_p_of_one_keeps_what_is_next_to_impossible():
    odds = {"a": 1 - 1e-12, "b": 1e-12}
    assert keep_top_p(odds, 1)["b"] > 0 and server_odds(odds)["b"] > 0
    assert keep_top_p(odds, 0.999999)["b"] == 0
