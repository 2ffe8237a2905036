"""The squares that the picture of attention counts are those that attention computes."""

import numpy as np
import pytest

from helpers import attention, attention_plots, attention_work


@pytest.mark.parametrize("cached", [True, False])
def test_scores_counted_are_scores_computed(cached):
    """Of all that a step multiplies, scores and weighted values take 2 x head_dim for each head and square."""
    prompt, tokens = 4, 5
    weights = attention.Weights.random(hidden=12, heads=3, kv_heads=1)
    work = attention.decode(np.ones((prompt, 12)), tokens, weights, cached=cached).total.multiply_adds
    projections = 2 * 12 * 4 * (3 + 1)
    read = prompt + tokens - 1 if cached else sum(range(prompt, prompt + tokens))
    full_squares = (work - projections * read) / (2 * 4 * 3)
    counts = attention_plots.times_computed(prompt, tokens, cached)
    context = len(counts)
    lower = [(query, key) for query in range(context) for key in range(context) if key <= query]
    assert all(counts[at] > 0 for at in lower) and counts.sum() == sum(counts[at] for at in lower)
    # The code also computes what the mask throws away: the upper half of the squares of each step.
    steps = [(prompt, prompt)] + [(1 if cached else n, n) for n in range(prompt + 1, prompt + tokens)]
    masked = sum(new * (new - 1) // 2 for new, _ in steps)
    assert full_squares == counts.sum() + masked


def test_pictures():
    grid = attention_plots.cache_grid(3, 4)
    assert [axis.get_title(loc="left") for axis in grid.axes] == [
        "without the cache: 52 scores",
        "with the cache: 21 scores",
    ]
    growth = attention_work.growth(attention.Weights.random(hidden=16, heads=2, kv_heads=1), [8, 16], repeats=1)
    assert len(attention_plots.token_cost(growth).axes) == 2
