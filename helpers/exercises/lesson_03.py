"""Exercises of lesson 03: messages, lengths, temperature, top_p, penalties, structured output."""

import json
from typing import Any

from openai.types.chat import ChatCompletion

from helpers import sampling
from helpers.checks import Exercise, Verdict, choice, number, right, wrong
from helpers.client import connect
from helpers.tiny.corpus import ODDS

ASK_NAME = {"role": "user", "content": "What is my name?"}
SHOPPING = "My shopping list: apples,"


def _chat(messages: list[dict[str, Any]], **options: Any) -> ChatCompletion:
    client = connect(quiet=True)
    model = client.models.list().data[0].id
    asked = {"model": model, "messages": messages, "temperature": 0, **options}
    reply: ChatCompletion = client.chat.completions.create(**asked)
    return reply


def _said(reply: ChatCompletion) -> str:
    return reply.choices[0].message.content or ""


q1 = choice(
    "b",
    why="`finish_reason` is 'stop' when the model ended by itself, 'length' when max_tokens or the window cut it off.",
    tip="Look at the printed response: which field is about the end of the text?",
    misconceptions={
        "a": "`usage` counts tokens; a full count does not tell whether the model wanted to go on.",
        "c": "`object` names the kind of response, 'chat.completion'.",
        "d": "`created` is the time at which the request came in, in seconds since 1970.",
    },
)


def _judge_name(answer: Any) -> Verdict:
    if ASK_NAME not in answer:
        return wrong("keep the question `ask_name` as the last message.")
    said = _said(_chat(answer))
    if "Grace" in said:
        return right(
            f"the model said {said!r}: the server remembers nothing, the messages carry the whole conversation."
        )
    return wrong(
        f"the model said {said!r}. It only knows what stands in this one list: tell it the name before you ask."
    )


q2 = Exercise(
    _judge_name,
    tip="Put messages with roles 'user' and 'assistant' before the question, as if the talk had taken place.",
    code="""answer = [
    {"role": "user", "content": "My name is Grace."},
    {"role": "assistant", "content": "Nice to meet you, Grace."},
    ask_name,
]""",
    wrong_answers=[[ASK_NAME], [{"role": "user", "content": "My name is Grace."}], "Grace", [ASK_NAME, ASK_NAME]],
)


def _judge_lengths(answer: Any) -> Verdict:
    count = [{"role": "user", "content": "Count from 1 to 10."}]
    reply = _chat(count, max_tokens=answer.get("max_tokens"), extra_body={"min_tokens": answer.get("min_tokens", 0)})
    assert reply.usage  # vLLM always counts
    tokens, reason = reply.usage.completion_tokens, reply.choices[0].finish_reason
    if (tokens, reason) == (12, "length"):
        return right(
            "12 tokens, cut off by max_tokens. The model did not plan for the cut: it just stops in mid-sentence."
        )
    return wrong(f"this gives {tokens} tokens and finish_reason {reason!r}; wanted are 12 tokens and 'length'.")


q3 = Exercise(
    _judge_lengths,
    tip="max_tokens is an upper limit, min_tokens a lower one. Which of the two cuts an answer off?",
    code="answer = dict(max_tokens=12)",
    wrong_answers=[{"max_tokens": 10}, {"min_tokens": 12}, {"max_tokens": 500}, 12],
)

_BOSTON = ODDS["The weather in Boston is"]

q4 = number(
    sampling.apply_temperature(_BOSTON, 0.5)["sunny"],
    why="0.5² / (0.5² + 0.3² + 0.2²) = 0.25 / 0.38 = 0.658: below temperature 1 the likely gets likelier.",
    tip="Raise each probability to the power 1/T, here 2, then divide by their sum.",
    code="answer = 0.5**2 / (0.5**2 + 0.3**2 + 0.2**2)",
    misconceptions={
        0.5: "0.5 is the probability at temperature 1; temperature changes it.",
        0.25: "squared is right, but the three squares must be divided by their sum to be probabilities again.",
        sampling.apply_temperature(_BOSTON, 2)["sunny"]: "you took the root: that is temperature 2. Dividing logits by 0.5 doubles them.",
        1.0: "only temperature 0 takes the most likely token always.",
    },
)  # fmt: skip


def _judge_top_p(answer: Any) -> Verdict:
    words = {str(word).strip().lower() for word in answer}
    if words == {"rainy", "cloudy"}:
        return right("rainy alone has 0.6, which is below 0.7; with cloudy it is 0.9, and that reaches it.")
    if words == {"rainy"}:
        return wrong("0.6 does not reach 0.7 yet, so one more word comes in.")
    if words == {"rainy", "cloudy", "sunny"}:
        return wrong("rainy and cloudy reach 0.7 already, so sunny stays out.")
    return wrong("add up the words from the most likely down until the sum reaches 0.7; what was added stays.")


q5 = Exercise(
    _judge_top_p,
    tip="Sort by probability and add up until you reach 0.7.",
    code='answer = ["rainy", "cloudy"]',
    wrong_answers=[["rainy"], ["rainy", "cloudy", "sunny"], ["sunny"], [], 0.7],
)


def _judge_penalty(answer: Any) -> Verdict:
    client = connect(quiet=True)
    reply = client.completions.create(
        model=client.models.list().data[0].id,
        prompt=SHOPPING,
        max_tokens=40,
        temperature=0,
        frequency_penalty=float(answer),
    )
    kinds = len({word.strip(" .") for word in reply.choices[0].text.split(",") if word.strip(" .")})
    if kinds >= 3:
        return right(f"{reply.choices[0].text.strip()!r}: each fruit bought makes its next mention less likely.")
    return wrong(
        f"the list holds {kinds} kind(s) of fruit; 3 are wanted. Larger positive penalties push repetition down."
    )


q6 = Exercise(
    _judge_penalty,
    tip="The range is -2 to 2. What sign makes a repeated token less likely?",
    code="answer = 2.0",
    wrong_answers=[0, -1, 0.1, "much"],
)


REVIEW = {"role": "user", "content": "Is this review positive or negative? I hated every minute of it. Poor work."}


def _judge_schema(answer: Any) -> Verdict:
    form = {"type": "json_schema", "json_schema": {"name": "review", "schema": answer}}
    said = _said(_chat([REVIEW], response_format=form, max_tokens=60))
    try:
        data = json.loads(said)
    except ValueError:
        return wrong(f"the server answered {said!r}, which is not whole JSON: the schema lets the text run on.")
    if isinstance(data, dict) and list(data) == ["sentiment"] and data["sentiment"] in ("positive", "negative"):
        return right(f"{said}: the form holds for certain. Whether the judgement is right is another question.")
    return wrong(f"the server answered {said!r}; wanted is an object with `sentiment`, 'positive' or 'negative'.")


q7 = Exercise(
    _judge_schema,
    tip="An object schema has `type`, `properties`, `required` and `additionalProperties`; `enum` lists allowed values.",
    code="""answer = {
    "type": "object",
    "properties": {"sentiment": {"enum": ["positive", "negative"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}""",
    wrong_answers=[
        {"type": "object", "properties": {"sentiment": {"type": "integer"}}, "required": ["sentiment"]},
        {"type": "string", "enum": ["positive", "negative"]},
        "json",
        {"type": "object", "properties": {}, "additionalProperties": False},
    ],
)
