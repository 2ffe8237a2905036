"""Pictures of parallel layouts: what is cut, who holds what, when each GPU works, what messages take. None computes."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers import plots
from helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

GPU_COLORS = (BLUE, ORANGE, GREEN, PURPLE)
EMPTY = "#f1f3f4"


def matrices(shapes: Mapping[str, tuple[int, int, str]], ranks: int, message: str, title: str) -> Figure:
    """The matrices of a layer to scale, each cut into as many pieces as there are ranks, 4 at most.

    `shapes`: name -> (outputs, inputs, "outputs" or "inputs", the side that is cut). `message` stands where partial sums
    are added up: behind each matrix that is cut by its inputs.
    """
    figure, (axis,) = plots._new_figure(figsize=(9.6, 3.6), label=_matrices_label(shapes, ranks))
    unit = max(inputs for _, inputs, cut in shapes.values() if cut == "outputs")
    left = 0.0
    for name, (outputs, inputs, cut) in shapes.items():
        width, height = inputs / unit, outputs / unit
        _pieces(axis, left, width, height, ranks, cut)
        axis.text(left, 0.08, f"{name}\n{outputs:,}\nx {inputs:,}", fontsize=8, va="bottom")
        left += width + 0.3
        if cut == "inputs":
            axis.annotate("", (left + 1.0, -0.5), (left - 0.2, -0.5), arrowprops={"arrowstyle": "->", "color": RED})
            axis.text(left + 0.4, -0.6, message, fontsize=8, va="top", ha="center", color=RED)
            left += 1.25
    tallest = max(outputs for outputs, _, _ in shapes.values()) / unit
    axis.set(xlim=(-0.05, left), ylim=(-tallest - 0.05, 0.95), aspect="equal")
    axis.axis("off")
    axis.set_title(title, loc="left", fontsize=10)
    return figure


def _pieces(axis: Axes, left: float, width: float, height: float, ranks: int, cut: str) -> None:
    """A matrix whose top lies at 0, in pieces with their rank's number."""
    across, down = (ranks, 1) if cut == "inputs" else (1, ranks)
    for rank in range(ranks):
        x = left + (rank * width / ranks if cut == "inputs" else 0)
        y = -(rank + 1) * height / ranks if cut == "outputs" else -height
        size = (width / across, height / down)
        axis.add_patch(Rectangle((x, y), *size, facecolor=GPU_COLORS[rank], edgecolor="white", linewidth=1))
        middle = (x + size[0] / 2, y + size[1] / 2)
        axis.text(*middle, f"{rank}", color="white", ha="center", va="center", fontsize=8)


def _matrices_label(shapes: Mapping[str, tuple[int, int, str]], ranks: int) -> str:
    cuts = ", ".join(f"{name} by its {cut}" for name, (_, _, cut) in shapes.items())
    return f"The matrices of a layer cut for {ranks} GPUs: {cuts}; partial sums are added after those cut by inputs."


#: What of a 4 x 4 grid GPU g holds: rows are layers, columns parts of a layer's matrices, heads, experts or tokens.
HELD: dict[str, Callable[[int, int, int], bool]] = {
    "columns": lambda gpu, row, column: column == gpu,
    "rows": lambda gpu, row, column: row == gpu,
    "all": lambda gpu, row, column: True,
}


def holdings(kinds: Sequence[tuple[str, str, str, str]], title: str) -> Figure:
    """For each kind of parallelism a line: its name, what is said of it, and what each of 4 GPUs holds.

    `kinds`: (name, text, part of the weights, part of the cache) with parts of HELD.
    """
    figure, (axis,) = plots._new_figure(figsize=(9.2, 0.9 + 1.06 * len(kinds)))
    for line, (name, text, *parts) in enumerate(kinds):
        bottom = -1.35 * line
        axis.text(0, bottom + 0.92, name, fontsize=11, weight="bold", va="top")
        axis.text(0, bottom + 0.62, text, fontsize=8.5, va="top", linespacing=1.35)
        for gpu in range(4):
            for place, part in enumerate(parts):
                _grid(axis, 5.0 + 2.5 * gpu + 1.12 * place, bottom, gpu, HELD[part])
    for gpu in range(4):
        axis.text(5.0 + 2.5 * gpu + 1.06, 1.42, f"GPU {gpu}", ha="center", fontsize=9, color=GPU_COLORS[gpu])
        for place, word in enumerate(("weights", "cache")):
            axis.text(5.5 + 2.5 * gpu + 1.12 * place, 1.1, word, ha="center", fontsize=8)
    axis.set(xlim=(0, 14.8), ylim=(-1.35 * len(kinds) + 1.2, 1.7))
    axis.axis("off")
    axis.set_title(title, loc="left", fontsize=10)
    figure.set_label("What each of four GPUs holds. " + " ".join(f"{kind[0]}: {kind[1]}." for kind in kinds))
    return figure


def _grid(axis: Axes, left: float, bottom: float, gpu: int, held: Callable[[int, int, int], bool]) -> None:
    for row in range(4):
        for column in range(4):
            color = GPU_COLORS[gpu] if held(gpu, row, column) else EMPTY
            place = (left + column * 0.25, bottom + (3 - row) * 0.25)
            axis.add_patch(Rectangle(place, 0.25, 0.25, facecolor=color, edgecolor="white", linewidth=0.8))


