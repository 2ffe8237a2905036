"""Pictures of speculative decoding: a text by its steps, the break-even formula, and what a step with guesses costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers import speculation
from helpers.plots import BLUE, GREEN, GREY, ORANGE, RED, _new_figure

WIDTH = 96  # characters in a line


def steps(texts: Mapping[str, Sequence[str]]) -> Figure:
    """{name: pieces}: the text each server wrote, its steps in turn dark and pale: the wider a field, the more tokens at once."""
    words = "; ".join(f"{name}: {len(pieces)} steps" for name, pieces in texts.items())
    lines = sum(_rows(pieces) for pieces in texts.values()) + 1.4 * len(texts)
    figure, (axis,) = _new_figure(figsize=(9, 0.25 + 0.23 * lines), label=words)
    row = 0.0
    for name, pieces in texts.items():
        axis.text(0, row, f"{name}: {len(pieces)} steps", fontsize=10, va="center", weight="bold")
        row += 1
        column = 0
        for number, piece in enumerate(pieces):
            color = (BLUE, ORANGE)[number % 2]
            for mark in piece.replace("\n", "↵"):
                if column == WIDTH:
                    row, column = row + 1, 0
                axis.barh(row, 1, left=column, height=0.86, color=color, alpha=0.3)
                axis.text(column + 0.5, row, mark, ha="center", va="center", fontsize=8, family="monospace")
                column += 1
        row += 1.4
    axis.set(xlim=(0, WIDTH), ylim=(row - 0.6, -0.7))
    axis.axis("off")
    return figure


def _rows(pieces: Sequence[str]) -> int:
    return 1 + sum(map(len, pieces)) // WIDTH


def curves(drafted: int, costs: Mapping[str, float], points: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Speed-up over acceptance for each cost of a step (in steps without guesses); points are (acceptance, measured)."""
    words = "; ".join(
        f"{name}: breaks even at {speculation.break_even(drafted, verify=cost):.0%}" for name, cost in costs.items()
    )
    figure, (axis,) = _new_figure(figsize=(7.2, 4.2), label=f"Speed-up over acceptance with {drafted} guesses. {words}")
    shares = np.linspace(0, 1, 101)
    for (name, cost), color in zip(costs.items(), (BLUE, GREEN, ORANGE, RED), strict=False):
        axis.plot(
            shares,
            [speculation.expected_tokens(a, drafted) / cost for a in shares],
            color=color,
            label=f"{name}: a step costs {cost:.2f}",
        )
    for (name, (acceptance, ratio)), marker in zip((points or {}).items(), "oD^svP", strict=False):
        axis.plot(acceptance, ratio, marker, color="black", markersize=7, label=f"measured: {name}")
    axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axis.set(xlabel="share of guesses that are accepted", ylabel="times as fast", xlim=(0, 1), ylim=(0, None))
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def step_costs(seconds: Mapping[int, float], drafted: int) -> Figure:
    """Milliseconds of a step by the tokens in it, and for each number of requests what `drafted` guesses more would cost."""
    counts = np.array(list(seconds))
    times = 1000 * np.array(list(seconds.values()))
    figure, (axis,) = _new_figure(
        figsize=(7.2, 2.9), label="; ".join(f"{n} tokens: {t:.2f} ms" for n, t in zip(counts, times, strict=True))
    )
    axis.plot(counts, times, "o-", color=BLUE)
    for requests, color in ((1, GREEN), (4, ORANGE)):
        many = requests * (drafted + 1)
        if many <= counts.max():
            ends = np.interp([requests, many], counts, times)
            axis.annotate(
                "",
                (many, ends[1]),
                (requests, ends[0]),
                arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2},
            )
            axis.plot(
                [],
                [],
                color=color,
                label=f"{requests} request{'s' * (requests > 1)} with {drafted} guesses: {ends[1] / ends[0]:.2f} steps",
            )
    axis.set(xlabel="tokens in a step", ylabel="ms", xlim=(0, None), ylim=(0, None))
    axis.legend(frameon=False, fontsize=9)
    return figure


def ways(table: pd.DataFrame) -> Figure:
    """Two panels for each way of guessing and text: tokens of a step, and how many times as fast (see speculation_lesson)."""
    names = [f"{way}: {text}" for way, text in table.index]
    words = "; ".join(
        f"{name}: {row.per_step:.1f} tokens a step, {row.speedup:.2f} times as fast"
        for name, row in zip(names, table.itertuples(), strict=True)
    )
    figure, (left, right) = _new_figure(2, figsize=(8.4, 0.9 + 0.45 * len(table)), sharey=True, label=words)
    for axis, column, title, color in (
        (left, "per_step", "tokens a step", BLUE),
        (right, "speedup", "times as fast", GREEN),
    ):
        bars = axis.barh(names, table[column], color=color, height=0.6)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axis.axvline(1, color="black", linewidth=1, linestyle="--")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlim(0, 1.2 * max(table[column].max(), 1))
    left.invert_yaxis()
    return figure
