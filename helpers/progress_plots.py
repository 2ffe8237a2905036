"""Pictures of progress: one learner's, lesson by lesson, and a class's, a row for each participant."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from helpers import plots

#: By how a check stands: to come, seen, tried, passed. Told apart by their lightness alone, too.
SHADES = ("#eceff1", "#c3c9ce", plots.ORANGE, plots.BLUE)
MEANINGS = ("to come", "seen", "tried", "passed")
MARKS = ("", "", "×", "✓")
GAP = 0.5  # columns between two lessons; a power of two, so that sums of it are exact
ROWS_WITH_NAMES = 80


def own(standing: Mapping[str, int], exercises: Mapping[str, Sequence[str]]) -> Figure:
    """A row for each lesson with a box for each of its checks; `standing` says 0 to 3 of each, as SHADES has them."""
    lessons = [lesson for lesson in exercises if exercises[lesson]]
    figure, (axis,) = plots._new_figure(figsize=(7.2, 0.75 + 0.28 * len(lessons)))
    for row, lesson in enumerate(lessons):
        for column, name in enumerate(exercises[lesson]):
            level = standing[f"{lesson}.{name}"]
            axis.barh(row, 0.9, left=column, height=0.8, color=SHADES[level])
            axis.text(column + 0.45, row, MARKS[level], ha="center", va="center", fontsize=9, color="white")
    widest = max(len(exercises[lesson]) for lesson in lessons)
    for row, lesson in enumerate(lessons):
        passed = sum(standing[f"{lesson}.{name}"] == 3 for name in exercises[lesson])
        axis.text(widest + 0.3, row, f"{passed} of {len(exercises[lesson])}", va="center", fontsize=9)
    axis.set(xlim=(-0.1, widest + 2), ylim=(len(lessons) - 0.4, -0.6), xticks=[])
    axis.set_yticks(range(len(lessons)), [f"lesson {lesson}" for lesson in lessons], fontsize=9)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0)
    total = sum(level == 3 for level in standing.values())
    axis.set_title(f"Your checks: {total} of {len(standing)} passed", loc="left", fontsize=11)
    _legend(figure)
    figure.set_label(f"Your progress: {total} of {len(standing)} checks passed, a row of boxes for each lesson.")
    return figure


def _legend(figure: Figure, *more: Patch) -> None:
    patches = [Patch(color=shade, label=meaning) for shade, meaning in zip(SHADES, MEANINGS, strict=True)]
    figure.legend(handles=[*patches[::-1], *more], ncols=5, loc="outside lower left", frameon=False, fontsize=9)


@dataclass(frozen=True)
class Row:
    """A participant in the class's picture: how each check stands (0 to 3), its wrong tries, and which they are stuck at."""

    name: str
    levels: Sequence[int]
    tries: Sequence[int]
    stuck_at: int | None = None


def lesson_of(check: str) -> str:
    """The lesson of a check: 08b for "08b.q2"."""
    return check.partition(".")[0]


