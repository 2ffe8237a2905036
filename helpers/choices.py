"""Multiple-choice questions from the small Llama's corpus, the server's answers to them, and how far to believe these.

Two sets, both with known answers. `corpus_questions`: which word follows a beginning, the right one drawn from the
corpus's own odds, so that nobody can do better than those odds. `capital_quiz`: four cities, as in the corpus.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from openai import OpenAI

from helpers.scoring import score_questions
from helpers.tiny.corpus import ODDS
from helpers.tiny.world import WORLD


@dataclass(frozen=True)
class Question:
    """A text, the answers it may go on with (each with its leading space), and which of them is right."""

    text: str
    answers: tuple[str, ...]
    right: int


def corpus_questions(copies: int = 30, seed: int = 0) -> list[Question]:
    """Each beginning of the corpus's odds `copies` times, each time with a right answer drawn from its odds."""
    rng = random.Random(seed)
    return [
        Question(text, tuple(f" {word}" for word in odds), rng.choices(range(len(odds)), list(odds.values()))[0])
        for text, odds in ODDS.items()
        for _ in range(copies)
    ]


def capital_quiz(*, letters_only: bool = False, seed: int = 0) -> list[Question]:
    """For each country of the corpus its capital among three others, in the form the corpus has such questions.

    An answer is the letter with the city, " B. Oslo", or the letter alone.
    """
    rng = random.Random(seed)
    quiz = []
    for country, city in sorted(WORLD["capitals"].items()):
        others = rng.sample(sorted(set(WORLD["capitals"].values()) - {city}), 3)
        cities = rng.sample([city, *others], 4)
        lines = [f"{letter}. {name}" for letter, name in zip("ABCD", cities, strict=True)]
        text = "\n".join([f"Question: What is the capital of {country}?", *lines, "Answer:"])
        answers = tuple(f" {line[0] if letters_only else line}" for line in lines)
        quiz.append(Question(text, answers, cities.index(city)))
    return quiz


def answer(client: OpenAI, model: str, questions: Sequence[Question]) -> pd.DataFrame:
    """A row for each question and answer: question (its number), answer, right, and the columns of score_answers."""
    # The same question with another right answer is scored once.
    asked = sorted({(question.text, question.answers) for question in questions})
    tables = dict(zip(asked, score_questions(client, model, asked), strict=True))
    parts = []
    for number, question in enumerate(questions):
        table = tables[question.text, question.answers].rename_axis("answer").reset_index()
        right = np.arange(len(question.answers)) == question.right
        parts.append(table.assign(question=number, right=right))
    table = pd.concat(parts, ignore_index=True)
    return table[["question", "answer", "right", *tables[asked[0]].columns]]


def accuracy(answered: pd.DataFrame, by: str = "logprob") -> float:
    """The share of questions whose best answer by that column is the right one."""
    best = answered.loc[answered.groupby("question")[by].idxmax()]
    return float(best["right"].mean())


def sharpened(answered: pd.DataFrame, temperature: float) -> pd.Series:
    """The probabilities of the answers at another temperature: to the power 1/temperature, scaled to one per question."""
    powers = answered["probability"] ** (1 / temperature)
    return powers / powers.groupby(answered["question"]).transform("sum")


def reliability(probability: Sequence[float], right: Sequence[bool], bins: int = 10) -> pd.DataFrame:
    """Answers put together by the probability they were given, in `bins` of equal width; empty ones are left out.

    Columns: answers (how many), given (mean probability), came_true (share that was right), and low and high, the 95%
    interval of that share (Wilson 1927), which is wide where answers are few. Raises ValueError for no probability, one
    outside 0 to 1, or another number of outcomes.
    """
    given, came_true = np.asarray(probability, float), np.asarray(right, float)
    if len(given) != len(came_true) or not len(given):
        raise ValueError(f"{len(given)} probabilities and {len(came_true)} outcomes; one of each for every answer.")
    if given.min() < 0 or given.max() > 1 + 1e-9:
        raise ValueError(f"Probabilities from {given.min():.3g} to {given.max():.3g}; they must lie between 0 and 1.")
    cells = np.minimum((given * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": cells, "given": given, "came_true": came_true}).groupby("bin")
    table = table.agg(answers=("given", "size"), given=("given", "mean"), came_true=("came_true", "mean"))
    n, share, z = table["answers"], table["came_true"], 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return table.assign(low=middle - half, high=middle + half)


def calibration_error(bins: pd.DataFrame) -> float:
    """The mean gap of given and came_true, each bin with the weight of its answers (expected calibration error)."""
    return float(((bins["given"] - bins["came_true"]).abs() * bins["answers"]).sum() / bins["answers"].sum())
