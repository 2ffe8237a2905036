"""What the levers did on H200 GPUs, from the measurements in helpers/data, and the decision table made of it."""

import math

import pandas as pd

from helpers import bench_report, parallel_data
from helpers.bench_store import read_all
from helpers.calibration import measured

WORTH = 1.05  # times as fast: below that a lever is not worth its cost


def fp8_weights() -> pd.DataFrame:
    """Llama 3.1 70B on two H200 with FP8 weights, against BF16 on the same host: a row for each number of requests."""
    table = parallel_data.two_gpus(parallel_data.MODEL)
    rows = {}
    for requests in (1, 16, 64, 128):
        before, after = (parallel_data.speed(table, row, requests) for row in ("TP2", "TP2, FP8"))
        rows[requests] = {
            "BF16, tokens/s": round(before),
            "FP8, tokens/s": round(after),
            "times": round(after / before, 2),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("requests at once")


def effects() -> pd.DataFrame:
    """A row for each measured pair: lever, model, times the tokens/s with one request (`one`) and with `at` (`many`).

    Pairs are of one host and one matrix, medians of three unless the name says otherwise; `gpus` says how many H200.
    """
    tried = zip(parallel_data.tried().reset_index().itertuples(), _gpus_of_tried(), strict=True)
    rows = [
        {
            "lever": one.what,
            "model": one.model,
            "gpus": gpus,
            "one": one.one,
            "at": one.at,
            "many": one.many,
        }
        for one, gpus in tried
    ]
    small, big = parallel_data.two_gpus("llama-3.1-8b"), parallel_data.two_gpus("qwen2.5-32b")
    rows += [
        _pair("tensor parallelism", "llama-3.1-8b", small, "TP2", "TP1", 64),
        _pair("tensor parallelism", "qwen2.5-32b", big, "TP2", "TP1", 64),
        _pair("data parallelism", "llama-3.1-8b", small, "DP2", "TP1", 64),
        _guesses(),
    ]
    return pd.DataFrame(rows)


def _gpus_of_tried() -> list[int]:
    """How many GPUs each row of parallel_data.tried has, which does not say it."""
    return [
        1 if row.startswith("TP1") else 2
        for what, row, to, _ in parallel_data.TRIED
        for results in read_all(parallel_data.BENCH)
        for _ in {*bench_report.ratios(results, row, to=to).query("input_len == 512")["model"]}
    ]


def _pair(lever: str, model: str, table: pd.DataFrame, row: str, to: str, at: int) -> dict:
    one, many = (parallel_data.speed(table, row, n) / parallel_data.speed(table, to, n) for n in (1, at))
    return {"lever": lever, "model": model, "gpus": 2, "one": one, "at": at, "many": many}


def _guesses() -> dict:
    """N-gram speculation on random prompts, where no guess is right, with an FP8 cache: what guessing for nothing costs."""
    speeds = {(one["run"], one["max_concurrency"]): one["output_throughput"] for one in measured()["throughput"]}
    one, many = (speeds["tp4_fp8kv_ngram", n] / speeds["tp4", n] for n in (1, 128))
    return {
        "lever": "n-gram guesses, none right (FP8 cache, one run)", "model": parallel_data.MODEL, "gpus": 4, "one": one,
        "at": 128, "many": many,
    }  # fmt: skip


def decisions(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The decision table: for each lever the range of its measured effects, and for which load it is worth it here.

    Worth it: at least WORTH times the tokens/s in every measurement with that load; not: in none of them; else it depends.
    """
    found = {}
    for lever, group in (effects() if rows is None else rows).groupby("lever", sort=False):
        found[lever] = {
            "one request": _range(group["one"]),
            "many requests": _range(group["many"]),
            "one client": _verdict(group["one"]),
            "a crowd": _verdict(group["many"]),
        }
    return pd.DataFrame.from_dict(found, orient="index")


def _range(values: pd.Series) -> str:
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return "not measured"
    low, high = f"{known[0]:.2f}", f"{known[-1]:.2f}"
    return low if low == high else f"{low} to {high}"


def _verdict(values: pd.Series) -> str:
    known = [value >= WORTH for value in values if not math.isnan(value)]
    if not known:
        return "?"
    return "yes" if all(known) else "depends" if any(known) else "no"