def class_grid(rows: Sequence[Row], checks: Sequence[str]) -> Figure:
    """A row for each participant and a column for each check ("03.q2"), with the share that passed it above.

    A red frame: the participant is stuck there. The number in a check that was tried says how often. Lessons stand apart.
    """
    breaks = np.cumsum([0] + [GAP * (lesson_of(a) != lesson_of(b)) for a, b in itertools.pairwise(checks)])
    left = np.arange(len(checks)) + breaks
    height = 1.9 + max(0.165 * len(rows), 0.6)
    with plt.rc_context(plots.STYLE | {"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(10, height))
        top, grid = figure.subplots(2, 1, sharex=True, height_ratios=[0.75, max(0.165 * len(rows), 0.6)])
    figure.subplots_adjust(
        left=0.125, right=0.995, top=1 - 0.35 / height, bottom=0.42 / height, hspace=0.1 / height * 4
    )
    levels = np.array([row.levels for row in rows], dtype=int).reshape(len(rows), len(checks))
    _shares(top, left, (levels == 3).mean(axis=0) if len(rows) else np.zeros(len(checks)))
    _boxes(grid, left, levels)
    _tries(grid, left, rows)
    _names(grid, rows)
    _heads(top, left, checks)
    for number, row in enumerate(rows):
        if row.stuck_at is not None:
            x = left[row.stuck_at]
            grid.plot([x, x + 1, x + 1, x, x], np.array([0, 0, 1, 1, 0]) + number, color=plots.RED, linewidth=1.8)
    stuck = sum(row.stuck_at is not None for row in rows)
    _legend(figure, Patch(facecolor="white", edgecolor=plots.RED, linewidth=1.8, label="stuck here"))
    figure.set_label(
        f"Checks of {len(rows)} participants, a row for each; {stuck} are stuck. Above: the share that passed."
    )
    return figure


def _shares(axis: Axes, left: np.ndarray, shares: np.ndarray) -> None:
    axis.bar(left + 0.5, shares, width=0.92, color=plots.BLUE)
    axis.bar(left + 0.5, np.ones_like(shares), width=0.92, color=SHADES[0], zorder=0)
    axis.set(ylim=(0, 1), yticks=[0, 0.5, 1], yticklabels=["0", "50%", "100% passed"])
    axis.tick_params(labelsize=8, length=0, labelbottom=False)
    axis.spines[["left", "bottom"]].set_visible(False)


def _boxes(axis: Axes, left: np.ndarray, levels: np.ndarray) -> None:
    """All boxes as one mesh: gaps between the lessons are columns of their own, which stay white."""
    edges = np.union1d(left, left + 1)
    cells = np.full((len(levels), len(edges) - 1), np.nan)
    cells[:, np.searchsorted(edges, left)] = levels
    if len(levels):
        axis.pcolormesh(
            edges, np.arange(len(levels) + 1), cells, cmap=ListedColormap(SHADES), vmin=-0.5, vmax=3.5,
            edgecolors="white", linewidth=0.8,
        )  # fmt: skip
    else:
        axis.text(0.5, 0.5, "Nobody shares their progress yet.", transform=axis.transAxes, ha="center", va="center")
    axis.set(xlim=(0, left[-1] + 1), ylim=(max(len(levels), 1), 0), xticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)


def _tries(axis: Axes, left: np.ndarray, rows: Sequence[Row]) -> None:
    """How often, in the boxes of those who have not passed; in others it would be history."""
    for number, row in enumerate(rows):
        for x, level, tries in zip(left, row.levels, row.tries, strict=True):
            if level == 2:
                axis.text(x + 0.47, number + 0.54, str(tries), ha="center", va="center", fontsize=7, color="white")


def _names(axis: Axes, rows: Sequence[Row]) -> None:
    """The participants' names, as far as there is room for them."""
    shown = rows if len(rows) <= ROWS_WITH_NAMES else []
    names = [row.name.replace("$", r"\$") for row in shown]
    axis.set_yticks(np.arange(len(shown)) + 0.5, names, fontsize=8)
    for label, row in zip(axis.get_yticklabels(), shown, strict=True):
        if row.stuck_at is not None:
            label.set(color=plots.RED, fontweight="bold")
    axis.tick_params(length=0)


def _heads(axis: Axes, left: np.ndarray, checks: Sequence[str]) -> None:
    """The lessons' numbers above their columns; of a single lesson the names of its checks."""
    heads = list(dict.fromkeys(map(lesson_of, checks)))
    heads = heads if len(heads) > 1 else list(checks)
    for head in heads:
        middle = np.mean([x for x, check in zip(left, checks, strict=True) if head in (check, lesson_of(check))]) + 0.5
        axis.text(middle, 1.08, head, ha="center", va="bottom", fontsize=10, fontweight="bold")
