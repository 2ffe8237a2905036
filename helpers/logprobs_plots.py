"""Pictures of log probabilities: a text as coloured boxes, odds against the truth, what filters keep, calibration."""

import functools
from collections.abc import Mapping
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from helpers import plots
from helpers.goodness import Fit
from helpers.logprobs import LogprobsError, chosen

LINE, ROW = 78, 2.7  # characters in a line of the heat map, height of a line in characters' widths x 2
FONT = "DejaVu Sans Mono"
SHADES, DARKEST = "YlOrBr", -9.0  # from white, logprob 0, to brown
MOST_TOKENS, LONGEST = 400, 40


# --- the token heat map -------------------------------------------------------------------------------------------


def heat_map(table: pd.DataFrame, title: str = "") -> Figure:
    """A text as boxes in reading order: each token over its probability, darker the less probable it was.

    A thick frame: some other token was more probable. "start" is the mark that the server puts in front, "·" a leading
    space, "⏎" a new line, "#178" the id of a piece of a character, "U+1F642" a character that the font lacks.
    `table` comes from helpers.logprobs. Raises LogprobsError for no token and for more than 400.
    """
    rows = chosen(table)
    if rows.empty or len(rows) > MOST_TOKENS:
        raise LogprobsError(
            f"The picture holds 1 to {MOST_TOKENS} tokens; this table has {len(rows)}: cut it by `position`."
        )
    rows = rows.assign(shown=[_shown(row) for row in rows.itertuples()])
    boxes, lines = _placed(rows)
    figure, (axis,) = plots._new_figure(figsize=(7.2, 0.75 + 0.42 * lines), label=_in_words(rows))
    for row, (x, line, width) in zip(rows.itertuples(), boxes, strict=True):
        _draw_box(axis, row, x, line * ROW, width)
    axis.set(xlim=(-0.2, LINE), ylim=(lines * ROW, -0.1))
    axis.axis("off")
    axis.set_title(title, loc="left", fontsize=11)
    note = "number: probability of the token after all before it · thick frame: another token was more probable"
    figure.supxlabel(note, fontsize=8, x=0.01, ha="left", color="#444444")
    return figure


def _placed(rows: pd.DataFrame) -> tuple[list[tuple[float, int, float]], int]:
    """(x, line, width in characters) of each box, and the number of lines."""
    boxes, x, line = [], 0.0, 0
    for row in rows.itertuples():
        width = max(len(row.shown.replace("\\", "")), 0.8 * len(percent(row.probability))) + 0.9
        if x and x + width > LINE:
            x, line = 0.0, line + 1
        boxes.append((x, line, width))
        x += width
        if "\n" in row.token:
            x, line = 0.0, line + 1
    return boxes, boxes[-1][1] + 1


def _draw_box(axis: Axes, row: Any, x: float, y: float, width: float) -> None:
    known = not pd.isna(row.logprob)
    depth = min(row.logprob / DARKEST, 1) if known else 0.0
    surprised = known and not pd.isna(row.most_probable) and not row.most_probable
    color = to_rgb(matplotlib.colormaps[SHADES](0.85 * depth) if known else "#eeeeee")
    axis.add_patch(
        Rectangle((x, y), width - 0.25, ROW - 0.35, facecolor=color, edgecolor="black" if surprised else plots.GREY,
                  linewidth=1.8 if surprised else 0.6)
    )  # fmt: skip
    ink = _ink(color)
    middle = x + (width - 0.25) / 2
    axis.text(middle, y + 0.85, row.shown, ha="center", va="center", family=FONT, fontsize=8.5, color=ink)
    axis.text(middle, y + 1.85, percent(row.probability), ha="center", va="center", fontsize=6.5, color=ink)


def _ink(color: tuple[float, float, float]) -> str:
    """Black or white, whichever stands out more (relative luminance as in WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"


def _shown(row: Any) -> str:
    first = row.position == 0 and not row.token and pd.isna(row.logprob)
    text = "start" if first else label(row.token, row.id)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def label(token: str, number: int | None = None) -> str:
    """What stands in a token's box: the text with its blanks made visible and characters that can be drawn."""
    if not token:
        return "?" if number is None or pd.isna(number) else f"#{number}"
    shown = token.replace("\n", "⏎").replace("\t", "→")
    shown = "·" + shown[1:] if shown.startswith(" ") else shown
    return "".join(sign if ord(sign) in _drawable() else f"U+{ord(sign):X}" for sign in shown).replace("$", r"\$")


@functools.cache
def _drawable() -> frozenset[int]:
    return frozenset(FT2Font(findfont(FONT)).get_charmap())


def percent(p: float) -> str:
    """A probability as it stands in a token's box; a dash for NaN."""
    if pd.isna(p):
        return "–"
    return "<0.1%" if p < 0.001 else f"{p:.1%}" if p < 0.01 else f"{p:.0%}"


