"""The measurements that the lesson on parallelism reads: two H200 (helpers/data/bench) and four (helpers/data/h200x4.json).

four_repeated() has later measurements of four (helpers/data/bench/four); the lesson does not read them.

Speeds come as rows of helpers.bench_report.table, so that measured figures and their bounds are made the same way.
"""

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import bench_report
from helpers.bench_matrix import described, parse
from helpers.bench_store import Results, read_all
from helpers.calibration import MEASURED_FILE, measured
from helpers.hardware import GIB
from helpers.memory import Plan, load, plan
from helpers.models import DTYPE_BYTES

BENCH = Path(__file__).parent / "data" / "bench"
#: Apart, so that the lesson's tables stay those of the two GPUs.
FOUR = BENCH / "four"
LINKS_FILE = BENCH / "links-2x-NVIDIA-H200.json"
MODEL = "llama-3.1-70b"  # of all runs on four GPUs that are read here
#: Runs of the file of four GPUs, by its own names.
LAYOUTS = ("tp4", "tp2dp2", "tp2pp2", "pp4")
TWO_NODES = ("mn_tp4", "mn_tp2pp2")
_SIZES = re.compile(r"--(tensor|pipeline|data)-parallel-size (\d+)|\b([TPD])P(\d+)")
_NODES = re.compile(r"--nnodes (\d+)|across the (two)")


@cache
def hosts() -> dict[str, Results]:
    """Model -> the results of the machine with two H200 that measured most of it: those of two do not compare."""
    most: dict[str, tuple[int, Results]] = {}
    for results in read_all(BENCH):
        for model, count in bench_report.table(results).groupby("model")["repeats"].sum().items():
            most[model] = max(most.get(model, (0, results)), (int(count), results), key=lambda pair: pair[0])
    return {model: results for model, (_, results) in most.items()}


@cache
def two_gpus(model: str | None = None) -> pd.DataFrame:
    """Rows of bench_report.table for two H200, 512 tokens in and 128 out: of one model, or of all. Medians of three."""
    models = list(hosts()) if model is None else [model]
    tables = [bench_report.table(hosts()[name]).query("model == @name") for name in models]
    rows = pd.concat(tables)
    return rows[(rows["input_len"] == 512) & (rows["output_len"] == 128)].reset_index(drop=True)


@cache
def four_gpus(runs: tuple[str, ...] = LAYOUTS) -> pd.DataFrame:
    """Rows of bench_report.table for Llama 3.1 70B on four H200. Each figure is of a single run."""
    servers = {run: _server(run) for run in runs}
    cells = [_cell(servers[entry["run"]], entry) for entry in measured()["throughput"] if entry["run"] in servers]
    return bench_report.table(Results(MEASURED_FILE, _machine(), list(servers.values()), cells))


@cache
def four_repeated() -> pd.DataFrame:
    """Rows of bench_report.table for Llama 3.1 70B and 405B on the four H200 that measured most. Medians of three.

    They are not comparable with four_gpus(): another host, and one round of prompts instead of two.
    """
    return bench_report.table(max(read_all(FOUR), key=lambda results: len(results.cells)))


def source(table: pd.DataFrame) -> str:
    """Where the figures of a table of this module come from: GPUs, vLLM, day, and how often each was measured."""
    if table["repeats"].max() == 1:
        machine, day = _machine(), measured()["date"]
    else:
        results = hosts()[table["model"].iloc[0]]
        machine, day = results.machine, results.cells[0]["date"].split()[0]
    times = "single runs" if table["repeats"].max() == 1 else f"medians of {table['repeats'].max()}"
    return f"{len(machine['gpus'])} x {machine['gpus'][0]}, vLLM {machine['versions']['vllm']}, {day}, {times}"


def speed(table: pd.DataFrame, row: str, concurrency: int, column: str = "tokens_per_second") -> float:
    """One figure of a table: of a row at so many requests at once, by default in tokens a second.

    Raises IndexError for one that was not measured.
    """
    found = table[(table["row"] == row) & (table["concurrency"] == concurrency)]
    return float(found[column].iloc[0])


