"""The workshop's figures. Each function takes data and returns a matplotlib Figure; none computes what it draws."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b6fb6", "#e08a2e", "#4a9a63", "#c8504c", "#7d62a8", "#9aa0a6"

STYLE = {
    "figure.figsize": (7.2, 3.2),
    "figure.dpi": 96,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
}


def _new_figure(columns: int = 1, **kwargs) -> tuple[Figure, list]:
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
    return figure


MEMORY_PARTS = {
    "weights": ("weights", BLUE),
    "activations": ("activations", ORANGE),
    "non_torch": ("outside PyTorch", RED),
    "cuda_graphs": ("CUDA graphs", PURPLE),
    "kv_cache": ("KV cache", GREEN),
    "left_free": ("left free", "#dfe2e5"),
}


def memory_bars(plans: list, labels: list[str] | None = None) -> Figure:
    """A stacked bar for each helpers.memory.Plan: what fills its tightest GPU, in GiB; the GPU's memory is dashed."""
    figure, (axis,) = _new_figure()
    labels = labels or [f"{plan.model}\nTP{plan.tp} x PP{plan.pp} on {plan.gpu}" for plan in plans]
    left = [0.0] * len(plans)
    for part, (name, color) in MEMORY_PARTS.items():
        drawn = [part != "left_free" or not plan.breakdown["missing"] for plan in plans]
        sizes = [plan.breakdown[part] / 2**30 if shown else 0.0 for plan, shown in zip(plans, drawn, strict=True)]
        axis.barh(range(len(plans)), sizes, left=left, color=color, label=name, height=0.6)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, plan in enumerate(plans):
        axis.plot([plan.gpu_memory / 2**30] * 2, [row - 0.4, row + 0.4], color="black", linestyle="--", linewidth=1)
    axis.set(title="Memory of the tightest GPU (dashed: what it has)", xlabel="GiB")
    axis.set_yticks(range(len(plans)), labels)
    axis.invert_yaxis()
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=9)
    return figure


def next_token_bars(odds: dict[str, float], reference: dict[str, float] | None = None, title: str = "") -> Figure:
    """Bars of {token: probability}; `reference` probabilities of the same tokens stand behind them in grey."""
    figure, (axis,) = _new_figure(figsize=(6.4, 2.6))
    if reference:
        axis.bar(list(reference), list(reference.values()), color=GREY, alpha=0.4, width=0.8, label="before")
    bars = axis.bar(list(odds), list(odds.values()), color=BLUE, width=0.5, label="after" if reference else None)
    axis.bar_label(bars, labels=[f"{p:.0%}" if p else "never" for p in odds.values()], padding=2)
    axis.set(ylim=(0, 1.12), ylabel="probability", title=title, yticks=[0, 0.5, 1])
    if reference:
        axis.legend(frameon=False, loc="upper right")
    return figure
