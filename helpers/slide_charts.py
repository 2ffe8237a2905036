"""Charts of the slides: bars, groups, panels and traces, large and with few words. Each takes data and returns a Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.diagrams import INK, KINDS, ORANGE, WIDE
from helpers.plots import BLUE, GREEN, GREY
from helpers.trace import Trace
from helpers.trace_scene import scene


def bars(values: Mapping[str, float], unit: str, *, ratios: bool = True) -> Figure:
    """A bar for each name, with its value and, if wanted, how many times the first one's that is."""
    figure = Figure(figsize=(12, 0.9 + 0.85 * len(values)), layout="constrained")
    axis = figure.subplots()
    numbers = list(values.values())
    drawn = axis.barh(list(values), numbers, color=KINDS[: len(values)], height=0.62)
    words = [f"{v:,.0f}" + (f"  ({v / numbers[0]:.0f}×)" if ratios and v != numbers[0] else "") for v in numbers]
    axis.bar_label(drawn, words, padding=8, fontsize=20)
    axis.set(xlabel=unit, xlim=(0, 1.22 * max(numbers)), xticks=[])
    _clean(axis)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=20)
    figure.set_label(f"{unit}: " + "; ".join(f"{name} {value:,.0f}" for name, value in values.items()) + ".")
    return figure


def groups(table: pd.DataFrame, xlabel: str, ylabel: str, times: Sequence[float] | None = None) -> Figure:
    """Columns in groups, a group for each row; `times` stands over each group."""
    figure = Figure(figsize=WIDE, layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(table.columns)
    for number, (name, color) in enumerate(zip(table, (BLUE, ORANGE, GREEN), strict=False)):
        spots = [row + (number - (len(table.columns) - 1) / 2) * width for row in range(len(table))]
        drawn = axis.bar(spots, table[name], width=width, color=color, label=name)
        axis.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=18)
    ticks = [f"{index}" + (f"\n{times[i]:.2f}×" if times else "") for i, index in enumerate(table.index)]
    axis.set_xticks(range(len(table)), ticks, fontsize=18)
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.15 * table.max().max()))
    axis.legend(frameon=False, fontsize=18, loc="upper left")
    _clean(axis)
    figure.set_label(
        f"{ylabel} by {xlabel}: " + "; ".join(f"{name} {', '.join(f'{v:,.0f}' for v in table[name])}" for name in table)
    )
    return figure


