"""The still picture of a trace, for slides and paper: requests, blocks, the cache and the queue over the same steps."""

from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from helpers.plots import STYLE
from helpers.trace import Trace
from helpers.trace_scene import scene

SHARED, FINDABLE, LINE = "#000000", "#D9D9D9", "#6b7075"
STORED, EMPTY, STRANDED = "#0072B2", "#E69F00", "#000000"
HEIGHTS = {"prefill": 0.86, "decode": 0.5, "held": 0.5, "wait": 0.06, "again": 0.06}


def trace_figure(trace: Trace, title: str = "", until: int | None = None) -> Figure:
    """Four panels over engine steps; `until` sets the last step shown, so that two pictures have the same scale.

    Tall bars read a prompt, lower ones write an answer, lines wait; a cross is a preemption. Figure.get_label() holds a
    sentence for those who do not see it. Raises TraceError for a trace too large to be seen.
    """
    shapes = scene(trace)
    rows, blocks = len(shapes["requests"]), shapes["blocks"] - 1
    heights = [max(0.8, 0.2 * rows), min(3.2, max(0.8, 0.09 * blocks)), 0.8, 0.6]
    with plt.rc_context({**STYLE, "hatch.linewidth": 0.7, "font.size": 9}):
        figure, axes = plt.subplots(
            4, 1, sharex=True, figsize=(7.2, sum(heights) + 1.3), height_ratios=heights, label=shapes["summary"]
        )  # fmt: skip
    plt.close(figure)
    _requests(axes[0], shapes["requests"])
    _blocks(axes[1], shapes)
    _cache(axes[2], shapes)
    _queue(axes[3], shapes)
    axes[0].set_xlim(shapes["first"], max(until + 1 if until else 0, shapes["end"]))
    axes[0].set_title(title, loc="left", fontsize=11)
    axes[3].set_xlabel("engine step")
    return figure


def _fill(request: dict[str, Any]) -> dict[str, Any]:
    return {"facecolor": request["color"], "hatch": "////" if request["striped"] else None, "edgecolor": "white"}


def _requests(axis: Axes, requests: list[dict[str, Any]]) -> None:
    for row, request in enumerate(requests):
        for kind, start, stop, _ in request["bars"]:
            height = HEIGHTS[kind]
            waits, looks = kind in ("wait", "again"), _fill(request)
            if waits:
                looks = {"facecolor": LINE}
            elif kind == "held":
                looks = {"facecolor": "white", "edgecolor": request["color"]}
            axis.broken_barh(
                [(start, stop - start)], (row - height / 2, height), linewidth=0 if waits else 0.5, **looks
            )
            if kind == "again":
                axis.plot(start, row, "x", color="black", markersize=5)
    axis.set_title("tall: reads its prompt · low: writes · line: waits · ×: preempted", loc="right", fontsize=8)
    axis.set_yticks(range(len(requests)), [request["id"] for request in requests])
    axis.set(ylim=(len(requests) - 0.5, -0.5), ylabel="request")


def _blocks(axis: Axes, shapes: dict[str, Any]) -> None:
    kinds = set()
    for block, start, stop, owners in shapes["spans"]:
        looks: dict[str, Any] = {"facecolor": SHARED, "edgecolor": "white"}
        if not owners:
            looks = {"facecolor": FINDABLE, "edgecolor": "white", "hatch": "...."}
        elif len(owners) == 1:
            looks = _fill(shapes["requests"][owners[0][0]])
        kinds.add(min(len(owners), 2))
        axis.broken_barh([(start, stop - start)], (block - 0.5, 1), linewidth=0.3, **looks)
    legend = {
        2: Patch(color=SHARED, label="shared"),
        0: Patch(facecolor=FINDABLE, hatch="....", edgecolor="white", label="free, still findable"),
    }
    if handles := [patch for kind, patch in legend.items() if kind in kinds]:
        axis.legend(
            handles=handles,
            frameon=False,
            fontsize=8,
            ncols=2,
            loc="lower right",
            bbox_to_anchor=(1, 0.97),
            borderpad=0,
        )
    axis.set(ylim=(shapes["blocks"] - 0.5, 0.5), ylabel="block")


def _columns(shapes: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
    """Steps, and the figures in each: running, waiting, tokens, blocks, stranded. Without requests all are 0."""
    steps: list[int] = []
    rows: list[list[int]] = []
    for start, stop, running, waiting, _, decode, tokens, blocks, stranded in shapes["use"]:
        if steps and start > steps[-1] + 1:
            steps += [steps[-1] + 1, start - 1]
            rows += [[0] * 5] * 2
        steps += range(start, stop)
        rows += [[running, waiting, tokens + i * decode, blocks, stranded] for i in range(stop - start)]
    return [*steps, shapes["end"]], [list(column) for column in zip(*rows, rows[-1], strict=True)]


def _cache(axis: Axes, shapes: dict[str, Any]) -> None:
    steps, (_, _, tokens, blocks, stranded) = _columns(shapes)
    size, capacity = shapes["size"], (shapes["blocks"] - 1) * shapes["size"]
    held = [block * size / capacity for block in blocks]
    stored = [count / capacity for count in tokens]
    lost = [share + block * size / capacity for share, block in zip(held, stranded, strict=True)]
    axis.fill_between(steps, stored, step="post", color=STORED, label="tokens", linewidth=0)
    axis.fill_between(steps, stored, held, step="post", color=EMPTY, label="held, empty", linewidth=0)
    if any(stranded):
        axis.fill_between(
            steps,
            held,
            lost,
            step="post",
            facecolor="white",
            edgecolor=STRANDED,
            hatch="////",
            linewidth=0,
            label="free, scattered",
        )
    axis.set(ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="cache")
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.92), borderpad=0)


def _queue(axis: Axes, shapes: dict[str, Any]) -> None:
    steps, (running, waiting, *_) = _columns(shapes)
    axis.step(steps, running, where="post", color=STORED, label="running")
    axis.step(steps, waiting, where="post", color="#D55E00", linestyle="--", label="waiting")
    axis.set(ylim=(0, None), ylabel="requests")
    axis.locator_params("y", integer=True)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.92), borderpad=0)
