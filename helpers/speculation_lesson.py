"""Speculation measured: speed-ups of several ways of guessing on several texts, beside what the formula says."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from openai import OpenAI

from helpers import speculation
from helpers.lever_lesson import client, step_seconds
from helpers.server import Server
from helpers.speculation import Counts

TOKENS = 70  # the small Llama's lists end after 80, and greedy text without an end is no text


@dataclass(frozen=True)
class Race:
    """One text on two servers: how many times as fast the one that guesses was, and what it counted."""

    speedup: float
    counts: Counts


def race(plain: OpenAI, guessing: Server, text: str, *, rounds: int = 4) -> Race:
    """Let both write after `text`, in turn, so that what else the machine does hits both alike; least times of `rounds`."""
    before, slow, fast = speculation.counts(client(guessing)), [], []
    for _ in range(rounds):
        slow.append(step_seconds(plain, prompt=text, tokens=TOKENS, times=2))
        fast.append(step_seconds(guessing, prompt=text, tokens=TOKENS, times=2))
    return Race(min(slow) / min(fast), speculation.counts(client(guessing)) - before)


def compare(plain: OpenAI, guessing: Mapping[str, Server], texts: Mapping[str, str]) -> pd.DataFrame:
    """A row for each way and text: how many times as fast as `plain`, and what the server counted.

    accepted: share of the guesses; per_step: tokens of a step.
    """
    rows = {}
    for way, server in guessing.items():
        for name, text in texts.items():
            found = race(plain, server, text, rounds=2)
            rows[way, name] = {
                "accepted": found.counts.acceptance, "per_step": found.counts.tokens_per_step, "speedup": found.speedup
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["guesses", "text"])


def points(ways: pd.DataFrame, drafted: int) -> dict[str, tuple[float, float]]:
    """{name: (acceptance of a single guess, measured speed-up)}, for a picture beside the formula's curves.

    The acceptance is the one with which the formula gives the counted tokens a step.
    """
    return {
        f"{way}, {text}": (speculation.acceptance_for(row["per_step"], drafted), row["speedup"])
        for (way, text), row in ways.iterrows()
    }
