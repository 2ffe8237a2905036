"""Pictures of runs: who did what when, how long answers took, and what more threads bring."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers import load_stats
from helpers.load_records import Record, Run
from helpers.load_stats import METRICS, Knee, met
from helpers.metrics import Recording
from helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE, _new_figure

LABELLED = 40  # requests in one picture whose numbers can still be read


def gantt(runs: Mapping[str, Run]) -> Figure:
    """Each run's threads as rows, each request a bar from sending to last token: pale until the first token, then full.

    A failed request is hatched. The bars bear the requests' places in the input; a dashed line is the end of the run.
    """
    rows = [run.workers for run in runs.values()]
    longest = max(run.seconds for run in runs.values())
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.75 * len(runs) + 0.3 * sum(rows) + 0.4))
        axes = figure.subplots(len(runs), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    for axis, (title, run), height in zip(axes, runs.items(), rows, strict=True):
        for record in run:
            _bar(axis, record, longest if len(run) <= LABELLED else 0)
        axis.axvline(run.seconds, color="black", linestyle="--", linewidth=1)
        axis.set_title(f"{title}: {run.seconds:.2f} s", loc="left", fontsize=10)
        axis.set(ylim=(height - 0.5, -0.5), xlim=(0, 1.02 * longest), ylabel="thread" if height > 2 else "")
        axis.set_yticks(range(height), [str(row + 1) for row in range(height)], fontsize=8)
    axes[-1].set_xlabel("seconds")
    figure.set_label(
        "Requests over threads. " + "; ".join(f"{title}: {len(run)} requests on {height} threads, {run.seconds:.2f} seconds"
        for (title, run), height in zip(runs.items(), rows, strict=True)) + "."
    )  # fmt: skip
    return figure


def _bar(axis: Axes, record: Record, longest: float) -> None:
    """One request; its number is written in where the bar has room for it in a picture of `longest` seconds."""
    first = record.ttft if record.ttft == record.ttft else record.e2e
    color, hatch = (BLUE, None) if record.ok else (RED, "///")
    axis.barh(record.worker, first, left=record.started, height=0.8, color=color, alpha=0.35, hatch=hatch)
    rest = axis.barh(
        record.worker, record.e2e - first, left=record.started + first, height=0.8, color=color, hatch=hatch
    )
    axis.barh(record.worker, record.e2e, left=record.started, height=0.8, fill=False, edgecolor="white", linewidth=0.8)
    if record.e2e - first > 0.03 * longest > 0:
        axis.bar_label(rest, [str(record.index)], label_type="center", color="white", fontsize=8)


def timeline(record: Record) -> Figure:
    """One answer: the wait for its first token, and a mark for each piece of it after that."""
    figure, (axis,) = _new_figure(figsize=(7.2, 1.9))
    pieces = record.ttft + np.cumsum([0, *record.itl])
    axis.barh(0, record.ttft, height=0.5, color=BLUE, alpha=0.35)
    axis.barh(0, record.e2e - record.ttft, left=record.ttft, height=0.5, color=BLUE, alpha=0.75)
    axis.vlines(pieces, -0.25, 0.25, color="white", linewidth=0.8)
    longest = int(np.argmax(record.itl)) if len(record.itl) else 0
    spans = [(0, record.ttft, 0.45, "TTFT"), (0, record.e2e, -0.55, "E2E")]
    spans += [(pieces[longest], pieces[longest + 1], 0.45, "the longest ITL")] if len(record.itl) else []
    for begin, end, height, label in spans:
        axis.annotate("", (begin, height), (end, height), arrowprops={"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0})
        above = height > 0
        axis.text((begin + end) / 2, height + (0.08 if above else -0.08), f"{label} {1000 * (end - begin):.0f} ms",
                  ha="center", va="bottom" if above else "top", fontsize=9)  # fmt: skip
    axis.set(xlim=(0, 1.02 * record.e2e), ylim=(-1, 0.95), xlabel="seconds since it was sent", yticks=[])
    axis.spines["left"].set_visible(False)
    figure.set_label(
        f"An answer of {record.output_tokens} tokens: the first after {1000 * record.ttft:.0f} ms, all after {1000 * record.e2e:.0f} ms."
    )
    return figure


def distribution(run: Run, metric: str = "e2e") -> Figure:
    """How one of ttft, tpot, itl, e2e is spread: counts on the left, the share that took no longer on the right.

    Dashed lines are the mean and the 50th, 95th and 99th percentile.
    """
    found, name = np.sort(load_stats.values(run, metric)), METRICS[metric]
    marks = {"mean": found.mean()} | {f"p{share}": np.percentile(found, share) for share in (50, 95, 99)}
    looks = {"mean": (RED, "-"), "p50": (GREEN, "--"), "p95": (ORANGE, "-."), "p99": (PURPLE, ":")}
    figure, (left, right) = _new_figure(2, figsize=(7.2, 2.9))
    left.hist(found, bins=30, color=BLUE, alpha=0.8)
    left.set(xlabel=f"{name}, seconds", ylabel="gaps" if metric == "itl" else "requests", xlim=(0, None))
    right.step([0, *found], np.linspace(0, 1, len(found) + 1), where="post", color=BLUE)
    right.set(xlabel=f"{name}, seconds", ylabel="share that took no longer", xlim=(0, None), ylim=(0, 1.02))
    for axis in (left, right):
        for label, value in marks.items():
            color, style = looks[label]
            axis.axvline(value, color=color, linestyle=style, linewidth=1.4, label=f"{label} {value:.3g} s")
    right.legend(frameon=False, fontsize=8, loc="center")
    figure.set_label(f"{name} of {len(found)} values: " + ", ".join(f"{k} {v:.3g} s" for k, v in marks.items()) + ".")
    return figure


def in_flight(run: Run, law: pd.Series, recording: Recording | None = None) -> Figure:
    """Requests in flight over the run, with the mean that `littles_law` measured (dashed) and the area it comes from.

    With a helpers.metrics.record of the same time, dots are what the server itself counted.
    """
    counted = load_stats.in_flight(run)
    mean, product = law.iloc[0], law.iloc[3]
    figure, (axis,) = _new_figure(figsize=(7.2, 2.6))
    axis.fill_between(counted.index, counted, step="post", color=BLUE, alpha=0.3)
    axis.step(counted.index, counted, where="post", color=BLUE, linewidth=1)
    if recording is not None:
        seen = [(shot.time - run.began, shot.running + shot.waiting) for shot in recording.snapshots]
        axis.plot(*zip(*seen, strict=True), ".", color=RED, markersize=5, label="the server's own count")
    axis.axhline(mean, color=ORANGE, linestyle="--", label=f"L = {mean:.2f}; λ × W = {product:.2f}")
    axis.set(xlabel="seconds", ylabel="requests in flight", xlim=(0, None), ylim=(0, 1.4 * counted.max()))
    axis.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
    figure.set_label(f"Requests in flight over time, on average {mean:.2f}, at most {counted.max()}.")
    return figure


def throughput_latency(table: pd.DataFrame, knee: Knee) -> Figure:
    """A `load_stats.curve` with its knee: requests a second over threads, and seconds of an answer over throughput."""
    figure, (left, right) = _new_figure(2, figsize=(7.6, 3.3))
    threads, rate = table.index.to_numpy(), table["requests_per_second"]
    corners = sorted({1.0, float(knee.threads), float(max(threads))})
    left.plot(corners, [min(n / knee.alone, knee.peak) for n in corners], color=GREY, linestyle="--", label="bounds")
    left.plot(threads, rate, "o-", color=BLUE, label="measured")
    left.axvline(knee.threads, color=ORANGE, linestyle=":", label=f"knee: {knee.threads:.1f} threads")
    left.set(xlabel="threads", ylabel="requests per second", xscale="log", yscale="log")
    left.set_xticks(threads, [str(n) for n in threads])
    left.minorticks_off()
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if min(rate) / 2 <= tick <= 2 * knee.peak]
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.plot(rate, table["e2e_mean"], "o-", color=BLUE, label="mean")
    right.plot(rate, table["e2e_p95"], "s--", color=ORANGE, label="p95", markersize=4)
    for n in threads:
        right.annotate(f"{n} ", (rate[n], table.loc[n, "e2e_mean"]), ha="right", va="bottom", fontsize=8, color=BLUE)
    right.set(xlabel="requests per second", ylabel="seconds of an answer (E2E)", xlim=(0, None), ylim=(0, None))
    right.legend(frameon=False, fontsize=8, title="numbers: threads", title_fontsize=8)
    figure.set_label(
        f"Throughput and latency for {', '.join(map(str, threads))} threads: from {rate.iloc[0]:.1f} to at most "
        f"{knee.peak:.1f} requests a second, with the knee at {knee.threads:.1f} threads."
    )
    return figure


def goodput_curve(runs: Mapping[int, Run], *, ttft: float, tpot: float) -> Figure:
    """Throughput and goodput in requests a second over threads, and each request's TTFT and TPOT against the limits (seconds)."""
    figure, (left, right) = _new_figure(2, figsize=(7.6, 3.3))
    threads = sorted(runs)
    total = [load_stats.throughput(runs[n])["requests_per_second"] for n in threads]
    good = [load_stats.goodput(runs[n], ttft=ttft, tpot=tpot) for n in threads]
    left.plot(threads, total, "o--", color=GREY, label="throughput", markersize=9, fillstyle="none")
    left.plot(threads, good, "s-", color=GREEN, label="goodput")
    left.set(xlabel="threads", ylabel="requests per second", xscale="log", ylim=(0, 1.2 * max(total)))
    left.set_xticks(threads, [str(n) for n in threads])
    left.minorticks_off()
    left.legend(frameon=False, fontsize=9, loc="upper left")
    for n, color, marker in zip(threads[-3:], (BLUE, ORANGE, PURPLE), "o^x", strict=False):
        answered = [record for record in runs[n] if record.ok]
        waits, gaps = [record.ttft for record in answered], [1000 * record.tpot for record in answered]
        share = met(runs[n], ttft=ttft, tpot=tpot).mean()
        right.scatter(waits, gaps, s=14, color=color, marker=marker, label=f"{n} threads: {share:.0%} good")
    right.axvline(ttft, color="black", linestyle="--", linewidth=1)
    right.axhline(1000 * tpot, color="black", linestyle="--", linewidth=1)
    right.set(xlabel="TTFT, seconds (dashed: limits)", ylabel="TPOT, milliseconds", xlim=(0, None), ylim=(0, None))
    right.legend(frameon=False, fontsize=8)
    figure.set_label(
        f"Goodput under TTFT {ttft:.2g} s and TPOT {tpot:.2g} s: "
        + ", ".join(
            f"{n} threads {g:.1f} of {t:.1f} requests a second" for n, g, t in zip(threads, good, total, strict=True)
        )
        + "."
    )
    return figure
