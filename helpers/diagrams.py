"""Drawings for slides: what a machine, a layer, a request and a cache look like. Each takes data and returns a Figure."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from helpers import plots
from helpers.hardware import GB, GPU, Link
from helpers.models import ModelConfig, load
from helpers.parallel_plots import GPU_COLORS, HELD, _grid
from helpers.plots import BLUE, GREEN, RED

INK, QUIET, PALE, LINE = "#16202e", "#56606e", "#eef3f9", "#9fb0c6"
ORANGE, PURPLE = "#b0600d", plots.PURPLE
WIDE = (12.0, 5.2)  # inches: the room under a slide's title
KINDS = (BLUE, ORANGE, GREEN, PURPLE, RED, "#4d4d4d", "#8c6d31", "#187a8c")


def canvas(size: tuple[float, float] = WIDE, label: str = "") -> tuple[Figure, Axes]:
    """An empty sheet measured in inches, the origin at the bottom left."""
    figure = Figure(figsize=size, label=label)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axis.axis("off")
    return figure, axis


def box(
    axis: Axes, x: float, y: float, width: float, height: float, text: str = "", *, fill: str = PALE, edge: str = LINE,
    color: str = INK, size: float = 18, weight: str = "normal",
) -> None:  # fmt: skip
    """A rounded box with its lower left corner at (x, y) and text in its middle."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=fill, edgecolor=edge, linewidth=1.5
    )
    axis.add_patch(shape)
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=color, fontsize=size, weight=weight)


def arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = QUIET, style: str = "-|>"
) -> None:
    """A line with a head, from start to end."""
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": style, "color": color, "linewidth": 2.2, "mutation_scale": 20}
    )


