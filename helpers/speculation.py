"""Speculative decoding: what a guess costs, what it saves, and when it pays.

A step checks `drafted` guessed tokens together with the one that is due, accepts them up to the first that the model
would not have written, and adds one token of its own. So a step writes 1 to drafted + 1 tokens, and the text is the one
that the model writes without guesses.

Source: Leviathan, Kalman and Matias, Fast Inference from Transformers via Speculative Decoding, 2023 (theorem 3.8).
"""

from dataclasses import dataclass

from openai import OpenAI

from helpers import metrics
from helpers.errors import WorkshopError

COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")


class SpeculationError(WorkshopError):
    """A formula asked for what cannot be, or a server that does not speculate."""


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Tokens that a step writes on average, if each guess is right with probability `acceptance`, whatever came before.

    1 + a + a^2 + ... + a^drafted = (1 - a^(drafted + 1)) / (1 - a).
    Raises SpeculationError for an acceptance outside 0 to 1 and for less than one guess.
    """
    _check(acceptance, drafted)
    return sum(acceptance**n for n in range(drafted + 1))


def step_cost(drafted: int, *, draft: float = 0.0, verify: float = 1.0) -> float:
    """What a step with guesses takes, in steps without: `draft` for each guess, and `verify` for the model's look at all."""
    return drafted * draft + verify


def speedup(acceptance: float, drafted: int, *, draft: float = 0.0, verify: float = 1.0) -> float:
    """Tokens a second with speculation, over tokens a second without: expected tokens / cost of a step.

    Raises what expected_tokens raises.
    """
    return expected_tokens(acceptance, drafted) / step_cost(drafted, draft=draft, verify=verify)


def break_even(drafted: int, *, draft: float = 0.0, verify: float = 1.0) -> float:
    """The acceptance from which speculation pays; NaN where a step costs more than it can ever write."""
    return acceptance_for(step_cost(drafted, draft=draft, verify=verify), drafted)


def acceptance_for(tokens: float, drafted: int) -> float:
    """The acceptance with which a step writes so many tokens on average, by halving; NaN if none does (1 to drafted + 1)."""
    low, high = 0.0, 1.0
    if not 1 <= tokens <= drafted + 1:
        return float("nan") if tokens > 1 else 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if expected_tokens(middle, drafted) >= tokens else (middle, high)
    return high


@dataclass(frozen=True)
class Counts:
    """What a server counted: steps that had guesses, tokens guessed in them, tokens accepted; and over all requests, which
    came one at a time: tokens written, steps computed, requests answered.

    A request's first step reads its prompt and writes its first token. The last step may accept more than is wanted.
    """

    drafts: int
    drafted: int
    accepted: int
    written: int
    steps: int
    requests: int

    @property
    def acceptance(self) -> float:
        """Accepted / guessed tokens; a guess after a wrong one counts as not accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Of the steps after a prompt's."""
        return (self.written - self.requests) / (self.steps - self.requests)

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))


def predicted_speedup(counts: Counts, cost: float) -> float:
    """The speed-up of writing, if steps with guesses cost `cost` steps each and the others one.

    tokens / (steps without guesses + steps with guesses x cost). If every step has guesses, this is expected tokens / cost.
    """
    steps = counts.steps - counts.requests
    guessing = min(counts.drafts, steps)
    return (counts.written - counts.requests) / (steps - guessing + guessing * cost)


def counts(client: OpenAI) -> Counts:
    """The counters of a server since it started. Raises SpeculationError for one without speculation."""
    table = metrics.read(client)
    totals = table[table["kind"] == "counter"].groupby("metric")["value"].sum()
    if "spec_decode_num_drafts" not in totals:
        raise SpeculationError("This server does not speculate: it was started without `--speculative-config`.")
    found = [totals[f"spec_decode_{name}"] for name in COUNTERS]
    steps = table.loc[(table["metric"] == "iteration_tokens_total") & (table["part"] == "count"), "value"].sum()
    return Counts(*(int(value) for value in (*found, totals["generation_tokens"], steps, totals["request_success"])))


def _check(acceptance: float, drafted: int) -> None:
    if not 0 <= acceptance <= 1:
        raise SpeculationError(f"acceptance is {acceptance}; it is a share, from 0 to 1.")
    if drafted < 1:
        raise SpeculationError(f"drafted is {drafted}; a step needs at least 1 guess to be speculative.")
