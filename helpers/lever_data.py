"""What the levers did on H200 GPUs, from the measurements in helpers/data, and the decision table made of it."""

import json
import math
from functools import cache
from typing import Any

import pandas as pd

from helpers import bench_report, parallel_data
from helpers.bench_store import Results, read
from helpers.calibration import measured
from helpers.hardware import GIB

LEVERS = parallel_data.BENCH / "levers"
#: (lever, a file of LEVERS, its row, the row without it, tokens of a prompt).
PAIRS = (
    ("compiled steps and CUDA graphs", "steps", "TP1", "TP1, eager", 512),
    ("FP8 KV cache", "reads", "TP1, FP8 cache", "TP1", 512),
    ("FP8 KV cache", "reads", "TP1, FP8 cache", "TP1", 16384),
    ("FP8 weights, made while loading", "reads", "TP1, FP8", "TP1", 512),
    ("a token budget of 512, not 8,192", "steps", "TP1, budget of 512", "TP1", 512),
    ("a token budget of 512, not 8,192", "steps", "TP1, budget of 512", "TP1", 16384),
    ("n-gram guesses, none right", "steps", "TP1, n-gram guesses", "TP1", 512),
    ("room for 8 LoRA adapters", "steps", "TP1, room for 8 adapters", "TP1", 512),
    ("context parallelism", "context", "TP2, DCP2", "TP2", 16384),
    (
        "8 GiB of weights in host memory, one run",
        "bus",
        "TP1, 8 GB of weights in host memory",
        "TP1, older runner",
        512,
    ),
)
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
    """A row for each measured pair: lever, model, times the tokens/s with one request (`one`) and with `at` (`many`),
    of prompts of `prompt` tokens.

    Pairs are of one host and one matrix, medians of three unless the name says otherwise; `gpus` says how many H200.
    """
    columns = ["lever", "model", "gpus", "one", "at", "many"]
    tried = parallel_data.tried().reset_index(names="lever")[columns].assign(prompt=512)
    rows = tried.to_dict("records")
    small, big = parallel_data.two_gpus("llama-3.1-8b"), parallel_data.two_gpus("qwen2.5-32b")
    rows += [
        _pair("tensor parallelism", "llama-3.1-8b", small, "TP2", "TP1", 64),
        _pair("tensor parallelism", "qwen2.5-32b", big, "TP2", "TP1", 64),
        _pair("data parallelism", "llama-3.1-8b", small, "DP2", "TP1", 64),
        _guesses(),
        *(_with_and_without(*pair) for pair in PAIRS),
    ]
    return pd.DataFrame(rows)


def _pair(lever: str, model: str, table: pd.DataFrame, row: str, to: str, at: int) -> dict[str, Any]:
    one, many = (parallel_data.speed(table, row, n) / parallel_data.speed(table, to, n) for n in (1, at))
    return {"lever": lever, "model": model, "gpus": 2, "prompt": 512, "one": one, "at": at, "many": many}


def _with_and_without(lever: str, file: str, row: str, to: str, prompt: int) -> dict[str, Any]:
    """One of PAIRS. A repeat is divided by the same repeat of the other row; the median of those counts."""
    results = kept(file)
    ratio = bench_report.ratios(results, row, to).query("input_len == @prompt").set_index("concurrency")["ratio"]
    server, at = results.servers[0], int(ratio.index.max())
    return {
        "lever": lever, "model": server["model"], "gpus": server["tp"], "prompt": prompt, "one": float(ratio[1]), "at": at,
        "many": float(ratio[at]) if at > 1 else math.nan,
    }  # fmt: skip


@cache
def kept(file: str) -> Results:
    """The results of one file of helpers/data/bench/levers. Raises StoreError when there is none."""
    return read(LEVERS / f"{file}.jsonl")


@cache
def host_memory() -> dict[str, Any]:
    """What helpers.host_memory measured: {"offload": ..., "sleep": ...}, see its first_tokens and nap."""
    found: dict[str, Any] = json.loads((LEVERS / "host-memory.json").read_text())
    return found


def first_tokens() -> dict[str, float]:
    """Seconds to the first token of a prompt of 16,000 on an H200: computed, from host memory, found on the GPU. Medians of six."""
    seconds: dict[str, float] = host_memory()["offload"]["seconds"]
    return seconds


def sleep() -> pd.DataFrame:
    """What a nap of level 1 did on an H200: GiB of the GPU in use awake and asleep, seconds, medians of three.

    The first one took longer: its room in host memory had to be made.
    """
    found = host_memory()["sleep"]
    rows = {
        "awake, GiB": round(found["awake_mib"] / 1024, 1), "asleep, GiB": round(found["asleep_mib"] / 1024, 1),
        "to sleep, s": round(found["sleep_s"], 1), "the first time, s": round(found["all"]["sleep"][0], 1),
        "to wake up, s": round(found["wake_s"], 1), "the same text afterwards": found["same_text"],
    }  # fmt: skip
    return pd.Series(rows, name="8B on an H200", dtype=object).to_frame()


def bus() -> pd.DataFrame:
    """The 8B with 8 GiB of its weights behind the bus, one run, one request: tokens/s, and GB/s of the bus by the longer steps."""
    table = bench_report.table(kept("bus")).query("concurrency == 1").set_index("row")
    without, moved = table.loc["TP1, older runner"], table.loc["TP1, 8 GB of weights in host memory"]
    longer = (moved["tpot_ms"] - without["tpot_ms"]) / 1000
    ignored = bench_report.table(kept("reads")).query("concurrency == 1 and row.str.contains('host memory')")
    rows = {
        "without, tokens/s": round(without["tokens_per_second"]),
        "8 GiB in host memory, tokens/s": round(moved["tokens_per_second"], 1),
        "so the bus moves, GB/s": round(8 * GIB / longer / 1e9),
        "ignored, tokens/s": round(ignored["tokens_per_second"].iloc[0]),
    }
    return pd.Series(rows, name="8B on an H200", dtype=object).to_frame()


def budgets() -> pd.DataFrame:
    """16 prompts of 16,384 tokens at once on an H200, for each token budget: TTFT and ms a token, medians of medians."""
    rows = {"8,192 (default)": "TP1", "512": "TP1, budget of 512", "16,384": "TP1, budget of 16,384"}
    table = bench_report.table(kept("steps")).query("input_len == 16384 and concurrency == 16").set_index("row")
    columns = {"ttft_ms": "TTFT, s", "tpot_ms": "ms a token", "tokens_per_second": "tokens/s"}
    found = table.loc[list(rows.values()), list(columns)].rename(columns=columns).set_axis(list(rows))
    found["TTFT, s"] /= 1000
    return found.round({"TTFT, s": 1, "ms a token": 0, "tokens/s": 0}).rename_axis("budget")


def cache_gain(file: str, row: str, *, to: str) -> float:
    """How many times the tokens of cache a row has, as the servers printed them."""
    tokens = bench_report.servers(kept(file)).set_index("row")["kv_cache_tokens"]
    return float(tokens[row] / tokens[to])


def _guesses() -> dict[str, Any]:
    """N-gram speculation on random prompts, where no guess is right, with an FP8 cache: what guessing for nothing costs."""
    speeds = {(one["run"], one["max_concurrency"]): one["output_throughput"] for one in measured()["throughput"]}
    one, many = (speeds["tp4_fp8kv_ngram", n] / speeds["tp4", n] for n in (1, 128))
    return {
        "lever": "n-gram guesses, none right (FP8 cache, one run)", "model": parallel_data.MODEL, "gpus": 4, "prompt": 512,
        "one": one, "at": 128, "many": many,
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
