"""Exercises of lesson 00: which model answers, and how long an answer may be."""

from typing import Any

from helpers.checks import Exercise, Verdict, number, right, wrong
from helpers.client import connect


def _judge_model_name(answer: Any) -> Verdict:
    served = connect(quiet=True).models.list().data[0].id
    if answer == served:
        return right(f"{served} is what every request must put into its `model` field.")
    return wrong("that is not a name this server answers to; ask the server itself with `client.models.list()`.")


q1 = Exercise(
    _judge_model_name,
    tip="`client.models.list().data` is a list of models, each with an `id`.",
    code="answer = client.models.list().data[0].id",
    wrong_answers=["gpt-4", "vllm", None],
)

q2 = number(
    148,
    why="prompt and answer share the context window: 2048 - 1900 = 148.",
    tip="The window of 2048 tokens has to hold the prompt and the answer together.",
    code="answer = 2048 - 1900",
    misconceptions={
        2048: "2048 is the whole window; the prompt takes a part of it.",
        1900: "1900 is what the prompt takes; the answer gets what is left.",
        3948: "the window does not grow with the prompt: the two share it.",
    },
    tolerance=0,
)
