"""Exercises of lesson 05: TPOT, threads and queues, percentiles, the knee, Little's law, blocks, goodput."""

from typing import Any

from helpers.checks import Exercise, Verdict, choice, number, right, wrong

q1 = number(
    (2.5 - 0.5) / (101 - 1),
    why="2 s after the first token for the 100 tokens that came after it: 20 ms each.",
    tip="TPOT leaves the first token out: its time is the TTFT, so it counts neither in the seconds nor in the tokens.",
    code="answer = (2.5 - 0.5) / (101 - 1)",
    misconceptions={
        2.5 / 101: "that spreads the wait for the first token over all; TPOT is about the tokens after it.",
        (2.5 - 0.5) / 101: "101 tokens came, and the 2 s are those of the 100 after the first.",
        100 / (2.5 - 0.5): "that is tokens per second; TPOT is seconds per token.",
        101 / 2.5: "that is tokens per second; TPOT is seconds per token.",
    },
    tolerance=0.005,
)

q2 = number(
    6,
    why="4 at once, 4 more, and 1 alone: three rounds of 2 s. The last round costs as much as a full one.",
    tip="How many rounds do 9 requests make on 4 threads, if all of them take equally long?",
    code="answer = 3 * 2",
    misconceptions={
        4.5: "9 / 4 rounds of 2 s would be right if a request could be split over threads; it cannot.",
        18: "that is one by one. Four threads wait at the same time.",
        4: "two rounds hold 8 requests; the ninth needs one more.",
        2: "that holds for up to 4 requests on 4 threads.",
    },
)

TOKENS = [100, 10, 100, 10, 10, 100, 10, 100]


def _steps(order: list[int], size: int = 4) -> int:
    """Steps that fixed batches take: each as many as its longest answer has tokens."""
    return sum(max(order[i : i + size]) for i in range(0, len(order), size))


def _judge_order(answer: Any) -> Verdict:
    order = [int(tokens) for tokens in answer]
    if sorted(order) != sorted(TOKENS):
        return wrong(f"use each of the eight requests {TOKENS} once.")
    steps = _steps(order)
    if steps == _steps(sorted(TOKENS)):
        return right(
            f"{steps} steps instead of {_steps(TOKENS)}: in a batch of equals nobody waits. But this works only for one "
            "who knows the lengths beforehand, and nobody knows how long an answer gets. A queue need not know."
        )
    return wrong(f"this takes {steps} steps; a batch lasts as long as its longest answer, so how many need a long one?")


q3 = Exercise(
    _judge_order,
    tip="Each batch lasts as long as its longest answer. Which requests should share a batch?",
    code="answer = sorted([100, 10, 100, 10, 10, 100, 10, 100])",
    wrong_answers=[TOKENS, [100, 10, 100, 10, 100, 10, 100, 10], [100, 100, 100, 100], [10] * 8, "sorted"],
)

q4 = number(
    0,
    why="95 waited 1 s and 5 waited 21 s; the mean, 2 s, is what nobody felt. Say p50 and p95 or p99 instead.",
    tip="Compute the mean. Then look for somebody who waited about that long.",
    code="answer = 0",
    misconceptions={
        95: "those 95 waited 1 s, half of the mean.",
        5: "those 5 waited 21 s, ten times the mean.",
        50: "half of all lie below the median, not at the mean; and nobody is near it here.",
        100: "the mean is 2 s: did anybody wait for 2 s?",
    },
)

q5 = number(
    0.5 * 24,
    why="0.5 s alone x 24 a second: 12 are in flight when the server is just busy. More threads only wait longer.",
    tip="The line of N threads that never wait, N / 0.5 requests a second, meets the peak of 24 where?",
    code="answer = 0.5 * 24",
    misconceptions={
        48: "24 / 0.5 has the unit requests a second squared; multiply the two.",
        24: "24 threads would be needed if each request took a whole second alone.",
        2: "that is how many requests one thread gets done in a second.",
    },
)

q6 = number(
    60 / (20 + 4) * 4,
    why="each of the 60 asks once in 20 + 4 s, together 2.5 a second, and 2.5 a second x 4 s = 10 are in flight.",
    tip="How often does one participant ask? One round is thinking and waiting. Then L = lambda x W.",
    code="answer = 60 / (20 + 4) * 4",
    misconceptions={
        60: "all 60 would be in flight if nobody ever thought.",
        12: "60 / 20 = 3 a second leaves out that nobody thinks while waiting: one round takes 24 s.",
        2.5: "that is lambda, questions a second; how long is each in flight?",
        50: "that many are thinking: the rest is in flight.",
        240: "60 x 4 would be right if all asked once in every second.",
    },
)  # fmt: skip

q7 = number(
    8,
    why="130 tokens need 2 blocks of 128, and blocks are not shared between requests that differ: 4 x 2.",
    tip="How many blocks does one such request need? The rest of its last block stays empty, see lesson 02.",
    code="answer = 4 * 2",
    misconceptions={
        5: "520 / 128 rounded up; but each request has blocks of its own.",
        4: "one block holds 128 tokens, and each request has 130.",
        4.0625: "blocks are whole: two of them for 130 tokens.",
        520: "those are the tokens; a block holds 128 of them.",
    },
)

q8 = choice(
    "b",
    why="16 threads: 30 x 0.5 = 15 good answers a second, against 12 x 1.0 and 33 x 0.3 = 9.9. The busiest is not the best.",
    tip="Goodput is the throughput times the share of answers that keep both limits. Compute it for each line.",
    misconceptions={
        "a": "all of its answers are good, and they are 12 a second; another setting has more good ones.",
        "c": "33 a second is the highest throughput, but only 0.3 of them are good: 9.9 a second.",
    },
)
