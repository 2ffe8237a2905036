"""The picture of a class's server over the last minutes."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers import plots


def server(frame: pd.DataFrame, *, width: float = 10.0) -> Figure:
    """Four small panels over time: requests, tokens a second, time to first token, KV cache.

    `frame` is that of class_server.ServerHistory, with at least one row; `width` is in inches.
    """
    with plt.rc_context(plots.STYLE | {"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(width, 1.9))
        axes = figure.subplots(1, 4, sharex=True)
    figure.subplots_adjust(left=0.035, right=0.995, top=0.87, bottom=0.2, wspace=0.2)
    _lines(axes[0], frame, "requests", {"running": "running", "waiting": "waiting"})
    _lines(axes[1], frame, "tokens a second", {"generated_per_second": "generated", "prompt_per_second": "of prompts"})
    _lines(axes[2], frame, "time to first token, s", {"ttft_median": "median", "ttft_95": "95% below"})
    _lines(axes[3], frame, "KV cache in use", {"kv_usage": ""})
    axes[3].set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1], yticklabels=["0", "50%", "100%"])
    for axis in axes:
        axis.set_xlim(min(frame.index[0], -1), 0)
        axis.set_xlabel("minutes", fontsize=8)
        axis.locator_params(axis="x", nbins=4)
    last = frame.iloc[-1]
    figure.set_label(
        f"The class's server: {last.running:.0f} requests running, {last.waiting:.0f} waiting, cache {last.kv_usage:.0%} full."
    )
    return figure


def _lines(axis: Axes, frame: pd.DataFrame, title: str, columns: dict[str, str]) -> None:
    looks = zip((plots.BLUE, plots.ORANGE), ("-", "--"), strict=True)  # the style tells them apart without the colour
    for (column, label), (colour, style) in zip(columns.items(), looks, strict=False):
        axis.plot(frame.index, frame[column], color=colour, linestyle=style, linewidth=1.5, label=label)
        axis.fill_between(frame.index, frame[column], color=colour, alpha=0.08, linewidth=0)
    axis.set_title(title, loc="left", fontsize=9)
    axis.tick_params(labelsize=8)
    highest = max(frame[column].max(skipna=True) for column in columns)
    axis.set_ylim(0, 1.4 * highest if highest > 0 else 1)  # with room for the legend
    axis.locator_params(axis="y", nbins=4)
    if len(columns) > 1:
        axis.legend(loc="upper left", ncols=2, fontsize=8, frameon=False, borderpad=0)
