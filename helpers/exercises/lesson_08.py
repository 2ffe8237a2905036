"""Exercises of lesson 08: balance, complaints, hits in the cache, a token budget, an FP8 cache, INT4's bits, FP8's limits."""

from typing import Any

from helpers import diagnosis, parallel_data
from helpers.checks import Exercise, Verdict, number, right, wrong

#: Five kinds of work for the table of the lesson.
WORKLOADS = {
    "one chat": {"prompt": 500, "output": 300, "batch": 1},
    "64 chats": {"prompt": 500, "output": 300, "batch": 64},
    "long documents": {"prompt": 30000, "output": 200, "batch": 8},
    "labels": {"prompt": 300, "output": 2, "batch": 256},
    "long answers over documents": {"prompt": 60000, "output": 4000, "batch": 16},
}
SYSTEM = (
    "You are a patient teacher in a workshop about serving language models. Answer clearly and briefly. "
    "Say what a word means before you use it, and name the units of every number. " * 6
)
CHAT = [
    "What is inference?",
    "What is the KV cache?",
    "What is prefill?",
    "What is decode?",
    "What is continuous batching?",
]

_BALANCE = diagnosis.balance_batch("H200")[0]
q1 = number(
    _BALANCE,
    why="a weight is 2 bytes to read and 2 FLOP for each request: 989e12 / 4.8e12 = 206 requests.",
    tip="A weight takes 2 bytes / 4.8e12 seconds to read, and 2 FLOP / 989e12 seconds for each request. When are they equal?",
    code="answer = 989e12 / 4.8e12",
    misconceptions={
        2 * _BALANCE: "a request multiplies and adds with every weight: 2 FLOP.",
        _BALANCE / 2: "a BF16 weight takes 2 bytes to read, not one.",
        1: "with one request a step does 2 FLOP for every 2 bytes it reads; the GPU could do 206 times as many.",
        _BALANCE / 1000: "TFLOP/s and TB/s are both 10^12.",
    },
)

_PREFILL, _DECODE, _JERKS, _ROOM = "prefill", "decode", "jerks", "room"
_CASES = {
    "the first word comes after 8 seconds; prompts have 50,000 tokens and the queue is empty": _PREFILL,
    "a single user gets 12 tokens a second from a 70B": _DECODE,
    "text stops for a second whenever a colleague sends a document": _JERKS,
    "num_requests_waiting grows while kv_cache_usage_perc stands at 1.0": _ROOM,
    "the log counts preemptions every few seconds": _ROOM,
}
COMPLAINTS = list(_CASES)
_HINTS = {
    _PREFILL: "nobody is in the way and nothing waits for room: the time passes while the prompt is read.",
    _DECODE: "it is one user, and what is slow is the writing itself.",
    _JERKS: "text comes well as long as no long prompt comes in between.",
    _ROOM: "requests wait, or are put back, because no block of the cache is free.",
}


def _judge_complaints(answer: Any) -> Verdict:
    if not isinstance(answer, list | tuple) or len(answer) != len(_CASES):
        return wrong("the answer is a list of five words, one for each case, as `check.COMPLAINTS` lists them.")
    off = [case for (case, kind), said in zip(_CASES.items(), answer, strict=True) if str(said).strip().lower() != kind]
    if off:
        return wrong(f"{off[0]}: {_HINTS[_CASES[off[0]]]}")
    return right("now the levers of that column are worth a try, and the others are not.")


q2 = Exercise(
    _judge_complaints,
    tip="What does each wait for: a prompt being read, a token being written, somebody else's prompt, or a free block?",
    code=f"answer = {list(_CASES.values())}",
    wrong_answers=[
        [_DECODE] * 5,
        [_PREFILL, _DECODE, _PREFILL, _ROOM, _ROOM],
        [_PREFILL, _DECODE, _JERKS, _ROOM, _DECODE],
        [_PREFILL],
        "prefill",
    ],
)

q3 = number(
    8 * (1500 // 128) * 128,
    why="eleven full blocks of 128 lie within the 1,500 tokens; the twelfth is different for every question. 8 x 1,408.",
    tip="Only full blocks are shared. How many whole blocks of 128 tokens lie within 1,500?",
    code="answer = 8 * (1500 // 128) * 128",
    misconceptions={
        8 * 1500: "only whole blocks are found: 1,500 is no multiple of 128.",
        8 * 1536: "the twelfth block holds the question's own tokens too, so it is another one each time.",
        1408: "that is what one question finds; there are eight.",
        7 * 1408: "a request before them has left the prefix in the cache, so the first of the eight finds it as well.",
    },
    tolerance=0.005,
)

q4 = number(
    1000,
    why="50 ms are left for reading, at 20 tokens a millisecond. A longer prompt comes in several steps.",
    tip="How many of the 60 ms are left for reading, and how many tokens are read in them?",
    code="answer = 20_000 * (0.060 - 0.010)",
    misconceptions={
        1200: "the step also writes, which takes 10 of the 60 ms.",
        200: "that is what is read in 10 ms.",
        20000: "that is a second's worth.",
        1400: "writing and reading add up: 60 ms hold both.",
    },
)

q5 = number(
    2**30 / 2048,
    why="2,048 bytes a token: exactly twice as many. The scales are a number for each layer, and do not count.",
    tip="How many bytes does a token take when every key and value has one byte instead of two?",
    code="answer = 2 * 262_144",
    misconceptions={
        262144: "that is with two bytes for each key and value.",
        262144 / 2: "each token takes half of the memory, so there is room for more of them.",
        4 * 262144: "16 bits to 8 bits is half, not a quarter.",
    },
    tolerance=0.005,
)

q6 = number(
    4 + 16 / 32,
    why="4 bits, and a 32nd part of 16. Groups of 128, more usual, make it 4.125.",
    tip="A scale of 2 bytes is 16 bits, and 32 weights share it.",
    code="answer = 4 + 16 / 32",
    misconceptions={
        4: "the scales have to be stored as well.",
        4 + 2 / 32: "a scale has 2 bytes, which are 16 bits.",
        4 + 16: "32 weights share one scale.",
        4.125: "that is with 128 weights to a scale; here they are 32.",
    },
    tolerance=0.005,
)

_BEFORE, _AFTER = (parallel_data.speed(parallel_data.two_gpus("llama-3.1-70b"), row, 1, "tpot_ms") for row in ("TP2", "TP2, FP8"))  # fmt: skip
_OTHER = 2 * _AFTER - _BEFORE
q7 = number(
    _OTHER,
    why="reading r and the rest o: r + o = 21.1 and r/2 + o = 13.0, so r = 16.2 and o = 4.9. The bound of reading is 14.7 ms.",
    tip="Call reading r and the rest o. Before: r + o = 21.1. After: r / 2 + o = 13.0.",
    code="answer = 2 * 13.0 - 21.1",
    misconceptions={
        2 * (_BEFORE - _AFTER): "that is what was spent on reading; asked is the rest.",
        _BEFORE - _AFTER: "that is what was saved, half of the reading.",
        _BEFORE / 2: "that is what a step would take if all of it were reading.",
        _AFTER: "that is the new step, in which half of the reading is still there.",
    },
    tolerance=0.03,
)