def shifts(panels: dict[str, list[tuple[int, float, float, str]]], title: str, until: float) -> Figure:
    """When each GPU computes what: for each panel (gpu, start ms, end ms, token, such as "a1"); a color a request."""
    gpus = 1 + max(gpu for bars in panels.values() for gpu, *_ in bars)
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(len(panels), 1, figsize=(8.4, 0.7 + 1.25 * len(panels)), sharex=True, squeeze=False)
    plt.close(figure)
    for axis, (name, bars) in zip(axes[:, 0], panels.items(), strict=True):
        for gpu, start, end, token in bars:
            color = GPU_COLORS["abcd".index(token[0])]
            axis.barh(gpu, end - start, left=start, height=0.8, color=color, edgecolor="white")
            axis.text((start + end) / 2, gpu, token, ha="center", va="center", color="white", fontsize=8)
        axis.set(ylim=(gpus - 0.5, -0.5), yticks=range(gpus), xlim=(0, until))
        axis.set_yticklabels([f"GPU {gpu}" for gpu in range(gpus)], fontsize=8)
        axis.set_title(name, loc="left", fontsize=9.5)
    axes[-1, 0].set_xlabel("ms")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    figure.set_label(f"When each GPU computes which token. {'; '.join(panels)}.")
    return figure


def message_times(seconds: pd.DataFrame, lines: dict[str, pd.Series], marks: dict[str, int], title: str) -> Figure:
    """Seconds of an all-reduce against its bytes, both axes logarithmic.

    `seconds`: measured, a column a link, drawn as points; `lines`: bandwidth alone; `marks`: label -> bytes.
    """
    figure, (axis,) = plots._new_figure(figsize=(8.4, 4.2))
    for (name, times), color, marker in zip(seconds.items(), (BLUE, ORANGE), "os", strict=False):
        axis.plot(times.index, 1e6 * times, color=color, marker=marker, markersize=5, label=f"measured: {name}")
    for (name, times), color, style in zip(lines.items(), (BLUE, GREY), (":", "--"), strict=False):
        axis.plot(times.index, 1e6 * times, color=color, linestyle=style, label=f"bandwidth alone: {name}")
    for label, size in marks.items():
        axis.axvline(size, color="black", linewidth=0.8, alpha=0.5)
        axis.text(size, 0.02, f" {label}", rotation=90, va="bottom", ha="right", fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel="bytes of the message", ylabel="microseconds", ylim=(0.01, None))
    axis.set_title(title, loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=8.5, loc="upper left")
    names = ", ".join(
        f"{name}: {1e6 * t.iloc[0]:.0f} to {1e6 * t.iloc[-1]:.0f} microseconds" for name, t in seconds.items()
    )
    figure.set_label(f"Time of an all-reduce against its size. Flat at first, then in proportion. {names}.")
    return figure


def tp_costs(costs: pd.DataFrame, alone: pd.Series, title: str) -> Figure:
    """Milliseconds of a token: half the step of half the GPUs, and what comes on top; `alone` marks a prediction in ms."""
    figure, (axis,) = plots._new_figure(figsize=(8.4, 1.3 + 0.5 * len(costs)))
    places = range(len(costs))
    axis.barh(places, costs["half_ms"], color=BLUE, height=0.55, label="half of the step on half the GPUs")
    axis.barh(
        places, costs["extra_ms"], left=costs["half_ms"], color=ORANGE, height=0.55, hatch="//", edgecolor="white",
        label="on top of it",
    )  # fmt: skip
    axis.scatter(
        alone, places, marker="D", color="black", s=28, zorder=3, label="if each all-reduce took what NCCL takes alone"
    )
    for place, row in zip(places, costs.itertuples(), strict=True):
        end = max(row.step_ms, alone.iloc[place])
        axis.text(
            end, place, f"    {row.extra_ms:.2f} ms / {row.all_reduces} = {row.each_us:.0f} µs", va="center", fontsize=9
        )
    axis.set_yticks(list(places), list(costs.index))
    axis.set(xlabel="ms for a token of a single request", xlim=(0, 1.4 * max(costs["step_ms"].max(), alone.max())))
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=10)
    figure.legend(frameon=False, fontsize=8.5, ncols=3, loc="outside lower center")
    said = ", ".join(f"{row.Index}: {row.half_ms:.1f} + {row.extra_ms:.1f} ms" for row in costs.itertuples())
    figure.set_label(f"A token's time, halved, and what comes on top: {said}.")
    return figure


def layouts(table: pd.DataFrame, column: str, unit: str, title: str, verdict: str) -> Figure:
    """Layouts of a chooser, the first one best: bounds in grey, measured figures in blue, reasons where one does not fit.

    `table`: label, fits, reason, measured, and the `column` that the bars show.
    """
    figure, (axis,) = plots._new_figure(figsize=(8.8, 1.7 + 0.42 * len(table)))
    most = max(1e-9, table[column].fillna(0).max(), table["measured"].fillna(0).max())
    for place, row in enumerate(table.itertuples()):
        value = getattr(row, column)
        if not row.fits:
            axis.text(0, place, f" does not fit: {row.reason}", va="center", fontsize=8, color=RED)
            continue
        axis.barh(place, 0 if pd.isna(value) else value, color=GREY, alpha=0.4, height=0.75)
        axis.barh(place, 0 if pd.isna(row.measured) else row.measured, color=BLUE, height=0.42)
        words = "no bound known" if pd.isna(value) else f"{value:,.0f}"
        words += f", measured {row.measured:,.0f}" if pd.notna(row.measured) else ""
        end = max(v for v in (0, value, row.measured) if pd.notna(v))
        axis.text(end, place, f" {words}{row.note}", va="center", fontsize=8.5)
    axis.set_yticks(range(len(table)), list(table["label"]))
    axis.set(xlabel=unit, xlim=(0, 1.75 * most), ylim=(len(table) - 0.4, -0.6))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_title(title, loc="left", fontsize=9.5)
    figure.suptitle(verdict, x=0.01, ha="left", fontsize=10, color=GREEN if table["fits"].any() else RED)
    figure.set_label(f"{verdict} {title}")
    return figure
