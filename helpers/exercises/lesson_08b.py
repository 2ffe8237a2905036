"""Exercises of lesson 08b: expected tokens, break-even, a crowd, a draft as large as the model, moving, bus, graphs, a choice."""

from typing import Any

from helpers import speculation
from helpers.checks import Exercise, Verdict, choice, number, right, wrong
from helpers.lever_scenarios import AT_ONCE, GUESSES, LEVERS, PREFIX

_TOKENS = speculation.expected_tokens(0.8, 4)
q1 = number(
    _TOKENS,
    why="1 + 0.8 + 0.64 + 0.51 + 0.41. The fifth token comes only if four guesses in a row were right.",
    tip="Add up: the model's own token, and for each guess the probability that it and all before it are right.",
    code="answer = sum(0.8**n for n in range(5))",
    misconceptions={
        1 + 4 * 0.8: "that would be so if a guess counted whatever became of those before it.",
        4 * 0.8: "a guess counts only if those before it were right too, and the model adds a token of its own.",
        _TOKENS - 1: "the step also writes a token of the model's own.",
        5: "that is the most a step can write.",
    },
    tolerance=0.01,
)

_EVEN = speculation.break_even(4, verify=1.5)
q2 = number(
    _EVEN,
    why="with every third guess right a step writes 1.5 tokens, which is what it costs.",
    tip="For which a is 1 + a + a² + a³ + a⁴ = 1.5?",
    code="answer = speculation.break_even(4, verify=1.5)",
    misconceptions={
        0.5: "then a step writes 1.94 tokens: more than it costs.",
        0.125: "half a token more by four guesses would be so if each counted alone; then 1 + a + ... is still below 1.5.",
        1.5 / 5: "not the share of the tokens that a step can write at most: the formula is not a straight line.",
        1 / 1.5: "then a step writes 2.6 tokens, for the price of 1.5.",
    },
    tolerance=0.02,
)

q3 = choice(
    "b",
    why="there is no arithmetic to spare: 5 tokens to compute for each request take about 5 times as long, and write 1 to 5.",
    tip="What does it cost to compute five tokens instead of one, when steps already wait for arithmetic?",
    misconceptions={
        "a": "a request alone leaves the arithmetic idle. Here it is what all wait for.",
        "c": "making them may be; looking at them is what a step with five times as many tokens costs.",
        "d": "the model checks every guess; its text stays its own.",
    },
)

_SELF = speculation.speedup(1.0, 4, draft=1.0, verify=1.1)
q4 = number(
    _SELF,
    why="5 tokens for 4 + 1.1 steps: all that guessing, to be slower by two percent. The next picture has it measured.",
    tip="The step writes 5 tokens. What does it cost: four guesses of a step each, and the look at all of them?",
    code="answer = speculation.speedup(1.0, 4, draft=1.0, verify=1.1)",
    misconceptions={
        5: "that would be so if guesses cost nothing.",
        5 / 1.1: "the look at them is not all: each guess costs a step here.",
        5 / 4: "the model's own look at them takes 1.1 steps more.",
        1 / _SELF: "the other way round: tokens over cost.",
    },
    tolerance=0.005,
)

_MOVED = 8192 * 327_680
q5 = number(
    1000 * _MOVED / 50e9,
    why="2.7 GB at 50 GB/s. Hidden behind the reading, layer by layer, it need not be waited for.",
    tip="Tokens x bytes a token, over bytes a second; the question is about milliseconds.",
    code="answer = 1000 * 8192 * 327_680 / 50e9",
    misconceptions={
        _MOVED / 50e9: "those are seconds; the question is about milliseconds.",
        1000 * 8 * _MOVED / 50e9: "50 GB/s are bytes already.",
        1000 * 327_680 / 50e9: "that is one token of the 8,192.",
        1000 * _MOVED / 400e9: "400 Gb/s are bits: 50 GB/s.",
    },
)

q6 = number(
    64e9 / 20e9,
    why="every step reads all weights, so 20 GB cross the bus for each token: 0.31 s. On two H200 the same model wrote 46 a second.",
    tip="How often a second can 20 GB cross a bus of 64 GB/s?",
    code="answer = 64e9 / 20e9",
    misconceptions={
        20 / 64: "those are seconds for a token.",
        64: "64 GB/s move 20 GB more than once a second, but not 64 times.",
        64e9 / 141e9: "only the 20 GB in host memory cross the bus.",
        240: "that is HBM: 4.8 TB/s. The bus has 64 GB/s.",
    },
)

q7 = choice(
    "b",
    why="one replay takes the place of hundreds of starts. A small model's short steps gain most: 6.6 times for the 8B, 2.3 for the 70B.",
    tip="Compare the 8B with the 70B, and one request with many, in the first two rows.",
    misconceptions={
        "a": "graphs are for steps of decode; prompts are long work for few starts.",
        "c": "both rows are of two GPUs, and differ by a factor of three.",
        "d": "graphs take memory from the cache; its size does not make them useful.",
    },
)

EXPECTED = {
    "chatbot": {PREFIX},
    "long documents": {PREFIX},
    "batch labelling": {AT_ONCE},
    "agent with tools": {GUESSES},
}
#: What the lesson shows of each workload.
SCENARIOS = {
    "chatbot": "system prompt of 1,200 tokens, then turn after turn of 60; answers of 5",
    "long documents": "six questions about the same 1,500 tokens; answers of 5",
    "batch labelling": "48 prompts of 12 tokens, none alike; one word each; nobody waits",
    "agent with tools": "five steps in turn, prompts of 10 tokens; answers of 70 that repeat what stands before them",
}
_WHY = {
    "chatbot": "every turn sends the conversation again, and the answers are short: prompts are most of the work.",
    "long documents": "the document is the same in every prompt; reading it once is most of the work saved.",
    "batch labelling": "prompts have nothing in common and one token cannot be guessed ahead; but nobody waits for one of them.",
    "agent with tools": "the answers are long beside their prompts and repeat what stands there: they are good to guess.",
}


def _judge(answer: Any) -> Verdict:
    if set(answer) != set(EXPECTED):
        return wrong("the answer is a dict with exactly the four workloads as keys, as in `check.SCENARIOS`.")
    for name, expected in EXPECTED.items():
        chosen = {answer[name]} if isinstance(answer[name], str) else set(answer[name])
        if unknown := chosen - set(LEVERS):
            return wrong(f"{name}: {sorted(unknown)[0]!r} is none of the three levers, {', '.join(LEVERS)}.")
        if chosen != expected:
            return wrong(f"{name}: {_WHY[name]}")
    return right("that is what the next cell measures on this machine.")


q8 = Exercise(
    _judge,
    tip="What is most of the work: prompts that have been seen, waiting one for another, or writing that repeats itself?",
    code="answer = {\n" + "".join(f"    {name!r}: {levers!r},\n" for name, levers in EXPECTED.items()) + "}",
    wrong_answers=[
        {name: set(LEVERS) for name in EXPECTED},
        {**EXPECTED, "batch labelling": {PREFIX}},
        {**EXPECTED, "agent with tools": {"tensor parallelism"}},
        {"chatbot": {PREFIX}},
        "prefix caching",
    ],
)
