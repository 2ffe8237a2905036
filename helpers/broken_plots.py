"""The pictures of lesson 09: a start step by step, a log at a glance, the logs of several ranks on one clock."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from helpers.broken import COLOURS, Job, Log, Row
from helpers.plots import BLUE, GREEN, GREY, RED, _new_figure

LIGHT = "#eef2f8"


@dataclass(frozen=True)
class Step:
    """One step of a start: the log says `sign` when it is done; what stops a server here, and where to look."""

    name: str
    question: str
    says: str
    sign: re.Pattern[str]
    stops: str


STEPS = [
    Step("queue", "Does the job run?", "launcher.log: starting …", re.compile(r"\S"),
         "squeue's reason; nodes that are down; a limit of yours"),
    Step("settings", "Does vLLM take the model's name and the flags?", "Initializing a V1 LLM engine",
         re.compile(r"Initializing a V1 LLM engine|headless multiproc executor"), "path, flags, TP and heads, length of the model"),
    Step("ranks", "Do the ranks find each other?", "rank 0 in world size 2 is …",
         re.compile(r"rank \d+ in world size \d+ is assigned"), "interface, firewall, a rank that never started"),
    Step("weights", "Are the weights whole, and is there room for them?", "Loading weights took …",
         re.compile(r"Loading weights took|Model loading took"), "missing or damaged files, memory of the GPU, slow disk"),
    Step("cache", "Is there room left for the KV cache?", "KV cache size: … tokens",
         re.compile(r"KV cache size"), "--max-model-len, --gpu-memory-utilization, more GPUs"),
    Step("serving", "Does it answer, and go on answering?", "an answer to a request",
         re.compile(r"Application startup complete"), "a killed process, the time limit, a node that failed"),
]  # fmt: skip


def path() -> Figure:
    """The steps of a start from top to bottom: the question, how the log says yes, what it is when it stops here."""
    figure, (axis,) = _new_figure(figsize=(9.2, 4.3))
    axis.axis("off")
    axis.set(xlim=(0, 100), ylim=(len(STEPS) - 0.45, -0.75))
    for x, text, colour in (
        (2, "the question", BLUE),
        (41, "the log says yes with", GREEN),
        (71, "it stops here: look at", RED),
    ):
        axis.text(x, -0.6, text, color=colour, fontsize=9, va="center")
    for row, step in enumerate(STEPS):
        box = FancyBboxPatch(
            (1, row - 0.33), 35, 0.66, boxstyle="round,pad=0,rounding_size=0.9", mutation_aspect=0.12, linewidth=1,
            facecolor=LIGHT, edgecolor=BLUE,
        )  # fmt: skip
        axis.add_patch(box)
        axis.text(2.2, row, f"{row + 1}", fontsize=13, color=BLUE, va="center")
        axis.text(6, row, textwrap.fill(step.question, 34), fontsize=9.5, va="center")
        axis.text(41, row, textwrap.fill(step.says, 34), fontsize=8.5, va="center", family="monospace", color=GREEN)
        axis.text(71, row, textwrap.fill(step.stops, 34), fontsize=9, va="center", color=RED)
        if row + 1 < len(STEPS):
            axis.annotate("", (18, row + 0.67), (18, row + 0.33), arrowprops={"arrowstyle": "->", "color": BLUE})
    return figure


def how_far(logs: Mapping[str, Log]) -> Figure:
    """A row for each log: the steps it took (green) and the one at which it stopped (red)."""
    figure, (axis,) = _new_figure(figsize=(8.2, 0.9 + 0.38 * len(logs)))
    for row, log in enumerate(logs.values()):
        done = max((n for n, step in enumerate(STEPS) if step.sign.search(log.text)), default=-1)
        served = done == len(STEPS) - 1
        axis.plot([0, done], [row, row], color=GREEN, linewidth=2, zorder=1)
        axis.scatter(range(done + 1), [row] * (done + 1), color=GREEN, s=70, zorder=2)
        stop = done if served else done + 1
        axis.scatter([stop + 0.25 * served], [row], color=RED, marker="X", s=90, zorder=3)
    axis.set_xticks(range(len(STEPS)), [step.name for step in STEPS])
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(logs)), list(logs))
    axis.set(xlim=(-0.4, len(STEPS) - 0.4), ylim=(len(logs) - 0.4, -0.6))
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


def glance(log: Log) -> Figure:
    """A whole log at a glance: a stroke for each line in the row of the process that wrote it, errors as dots."""
    names = [*dict.fromkeys(row.process for row in log.rows if row.process), "no name"]
    places = [(row, row.line.number, names.index(row.process or "no name")) for row in log.rows]
    return _strokes(places, names, log.diagnosis.line, "line of the log")


def clock(job: Job) -> Figure:
    """The logs of a job on one clock, in seconds since its launcher began."""
    names = [name for name in job.logs if name != "outcome"]
    rows = [(row, names.index(name)) for name in names for row in job[name].rows if row.time]
    begin = min(_seconds(row) for row, _ in rows)
    places = [(row, _seconds(row) - begin, place) for row, place in rows]
    return _strokes(places, names, (job.diagnosis.file, job.diagnosis.line), "seconds since the job began")


def _seconds(row: Row) -> float:
    return (datetime.strptime(row.time, "%H:%M:%S") - datetime(1900, 1, 1)).total_seconds()


def _strokes(places: Sequence[tuple[Row, float, int]], names: list[str], cause: object, xlabel: str) -> Figure:
    """`cause` is the line, or (file, line), that the doctor calls the cause: it gets the star, other errors are echoes."""
    figure, (axis,) = _new_figure(figsize=(8.2, 1.1 + 0.4 * len(names)))
    colours = COLOURS | {"info": GREY}
    for kind in ("info", "warning", "error"):
        chosen = [(x, y) for row, x, y in places if row.kind == kind]
        _dots(axis, chosen, marker="|", s=170, linewidth=1, color=colours[kind])
    stars = [(x, y) for row, x, y in places if cause in (row.line.number, (row.line.file, row.line.number))]
    echoes = [(x, y) for row, x, y in places if row.is_error and (x, y) not in stars]
    _dots(axis, echoes, s=55, facecolor="white", edgecolor=RED, linewidth=1.6, label="names an error")
    _dots(axis, stars, s=230, marker="*", color=RED, edgecolor="black", linewidth=0.7, label="the cause")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
    figure.legend(ncols=2, loc="outside upper right", frameon=False, fontsize=9)
    return figure


def _dots(axis: Axes, points: Sequence[tuple[float, int]], **style: Any) -> None:
    """Later ones lie above earlier ones."""
    axis.scatter([x for x, _ in points], [y for _, y in points], zorder=3 + len(axis.collections), **style)
