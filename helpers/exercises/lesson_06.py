"""Exercises of lesson 06: how long a data set takes, fixed batches, a batch file, an engine's seats, and what a kill costs."""

import json
from pathlib import Path
from typing import Any

from helpers.batch_files import LineError, parse, request_of
from helpers.checks import Exercise, Verdict, choice, number, right, wrong

_H200 = json.loads((Path(__file__).parents[1] / "data" / "h200x4.json").read_text())
_VLLM = next(r["output_throughput"] for r in _H200["throughput"] if r["run"] == "8b_tp1" and r["max_concurrency"] == 64)
_ONE_BY_ONE = 23.8  # tokens per second, the same file's "baseline"
_TOKENS = 2_000_000 * 150

q1 = number(
    _TOKENS / _VLLM / 3600,
    why=f"300 million tokens / 5,387 a second = 55,700 s, 15.5 hours. One by one they take {_TOKENS / _ONE_BY_ONE / 86400:.0f} days.",
    tip="All output tokens, divided by tokens per second, are seconds. The question is about hours.",
    code="answer = 2_000_000 * 150 / 5387 / 3600",
    misconceptions={
        _TOKENS / _VLLM: "these are seconds; the question is about hours.",
        _TOKENS / _VLLM / 86400: "these are days; the question is about hours.",
        _TOKENS / _ONE_BY_ONE / 3600: "these are the hours of transformers, one by one: 23.8 tokens per second.",
        2_000_000 / _VLLM / 3600: "the speed counts tokens, and an answer has 150 of them.",
    },
    tolerance=0.03,
)

q2 = number(
    140 / 340,
    why="4 places x 85 steps = 340; 3 + 40 + 12 + 85 = 140 of them make a token that is kept.",
    tip="The batch runs for as many steps as its longest answer. How many places are that, and how many tokens are kept?",
    code="answer = (3 + 40 + 12 + 85) / (4 * 85)",
    misconceptions={
        200 / 340: "this is the share that waits.",
        100 * 140 / 340: "this is in percent; give it as a share, between 0 and 1.",
        85 / 140: "the longest answer over all tokens; wanted are kept tokens over places, 4 in each of 85 steps.",
        35: "this is the mean length; wanted is a share.",
    },
)

q3 = choice(
    "b",
    why="`SamplingParams` has max_tokens=16 unless you say otherwise; the chat endpoint of a server has no such limit.",
    tip="The finish reason is `length`. Which lengths can end an answer, and which of them did `greedy` leave to its default?",
    misconceptions={
        "a": "the model has room for 2,048 tokens, and this answer has 16.",
        "c": "then the finish reason would be 'stop'.",
        "d": "that is the room for a whole step of all requests; it delays, it does not cut.",
    },
)


def _judge_line(answer: Any) -> Verdict:
    try:
        request = request_of(1, parse(json.dumps(answer)))
    except LineError as error:
        return wrong(f"{error.message}.")
    body = request.body
    messages = body.get("messages")
    if not messages or messages[-1].get("role") != "user" or not messages[-1].get("content"):
        return wrong("the body of a chat has `messages`, a list whose last one has the role 'user' and a `content`.")
    if body.get("max_tokens") != 20 or body.get("temperature") != 0:
        return wrong("`max_tokens` is to be 20 and `temperature` 0; both belong into the body.")
    return right(
        f"written as one line of JSON, this is a request that any tool for batches reads. Its name is {request.custom_id!r}."
    )


_LINE: dict[str, Any] = {
    "custom_id": "weather-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "What is a batch?"}], "max_tokens": 20, "temperature": 0},
}

q4 = Exercise(
    _judge_line,
    tip="Four fields: custom_id (any name), method 'POST', url '/v1/chat/completions', and body, what you would send to a server.",
    code="""answer = {
    "custom_id": "my-first",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "messages": [{"role": "user", "content": "What is a batch?"}],
        "max_tokens": 20,
        "temperature": 0,
    },
}""",
    wrong_answers=[
        {**_LINE, "url": "http://localhost:8000/v1/chat/completions"},
        {key: value for key, value in _LINE.items() if key != "custom_id"},
        {**_LINE, "max_tokens": 20},
        {**_LINE, "body": {"prompt": "What is a batch?", "max_tokens": 20, "temperature": 0}},
        {**_LINE, "body": {**_LINE["body"], "max_tokens": 200}},
        "What is a batch?",
    ],
)

q5 = number(
    32,
    why="a finished request holds 256 tokens, which is two blocks; 64 blocks are 32 such requests. With more seats some would wait, or be preempted.",
    tip="How many tokens does a request hold just before its end? How many of those fit into the cache?",
    code="answer = 64 * 128 // (100 + 156)",
    misconceptions={
        64: "that is the number of blocks; a request needs two of them at its end.",
        8192 / 100: "the answer's tokens stay in the cache as well, not only the prompt's.",
        8192 / 156: "the prompt's tokens stay in the cache as well, not only the answer's.",
        8192: "these are the tokens that the cache holds; how many requests are that?",
    },
    tolerance=0.01,
)

q6 = number(
    700,
    why="what stands as a whole line is done; the half-written one, the 64 in work and all the others are asked again: 2,000 - 1,300.",
    tip="Only whole lines in the output count as done. What was in the engine is in no file.",
    code="answer = 2000 - 1300",
    misconceptions={
        699: "half a line is no answer: it is cut off, and asked again.",
        636: "what the engine had in work was in memory alone, and went with the process.",
        764: "the 64 in work are among those that have no line, they do not come on top.",
        2000: "that is what a tool does which writes only at the end.",
    },
    tolerance=0.0005,
)

q7 = choice(
    "c",
    why="each line draws from a seed of its own, N plus its number, so it draws the same again, whenever and beside whomever it is asked.",
    tip="At temperature 1 answers are drawn. Of what does a draw depend, besides the model's odds?",
    misconceptions={
        "a": "the order in which lines are asked does not change what a draw depends on: the state of the generator.",
        "b": "one seed for the engine gives one sequence of draws, and a second run hands them to other lines.",
        "d": "a seat for each request changes the speed; the draws stay other ones.",
    },
)

_SITES = {
    "a chat on a web page": "online",
    "summaries of last year's 2 million reports": "offline",
    "questions that a class asks during a lecture": "online",
    "labels for a training set, due on Monday": "offline",
    "an agent that reads each answer before it asks on": "online",
}


def _judge_sites(answer: Any) -> Verdict:
    if not isinstance(answer, list | tuple) or len(answer) != len(_SITES):
        return wrong("the answer is a list of five words, one for each case, in the order of the question.")
    off = [case for (case, way), said in zip(_SITES.items(), answer, strict=True) if str(said).strip().lower() != way]
    if not off:
        return right("who waits for each single answer, and who waits for the last one? That decides.")
    case = off[0]
    if _SITES[case] == "offline":
        return wrong(f"{case}: all of it is known beforehand, and nobody waits for a single answer.")
    return wrong(f"{case}: somebody waits for this one answer, and the next request is not known yet.")


q8 = Exercise(
    _judge_sites,
    tip="Is every request known beforehand? Does anybody wait for a single answer?",
    code=f"answer = {list(_SITES.values())}",
    wrong_answers=[
        ["offline"] * 5,
        ["online"] * 5,
        ["online", "offline", "online", "offline", "offline"],
        ["online", "offline"],
        "online",
    ],
)