@cache
def all_reduces() -> pd.DataFrame:
    """Seconds of an all-reduce between two H200 by NCCL: the index is bytes, the columns are NVLink and sockets."""
    seconds = json.loads(LINKS_FILE.read_text())["all_reduce_s"]
    frame = pd.DataFrame({"NVLink": seconds["links"], "sockets": seconds["sockets"]})
    return frame.set_axis(frame.index.astype(int))


def nearest(seconds: pd.Series, size: float) -> float:
    """Seconds of an all-reduce of `size` bytes, read off on a straight line between the two measured sizes around it."""
    below = max((known for known in seconds.index if known <= size), default=seconds.index[0])
    above = min((known for known in seconds.index if known >= size), default=seconds.index[-1])
    share = (size - below) / (above - below) if above > below else 0
    return float(seconds[below] + share * (seconds[above] - seconds[below]))


@cache
def tp_costs() -> pd.DataFrame:
    """What the exchange of tensor parallelism costs a token of a single request, a row for each measured pair.

    half_ms: the step on half the GPUs, halved; step_ms: the step on all; extra_ms: the difference; all_reduces a step;
    each_us: the difference for one of them; alone_us: NCCL's all-reduce of such a message, between two GPUs and by
    itself. A server with two copies serves a single request with one of them.
    """
    small, large = two_gpus("llama-3.1-8b"), four_gpus()
    pairs = [("8B, TP1 to TP2", "llama-3.1-8b", small, "TP1", small, "TP2")]
    for row in ("TP2, NCCL's all-reduce", "TP2, sockets"):
        pairs.append((f"8B, TP1 to {row}", "llama-3.1-8b", small, "TP1", small, row))
    pairs.append(("70B, TP2 to TP4", MODEL, large, "TP2 x DP2", large, "TP4"))
    rows = {}
    for name, model, fewer, one, more, other in pairs:
        half, step = speed(fewer, one, 1, "tpot_ms") / 2, speed(more, other, 1, "tpot_ms")
        count = 2 * load(model).num_hidden_layers
        rows[name] = {"half_ms": half, "step_ms": step, "extra_ms": step - half, "all_reduces": count}
        rows[name]["each_us"] = 1000 * (step - half) / count
        link = all_reduces()["sockets" if "sockets" in other else "NVLink"]
        rows[name]["alone_us"] = 1e6 * nearest(link, load(model).hidden_size * DTYPE_BYTES[load(model).dtype])
    return pd.DataFrame.from_dict(rows, orient="index").astype({"all_reduces": int})


#: What was tried to get nearer to the bound: what it is, the row with it, the row without, and whether we keep it.
TRIED = (
    ("CUDA graphs, vLLM's all-reduce", "TP2", "TP2, script's flags", "kept: the default"),
    ("vLLM's all-reduce, not NCCL's", "TP2", "TP2, NCCL's all-reduce", "kept: the default"),
    ("a graph compiled for one token", "TP1, compiled for 1", "TP1", "kept for one client"),
    ("a graph compiled for one token", "TP2, compiled for 1", "TP2", "kept for one client"),
    ("FP8 weights, made while loading", "TP2, FP8", "TP2", "not kept: other answers"),
    ("FP8, and compiled for one token", "TP2, FP8, compiled for 1", "TP2", "not kept: other answers"),
    ("whole experts (EP) on each GPU", "TP2 + EP", "TP2", "not kept: slower"),
)