def machine(gpu: GPU, network: Link) -> Figure:
    """Two nodes of four GPUs: the memory of each, the links inside a node, the network between them."""
    link, wire = gpu.link.bytes_per_second / GB, network.bytes_per_second / GB
    figure, axis = canvas(label=(
        f"Two nodes of four {gpu.name}. In a node every GPU sends {link:.0f} GB/s to the others over {gpu.link.name}; "
        f"between nodes {wire:.0f} GB/s a GPU over {network.name}."
    ))  # fmt: skip
    for node, left in enumerate((0.2, 6.5)):
        box(axis, left, 0.2, 5.3, 4.3, fill="white")
        axis.text(left + 0.2, 4.7, f"node {node + 1}", fontsize=20, weight="semibold", color=INK)
        for number in range(4):
            x, y = left + 0.35 + 2.55 * (number % 2), 2.75 - 2.2 * (number // 2)
            name = f"GPU {number}\n{gpu.label_gb} GB\n{gpu.bandwidth / GB:,.0f} GB/s"
            box(axis, x, y, 2.05, 1.4, name, fill=GPU_COLORS[0], edge=GPU_COLORS[0], color="white")
        for start, end in (((0, 0), (1, 0)), ((0, 1), (1, 1)), ((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0), (1, 1)), ((1, 0), (0, 1))):  # fmt: skip
            points = [_edge(left, *start, *end), _edge(left, *end, *start)]
            axis.plot(*zip(*points, strict=True), color=GREEN, linewidth=3)
    axis.plot([5.5, 6.5], [2.4, 2.4], color=ORANGE, linewidth=5)
    axis.text(6.0, 2.75, f"{wire:.0f}\nGB/s", ha="center", va="bottom", fontsize=18, color=ORANGE)
    axis.text(6.0, 2.1, "Infini-\nBand", ha="center", va="top", fontsize=18, color=ORANGE)
    axis.text(11.8, 4.7, f"green: {gpu.link.name}, {link:.0f} GB/s each way", ha="right", fontsize=18, color="#2f7a49")
    return figure


def _edge(left: float, column: int, row: int, to_column: int, to_row: int) -> tuple[float, float]:
    """Where a link leaves a GPU's box toward another."""
    x, y = left + 0.35 + 2.55 * column, 2.75 - 2.2 * row
    across, down = to_column - column, to_row - row
    return x + 1.025 + across * 1.025, y + 0.7 - down * 0.7


def llama_layer(model: str = "llama-3.1-8b") -> Figure:
    """A decoder-only transformer from tokens to the odds of the next one, with one model's sizes."""
    config: ModelConfig = load(model)
    figure, axis = canvas((7.6, 5.4), label=(
        f"{config.name}: tokens, embedding, {config.num_hidden_layers} layers of attention and MLP, head, odds of the next token."
    ))  # fmt: skip
    box(axis, 0.3, 0.05, 3.4, 0.6, "token ids", fill="white")
    box(axis, 0.3, 0.98, 3.4, 0.6, f"embedding, {config.vocab_size:,} rows")
    box(axis, 0.1, 1.9, 3.8, 2.2, fill="white", edge=BLUE)
    box(axis, 0.3, 2.05, 3.4, 0.72, "attention", fill=BLUE, edge=BLUE, color="white", weight="semibold")
    box(axis, 0.3, 3.2, 3.4, 0.72, "MLP", fill="#2f7a49", edge="#2f7a49", color="white", weight="semibold")
    box(axis, 0.3, 4.5, 3.4, 0.62, "head: odds of the next")
    for low, high in ((0.65, 0.98), (1.58, 2.05), (2.77, 3.2), (3.92, 4.5)):
        arrow(axis, (2.0, low), (2.0, high))
    kept = f"{config.num_attention_heads} query heads,\n{config.num_key_value_heads} for keys and values"
    axis.text(4.15, 2.41, kept, va="center", fontsize=18)
    axis.text(
        4.15,
        3.56,
        f"{config.hidden_size:,} → {config.intermediate_size:,}\n→ {config.hidden_size:,}",
        va="center",
        fontsize=18,
    )
    axis.text(4.15, 4.81, "read at the last token", va="center", fontsize=18, color=QUIET)
    axis.text(4.15, 1.2, f"the frame {config.num_hidden_layers} times", va="center", fontsize=18, color=BLUE)
    return figure


def prefill_decode(prompt: int = 6, answer: int = 7) -> Figure:
    """One request over time: the prompt in one step, then a token a step; where TTFT and TPOT are."""
    figure, axis = canvas((12, 4.8), label=(
        "One request over time: the prompt's tokens go through the model together, which takes the time to first token; "
        "then each token of the answer takes a step of its own."
    ))  # fmt: skip
    side, left, wide, step = 0.42, 0.6, 2.5, 1.1
    start = left + wide + 0.25
    for row in range(prompt):
        box(
            axis,
            left,
            1.0 + row * (side + 0.06),
            wide,
            side,
            f"prompt token {prompt - row}",
            fill=BLUE,
            edge=BLUE,
            color="white",
        )
    for number in range(answer):
        x = start + number * step
        box(axis, x, 1.0, step - 0.14, side, f"{number + 2}", fill=ORANGE, edge=ORANGE, color="white")
        box(axis, x, 1.0 + side + 0.1, step - 0.14, 0.24 + 0.15 * number, "", fill="#cfe0d3", edge="#cfe0d3")
    middle = start + answer * step / 2
    axis.text(left + wide / 2, 0.66, "prefill: all at once", ha="center", fontsize=19, color=BLUE, weight="semibold")
    axis.text(middle, 0.66, "decode: one token a step", ha="center", fontsize=19, color=ORANGE, weight="semibold")
    axis.text(start, 2.45, "KV cache: one token more each step", fontsize=18, color="#2f7a49")
    arrow(axis, (0.2, 0.45), (11.8, 0.45), INK)
    axis.text(11.8, 0.1, "time", ha="right", fontsize=18, color=INK)
    axis.plot([start - 0.12] * 2, [0.45, 4.4], color=INK, linewidth=1.5, linestyle="--")
    axis.text(start + 0.05, 4.25, "first token", va="center", fontsize=18)
    arrow(axis, (left, 4.1), (start - 0.12, 4.1), INK, "<|-|>")
    axis.text(left + wide / 2, 4.25, "TTFT", ha="center", va="bottom", fontsize=20, weight="semibold")
    arrow(axis, (start, 3.4), (start + step, 3.4), INK, "<|-|>")
    axis.text(start + step + 0.15, 3.4, "TPOT: from token to token", va="center", fontsize=20, weight="semibold")
    return figure


def answer_times() -> Figure:
    """The names of the times of one answer, from sending to its end."""
    figure, axis = canvas((12, 3.1), label="One answer: queue, prefill, tokens; TTFT, ITL and end-to-end latency.")
    arrow(axis, (0.2, 0.75), (11.8, 0.75), INK)
    box(axis, 0.5, 0.85, 1.5, 0.55, "queue", fill="#d5dde8", edge="#d5dde8")
    box(axis, 2.0, 0.85, 2.0, 0.55, "prefill", fill=BLUE, edge=BLUE, color="white")
    axis.text(7.2, 0.3, "decode: each mark is a token", ha="center", fontsize=18, color=ORANGE)
    for x in (4.0, 5.0, 6.0, 7.3, 8.2, 9.2, 10.4):
        axis.plot([x, x], [0.8, 1.45], color=ORANGE, linewidth=5)
    for start, end, y, text in ((0.5, 4.0, 1.75, "TTFT"), (6.0, 7.3, 1.75, "ITL"), (0.5, 10.4, 2.5, "end to end")):
        arrow(axis, (start, y), (end, y), INK, "<|-|>")
        axis.text((start + end) / 2, y + 0.1, text, ha="center", va="bottom", fontsize=20, weight="semibold")
    axis.text(7.6, 1.8, "TPOT: the mean of its ITLs", va="center", fontsize=18, color=QUIET)
    return figure


def page_table() -> Figure:
    """Two requests' block tables, and where their blocks lie in the GPU's cache; the first is shared."""
    figure, axis = canvas((12, 5.0), label=(
        "Block tables of two requests point to blocks scattered over the cache; both share the block of their common beginning."
    ))  # fmt: skip
    tables = {"a": (7, 2, 10), "b": (7, 4)}
    colors = {"a": BLUE, "b": ORANGE}
    for place, (name, table) in enumerate(tables.items()):
        top = 3.6 - 2.2 * place
        axis.text(0.2, top + 0.35, f"request {name}", fontsize=20, weight="semibold", color=colors[name])
        for number, block in enumerate(table):
            box(axis, 2.2 + 0.95 * number, top, 0.85, 0.7, f"{block}", fill="white", edge=colors[name], size=20)
        axis.text(2.2, top - 0.4, "its block table", fontsize=18, color=QUIET)
    owner = {block: name for name, table in tables.items() for block in table} | {7: "ab"}
    fills = {"a": BLUE, "b": ORANGE, "ab": INK}
    for block in range(12):
        x, y = 6.9 + 1.2 * (block % 4), 3.3 - 1.3 * (block // 4)
        holder = owner.get(block, "")
        color = "white" if holder else QUIET
        box(axis, x, y, 1.05, 1.05, f"{block}", fill=fills.get(holder, "white"), color=color, size=20)
    axis.text(6.9, 0.3, "the cache: blocks of 16 tokens", fontsize=18, color=QUIET)
    axis.text(6.9, 4.68, "dark: shared, same beginning", fontsize=18, color=INK)
    arrow(axis, (5.3, 2.5), (6.7, 2.5))
    return figure


def held_by(weights: str, cache: str, wide: bool = True) -> Figure:
    """What each of four GPUs holds of the weights and of the cache, in parts of helpers.parallel_plots.HELD.

    Not `wide`: for half a slide, 5.6 x 1.9 inches.
    """
    size, scale, step, left = ((12, 2.5), 1.28, 2.95, 0.35) if wide else ((5.6, 1.9), 0.62, 1.4, 0.02)
    figure, axis = canvas(size, label=f"What each of four GPUs holds: weights by {weights}, cache by {cache}.")
    for gpu in range(4):
        x = left + step * gpu
        axis.text(
            x + 1.05 * scale,
            size[1] - 0.3,
            f"GPU {gpu}",
            ha="center",
            fontsize=20,
            color=GPU_COLORS[gpu],
            weight="semibold",
        )
        for place, (word, part) in enumerate((("weights", weights), ("cache", cache))):
            _scaled_grid(axis, x + place * 1.08 * scale, 0.55, gpu, part, scale)
            if wide:
                axis.text(x + (place * 1.08 + 0.5) * scale, 0.15, word, ha="center", fontsize=18, color=QUIET)
    if not wide:
        axis.text(size[0] / 2, 0.15, "left: weights, right: cache", ha="center", fontsize=18, color=QUIET)
    return figure


def _scaled_grid(axis: Axes, left: float, bottom: float, gpu: int, part: str, scale: float) -> None:
    before = len(axis.patches)
    _grid(axis, 0, 0, gpu, HELD[part])
    for square in axis.patches[before:]:
        assert isinstance(square, Rectangle)
        square.set_bounds(left + square.get_x() * scale, bottom + square.get_y() * scale, 0.25 * scale, 0.25 * scale)


def places(count: int = 4) -> Figure:
    """Threads that take requests from a queue: as one is done, it takes the next."""
    figure, axis = canvas(
        (12, 3.8), label=f"A queue of prompts, {count} threads, and a server that serves all at once."
    )
    for number in range(7):
        box(axis, 0.3, 0.1 + 0.45 * number, 2.2, 0.36, "", fill="#cfdcee", edge="#cfdcee")
    axis.text(1.4, 3.45, "prompts", ha="center", va="center", fontsize=18, color=QUIET)
    for number in range(count):
        y = 0.15 + 0.8 * number
        box(axis, 4.4, y, 2.2, 0.62, f"thread {number + 1}", fill="white", edge=BLUE)
        arrow(axis, (2.6, 1.6), (4.35, y + 0.31))
        arrow(axis, (6.65, y + 0.31), (8.55, 1.65))
    box(axis, 8.6, 0.75, 3.1, 1.8, "server:\nall in one batch", fill=BLUE, edge=BLUE, color="white", size=20)
    return figure


def cut_layer(config: ModelConfig, ranks: int = 4) -> Figure:
    """Two matrices in a row under tensor parallelism: the first cut by outputs, the second by inputs, then one sum."""
    hidden, wide = config.hidden_size, config.intermediate_size
    figure, axis = canvas((12, 4.6), label=(
        f"A layer's MLP on {ranks} GPUs: the first matrix is cut by its outputs, the second by its inputs, "
        "so that the GPUs have to talk only once, to add up their sums."
    ))  # fmt: skip
    box(axis, 0.2, 1.3, 1.5, 2.2, f"hidden\nstate\n{hidden:,}", fill="white")
    for rank in range(ranks):
        y = 3.6 - 0.85 * rank
        looks: dict[str, Any] = {
            "fill": GPU_COLORS[rank] if rank != 1 else ORANGE,
            "color": "white",
            "edge": "white",
            "weight": "semibold",
        }
        box(axis, 2.6, y, 2.3, 0.75, f"GPU {rank}", **looks)
        box(axis, 5.9 + 0.62 * rank, 1.05, 0.56, 3.3, f"{rank}", **looks)
    for start, end in (((1.75, 2.4), (2.5, 2.4)), ((5.0, 2.4), (5.8, 2.4)), ((8.5, 2.4), (9.2, 2.4))):
        arrow(axis, start, end)
    box(axis, 9.3, 1.3, 2.5, 2.2, "all-reduce:\nadd the\nfour sums", fill="#fbeceb", edge=RED)
    axis.text(
        3.75, 0.55, f"gate, up: by outputs\n{wide:,} × {hidden:,}", ha="center", va="center", fontsize=18, color=QUIET
    )
    axis.text(7.15, 0.55, f"down: by inputs\n{hidden:,} × {wide:,}", ha="center", va="center", fontsize=18, color=QUIET)
    axis.text(10.55, 0.75, "twice a layer", ha="center", va="center", fontsize=18, color=RED)
    return figure


def job_life(deployment: str, gpus: int) -> Figure:
    """From a submitted job to a notebook that finds its server."""
    figure, axis = canvas((12, 3.5), label=(
        "You submit a job; Slurm queues it and gives it nodes; vLLM starts a rank for each GPU, answers, and writes a "
        "connection file, in which the notebooks find address and key."
    ))  # fmt: skip
    box(axis, 0.2, 1.9, 2.3, 1.3, f"you: submit\n{deployment}", fill="white", edge=BLUE)
    box(axis, 3.4, 1.9, 1.9, 1.3, "Slurm:\nthe queue")
    box(axis, 6.2, 1.7, 5.6, 1.7, fill="white", edge=GREEN)
    axis.text(6.4, 3.1, "a node, or several", fontsize=18, color="#2f7a49", va="center")
    for number in range(gpus):
        box(axis, 6.4 + 1.34 * number, 1.85, 1.2, 0.95, f"rank {number}", fill=BLUE, edge=BLUE, color="white")
    box(axis, 6.2, 0.15, 3.0, 0.95, "connection file", fill="#fff6ea", edge=ORANGE)
    box(axis, 0.2, 0.15, 3.6, 0.95, "notebooks, clients", fill="white", edge=BLUE)
    for start, end in (
        ((2.5, 2.55), (3.4, 2.55)),
        ((5.3, 2.55), (6.2, 2.55)),
        ((7.7, 1.7), (7.7, 1.1)),
        ((6.2, 0.62), (3.8, 0.62)),
    ):
        arrow(axis, start, end)
    axis.text(7.9, 1.4, "ready: a real answer", fontsize=18, va="center", color=QUIET)
    axis.text(5.0, 0.85, "address, key", fontsize=18, ha="center", va="bottom", color=QUIET)
    return figure
