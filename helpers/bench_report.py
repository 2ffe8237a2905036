"""Results as tables: medians and spread of repeats, the bound of the hardware beside them, ratios of one run."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import bench_plots
from helpers.bench_machine import gpu_of
from helpers.bench_matrix import flag_value, shape_of
from helpers.bench_store import Results, read_all
from helpers.hardware import GPU
from helpers.models import ModelConfig
from helpers.roofline import attention_flops, decode_seconds, ttft_seconds
from helpers.weights import active_parameter_count

SPEED = "output_throughput"
LOAD = ["input_len", "output_len", "concurrency"]


def table(results: Results) -> pd.DataFrame:
    """A row for each server and load, over its repeats.

    model, row, layout, weights, input_len, output_len, concurrency; repeats; tokens_per_second (the median) with its
    lowest and highest; bound (tokens/s) and share of it, NaN where the GPU or the model's shape is not known; medians of
    ttft_ms and tpot_ms; failed requests, preemptions and tokens found in the prefix cache, of all repeats together.
    """
    cells = _cells(results)
    if cells.empty:
        return cells
    gpu, rows = gpu_of(results.machine), []
    for (fingerprint, *load), group in cells.groupby(["fingerprint", *LOAD], sort=False):
        server, speeds = results.server_of(fingerprint), group[SPEED]
        most = bound(server, gpu, *load)
        rows.append(
            {
                "model": server["model"], "row": server["name"], "layout": server["layout"], "weights": server["weights"],
                **dict(zip(LOAD, load, strict=True)), "repeats": len(group), "tokens_per_second": speeds.median(),
                "lowest": speeds.min(), "highest": speeds.max(), "bound": most, "share": speeds.median() / most,
                "ttft_ms": group["median_ttft_ms"].median(), "tpot_ms": group["median_tpot_ms"].median(),
                "failed": group["failed"].sum(), "preemptions": group["preemptions"].sum(),
                "prefix_hits": group["prefix_hits"].sum(),
            }
        )  # fmt: skip
    return _fastest_first(pd.DataFrame(rows))


def servers(results: Results) -> pd.DataFrame:
    """A row for each server, by its last start: seconds to ready and of its parts, tokens of cache, flags.

    `kv_cache_tokens` is of all replicas together. NaN for what its log did not say.
    """
    last = {server["fingerprint"]: server for server in results.servers}
    rows = []
    for server in last.values():
        log = server["log"]
        rows.append(
            {
                "row": server["name"], "model": server["model"], "layout": server["layout"], "ready_s": server["ready_s"],
                "loading_s": log.get("loading_s", math.nan), "compile_s": log.get("compile_s", math.nan),
                "graphs_s": log.get("graphs_s", math.nan),
                "weights_gib": max(log.get("model_loading_gib", [math.nan])),
                "kv_cache_tokens": server["dp"] * log.get("kv_cache_tokens", math.nan),
                "flags": " ".join([*server["flags"], *(f"{name}={value}" for name, value in server["env"].items())]),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def ratios(results: Results, row: str, to: str) -> pd.DataFrame:
    """How many times the tokens/s of `to` a row reaches, for each model and load: the median of the repeats' ratios, lowest, highest.

    A repeat of one is divided by the same repeat of the other, which in the orders "together" and "alternate" was made
    right after it.
    """
    cells, same = _cells(results), ["model", *LOAD, "repeat"]
    one, other = (cells[cells["row"] == name].drop_duplicates(same, keep="last") for name in (row, to))
    pairs = one.merge(other, on=same, suffixes=("", "_to"))
    pairs["ratio"] = pairs[SPEED] / pairs[f"{SPEED}_to"]
    found = pairs.groupby(["model", *LOAD])["ratio"].agg(["median", "min", "max", "count"])
    return found.set_axis(["ratio", "lowest", "highest", "repeats"], axis=1).reset_index()


def bound(server: dict[str, Any], gpu: GPU | None, input_len: int, output_len: int, concurrency: int) -> float:
    """The most tokens/s that this layout's memory and arithmetic allow for a load; NaN when it cannot be said.

    No request is faster than its prefill and its steps, in which all `concurrency` requests decode together; and no
    server is faster than its arithmetic: concurrency x output / max(TTFT + (output - 1) x step, FLOPs / FLOP/s).
    See helpers.roofline for both. Communication is left out.

    A mixture with random weights has none above one request: its router is random too, but not even. It sends tokens of
    all requests to the same experts, so that a step reads fewer than an even one would.
    """
    shape = shape_of(server["config"], server["model"], server["flags"])
    if shape is None or gpu is None:
        return math.nan
    if shape.experts and concurrency > 1 and server.get("weights") == "dummy":
        return math.nan
    layout = {"tp": server["tp"], "pp": server["pp"]}
    busy = min(server["dp"], concurrency)
    each = math.ceil(concurrency / busy)
    context = input_len + output_len // 2
    dtype = flag_value(server["flags"], "kv-cache-dtype") or "auto"
    step = decode_seconds(shape, gpu, batch=each, context=context, dtype=dtype, **layout)
    request = ttft_seconds(shape, gpu, prompt_tokens=input_len, **layout) + (output_len - 1) * step
    gpus = server["tp"] * server["pp"] * busy
    computing = concurrency * _flops(shape, input_len, output_len) / (gpus * gpu.flops(shape.weight_bits))
    most: float = concurrency * output_len / max(request, computing)
    return most


def show(path: Path, pictures: Path | None = None) -> None:
    """Print the report of a folder of results (or of one file), each machine for itself, and draw its pictures into a folder.

    Raises StoreError when there are none, or a file is none of results.
    """
    for results in read_all(path):
        print(heading(results.machine))
        found = table(results)
        if found.empty:
            print("Nothing was measured.\n")
        else:
            print(f"\nServers\n{_shown(servers(results))}\n")
            for (model, input_len, output_len), group in found.groupby(
                ["model", "input_len", "output_len"], sort=False
            ):
                print(
                    f"{title(model, input_len, output_len)}\n{_shown(group.drop(columns=[*LOAD[:2], 'model', 'weights']))}\n"
                )
        for failure in results.failures:
            print(f"failed on {failure['date']}: {failure['row']}: {failure['said']}")
        if pictures and not found.empty:
            for file in draw(results, pictures):
                print(f"picture: {file}")


def heading(machine: dict[str, Any]) -> str:
    """A machine in two lines, and a third with its settings where there are any."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    settings = "".join(f"\n{name}={value}" for name, value in machine.get("settings", {}).items())
    gpus = f"{len(machine['gpus'])} x {machine['gpus'][0]}, driver {machine['driver']}; " if machine["gpus"] else ""
    return f"{gpus}{machine['cores']} cores of {machine['processor']} ({machine['id']})\n{versions}{settings}"


