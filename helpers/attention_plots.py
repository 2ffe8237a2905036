"""Pictures of what attention computes, with and without a KV cache."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from helpers import plots
from helpers.partition import positive


def times_computed(prompt: int, tokens: int, cached: bool) -> np.ndarray:
    """How often each query meets each key while a prompt is read and `tokens` tokens are written: (context, context).

    The last token is written and never read, so context = prompt + tokens - 1. Entries above the diagonal are 0: nothing
    looks ahead. Without the cache every step computes again all that came before.
    """
    positive(prompt=prompt, tokens=tokens)
    context = prompt + tokens - 1
    query = np.arange(context)
    steps = np.minimum(context - query, tokens)  # the steps in which this query's token is there
    counts = np.ones(context, dtype=int) if cached else steps
    return np.tril(np.repeat(counts[:, None], context, axis=1))


def cache_grid(prompt: int = 4, tokens: int = 5) -> Figure:
    """The scores of one head as squares, a row a query, and in each how often it is computed."""
    figure, axes = plots._new_figure(
        2, figsize=(7.2, 3.6), sharey=True, label="scores computed with and without a KV cache"
    )
    for axis, cached in zip(axes, (False, True), strict=True):
        counts = times_computed(prompt, tokens, cached)
        axis.imshow(np.where(counts, counts, np.nan), cmap="Blues", vmin=0, vmax=1.4 * tokens)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axis.text(column, row, count, ha="center", va="center", fontsize=9)
        axis.axhline(prompt - 0.5, color=plots.ORANGE, linewidth=1.5)
        axis.set_title(f"{'with' if cached else 'without'} the cache: {counts.sum()} scores", loc="left", fontsize=10)
        axis.set(xlabel="key of token", xticks=range(len(counts)), yticks=range(len(counts)))
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axes[0].set_ylabel("query of token\n(above the line: the prompt)")
    return figure


def token_cost(growth: pd.DataFrame) -> Figure:
    """The cost of one more token at each context, from attention_work.growth: work counted, time measured."""
    figure, axes = plots._new_figure(2, label="multiply-adds and milliseconds of one more token, by context")
    for axis, (what, label) in zip(
        axes, {"multiply_adds": "multiply-adds", "milliseconds": "milliseconds"}.items(), strict=True
    ):
        for way, color, marker in (("without", plots.ORANGE, "s"), ("with", plots.BLUE, "o")):
            axis.loglog(
                growth.index, growth[what][way], color=color, marker=marker, markersize=4, label=f"{way} the cache"
            )
        axis.set_title(f"{label} of one more token", loc="left", fontsize=10)
        axis.set_xlabel("tokens before it")
        axis.set_xticks(growth.index, [f"{context:,}" for context in growth.index])
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0].legend(fontsize=9, frameon=False)
    return figure
