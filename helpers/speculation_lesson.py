"""Speculation measured: speed-ups of several ways of guessing on several texts, beside what the formula says."""

from collections.abc import Mapping

import pandas as pd
from openai import OpenAI

from helpers import speculation
from helpers.lever_lesson import client, step_seconds
from helpers.server import Server


def compare(
    plain: OpenAI, guessing: Mapping[str, Server], texts: Mapping[str, str], *, tokens: int = 200
) -> pd.DataFrame:
    """A row for each way and text: how many times as fast as `plain`, and what the server counted.

    accepted: share of the guesses; per_draft: tokens of a step that had guesses; per_step: of all steps; cost: what a step
    took, in steps of `plain`, if all had guesses.
    """
    slow = {name: step_seconds(plain, prompt=text, tokens=tokens) for name, text in texts.items()}
    rows = {}
    for way, server in guessing.items():
        for name, text in texts.items():
            before = speculation.counts(client(server))
            fast = step_seconds(server, prompt=text, tokens=tokens)
            counts = speculation.counts(client(server)) - before
            per_step = counts.written / counts.steps
            rows[way, name] = {
                "accepted": counts.acceptance, "per_draft": counts.tokens_per_draft, "per_step": per_step,
                "speedup": slow[name] / fast, "cost": per_step * fast / slow[name],
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
