"""Exercises of lesson 04: logprobs, perplexity, temperature and filters, penalties, scores of answers."""

import math
from typing import Any

from helpers import sampling
from helpers.checks import Exercise, Verdict, choice, number, right, wrong
from helpers.client import connect
from helpers.logprobs import odds_at
from helpers.scoring import read_prompts
from helpers.tiny.corpus import ODDS, REPEAT

TEXT = "San Francisco is a beautiful city in California."

q1 = number(
    math.exp(-2.3),
    why="exp(−0.7 − 1.2 − 0.4) = exp(−2.3) = 0.10: logprobs add up where probabilities multiply.",
    tip="Add the logprobs, then take `math.exp`.",
    code="answer = math.exp(-0.7 - 1.2 - 0.4)",
    misconceptions={
        -2.3: "−2.3 is the logprob of the three together; a probability lies between 0 and 1.",
        math.exp(-2.3 / 3): "that is the geometric mean of the three probabilities; wanted is their product.",
        math.exp(-0.7)
        + math.exp(-1.2)
        + math.exp(-0.4): "probabilities of tokens in a row are multiplied; a sum can exceed 1.",
        10**-2.3: "these are natural logarithms: take e to that power, not 10.",
    },
)

q2 = number(
    23,
    why="two rows for each of the ten positions, and one more for each of the three chosen tokens that are not among them.",
    tip="How many rows has a position whose chosen token is among the two most probable? And one where it is not?",
    code="answer = 10 * 2 + 3",
    misconceptions={
        20: "the two most probable come in any case; a chosen token that is not among them comes on top.",
        30: "a chosen token that is among the two does not stand there twice.",
        13: "each position has its two most probable tokens, not one.",
        26: "three of the tokens add one row each, not two.",
    },
    tolerance=0.001,
)


def _judge_first(answer: Any) -> Verdict:
    client = connect(quiet=True)
    (table,) = read_prompts(client, client.models.list().data[0].id, [TEXT], k=3)
    odds = odds_at(table, position=1)
    said = str(answer)
    if said in odds and odds[said] >= 0.99 * max(odds.values()):
        return right(f"{said!r} with {odds[said]:.0%}. So many of the texts in its training began.")
    if said.strip() == "San":
        return wrong("`San` is the token that stands there; wanted is the one the model held most probable.")
    return wrong(f"{said!r} is not it. Take the row at position 1 where `most_probable` is true, and its `token`.")


q3 = Exercise(
    _judge_first,
    tip='Filter: `table[(table["position"] == 1) & table["most_probable"]]`, and read the column `token`.',
    code='answer = table.loc[(table["position"] == 1) & table["most_probable"], "token"].item()',
    wrong_answers=["San", " Francisco", " city", "Question", 1],
)

q4 = number(
    2,
    why="the mean of −ln p is (ln 2 + ln 4 + 0) / 3 = ln 2, and exp(ln 2) = 2: as unsure as before the toss of a coin.",
    tip="Take −ln of each probability, the mean of the three, and exp of that.",
    code="answer = math.exp(-(math.log(1 / 2) + math.log(1 / 4) + math.log(1)) / 3)",
    misconceptions={
        8: "1/8 is the probability of the whole text; perplexity is per token: take the mean, or the third root.",
        7 / 3: "you took the mean of 1/p; the mean is of the logarithms.",
        math.log(2): "ln 2 is the mean of −logprob in nats; perplexity is e to that power.",
        12 / 7: "you inverted the mean probability; the mean is of the logarithms.",
        math.sqrt(8): "the token with probability 1 counts as well: divide by three.",
    },
)

_BOSTON = ODDS["The weather in Boston is"]
_GAP = math.log(_BOSTON["sunny"] / _BOSTON["rainy"])

q5 = number(
    _GAP / math.log(4),
    why="ln(0.5 / 0.3) / T must be ln 4, so T = 0.51 / 1.39 = 0.37: cooler, since the likelier gets more.",
    tip="At temperature T the ratio is (0.5 / 0.3) to the power 1/T. For which T is that 4?",
    code="answer = math.log(0.5 / 0.3) / math.log(4)",
    misconceptions={
        math.log(4) / _GAP: "that is 1/T. Above temperature 1 the two come closer together, they do not move apart.",
        0.25: "temperature does not divide the ratio of the probabilities but the difference of their logarithms.",
        0.5: "at 0.5 the ratio is (0.5 / 0.3)² = 2.8.",
        (0.5 / 0.3) / 4: "divide the logarithms of the two ratios, not the ratios.",
    },
)  # fmt: skip

_SEATTLE = ODDS["The weather in Seattle is"]
_COOL = sampling.apply_temperature(_SEATTLE, 0.5)


def _judge_words(answer: Any) -> Verdict:
    if isinstance(answer, str):
        return wrong("answer with a list of words, in brackets.")
    words = {str(word).strip().lower() for word in answer}
    if words == {"rainy"}:
        return right(f"temperature comes first and gives rainy {_COOL['rainy']:.2f}, which reaches 0.7 alone.")
    if words == {"rainy", "cloudy"}:
        return wrong("that is top_p at temperature 1. Temperature comes first: what has rainy at 0.5?")
    if words == set(_SEATTLE):
        return wrong("top_p keeps only as many words as it takes to reach 0.7.")
    return wrong("square the three probabilities, scale them to 1, then add up from the largest until you reach 0.7.")


q6 = Exercise(
    _judge_words,
    tip="Which of the two does the server apply first? Then count with the odds that are left.",
    code='answer = ["rainy"]',
    wrong_answers=[["rainy", "cloudy"], ["rainy", "cloudy", "sunny"], ["sunny"], [], "rainy", 0.7],
)

_OTHER = (1 - REPEAT) / 9
_APPLES = math.floor(math.log(REPEAT / _OTHER)) + 1

q7 = number(
    _APPLES,
    why="after three apples the penalty is 3, more than the 2.6 that apples are ahead; after two it is 2, and not enough.",
    tip="After n apples in the answer, their logit is lower by n. For which n is that more than 2.6?",
    code="answer = 3",
    misconceptions={
        2: "the apples of the prompt do not count, only those in the answer: two take off 2, which is less than 2.6.",
        1: "one apple takes off 1, and apples are ahead by 2.6.",
        2.6: "2.6 is the difference of the logits; wanted is a number of apples, so that their penalties exceed it.",
        4: "three are enough: their penalty of 3 is more than 2.6, so the fourth word is another fruit.",
    },
    tolerance=0.001,
)

q8 = choice(
    "b",
    why="ln 0.60 = −0.5 against ln 0.25 = −1.4 in sum; the −1.4 is spread over eight tokens, which makes −0.2 each.",
    tip="The sum of the long answer is ln 0.25, as all its tokens but the first are certain. Now divide by its tokens.",
    misconceptions={
        "a": "the long answer pays ln 0.25 once and nothing for its other tokens: divide that by their number.",
        "c": "it is the other way round: further tokens can only lower a sum.",
        "d": "the sum of the long answer is ln 0.25, that of `city` ln 0.60, which is more.",
    },
)

q9 = choice(
    "c",
    why="it is too sure, and a temperature above 1 brings probabilities closer together. Choosing it on known answers is called "
    "temperature scaling.",
    tip="Is the model too sure, or not sure enough? And which temperatures make it less sure?",
    misconceptions={
        "a": "below 1 the most probable gets more probable still: 0.9 would become more than 0.9.",
        "b": "dividing by 1 changes nothing.",
    },
)