def _in_words(rows: pd.DataFrame) -> str:
    said = ", ".join(f"{row.shown} {percent(row.probability)}" for row in rows.itertuples())
    return f"{len(rows)} tokens, each with its probability given all before it: {said}."


# --- odds ---------------------------------------------------------------------------------------------------------


def odds_against_corpus(served: Mapping[str, Mapping[str, float]], corpus: Mapping[str, Mapping[str, float]]) -> Figure:
    """A point for each word after each beginning: its share in the corpus, and what the server gives it."""
    points = [
        (truth, served[start].get(f" {word}", 0.0)) for start, odds in corpus.items() for word, truth in odds.items()
    ]
    figure, (axis,) = plots._new_figure(
        figsize=(4.6, 4.2),
        label=f"{len(points)} words: probability by the server against share in the corpus, near the diagonal",
    )
    axis.fill_between(
        [0, 1], [-0.03, 0.97], [0.03, 1.03], color=plots.GREY, alpha=0.3, linewidth=0, label="within 0.03"
    )
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="equal")
    truths, given = zip(*points, strict=True)
    axis.scatter(truths, given, s=16, color=plots.BLUE, zorder=3, label=f"a word ({len(points)} of them)")
    axis.set(
        xlabel="share in the corpus", ylabel="exp(logprob) of the server", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def fit_bars(fit: Fit, title: str = "") -> Figure:
    """Draws beside what the odds let expect, a group for each cell of a helpers.goodness.Fit, and the p-value."""
    figure, (axis,) = plots._new_figure(
        figsize=(6.4, 2.8), label=f"{title}: draws seen and expected, p-value {fit.p_value:.2g}"
    )
    names = [name.strip() for name in fit.expected]
    axis.bar(
        names, list(fit.expected.values()), color=plots.GREY, alpha=0.4, width=0.85, label="expected from the odds"
    )
    bars = axis.bar(names, list(fit.counts.values()), color=plots.BLUE, width=0.5, label="drawn by the server")
    notes = [f"{fit.counts[name]:,}\n(expected {expected:,.0f})" for name, expected in fit.expected.items()]
    axis.bar_label(bars, notes, padding=2, fontsize=9)
    axis.set(ylabel="draws", ylim=(0, 1.35 * max(*fit.expected.values(), *fit.counts.values())))
    axis.set_title(f"{title} (p-value {fit.p_value:.2g})".strip(), loc="left", fontsize=11)
    axis.legend(frameon=False, loc="upper right", fontsize=9)
    return figure


def kept(odds: Mapping[str, float], filters: Mapping[str, Mapping[str, float]]) -> Figure:
    """A panel for each filter, {name: odds after it}, over the odds before it (grey); "cut" marks what can no longer come."""
    figure, axes = plots._new_figure(
        len(filters),
        figsize=(2.5 * len(filters), 2.7),
        sharey=True,
        label=f"odds of {', '.join(odds)} after {', '.join(filters)}",
    )
    for axis, (name, after) in zip(axes, filters.items(), strict=True):
        axis.bar(list(odds), list(odds.values()), color=plots.GREY, alpha=0.4, width=0.85)
        bars = axis.bar(list(odds), [after[token] for token in odds], color=plots.BLUE, width=0.5)
        axis.bar_label(
            bars, [f"{after[token]:.0%}" if after[token] else "cut" for token in odds], padding=2, fontsize=8
        )
        axis.set_title(name, loc="left", fontsize=10)
        axis.tick_params(axis="x", rotation=45)
        axis.set(ylim=(0, 1.05), yticks=[0, 0.5, 1])
    axes[0].set_ylabel("probability\n(grey: before)")
    return figure


# --- calibration --------------------------------------------------------------------------------------------------

MARKS = (("o", plots.BLUE, "-"), ("s", plots.ORANGE, "--"), ("^", plots.PURPLE, ":"))


def reliability_diagram(curves: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """What came true against what was promised, a curve for each {name: choices.reliability(...)}, at most three.

    Bars are 95% intervals. On the dashed diagonal a probability means what it says.
    """
    figure, (axis,) = plots._new_figure(
        figsize=(5.2, 4.4), label=f"share that came true against probability given: {', '.join(curves)}"
    )
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    for (name, bins), (mark, color, line) in zip(curves.items(), MARKS, strict=False):
        error = [bins["came_true"] - bins["low"], bins["high"] - bins["came_true"]]
        error = [side.clip(lower=0) for side in error]
        axis.errorbar(bins["given"], bins["came_true"], error, fmt=mark, linestyle=line, color=color, markersize=5,
                      linewidth=1.2, capsize=2, label=name)  # fmt: skip
    note = "flatter than the diagonal: too sure\nsteeper: not sure enough"
    axis.text(0.98, 0.04, note, fontsize=9, color="#444444", ha="right")
    axis.set(
        xlabel="probability given to an answer",
        ylabel="share that was right",
        xlim=(0, 1),
        ylim=(0, 1.02),
        aspect="equal",
    )
    axis.set_title(title, loc="left", fontsize=11)
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    return figure
