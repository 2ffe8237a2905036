"""What the pictures of the lesson on parallelism show, from real shapes, bounds and measurements."""

import pandas as pd
from matplotlib.figure import Figure

from helpers import parallel_data, parallel_plots
from helpers.bench_links import matrices
from helpers.hardware import INFINIBAND_NDR, Link, get_gpu
from helpers.models import DTYPE_BYTES, ModelConfig
from helpers.partition import LayoutError, stage_layers
from helpers.roofline import decode_seconds, pp_bytes_per_step, tp_bytes_per_step

SUMMED = ("o", "down")  # cut by their inputs, so that each GPU has a part of every sum


def tensor_parallel(config: ModelConfig, tp: int) -> Figure:
    """A layer's matrices cut for tp GPUs, 4 at most, and the bytes that an all-reduce of one token adds up."""
    shapes = matrices(config, 1)
    half = (shapes["gate_up"][0] // 2, shapes["gate_up"][1])
    shapes = {"q, k, v": shapes["qkv"], "o": shapes["o"], "gate": half, "up": half, "down": shapes["down"]}
    whole = {name: (*shape, "inputs" if name in SUMMED else "outputs") for name, shape in shapes.items()}
    message = f"all-reduce\n{_size(message_bytes(config, 1))} a token"
    return parallel_plots.matrices(
        whole, tp, message, f"A layer of {config.name} on {tp} GPUs (outputs x inputs, to scale)"
    )


def message_bytes(config: ModelConfig, tokens: int) -> int:
    """Bytes of the hidden states of so many tokens: what one all-reduce adds up, and what a stage hands on."""
    return tokens * config.hidden_size * DTYPE_BYTES[config.dtype]


def who_holds_what(config: ModelConfig, mixture: ModelConfig) -> Figure:
    """What each of four GPUs holds under TP, PP, DP, EP and CP, and what it sends for a token.

    Raises LayoutError when `mixture` has no experts.
    """
    if mixture.experts is None:
        raise LayoutError(f"{mixture.name} has no experts to share out: name a mixture, such as deepseek-r1.")
    tp, pp = tp_bytes_per_step(config, tp=4, tokens=1), pp_bytes_per_step(config, pp=4, tokens=1)
    layers, experts = stage_layers(config.num_hidden_layers, 4)[0], mixture.experts
    all_reduces = 2 * config.num_hidden_layers
    kinds = [
        ("TP4, tensor parallel", f"a quarter of every matrix\n{all_reduces} all-reduces, {_size(tp)} a token and GPU",
         "columns", "columns"),
        ("PP4, pipeline parallel", f"{layers} layers each, one stage after another\n3 messages, {_size(pp)} a token",
         "rows", "rows"),
        ("DP4, data parallel", "a whole copy each, a quarter of the requests\nnothing is sent", "all", "all"),
        ("EP4, expert parallel",
         f"{experts.count // 4} of {experts.count} experts each ({mixture.name});\n"
         f"a token needs {experts.per_token} of them, wherever they are", "columns", "all"),
        ("CP4, context parallel", "whole weights; a quarter of the tokens of\none long text; partial attention is sent",
         "all", "columns"),
    ]  # fmt: skip
    title = "Rows of a grid: layers. Columns: parts of a matrix or experts (weights); heads or tokens (cache)."
    return parallel_plots.holdings(kinds, title)


def one_token(config: ModelConfig, gpu: str, ranks: int) -> Figure:
    """When each of `ranks` GPUs works: TP and PP with one request, PP with as many as it has stages. By the bound."""
    step = 1000 * decode_seconds(config, gpu, tp=ranks)
    stage = 1000 * decode_seconds(config, gpu, pp=ranks) / ranks
    until = ranks * stage * 1.5
    count = int(until // step)
    panels = {
        f"TP{ranks}, one request: a token each {step:.1f} ms": [
            (gpu, i * step, (i + 1) * step, f"a{i + 1}") for gpu in range(ranks) for i in range(count)
        ],
        f"PP{ranks}, one request: a token each {ranks * stage:.1f} ms": _pipeline(stage, ranks, 1, until),
        f"PP{ranks}, {ranks} requests: {ranks} tokens each {ranks * stage:.1f} ms": _pipeline(
            stage, ranks, ranks, until
        ),
    }
    title = f"{config.name} on {ranks} {get_gpu(gpu).name}: reading weights, and nothing else"
    return parallel_plots.shifts(panels, title, until)


def _pipeline(stage: float, ranks: int, requests: int, until: float) -> list[tuple[int, float, float, str]]:
    bars = []
    for request in range(requests):
        for hop in range(int(until // stage) - request):
            start = (request + hop) * stage
            bars.append((hop % ranks, start, start + stage, f"{'abcd'[request]}{hop // ranks + 1}"))
    return bars


def bandwidth_seconds(size: float, link: Link, ranks: int = 2) -> float:
    """Seconds that the bytes of an all-reduce take on a link: 2 (ranks - 1) / ranks x size / bandwidth. No latency."""
    return 2 * (ranks - 1) / ranks * size / link.bytes_per_second


def messages(config: ModelConfig) -> Figure:
    """All-reduces between two H200 as measured, and what bandwidth alone says of NVLink and InfiniBand."""
    measured = parallel_data.all_reduces()
    links = {"NVLink 4, 450 GB/s": get_gpu("H200").link, "InfiniBand NDR, 50 GB/s": INFINIBAND_NDR}
    lines = {
        name: pd.Series({size: bandwidth_seconds(size, link) for size in measured.index})
        for name, link in links.items()
    }
    marks = {f"{count:,} token{'s' * (count > 1)}": message_bytes(config, count) for count in (1, 128, 8192)}
    title = f"An all-reduce between two H200 (NCCL); lines: so many tokens of {config.name}"
    return parallel_plots.message_times(measured, lines, marks, title)


def tp_costs() -> Figure:
    """What comes on top of half a step under tensor parallelism, and what NCCL's all-reduces alone would add."""
    costs = parallel_data.tp_costs()
    added = costs["alone_us"] * costs["all_reduces"] / 1000
    title = "One request on twice the GPUs: half the time, and the all-reduces"
    return parallel_plots.tp_costs(costs, costs["half_ms"] + added, title)


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of servers without special flags or links: those named as their layout."""
    return table[table["row"] == table["layout"]].reset_index(drop=True)


def _size(count: float) -> str:
    for unit, width in (("MB", 1e6), ("kB", 1e3)):
        if count >= width:
            return f"{count / width:.1f} {unit}"
    return f"{count:.0f} B"
