"""Question sets with known answers, and the arithmetic of accuracy and calibration."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import choices
from helpers.tiny.corpus import ODDS, WORLD


def test_right_answers_of_the_corpus_questions_follow_its_odds():
    questions = choices.corpus_questions(copies=600, seed=3)
    assert len(questions) == 600 * len(ODDS)
    for text, odds in ODDS.items():
        drawn = Counter(q.answers[q.right].strip() for q in questions if q.text == text)
        assert set(drawn) <= set(odds)
        for word, share in odds.items():
            assert drawn[word] / 600 == pytest.approx(share, abs=4 * (share * (1 - share) / 600) ** 0.5)


def test_a_seed_gives_the_same_questions():
    assert (
        choices.corpus_questions(2, seed=5)
        == choices.corpus_questions(2, seed=5)
        != choices.corpus_questions(2, seed=6)
    )
    assert choices.capital_quiz(seed=5) == choices.capital_quiz(seed=5) != choices.capital_quiz(seed=6)


def test_the_quiz_has_each_capital_once_among_four():
    whole, letters = choices.capital_quiz(), choices.capital_quiz(letters_only=True)
    assert len(whole) == len(letters) == len(WORLD["capitals"])
    for question, short, (country, city) in zip(whole, letters, sorted(WORLD["capitals"].items()), strict=True):
        assert country in question.text and question.text == short.text and question.text.endswith("Answer:")
        assert question.answers[question.right].endswith(f". {city}") and len(set(question.answers)) == 4
        assert short.answers == (" A", " B", " C", " D") and short.right == question.right
    assert len({question.right for question in whole}) == 4, "the right one is not always in one place"


def answered(probabilities, right):
    """A row for each (question, answer) of lists of lists."""
    rows = [
        {"question": number, "probability": p, "logprob": np.log(p), "right": i == right[number]}
        for number, ps in enumerate(probabilities) for i, p in enumerate(ps)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_accuracy_counts_questions_not_answers():
    table = answered([[0.7, 0.3], [0.1, 0.2, 0.7], [0.4, 0.6], [0.5, 0.3, 0.2]], right=[0, 1, 1, 0])
    assert choices.accuracy(table) == 0.75


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 100), min_size=2, max_size=5), min_size=1, max_size=5), st.floats(0.2, 5))
def test_sharpened_probabilities_are_those_of_the_temperature(weights, temperature):
    table = answered([[w / sum(ws) for w in ws] for ws in weights], right=[0] * len(weights))
    sharp = choices.sharpened(table, temperature)
    assert sharp.groupby(table["question"]).sum().to_numpy() == pytest.approx(1)
    for _, rows in table.assign(sharp=sharp).groupby("question"):
        powers = rows["probability"] ** (1 / temperature)
        assert rows["sharp"].to_numpy() == pytest.approx((powers / powers.sum()).to_numpy())
    assert choices.sharpened(table, 1).to_numpy() == pytest.approx(table["probability"].to_numpy())


def test_who_gives_the_true_odds_is_calibrated_and_who_exaggerates_is_not():
    rng = np.random.default_rng(1)
    given_odds = rng.random(20_000)
    happened = rng.random(20_000) < given_odds
    honest = choices.reliability(given_odds, happened)
    assert choices.calibration_error(honest) < 0.02
    assert ((honest["low"] <= honest["given"]) & (honest["given"] <= honest["high"])).sum() >= 8
    bold = choices.reliability(given_odds**2 / (given_odds**2 + (1 - given_odds) ** 2), happened)
    assert choices.calibration_error(bold) > 0.05


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80), st.integers(1, 12))
def test_every_answer_is_in_one_bin(pairs, bins):
    given_odds, right = zip(*pairs, strict=True)
    table = choices.reliability(given_odds, right, bins)
    assert table["answers"].sum() == len(pairs) and len(table) <= bins
    assert (table["answers"] * table["given"]).sum() == pytest.approx(sum(given_odds))
    assert (table["answers"] * table["came_true"]).sum() == pytest.approx(sum(right))
    assert (table["low"] <= table["came_true"] + 1e-9).all() and (table["came_true"] <= table["high"] + 1e-9).all()
    assert 0 <= choices.calibration_error(table) <= 1


def test_the_interval_is_that_of_wilson():
    """81 of 263: 0.2553 to 0.3662, the first example of Newcombe, Statistics in Medicine 17, 857 (1998)."""
    (row,) = choices.reliability([0.3] * 263, [True] * 81 + [False] * 182).itertuples()
    assert (round(row.low, 4), round(row.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(
    "given_odds, right, said",
    [([], [], "0 probabilities"), ([0.5], [True, False], "1 probabilities and 2"), ([1.5], [True], "between 0 and 1"),
     ([-0.5], [True], "between 0 and 1")],
)  # fmt: skip
def test_what_is_no_probability_is_refused(given_odds, right, said):
    with pytest.raises(ValueError, match=said):
        choices.reliability(given_odds, right)
