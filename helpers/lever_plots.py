"""Pictures of lesson 08: how each lever works, and what it did."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from helpers.lever_lesson import Mixed
from helpers.levers import BETWEEN, DECODE, LEVERS, MEMORY, OPERATION, PREFILL
from helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, _new_figure
from helpers.quality import Quality
from helpers.tiny import corpus

BOTTLENECKS = {
    PREFILL: ("Prompts take long", "prefill, bound by arithmetic", ORANGE),
    DECODE: ("Writing takes long", "decode, bound by reading", BLUE),
    BETWEEN: ("Text comes in jerks", "prompts stop those who write", RED),
    MEMORY: ("No room", "it does not fit, or requests wait", PURPLE),
    OPERATION: ("More than text", "forms, variants, other work", GREEN),
}


def lever_map() -> Figure:
    """The levers under the bottleneck that each one is for."""
    figure, (axis,) = _new_figure(figsize=(9.8, 3.2), label=_map_label())
    for column, (kind, (title, below, color)) in enumerate(BOTTLENECKS.items()):
        axis.add_patch(
            FancyBboxPatch((column + 0.04, 8.0), 0.92, 1.5, boxstyle="round,pad=0,rounding_size=0.06", color=color)
        )
        axis.text(column + 0.5, 8.98, title, ha="center", va="center", color="white", fontsize=10, weight="bold")
        axis.text(column + 0.5, 8.42, below, ha="center", va="center", color="white", fontsize=7.5)
        for row, lever in enumerate(one for one in LEVERS if one.fixes == kind):
            axis.text(column + 0.05, 7.3 - 0.82 * row, f"• {lever.name}", fontsize=8.5, va="center")
    axis.set(xlim=(0, 5), ylim=(1.2, 9.7))
    axis.axis("off")
    return figure


def _map_label() -> str:
    groups = {kind: [one.name for one in LEVERS if one.fixes == kind] for kind in BOTTLENECKS}
    return ". ".join(f"{BOTTLENECKS[kind][0]}: {', '.join(names)}" for kind, names in groups.items())


def phase_bars(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """{workload: {phase: share}} as stacked bars."""
    colors = {"queue": GREY, "prefill": ORANGE, "decode": BLUE}
    words = "; ".join(
        f"{name}: {share['prefill']:.0%} prefill, {share['decode']:.0%} decode" for name, share in shares.items()
    )
    figure, (axis,) = _new_figure(
        figsize=(7.2, 1.1 + 0.5 * len(shares)), label=f"Where requests spend their time. {words}"
    )
    left = np.zeros(len(shares))
    for phase, color in colors.items():
        sizes = np.array([share[phase] for share in shares.values()])
        bars = axis.barh(list(shares), sizes, left=left, color=color, label=phase, height=0.6)
        axis.bar_label(bars, [f"{size:.0%}" if size > 0.06 else "" for size in sizes], label_type="center", color="white", fontsize=9)  # fmt: skip
        left += sizes
    axis.set(xlim=(0, 1), xticks=[], title="Where requests spend their time")
    axis.invert_yaxis()
    axis.spines["bottom"].set_visible(False)
    figure.legend(ncols=3, loc="outside lower center", frameon=False, fontsize=9)
    return figure


def first_tokens(seconds: Mapping[str, float]) -> Figure:
    """A bar of milliseconds to the first token for each name."""
    words = "; ".join(f"{name}: {1000 * value:.0f} ms" for name, value in seconds.items())
    figure, (axis,) = _new_figure(figsize=(7.2, 0.7 + 0.45 * len(seconds)), label=f"Time to the first token. {words}")
    bars = axis.barh(
        list(seconds),
        [1000 * value for value in seconds.values()],
        color=[GREY, BLUE, GREEN][: len(seconds)],
        height=0.6,
    )
    axis.bar_label(bars, fmt="%.0f ms", padding=3, fontsize=9)
    axis.set(xlabel="ms to the first token", xlim=(0, 1200 * max(seconds.values())))
    axis.invert_yaxis()
    return figure


def turns(shares: Sequence[tuple[int, int]], block: int = 128) -> Figure:
    """Prompt tokens of each turn of a chat: found in the cache (whole blocks) and computed."""
    found, computed = zip(*shares, strict=True)
    figure, (axis,) = _new_figure(
        figsize=(7.2, 2.7),
        label=f"Prompt tokens of {len(shares)} turns: {sum(found)} found in the cache, {sum(computed)} computed.",
    )
    places = range(1, len(shares) + 1)
    bars = axis.bar(places, found, color=GREEN, label="found in the cache", width=0.6)
    axis.bar_label(bars, [f"{size}" if size else "" for size in found], label_type="center", color="white", fontsize=9)
    bars = axis.bar(places, computed, bottom=found, color=ORANGE, label="computed", width=0.6)
    axis.bar_label(bars, label_type="center", color="white", fontsize=9)
    for height in range(block, max(map(sum, shares)) + 1, block):
        axis.axhline(height, color="black", linewidth=0.4, alpha=0.35)
    axis.set(xlabel="turn of the chat", ylabel=f"prompt tokens\n(lines: blocks of {block})", xticks=list(places))
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def gaps(runs: Mapping[str, Mixed]) -> Figure:
    """For each run the gaps between tokens of those who write, as dots; dotted lines are long prompts coming in."""
    words = "; ".join(
        f"{name}: one gap in 100 is longer than {1000 * run.worst:.0f} ms, a long prompt's first token after {1000 * run.newcomer:.0f} ms"
        for name, run in runs.items()
    )
    figure, axes = _new_figure(len(runs), figsize=(8.6, 2.9), sharey=True, label=f"Gaps between tokens. {words}")
    for axis, (name, run), color in zip(axes, runs.items(), (ORANGE, BLUE, GREEN), strict=False):
        moments, seconds = zip(*run.gaps, strict=True)
        axis.plot(moments, [1000 * gap for gap in seconds], ".", color=color, markersize=4, alpha=0.6)
        for sent in run.sent:
            axis.axvline(sent, color="black", linestyle=":", linewidth=1)
        axis.set_title(
            f"{name}\np99 {1000 * run.worst:.0f} ms, newcomer waits {1000 * run.newcomer:.0f} ms",
            loc="left",
            fontsize=9,
        )
        axis.set(xlabel="seconds", yscale="log", ylim=(1, None))
    axes[0].set_ylabel("ms from one token\nto the next")
    axes[0].yaxis.set_major_formatter("{x:g}")
    return figure


def rounding(values: Sequence[float], rounded: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Weights (top) and what becomes of them: for each way its levels (ticks) and the rounded weights (dots)."""
    weights = np.asarray(values)
    errors = {name: np.abs(np.asarray(new) - weights).mean() for name, (_, new) in rounded.items()}
    words = "; ".join(f"{name}: mean error {error:.5f}" for name, error in errors.items())
    figure, (axis,) = _new_figure(
        figsize=(7.6, 0.9 + 0.62 * (1 + len(rounded))), label=f"{len(values)} weights, rounded. {words}"
    )
    axis.plot(weights, np.zeros(len(weights)), "o", color="black", markersize=4)
    for row, ((_, (levels, new)), color) in enumerate(
        zip(rounded.items(), (BLUE, GREEN, RED, PURPLE), strict=False), 1
    ):
        axis.plot(levels, np.full(len(levels), row), "|", color=GREY, markersize=14, markeredgewidth=0.8)
        axis.plot(new, np.full(len(weights), row), "o", color=color, markersize=4)
        for old, now in zip(weights, new, strict=True):
            axis.plot([old, now], [0, row], color=color, linewidth=0.4, alpha=0.35)
    names = [f"{len(weights)} weights\nin BF16", *(f"{name}\nerror {errors[name]:.5f}" for name in rounded)]
    axis.set_yticks(range(len(names)), names, fontsize=9)
    spread = 1.08 * np.abs(weights).max()
    axis.set(xlim=(-spread, spread), xlabel="value", ylim=(len(rounded) + 0.5, -0.5))
    return figure


