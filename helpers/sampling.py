"""What the sampling parameters do to the odds of the next token; all functions map {token: probability} to the same."""


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
    kept = sorted(odds, key=odds.get, reverse=True)[: k or None]
    return _scaled({token: p * (token in kept) for token, p in odds.items()})


def keep_top_p(odds: dict[str, float], top_p: float) -> dict[str, float]:
    """The smallest set of most likely tokens whose probabilities reach top_p shares everything, the rest get 0."""
    kept, total = set(), 0.0
    for token in sorted(odds, key=odds.get, reverse=True):
        kept.add(token)
        total += odds[token]
        if total >= top_p - 1e-9:
            break
    return _scaled({token: p * (token in kept) for token, p in odds.items()})


def _scaled(odds: dict[str, float]) -> dict[str, float]:
    total = sum(odds.values())
    return {token: p / total for token, p in odds.items()}
