"""Exercises that check themselves: three states, hints, and no crash on what people type."""

import pytest

from helpers.checks import NOT_ATTEMPTED, RIGHT, WRONG, Verdict, choice, number

SIX = number(6, "three times two", tip="multiply them", code="answer = 3 * 2", misconceptions={5: "that is the sum"})
B = choice("b", "it is blue", tip="look up", misconceptions={"a": "that is red", "c": "that is green"})


def test_an_untouched_exercise_is_not_attempted():
    for exercise in (SIX, B):
        assert exercise(...).state == NOT_ATTEMPTED and "change the `...`" in exercise(...).message


@pytest.mark.parametrize("answer", [6, 6.0, "6", 6.1, 5.9, True + 5])
def test_a_right_number_is_right(answer):
    assert SIX(answer) == Verdict(RIGHT, "three times two")


@pytest.mark.parametrize("answer", [6.2, 5.8, 0, -6, 600, float("nan"), float("inf")])
def test_a_wrong_number_gets_the_tip(answer):
    assert SIX(answer) == Verdict(WRONG, "multiply them")


def test_a_misconception_is_named():
    assert SIX(5) == SIX(5.05) == Verdict(WRONG, "that is the sum")
    assert B("a") == Verdict(WRONG, "that is red")


@pytest.mark.parametrize("answer", [None, "six", [6], {"a": 1}, (), object(), lambda: 6, "", b"x"])
def test_what_is_no_number_is_wrong_and_no_crash(answer):
    assert SIX(answer).state == WRONG and "cannot read this answer" in SIX(answer).message


@pytest.mark.parametrize("answer", ["b", "B", " b "])
def test_a_right_letter_is_right_however_typed(answer):
    assert B(answer) == Verdict(RIGHT, "it is blue")


@pytest.mark.parametrize("answer", ["z", 3, None, "", "bb", ["b"], float("nan")])
def test_what_is_no_choice_is_wrong_and_no_crash(answer):
    assert B(answer).state == WRONG


def test_every_listed_wrong_answer_is_told_wrong_and_the_solution_right():
    for exercise in (SIX, B):
        assert len(exercise.wrong_answers) >= 1
        assert all(exercise(answer).state == WRONG for answer in exercise.wrong_answers)
        room = {}
        exec(exercise.code, room)
        assert exercise(room["answer"]).state == RIGHT


def test_hint_and_solution_are_printed(capsys):
    SIX.hint()
    SIX.solution()
    assert capsys.readouterr().out == "multiply them\nanswer = 3 * 2\n"


def test_a_verdict_shows_itself_as_text_and_as_harmless_html():
    verdict = Verdict(WRONG, "is 1 < 2 & 'so on'?")
    assert repr(verdict) == "not quite: is 1 < 2 & 'so on'?"
    assert "<b>Not quite.</b> is 1 &lt; 2 &amp;" in verdict._repr_html_()
    assert len({Verdict(state, "")._repr_html_() for state in (NOT_ATTEMPTED, WRONG, RIGHT)}) == 3
