"""What a lever does to a model's answers: perplexity on text that it has not seen, and distance from odds that are known.

The small Llama's corpus says with which odds a sentence goes on, so its errors can be measured against the truth; for any
other model only perplexity and tests of its answers remain.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
from openai import OpenAI

from helpers import logprobs, scoring
from helpers.tiny import corpus, evaluate

TEXTS = 40
UNSEEN = 10**6  # the seed of an epoch; training goes on from 0


@dataclass(frozen=True)
class Quality:
    """`odds`: {beginning: {word: probability}} as served; `nats` over `tokens` of unseen text."""

    odds: Mapping[str, Mapping[str, float]]
    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the mean nats a token."""
        return math.exp(self.nats / self.tokens)

    @property
    def distance(self) -> float:
        """Mean total variation distance from the corpus's odds: 0 is the truth, 1 has no word in common with it."""
        return _mean(evaluate.total_variation(_spaced(self.odds[start]), odds) for start, odds in corpus.ODDS.items())

    def moved_from(self, other: "Quality") -> float:
        """Mean total variation distance (0-1) between the odds of two servers, over the corpus's words."""
        return _mean(
            sum(abs(self.odds[start][word] - other.odds[start][word]) for word in odds) / 2
            for start, odds in corpus.ODDS.items()
        )

    def most_moved_from(self, other: "Quality") -> float:
        """The largest change of a probability."""
        return max(
            abs(self.odds[start][word] - other.odds[start][word])
            for start, odds in corpus.ODDS.items()
            for word in odds
        )


@cache
def unseen_texts() -> list[str]:
    """TEXTS documents of an epoch that training never reached: other draws from the same corpus."""
    return random.Random(UNSEEN).sample(corpus.documents(UNSEEN), TEXTS)


def measure(client: OpenAI, texts: Sequence[str] | None = None) -> Quality:
    """Ask a server of the small Llama for its odds after every known beginning, and for the perplexity of `texts`.

    Raises LogprobsError for a server that tells no logprobs.
    """
    model = client.models.list().data[0].id
    odds = {
        start: {word: served.get(f" {word}", 0.0) for word in known}
        for start, known in corpus.ODDS.items()
        for served in [evaluate.served_odds(client, model, start)]
    }
    tables = scoring.read_prompts(client, model, list(texts or unseen_texts()))
    read = [logprobs.perplexity(table) for table in tables]
    return Quality(odds, sum(one.nats for one in read), sum(one.tokens for one in read))


def table(found: Mapping[str, Quality]) -> pd.DataFrame:
    """A row for each server: perplexity, distance from the known odds, and how far the first one's odds have moved."""
    first = next(iter(found.values()))
    rows = {
        name: {
            "perplexity": one.perplexity,
            "distance from the truth": one.distance,
            "moved": one.moved_from(first),
            "most moved": one.most_moved_from(first),
        }
        for name, one in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _spaced(odds: Mapping[str, float]) -> dict[str, float]:
    return {f" {word}": share for word, share in odds.items()}


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