def odds_moved(before: Quality, after: Quality) -> Figure:
    """Every known word's probability: the corpus's (across) and as two servers have it (up); the diagonal is the truth."""
    starts = corpus.ODDS
    truth = [share for odds in starts.values() for share in odds.values()]
    served = [[one.odds[start][word] for start, odds in starts.items() for word in odds] for one in (before, after)]
    words = f"{len(truth)} words; none moved by more than {after.most_moved_from(before):.3f}"
    figure, (axis,) = _new_figure(figsize=(4.8, 3.9), label=f"Probabilities of {words}")
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axis.plot(truth, served[0], "o", color=BLUE, markersize=7, markerfacecolor="none", label="BF16 cache")
    axis.plot(truth, served[1], ".", color=RED, markersize=5, label="FP8 cache")
    axis.set(xlabel="probability in the corpus", ylabel="as served", xlim=(0, 1), ylim=(0, 1))
    axis.set_title(words, loc="left", fontsize=9)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def quality_bars(table: pd.DataFrame, size: Mapping[str, int]) -> Figure:
    """Two panels: bytes of the checkpoint, and how far odds moved from BF16's; the index names the ways."""
    words = "; ".join(f"{name}: {size[name] / 1e6:.1f} MB, moved {table['moved'][name]:.4f}" for name in table.index)
    figure, (left, right) = _new_figure(2, figsize=(8.2, 0.9 + 0.45 * len(table)), sharey=True, label=words)
    for axis, values, title, form, color in (
        (left, [size[name] / 1e6 for name in table.index], "weights, MB", "%.1f", BLUE),
        (right, table["moved"], "odds moved, on average", "%.4f", RED),
    ):
        bars = axis.barh(list(table.index), values, color=color, height=0.6)
        axis.bar_label(bars, fmt=form, padding=3, fontsize=9)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlim(0, 1.2 * max(values))
    left.invert_yaxis()
    return figure


