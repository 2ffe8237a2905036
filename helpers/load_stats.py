"""What came of a run: percentiles, throughput, Little's law, goodput, and the curve of throughput and latency.

Requests that failed count as failures and nowhere else. Percentiles interpolate linearly, as NumPy and `vllm bench serve`
do, whose summary these figures follow (calculate_metrics in vllm/benchmarks/serve.py of vLLM 0.32).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.load_records import LoadError, Run

METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}


def values(run: Run, metric: str) -> np.ndarray:
    """One of ttft, tpot, itl, e2e in seconds: of each answered request, or (itl) of each gap between pieces.

    Answers of one token have no tpot. Raises LoadError for a run without answers.
    """
    if metric not in METRICS:
        raise LoadError(f"There is no metric {metric!r}; there are {', '.join(METRICS)}.")
    answered = [record for record in run if record.ok]
    if not answered:
        raise LoadError("No request of this run was answered: `run` itself shows the causes.")
    if metric == "itl":
        return np.concatenate([np.asarray(record.itl, dtype=float) for record in answered])
    found = np.array([getattr(record, metric) for record in answered], dtype=float)
    known: np.ndarray = found[~np.isnan(found)]
    return known


def percentiles(run: Run, shares: tuple[int, ...] = (50, 95, 99)) -> pd.DataFrame:
    """A row for each of TTFT, TPOT, ITL and E2E in milliseconds: their mean, and what so many percent did not exceed.

    Raises LoadError for a run without answers.
    """
    rows = {}
    for metric, name in METRICS.items():
        found = 1000 * values(run, metric)
        if found.size:
            rows[name] = {"mean": found.mean(), **{f"p{share}": np.percentile(found, share) for share in shares}}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("ms")


def throughput(run: Run) -> dict[str, float]:
    """Answered requests, output tokens and all tokens a second, from the start of the run to its end."""
    answered = [record for record in run if record.ok]
    output = sum(record.output_tokens for record in answered)
    prompts = sum(record.prompt_tokens for record in answered)
    counts = {"requests": len(answered), "output_tokens": output, "tokens": output + prompts}
    return {f"{name}_per_second": count / run.seconds if run.seconds else 0.0 for name, count in counts.items()}


# --- Little's law -------------------------------------------------------------------------------------------------


def in_flight(run: Run) -> pd.Series:
    """Requests in flight from each moment on (seconds) at which one was sent or ended, by counting both."""
    ended = [record for record in run if not np.isnan(record.ended)]
    moments = [(record.started, 1) for record in ended] + [(record.ended, -1) for record in ended]
    steps = pd.DataFrame(moments, columns=["seconds", "change"]).groupby("seconds")["change"].sum()
    return steps.cumsum().rename("in flight")


def mean_over_time(series: pd.Series, begin: float, end: float) -> float:
    """The mean of a quantity that keeps each value until the next moment of its index: its integral over the time.

    `begin` and `end` are seconds, as the index. Raises LoadError when the end is not later.
    """
    if end <= begin:
        raise LoadError(f"From {begin:.3g} s to {end:.3g} s is no time at all; give a later end.")
    inside = series[(series.index > begin) & (series.index < end)]
    before = series[series.index <= begin]
    heights = np.concatenate([[before.iloc[-1] if len(before) else 0], inside])
    edges = np.concatenate([[begin], inside.index, [end]])
    return float(np.sum(heights * np.diff(edges)) / (end - begin))


def littles_law(run: Run, begin: float | None = None, end: float | None = None) -> pd.Series:
    """L, lambda and W of Little's law, L = lambda W, each measured on its own between two moments of the run (seconds).

    L: mean number of requests in flight, by integrating `in_flight`. lambda: requests sent, a second. W: mean seconds that
    a request sent in this time took. Over a whole run the law holds exactly; over a part of it, but for those requests
    that reach over an edge. Raises LoadError for no request or no time. Source: Little, Operations Research 9 (1961).
    """
    counted = in_flight(run)
    if counted.empty:
        raise LoadError("This run has no requests to count.")
    begin = counted.index[0] if begin is None else begin
    end = counted.index[-1] if end is None else end
    taken = [r.e2e for r in run if begin <= r.started < end and not np.isnan(r.e2e)]
    law = {
        "L, mean in flight": mean_over_time(counted, begin, end),
        "lambda, sent per second": len(taken) / (end - begin),
        "W, mean seconds": float(np.mean(taken)) if taken else 0.0,
    }
    return pd.Series(law | {"lambda x W": law["lambda, sent per second"] * law["W, mean seconds"]})


# --- goodput ------------------------------------------------------------------------------------------------------


def met(run: Run, *, ttft: float, tpot: float) -> np.ndarray:
    """For each request, whether it was answered within both limits, in seconds. A single token has no TPOT to exceed."""
    return np.array([r.ok and r.ttft <= ttft and not r.tpot > tpot for r in run], dtype=bool)


def goodput(run: Run, *, ttft: float, tpot: float) -> float:
    """Requests a second that met both limits (seconds): what a service level objective (SLO) counts.

    Source: DistServe (Zhong et al., OSDI 2024) and --goodput of `vllm bench serve`.
    """
    return float(met(run, ttft=ttft, tpot=tpot).sum() / run.seconds) if run.seconds else 0.0


# --- throughput and latency ---------------------------------------------------------------------------------------


def curve(runs: Mapping[int, Run]) -> pd.DataFrame:
    """A row for each number of threads: tokens and requests a second, seconds of TTFT, TPOT and E2E, mean in flight.

    Raises LoadError for a run without answers.
    """
    rows = {}
    for threads, run in sorted(runs.items()):
        ttft, e2e = values(run, "ttft"), values(run, "e2e")
        rows[threads] = {
            **throughput(run),
            "ttft_p50": np.median(ttft), "ttft_p95": np.percentile(ttft, 95),
            "tpot_p50": np.median(values(run, "tpot")),
            "e2e_mean": e2e.mean(), "e2e_p50": np.median(e2e), "e2e_p95": np.percentile(e2e, 95),
            "in_flight": littles_law(run).iloc[0],
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("threads")


@dataclass(frozen=True)
class Knee:
    """Where more threads stop to pay: `threads` = `alone` x `peak`, median seconds of a request alone x most a second."""

    threads: float
    alone: float
    peak: float


def knee(table: pd.DataFrame) -> Knee:
    """The knee of a `curve` that begins with one thread.

    Two lines bound the throughput: N threads get at most N / `alone`, for no request is faster than one alone; and never
    more than `peak`. They meet at N = alone x peak, which is Little's law again. Below it a thread more brings throughput,
    above it waiting. Source: Denning and Buzen, The Operational Analysis of Queueing Network Models (1978).
    Raises LoadError for a curve without one thread.
    """
    if 1 not in table.index:
        raise LoadError("The curve needs a run with one thread: it says what a request takes alone.")
    alone, peak = float(table.loc[1, "e2e_p50"]), float(table["requests_per_second"].max())
    return Knee(alone * peak, alone, peak)