def panels(table: pd.DataFrame, unit: str) -> Figure:
    """A panel for each row of a table with a bar for each column; the longest is blue."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axis, (load_, values) in zip(figure.subplots(1, len(table), sharey=True), table.iterrows(), strict=True):
        colors = [BLUE if value == values.max() else "#a9bcd6" for value in values]
        drawn = axis.barh(list(table.columns), values, color=colors, height=0.66)
        axis.bar_label(drawn, fmt="{:,.0f}", padding=5, fontsize=18)
        axis.set_title(f"{load_} request{'s' * (load_ > 1)} at once", loc="left", fontsize=20)
        axis.set(xlim=(0, 1.35 * values.max()), xticks=[], xlabel=unit)
        _clean(axis)
        axis.spines["bottom"].set_visible(False)
    figure.axes[0].invert_yaxis()
    said = "; ".join(
        f"{load_}: " + ", ".join(f"{n} {v:,.0f}" for n, v in values.items()) for load_, values in table.iterrows()
    )
    figure.set_label(f"{unit} by requests at once. {said}.")
    return figure


def odds(table: pd.DataFrame, across: bool = True) -> Figure:
    """A panel for each column: the probabilities of the words of the index, bars upright or (not `across`) lying."""
    figure = Figure(figsize=(12, 4.0), layout="constrained")
    words = [word.strip() for word in table.index]
    panels_ = figure.subplots(1, len(table.columns), sharey=True)
    for axis, name, color in zip(panels_, table, KINDS, strict=False):
        drawn = (
            axis.bar(words, table[name], color=color, width=0.62)
            if across
            else axis.barh(words, table[name], color=color)
        )
        axis.bar_label(drawn, [f"{p:.0%}" if p else "cut" for p in table[name]], padding=4, fontsize=20)
        axis.set_title(name, loc="left", fontsize=20)
        axis.set(**({"ylim": (0, 1.05), "yticks": []} if across else {"xlim": (0, 0.85), "xticks": []}))
        _clean(axis)
        axis.spines["left" if across else "bottom"].set_visible(False)
    if not across:
        panels_[0].invert_yaxis()
    said = (f"{name}: " + ", ".join(f"{w} {p:.0%}" for w, p in zip(words, table[name], strict=True)) for name in table)
    figure.set_label("; ".join(said))
    return figure


def tradeoff(rows: pd.DataFrame) -> Figure:
    """Tokens a second of all requests together (up) and of one of them (across), a point for each number at once."""
    figure = Figure(figsize=WIDE, layout="constrained")
    axis = figure.subplots()
    alone = 1000 / rows["tpot_ms"]
    axis.plot(alone, rows["tokens_per_second"], "o-", color=BLUE, markersize=12, linewidth=3)
    for x, y, count in zip(alone, rows["tokens_per_second"], rows["concurrency"], strict=True):
        axis.annotate(f"{count} at once: {y:,.0f}", (x, y), xytext=(16, 8), textcoords="offset points", fontsize=20)
    axis.set(xlabel="tokens/s of one request", ylabel="tokens/s of all together", xlim=(0, 1.45 * alone.max()))
    axis.set_ylim(0, 1.25 * rows["tokens_per_second"].max())
    axis.yaxis.set_major_formatter("{x:,.0f}")
    _clean(axis)
    figure.set_label("Throughput against speed: " + "; ".join(
        f"{r.concurrency} at once: {r.tokens_per_second:,.0f} together, {1000 / r.tpot_ms:.0f} each" for r in rows.itertuples()
    ))  # fmt: skip
    return figure


def pair(left: pd.Series, right: pd.Series, xlabel: str, titles: tuple[str, str]) -> Figure:
    """Two curves over the same values, side by side, with a number at each point."""
    figure = Figure(figsize=(12, 4.0), layout="constrained")
    for axis, values, title, color in zip(figure.subplots(1, 2), (left, right), titles, (BLUE, ORANGE), strict=True):
        axis.plot(values.index, values, "o-", color=color, markersize=11, linewidth=3)
        for x, y in values.items():
            axis.annotate(f"{y:,.0f}", (x, y), xytext=(0, 12), textcoords="offset points", fontsize=20, ha="center")
        axis.set_title(title, loc="left", fontsize=20)
        axis.set(xlabel=xlabel, xlim=(-8, 1.12 * max(values.index)), ylim=(0, 1.25 * values.max()), yticks=[])
        axis.set_xticks(list(values.index))
        _clean(axis)
    said = (
        f"{title}: " + ", ".join(f"{y:,.0f} at {x}" for x, y in values.items())
        for values, title in ((left, titles[0]), (right, titles[1]))
    )
    figure.set_label("; ".join(said) + ".")
    return figure


def seats(traces: Mapping[str, Trace]) -> Figure:
    """For each trace its requests over engine steps: dark reads, colour writes, outlined holds a seat for nothing."""
    figure = Figure(figsize=(12, 0.8 + 2.45 * len(traces)), layout="constrained")
    axes = figure.subplots(len(traces), 1, sharex=True, squeeze=False)[:, 0]
    until = max(trace.duration for trace in traces.values()) + 1
    for axis, (name, trace) in zip(axes, traces.items(), strict=True):
        for row, request in enumerate(scene(trace)["requests"]):
            color = KINDS[row % len(KINDS)]
            for kind, start, stop, _ in request["bars"]:
                looks: dict[str, Any] | None = {"prefill": {"facecolor": INK}, "decode": {"facecolor": color}}.get(kind)
                if kind == "held":
                    looks = {"facecolor": "white", "edgecolor": color, "hatch": "///", "linewidth": 1}
                if looks:
                    axis.broken_barh([(start, stop - start)], (row - 0.4, 0.8), **looks)
                elif kind == "wait":
                    axis.plot([start, stop], [row, row], color=GREY, linewidth=1.5)
        axis.set(xlim=(0, until), ylim=(len(trace.told) - 0.4, -0.6), yticks=[])
        axis.set_title(f"{name}: {trace.duration} steps", loc="left", fontsize=20)
        _clean(axis)
    axes[-1].set_xlabel("engine step")
    figure.set_label(
        "Requests over engine steps. " + "; ".join(f"{name}: {t.duration} steps" for name, t in traces.items()) + "."
    )
    return figure


def blocks(traces: Mapping[str, Trace]) -> Figure:
    """For each trace who holds which block of the cache over engine steps; white is free."""
    figure = Figure(figsize=(12, 5.0), layout="constrained")
    axes = figure.subplots(1, len(traces), sharey=True, sharex=True)
    for axis, (name, trace) in zip(axes, traces.items(), strict=True):
        shapes = scene(trace)
        for block, start, stop, owners in shapes["spans"]:
            if owners:
                color = KINDS[owners[0][0] % len(KINDS)] if len(owners) == 1 else INK
                axis.broken_barh(
                    [(start, stop - start)], (block - 0.5, 1), facecolor=color, edgecolor="white", linewidth=0.6
                )
        axis.set(ylim=(shapes["blocks"] - 0.5, 0.5), yticks=[], xlabel="engine step")
        axis.set_title(f"{name}: {trace.duration} steps", loc="left", fontsize=20)
    axes[0].set_ylabel("block of the cache")
    figure.set_label(
        "Who holds which block. "
        + "; ".join(f"{name}: done after {t.duration} steps" for name, t in traces.items())
        + "."
    )
    return figure


def _clean(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