def effects(rows: pd.DataFrame) -> Figure:
    """helpers.lever_data.effects: a bar for each pair, times the tokens/s with one request and with many."""
    names = [
        f"{one.lever}\n{one.model}, {one.gpus} GPU{'s' * (one.gpus > 1)}" + ", long prompts" * (one.prompt > 512)
        for one in rows.itertuples()
    ]
    places = range(len(rows))
    words = "; ".join(
        f"{one.lever}, {one.model}: {one.one:.2f} with one request, {one.many:.2f} with {one.at}"
        for one in rows.itertuples()
    )
    figure, axes = _new_figure(2, figsize=(9, 0.9 + 0.42 * len(rows)), sharey=True, label=words)
    for axis, column, title in ((axes[0], "one", "one request"), (axes[1], "many", "many requests")):
        values = rows[column].where((rows["at"] > 1) | (column == "one"))
        axis.barh(places, values - 1, left=1, color=[BLUE if value >= 1 else RED for value in values], height=0.6)
        for place, value in enumerate(values):
            said = (
                "not measured"
                if np.isnan(value)
                else f"{value:.2f}" + (f" at {rows['at'].iloc[place]}" if column == "many" else "")
            )
            axis.text(max(1 if np.isnan(value) else value, 1) * 1.03, place, said, va="center", fontsize=8)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set(
            xlabel="times the tokens/s",
            xscale="log",
            xlim=(0.4, 12),
            xticks=[0.5, 1, 2, 5],
            xticklabels=["0.5", "1", "2", "5"],
        )
        axis.tick_params(axis="y", labelsize=8)
        axis.minorticks_off()
    axes[0].set_yticks(places, names)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def scenarios(found: pd.DataFrame) -> Figure:
    """helpers.lever_scenarios.measure: for each workload a group of bars, a lever each; 1 is without levers."""
    words = "; ".join(
        f"{name}: " + ", ".join(f"{lever} {row[lever]:.1f}" for lever in found if not np.isnan(row[lever]))
        for name, row in found.iterrows()
    )
    figure, (axis,) = _new_figure(figsize=(7.8, 3.2), label=f"Times as fast as without. {words}")
    width = 0.8 / len(found.columns)
    for number, (lever, color) in enumerate(zip(found, (GREEN, BLUE, ORANGE), strict=False)):
        places = np.arange(len(found)) + (number - (len(found.columns) - 1) / 2) * width
        bars = axis.bar(places, found[lever].fillna(0), width=width, color=color, label=lever)
        axis.bar_label(
            bars, ["–" if np.isnan(value) else f"{value:.1f}" for value in found[lever]], padding=2, fontsize=9
        )
    axis.axhline(1, color="black", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(found)), found.index)
    axis.set(ylabel="times as fast", ylim=(0, 1.25 * np.nanmax(found.to_numpy())))
    axis.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    return figure
