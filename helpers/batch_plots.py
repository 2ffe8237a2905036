"""Pictures of lesson 06 and lab 2: speeds side by side, places in fixed batches that wait, and an engine's settings."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.batch_lesson import Timed, useful_share
from helpers.plots import BLUE, GREEN, GREY, ORANGE, _new_figure


def speeds(runs: Sequence[Timed]) -> Figure:
    """A bar for each run: output tokens per second, and how many times the first run's that is."""
    names = [f"{run.name}: {run.tokens_per_second:,.0f}" for run in runs]
    figure, (axis,) = _new_figure(
        figsize=(7.2, 0.7 + 0.5 * len(runs)), label=f"Output tokens per second. {'; '.join(names)}."
    )
    values = [run.tokens_per_second for run in runs]
    bars = axis.barh([run.name for run in runs], values, color=[GREY, ORANGE, GREEN, BLUE][: len(runs)], height=0.6)
    axis.bar_label(bars, [f" {value:,.0f}  ({value / values[0]:.1f}×)" for value in values])
    axis.set(xlabel="output tokens per second", xlim=(0, 1.3 * max(values)))
    axis.invert_yaxis()
    return figure


def fixed_batches(tokens: Sequence[int], at_once: int) -> Figure:
    """The places of fixed batches over steps: a token that is kept (dark) or a step spent on waiting (pale)."""
    share = useful_share(tokens, at_once)
    figure, (axis,) = _new_figure(
        figsize=(7.2, 2.6), label=f"Fixed batches of {at_once}: {share:.0%} of their places make a token that is kept."
    )
    begin = 0
    for first in range(0, len(tokens), at_once):
        batch = tokens[first : first + at_once]
        rows, longest = range(len(batch)), max(batch)
        axis.barh(rows, longest, left=begin, color="#e3e5e8", height=0.85)
        axis.barh(rows, batch, left=begin, color=BLUE, height=0.85)
        begin += longest
        axis.axvline(begin, color="black", linewidth=1)
    axis.set_title(
        f"{share:.0%} of the places make a token that is kept (dark); the others wait", loc="left", fontsize=10
    )
    axis.set(xlabel="steps", ylabel="place in the batch", xlim=(0, begin))
    axis.set_yticks([])
    axis.invert_yaxis()
    return figure


def tuning(by_seats: Mapping[int, Timed], by_budget: Mapping[int, Timed]) -> Figure:
    """Output tokens per second by max_num_seqs (left) and by max_num_batched_tokens (right)."""
    figure, (left, right) = _new_figure(2, figsize=(7.2, 3.0), label=_words(by_seats, by_budget))
    _curve(left, by_seats, "max_num_seqs: requests in a step", "o", BLUE)
    _curve(right, by_budget, "max_num_batched_tokens: tokens in a step", "s", ORANGE)
    left.set_title("short prompts", loc="left", fontsize=10)
    right.set_title("long prompts", loc="left", fontsize=10)
    left.set_ylabel("output tokens per second")
    return figure


def _curve(axis: Axes, runs: Mapping[int, Timed], label: str, marker: str, color: str) -> None:
    axis.plot(list(runs), [run.tokens_per_second for run in runs.values()], marker=marker, color=color)
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(runs), [str(value) for value in runs], fontsize=8)
    axis.set(xlabel=label, ylim=(0, None))
    axis.grid(axis="y", alpha=0.3)


def _words(*curves: Mapping[int, Timed]) -> str:
    names = ("max_num_seqs", "max_num_batched_tokens")
    ends = [(min(runs), max(runs)) for runs in curves]
    return " ".join(
        f"From {name} {low} to {high}: {runs[low].tokens_per_second:,.0f} to {runs[high].tokens_per_second:,.0f} tokens per second."
        for name, runs, (low, high) in zip(names, curves, ends, strict=True)
    )