@cache
def tried() -> pd.DataFrame:
    """TRIED with figures, a row for each machine and model that has both: how many times the tokens/s, and what a start costs.

    `gpus` are the row's; `one`: with one request; `many` with `at` requests, the most that both had; `start_s`: seconds to ready, the difference.
    """
    rows = []
    for what, row, to, kept in TRIED:
        for results in read_all(BENCH):
            found = bench_report.ratios(results, row, to=to)
            for model, group in found[found["input_len"] == 512].groupby("model"):
                ratio = group.set_index("concurrency")["ratio"]
                ready = bench_report.servers(results).query("model == @model").set_index("row")["ready_s"]
                server = next(one for one in results.servers if (one["model"], one["name"]) == (model, row))
                most = ratio.index.max()
                rows.append({
                    "what": what, "model": model, "host": results.machine["id"],
                    "gpus": server["tp"] * server["pp"] * server["dp"], "one": ratio[1], "at": most,
                    "many": ratio[most] if most > 1 else math.nan, "start_s": ready[row] - ready[to], "kept": kept,
                })  # fmt: skip
    return pd.DataFrame(rows).set_index("what")


@cache
def caches() -> pd.DataFrame:
    """Tokens of cache of Llama 3.1 70B on four H200, all copies together: predicted by helpers.memory, and printed.

    The log of TP2 x DP2 was not kept: printed is twice what one copy printed, served alone on two GPUs (helpers/data/bench).
    """
    logs = bench_report.servers(hosts()[MODEL])
    copy = logs[(logs["model"] == MODEL) & (logs["row"] == "TP2")]["kv_cache_tokens"].iloc[0]
    rows = {}
    for run in ("tp4", "tp2pp2", "tp2dp2"):
        server = _server(run)
        layout = {size: server[size] for size in ("tp", "pp", "dp")}
        planned = plan(load(MODEL), gpu="H200", max_model_len=measured()["max_model_len"], max_num_seqs=128, **layout)
        said = measured()["server_log"].get(run, {}).get("gpu_kv_cache_tokens", [copy])[0]
        rows[server["name"]] = {
            "weights_gib": planned.weights_per_gpu / GIB,
            "predicted": planned.dp * planned.kv_cache_tokens,
            "printed": int(planned.dp * said),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def plans() -> list[Plan]:
    """Llama 3.1 70B on four H200: TP4 and TP2 x DP2, as they were served."""
    sizes = {"max_model_len": measured()["max_model_len"], "max_num_seqs": 128}
    return [plan(load(MODEL), gpu="H200", tp=4 // copies, dp=copies, **sizes) for copies in (1, 2)]


def _server(run: str) -> dict[str, Any]:
    """A run's server as results keep it; its layout as the file's description says it."""
    text = measured()["runs"][run]
    kinds = {"tensor": "tp", "pipeline": "pp", "data": "dp", "T": "tp", "P": "pp", "D": "dp"}
    sizes = {kinds[a or c]: int(b or d) for a, b, c, d in _SIZES.findall(text)}
    row = {"name": " x ".join(f"{kind.upper()}{size}" for kind, size in sizes.items()), "model": MODEL, **sizes}
    if _NODES.search(text):
        row |= {"name": f"{row['name']}, two nodes", "nodes": 2}
    return described(parse({"rows": [row]}).rows[0])


def _cell(server: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """A measurement as results keep it."""
    done = entry["completed"]
    return {
        "row": server["name"], "fingerprint": server["fingerprint"], "repeat": 1, "prompts": done,
        "concurrency": entry["max_concurrency"], "failed": entry["failed"],
        "input_len": entry["total_input_tokens"] // done, "output_len": entry["total_output_tokens"] // done,
        "output_throughput": entry["output_throughput"],
        "median_ttft_ms": entry["median_ttft_ms"], "median_tpot_ms": entry["median_tpot_ms"],
    }  # fmt: skip


def _machine() -> dict[str, Any]:
    """The machine of four GPUs, as results keep it."""
    gpus, vllm = (
        re.match(r"(\d+)x ([\w ]+?) \(", measured()["hardware"]),
        re.match(r"vLLM ([\d.]+)", measured()["software"]),
    )
    assert gpus and vllm, f"{MEASURED_FILE} does not begin with its GPUs and its vLLM"
    return {"gpus": [gpus[2]] * int(gpus[1]), "versions": {"vllm": vllm[1]}}
