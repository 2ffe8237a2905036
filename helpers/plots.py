"""The workshop's figures. Each function takes data and returns a matplotlib Figure; none computes what it draws."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from helpers.hardware import GIB
from helpers.memory import Plan

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b6fb6", "#e08a2e", "#4a9a63", "#c8504c", "#7d62a8", "#9aa0a6"

STYLE: dict[RcKeyType, Any] = {
    "figure.figsize": (7.2, 3.2),
    "figure.dpi": 96,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _new_figure(columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """A figure in the workshop's style, not registered with pyplot, so that a notebook shows it exactly once."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, squeeze=False, **kwargs)
    plt.close(figure)
    return figure, list(axes[0])


def loss_curve(losses: list[float], every: int = 1) -> Figure:
    """Training loss (nats per token) against step; `losses` holds one mean for each `every` steps."""
    figure, (axis,) = _new_figure()
    axis.plot([every * i for i in range(1, len(losses) + 1)], losses, color=BLUE)
    axis.set(title="Training loss of the small Llama", xlabel="step", ylabel="nats per token", yscale="log")
    ticks = [0.3, 0.5, 1, 2, 5]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)
    return figure


MEMORY_PARTS = {
    "weights": ("weights", BLUE),
    "activations": ("activations", ORANGE),
    "non_torch": ("outside PyTorch", RED),
    "cuda_graphs": ("CUDA graphs", PURPLE),
    "kv_cache": ("KV cache", GREEN),
    "left_free": ("left free", "#dfe2e5"),
}


def memory_bars(
    plans: Sequence[Plan],
    labels: Sequence[str] | None = None,
    title: str = "Memory of the tightest GPU (dashed: what it has)",
) -> Figure:
    """A stacked bar for each plan: what fills its tightest GPU, in GiB; the GPU's memory is dashed."""
    figure, (axis,) = _new_figure(figsize=(7.2, 1.9 + 0.5 * len(plans)))
    names = labels or [f"{plan.model}\n{plan.layout} on {plan.gpu}" for plan in plans]
    left = [0.0] * len(plans)
    for part, (name, color) in MEMORY_PARTS.items():
        drawn = [part != "left_free" or not plan.breakdown["missing"] for plan in plans]
        sizes = [plan.breakdown[part] / GIB if shown else 0.0 for plan, shown in zip(plans, drawn, strict=True)]
        bars = axis.barh(range(len(plans)), sizes, left=left, color=color, label=name, height=0.6)
        if part in ("weights", "kv_cache"):
            longest = max(plan.gpu_memory for plan in plans) / GIB
            figures = [f"{size:.1f}" if size > 0.06 * longest else "" for size in sizes]
            axis.bar_label(bars, figures, label_type="center", color="white", fontsize=9)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, plan in enumerate(plans):
        axis.plot([plan.gpu_memory / GIB] * 2, [row - 0.4, row + 0.4], color="black", linestyle="--", linewidth=1)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel("GiB")
    axis.set_yticks(range(len(plans)), names)
    axis.invert_yaxis()
    figure.legend(ncols=len(MEMORY_PARTS), loc="outside lower center", frameon=False, fontsize=9, columnspacing=1)
    return figure


def plan_verdict(plan: Plan, reason: str) -> Figure:
    """The bar of one plan under its verdict; `reason` says why it fits or not."""
    figure = memory_bars([plan], title="")
    verdict = f"{plan.gpus} {plan.gpu}: {'it fits' if plan.fits else 'it does not fit'}\n{textwrap.fill(reason, 95)}"
    figure.suptitle(verdict, x=0.01, ha="left", fontsize=10, color=GREEN if plan.fits else RED)
    return figure


def sentence(text: str) -> Figure:
    """A picture of one sentence, for a panel that has nothing to draw."""
    figure, (axis,) = _new_figure(figsize=(7.2, 2.4))
    axis.text(0, 0.5, textwrap.fill(text, 80), color=RED, va="center")
    axis.axis("off")
    return figure


def weight_bars(gigabytes: pd.DataFrame, marks: Mapping[str, float]) -> Figure:
    """Bars in GB, a group for each row; `marks` are dashed lines {label: GB}."""
    figure, (axis,) = _new_figure(figsize=(7.2, 3.4))
    height = 0.8 / len(gigabytes.columns)
    for i, (column, color) in enumerate(zip(gigabytes, (BLUE, ORANGE, GREEN, PURPLE), strict=False)):
        rows = [row + (i - (len(gigabytes.columns) - 1) / 2) * height for row in range(len(gigabytes))]
        bars = axis.barh(rows, gigabytes[column], height=height, color=color, label=column)
        labels = axis.bar_label(bars, fmt="%.0f", padding=4, fontsize=9)
        plt.setp(labels, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    for label, size in marks.items():
        axis.axvline(size, color="black", linestyle="--", linewidth=1, zorder=0)
        axis.text(size, -0.55, f" {label}", va="bottom", fontsize=9)
    axis.set(xlabel="GB", ylim=(len(gigabytes) - 0.5, -0.85))
    axis.set_yticks(range(len(gigabytes)), gigabytes.index)
    axis.legend(frameon=False, loc="center right", fontsize=9)
    return figure


def growth_lines(table: pd.DataFrame, title: str, xlabel: str, ylabel: str) -> Figure:
    """A line for each column against the index, with its name at the end."""
    figure, (axis,) = _new_figure()
    for name, color in zip(table, (BLUE, ORANGE, GREEN, PURPLE, RED, GREY), strict=False):
        axis.plot(table.index, table[name], color=color)
        axis.annotate(f" {name}", (table.index[-1], table[name].iloc[-1]), color=color, va="center", fontsize=9)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, table.index[-1]), ylim=(0, None))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def against_bound(bound: pd.Series, measured: pd.Series, title: str, unit: str) -> Figure:
    """Measured values (blue) inside their bounds (grey); both have the same index and are in `unit`."""
    figure, (axis,) = _new_figure(figsize=(7.2, 0.9 + 0.42 * len(bound)))
    limits = axis.barh(list(bound.index), bound, color=GREY, alpha=0.4, height=0.75, label="bound")
    bars = axis.barh(list(bound.index), measured, color=BLUE, height=0.45, label="measured")
    shares = [f"{value / limit:.0%} of {limit:.0f}" for value, limit in zip(measured, bound, strict=True)]
    axis.bar_label(limits, shares, padding=4, fontsize=9)
    axis.bar_label(bars, fmt="%.0f", label_type="center", color="white", fontsize=9)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set(xlabel=unit, xlim=(0, 1.2 * max(bound)))
    axis.invert_yaxis()
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def next_token_bars(
    odds: Mapping[str, float],
    reference: Mapping[str, float] | None = None,
    title: str = "",
    labels: tuple[str, str] = ("before", "after"),
) -> Figure:
    """Bars of {token: probability}; `reference` probabilities of the same tokens stand behind them in grey.

    `labels` name the two in the legend, the reference first.
    """
    figure, (axis,) = _new_figure(figsize=(6.4, 2.6))
    if reference:
        axis.bar(list(reference), list(reference.values()), color=GREY, alpha=0.4, width=0.8, label=labels[0])
    bars = axis.bar(list(odds), list(odds.values()), color=BLUE, width=0.5, label=labels[1] if reference else None)
    axis.bar_label(bars, labels=[f"{p:.0%}" if p else "never" for p in odds.values()], padding=2)
    axis.set(ylim=(0, 1.12), ylabel="probability", title=title, yticks=[0, 0.5, 1])
    if reference:
        axis.legend(frameon=False, loc="upper right")
    return figure
