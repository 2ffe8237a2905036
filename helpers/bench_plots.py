"""Pictures of benchmark results. Each takes rows of helpers.bench_report.table of one model and one pair of lengths."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from helpers import plots
from helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, "#4d4d4d", "#8c6d31", "#2b9eb3")
MARKERS = "os^Dv*PX"


def speeds(table: pd.DataFrame, title: str) -> Figure:
    """Tokens/s of each server, a panel for each concurrency: medians in blue, lowest to highest as a line, bounds in grey."""
    loads, rows = sorted(table["concurrency"].unique()), list(dict.fromkeys(table["row"]))
    columns = min(len(loads), 3)
    lines = -(-len(loads) // columns)
    with plt.rc_context(plots.STYLE):
        size = (2.2 + 3.0 * columns, 1.2 + lines * (0.7 + 0.34 * len(rows)))
        figure, axes = plt.subplots(lines, columns, squeeze=False, sharey=True, figsize=size)
    plt.close(figure)
    for axis, load in zip(axes.flat, loads, strict=False):
        _panel(axis, table[table["concurrency"] == load].set_index("row").reindex(rows), load)
    for axis in list(axes.flat)[len(loads) :]:
        axis.axis("off")
    axes[0][0].invert_yaxis()
    has_bound = table["bound"].notna().any()
    handles = [Rectangle((0, 0), 1, 1, color=BLUE), Line2D([], [], color="black", linewidth=1.5)]
    names = ["measured, median", "lowest to highest"]
    if has_bound:
        handles.append(Rectangle((0, 0), 1, 1, color=GREY, alpha=0.4))
        names.append("bound of memory and arithmetic (label: share reached)")
    figure.legend(handles, names, ncols=3, loc="outside lower center", frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    shown = ", ".join(f"{r.row} {r.tokens_per_second:.0f} at {r.concurrency}" for r in table.itertuples())
    figure.set_label(f"Bars of tokens a second for each server and number of requests at once: {shown}.")
    return figure


def choice(table: pd.DataFrame, title: str) -> Figure:
    """Tokens/s of all requests together against those of one, a line a server; each point is a number of requests at once.

    A server that was measured with one number alone has no line.
    """
    figure, (axis,) = plots._new_figure(figsize=(8.4, 4.2))
    table = table.groupby("row", sort=False).filter(lambda group: len(group) > 1)
    for place, (row, group) in enumerate(table.groupby("row", sort=False)):
        group = group.sort_values("concurrency")
        color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
        alone = 1000 / group["tpot_ms"]
        axis.plot(alone, group["tokens_per_second"], color=color, marker=marker, label=row)
        for x, y, load in zip(alone, group["tokens_per_second"], group["concurrency"], strict=True):
            axis.annotate(f"{load}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, color=color)
    axis.set_title(f"{title}\n(numbers: requests at once; up and to the right is better)", loc="left", fontsize=10)
    axis.set(xlabel="tokens/s of one request, while it decodes", ylabel="tokens/s of all together", yscale="log")
    axis.set_xlim(0, None)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a label or two even where all is within one power of ten
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_minor_formatter("")
    figure.legend(frameon=False, fontsize=9, loc="outside right center")
    names = ", ".join(dict.fromkeys(table["row"]))
    figure.set_label(f"Throughput of all requests against the speed of one, a line for each of {names}.")
    return figure


def _panel(axis: Axes, table: pd.DataFrame, load: int) -> None:
    places, measured = range(len(table)), table["tokens_per_second"]
    axis.barh(places, table["bound"].fillna(0), color=GREY, alpha=0.4, height=0.78)
    axis.barh(places, measured.fillna(0), color=BLUE, height=0.5)
    axis.hlines(places, table["lowest"], table["highest"], color="black", linewidth=1.5)
    for place, row in zip(places, table.itertuples(), strict=True):
        if pd.isna(row.tokens_per_second):
            axis.text(0, place, " not measured", va="center", fontsize=8.5, color="#5f6368")
        else:
            share = f" ({row.share:.0%})" if pd.notna(row.share) else ""
            end = max(row.highest, row.bound if pd.notna(row.bound) else 0)
            axis.text(end, place, f" {row.tokens_per_second:,.0f}{share}", va="center", fontsize=8.5)
    axis.set_title(f"{load} at once", loc="left", fontsize=10)
    axis.set_yticks(list(places), list(table.index))
    farthest = table[["bound", "highest"]].max().max()
    axis.set(xlabel="tokens/s", xlim=(0, 1.45 * farthest))
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter("{x:,.0f}")
