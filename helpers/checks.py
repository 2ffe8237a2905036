"""Exercises that check themselves: not attempted, wrong (with a hint at the misconception), or right.

A lesson's exercises are `Exercise` objects in helpers/exercises/; a notebook calls `check.q1(answer)`, and on demand
`check.q1.hint()` and `check.q1.solution()`. The tests run every solution and feed every listed wrong answer. What a lesson's
check says is kept as the learner's progress (progress_store).
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from helpers import progress_store

NOT_ATTEMPTED, WRONG, RIGHT = "not attempted", "not quite", "right"
KEPT_AS = {NOT_ATTEMPTED: progress_store.SEEN, WRONG: progress_store.WRONG, RIGHT: progress_store.RIGHT}
COLORS = {NOT_ATTEMPTED: "#9aa0a6", WRONG: "#c8504c", RIGHT: "#4a9a63"}


@dataclass
class Verdict:
    """What a check says: one of the three states and why, with a note where it could not be kept. Shows itself."""

    state: str
    message: str
    note: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return f"{self.state}: {self.message}" + (f"\n{self.note}" if self.note else "")

    def _repr_html_(self) -> str:
        style = f"border-left: 4px solid {COLORS[self.state]}; padding: 4px 10px"
        note = f"<br><small>{_as_html(self.note)}</small>" if self.note else ""
        return f"<div style='{style}'><b>{self.state.capitalize()}.</b> {_as_html(self.message)}{note}</div>"


def _as_html(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def right(message: str) -> Verdict:
    """The answer is right, and why."""
    return Verdict(RIGHT, message)


def wrong(message: str) -> Verdict:
    """The answer is not right yet: a hint at what may have led to it."""
    return Verdict(WRONG, message)


@dataclass
class Exercise:
    """One exercise.

    `judge(answer)` returns a Verdict. `code` is the solution as it would stand in the exercise's cell. `wrong_answers`
    holds answers that people do give, which the judge must call wrong.
    """

    judge: Callable[[Any], Verdict]
    tip: str
    code: str
    wrong_answers: Sequence[Any] = field(default_factory=list)

    def __call__(self, answer: Any) -> Verdict:
        """The verdict on an answer, kept as the learner's progress when a lesson asks."""
        verdict = self._verdict(answer)
        if name := progress_store.name_of(self):
            verdict.note = progress_store.record(name, KEPT_AS[verdict.state])
        return verdict

    def _verdict(self, answer: Any) -> Verdict:
        if answer is ...:
            return Verdict(NOT_ATTEMPTED, "change the `...` and run the cell again.")
        try:
            return self.judge(answer)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, openai.BadRequestError) as error:
            return wrong(f"the check cannot read this answer ({type(error).__name__}: {error}). {self.tip}")

    def hint(self) -> None:
        """Print the tip."""
        print(self.tip)

    def solution(self) -> None:
        """Print code that solves it."""
        print(self.code)


def number(
    expected: float, why: str, tip: str, code: str, misconceptions: dict[float, str], tolerance: float = 0.02
) -> Exercise:
    """An exercise whose answer is a number; `misconceptions` maps tempting wrong numbers to what to think about.

    `tolerance` is relative. An answer counts as a misconception within the same tolerance.
    """

    def near(answer: float, value: float) -> bool:
        return abs(answer - value) <= tolerance * max(abs(value), 1e-9)

    def judge(answer: Any) -> Verdict:
        answer = float(answer)
        if near(answer, expected):
            return right(why)
        return wrong(next((hint for value, hint in misconceptions.items() if near(answer, value)), tip))

    return Exercise(judge, tip, code, list(misconceptions))


def choice(expected: str, why: str, tip: str, misconceptions: dict[str, str]) -> Exercise:
    """An exercise answered with one letter; `misconceptions` maps each other letter to why it is not the one."""

    def judge(answer: Any) -> Verdict:
        letter = str(answer).strip().lower()
        if letter == expected:
            return right(why)
        return wrong(
            misconceptions.get(letter, f"answer with one letter, such as {expected!r} or one of its neighbours.")
        )

    return Exercise(judge, tip, f"answer = {expected!r}", [*misconceptions, "z", 3])