def title(model: str, input_len: int, output_len: int) -> str:
    """What a table or picture is of: the model, tokens in, tokens out."""
    return f"{Path(model).name}, {input_len} tokens in, {output_len} out"


def draw(results: Results, folder: Path) -> list[Path]:
    """Save the pictures of one machine's results as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    gpus, version = results.machine["gpus"], results.machine["versions"]["vllm"]
    where = f"{len(gpus)} x {gpus[0]}" if gpus else f"{results.machine['cores']} cores"
    saved = []
    for (model, *lengths), group in table(results).groupby(["model", "input_len", "output_len"], sort=False):
        name = f"{title(model, *lengths)}\n{where}, vLLM {version}"
        figures = {"speed": bench_plots.speeds(group, name)}
        if group["concurrency"].nunique() > 1:
            figures["choice"] = bench_plots.choice(group, name)
        for kind, figure in figures.items():
            saved.append(folder / f"{results.path.stem}-{Path(model).name}-{lengths[0]}-{lengths[1]}-{kind}.png")
            figure.savefig(saved[-1], dpi=120)
    return saved


def _fastest_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Model after model, in the order of the results; in each the server first that is the fastest at the smallest load."""
    least = frame.loc[frame.groupby(["model", "row"])["concurrency"].idxmin()].set_index(["model", "row"])[
        "tokens_per_second"
    ]
    models = list(dict.fromkeys(frame["model"]))
    speed = [-least[model, row] for model, row in zip(frame["model"], frame["row"], strict=True)]
    places = frame.assign(_model=frame["model"].map(models.index), _speed=speed)
    return (
        places.sort_values(["_model", *LOAD[:2], "_speed", "concurrency"])
        .drop(columns=["_model", "_speed"])
        .reset_index(drop=True)
    )


def _cells(results: Results) -> pd.DataFrame:
    """All measurements, each with its model; counts that were not to be had are 0."""
    models = {server["fingerprint"]: server["model"] for server in results.servers}
    counts = {"failed": 0, "preemptions": 0, "prefix_hits": 0}
    return pd.DataFrame([counts | {"model": models[cell["fingerprint"]]} | cell for cell in results.cells])


def _flops(shape: ModelConfig, input_len: int, output_len: int) -> float:
    """Of one request: its prompt and all tokens it writes; attention of the prompt alone."""
    return 2 * active_parameter_count(shape) * (input_len + output_len - 1) + attention_flops(shape, input_len)


def _shown(frame: pd.DataFrame) -> str:
    formats = {"share": "{:.0%}", "tpot_ms": "{:.2f}", "kv_cache_tokens": "{:,.0f}"}

    def cell(name: str, value: object) -> str:
        if isinstance(value, float) and math.isnan(value):
            return "-"
        if isinstance(value, float):
            return formats.get(name, "{:,.1f}").format(value)
        return str(value)

    words = {name: [cell(name, value) for value in frame[name]] for name in frame}
    shown: str = pd.DataFrame(words).to_string(index=False, justify="right")
    return shown
