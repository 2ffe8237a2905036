"""What the sampling parameters do to the odds of the next token; all functions map {token: probability} to the same.

The order in which vLLM applies them (v1/sample/sampler.py) is in `server_odds`.
"""

import math
from collections.abc import Mapping


def apply_temperature(odds: dict[str, float], temperature: float) -> dict[str, float]:
    """Each probability to the power 1/temperature, then scaled to sum to one; temperature 0 keeps the most likely alone.

    The same as dividing the logits by the temperature before softmax. Raises ValueError below 0.
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 or more.")
    best = max(odds.values())
    if temperature == 0:
        return _scaled({token: float(p == best) for token, p in odds.items()})
    return _scaled({token: (p / best) ** (1 / temperature) for token, p in odds.items()})


def keep_top_k(odds: dict[str, float], k: int) -> dict[str, float]:
    """The k most likely tokens share everything, the rest get 0; k = 0 keeps all, as vLLM does."""
    kept = sorted(odds, key=odds.__getitem__, reverse=True)[: k or None]
    return _scaled({token: p * (token in kept) for token, p in odds.items()})


def keep_top_p(odds: dict[str, float], top_p: float) -> dict[str, float]:
    """The smallest set of most likely tokens whose probabilities reach top_p shares everything, the rest get 0.

    top_p = 1 keeps all, however improbable.
    """
    if top_p >= 1:
        return _scaled(odds)
    kept, total = set(), 0.0
    for token in sorted(odds, key=odds.__getitem__, reverse=True):
        kept.add(token)
        total += odds[token]
        if total >= top_p - 1e-9:
            break
    return _scaled({token: p * (token in kept) for token, p in odds.items()})


def keep_min_p(odds: dict[str, float], min_p: float) -> dict[str, float]:
    """Tokens with at least min_p times the probability of the most likely one share everything, the rest get 0.

    Raises ValueError outside 0 to 1. Source: vLLM v1/sample/logits_processor/builtin.py.
    """
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}; it must lie between 0 and 1.")
    bar = min_p * max(odds.values()) * (1 - 1e-9)
    return _scaled({token: p * (p >= bar) for token, p in odds.items()})


def penalize(
    odds: dict[str, float], written: Mapping[str, int], *, frequency: float = 0, presence: float = 0
) -> dict[str, float]:
    """Take frequency x count off each token's logit, and `presence` once if it was written at all.

    `written` counts the tokens of the answer so far; vLLM does not count the prompt (model_executor/layers/utils.py).
    A logit lower by d divides the probability by exp(d), before all are scaled to sum to one again.
    """
    takes = {token: frequency * written.get(token, 0) + presence * (written.get(token, 0) > 0) for token in odds}
    least = min((takes[token] for token, p in odds.items() if p), default=0)  # so that exp stays within its range
    return _scaled({token: p and p * math.exp(least - takes[token]) for token, p in odds.items()})


def server_odds(
    odds: dict[str, float], *, written: Mapping[str, int] | None = None, frequency_penalty: float = 0,
    presence_penalty: float = 0, temperature: float = 1, min_p: float = 0, top_k: int = 0, top_p: float = 1,
) -> dict[str, float]:  # fmt: skip
    """The odds that vLLM draws from: penalties first, then temperature, min_p, top_k and top_p.

    `odds` are those the model gave, which is also what `logprobs` report: vLLM's come before all of these.
    Raises ValueError for a temperature below 0 and a min_p outside 0 to 1.
    """
    odds = penalize(odds, written or {}, frequency=frequency_penalty, presence=presence_penalty)
    odds = apply_temperature(odds, temperature)
    return keep_top_p(keep_top_k(keep_min_p(odds, min_p), top_k), top_p)


def _scaled(odds: dict[str, float]) -> dict[str, float]:
    total = sum(odds.values())
    return {token: p / total for token, p in odds.items()}
