"""Which TP, PP, DP and EP for a model and a machine: every layout that vLLM takes, its bound, and what was measured.

The order is the bound's, with two things that it leaves out put first: what does not fit, and all-reduces between nodes.
"""

import json
import math
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from helpers import bench_report, parallel_data, parallel_plots, plots
from helpers.bench_report import LOAD
from helpers.calibration import MEASURED_GPU, measured
from helpers.errors import WorkshopError
from helpers.hardware import GPUS, get_gpu
from helpers.memory import LayoutError, Plan, fewest_gpus, load, search
from helpers.models import CATALOGUE, ModelConfig, catalogue
from helpers.roofline import tp_bytes_per_step
from helpers.weights import active_weight_bytes
from helpers.widgets import Explorer

LATENCY, THROUGHPUT, MEMORY = "one request's latency", "throughput of many", "memory for the cache"
MATTERS = (LATENCY, THROUGHPUT, MEMORY)
#: (tokens in, tokens out, requests at once) where nothing was measured that would suggest others.
LOADS = {LATENCY: (512, 128, 1), THROUGHPUT: (512, 128, 128), MEMORY: (512, 128, 128)}
LENGTH = 8192  # tokens that a request may hold
MOST_ROWS = 8  # of a picture
EQUAL = 0.97  # of the best bound, and above: called the same
BAR = {LATENCY: "bound", THROUGHPUT: "bound", MEMORY: "tokens"}


@dataclass(frozen=True)
class Choice:
    """Layouts of a model on a machine, the best first, and why it is the best.

    `table`: label, tp, pp, dp, ep, fits, reason, bound (tokens/s; NaN where it is not known), tokens (of cache, all copies
    together), measured (tokens/s, or tokens of cache), crosses (all-reduces leave a node), equal (about the best bound), note. `load` is what the bounds
    and the measured speeds are for.
    """

    model: str
    gpu: str
    matters: str
    load: tuple[int, int, int]
    table: pd.DataFrame
    why: str


def choose(model: str, gpu: str, gpus: int, matters: str, gpus_per_node: int = 8) -> Choice:
    """All layouts of a model of the catalogue on so many GPUs, put in order by what matters.

    Raises LayoutError when vLLM takes no layout that uses them all, or the GPUs do not fill their nodes.
    """
    config, each = load(model), min(gpus, gpus_per_node)
    if gpus % each:
        raise LayoutError(f"{gpus} GPUs do not fill nodes of {gpus_per_node}; take a multiple.")
    max_len = min(LENGTH, config.max_position_embeddings)
    known = _measured(model, gpu, gpus if each == gpus else 0)
    asked = _load(known, matters)
    rows: list[dict[str, Any]] = []
    refusal = LayoutError(f"vLLM takes no layout of {model} on {gpus} GPUs; take another number.")
    for expert_parallel in (False, True) if config.experts else (False,):
        try:
            found = search(config, gpu, gpus // each, each, max_model_len=max_len, expert_parallel=expert_parallel)
        except LayoutError as error:
            refusal = error
            continue
        plans = [plan for plan in found if not expert_parallel or plan.tp * plan.dp > 1]
        rows += [_row(config, plan, asked, known, expert_parallel, each, matters) for plan in plans]
    if not rows:
        raise refusal
    table = _ordered(pd.DataFrame(rows), matters)
    return Choice(model, gpu, matters, asked, table, _why(config, gpu, table, matters, max_len))


def bound(model: str, gpu: str, plan: Plan, asked: tuple[int, int, int]) -> float:
    """helpers.bench_report.bound of a plan for (tokens in, tokens out, requests), in tokens/s.

    NaN for copies of a mixture, as vLLM spreads its experts over all copies, and for what only whole experts allow.
    """
    if plan.dp > 1 and load(model).experts:
        return math.nan
    config = json.loads((CATALOGUE / f"{model}.json").read_text())
    server = {"config": config, "model": model, "flags": [], "tp": plan.tp, "pp": plan.pp, "dp": plan.dp}
    try:
        return bench_report.bound(server, get_gpu(gpu), *asked)
    except LayoutError:  # legal with whole experts alone
        return math.nan


def draw(model: str, gpu: str, gpus: int, gpus_per_node: int, matters: str) -> Figure:
    """The picture of a choice; a sentence where there is none."""
    try:
        choice = choose(model, gpu, gpus, matters, gpus_per_node)
    except WorkshopError as error:
        return plots.sentence(str(error))
    input_len, output_len, requests = choice.load
    unit = "tokens/s" if matters != MEMORY else "tokens of cache, all copies together"
    what = f"{requests} at once, {input_len} tokens in, {output_len} out" if matters != MEMORY else "predicted"
    shown = choice.table.head(MOST_ROWS)
    rest = f"; {len(shown)} of {len(choice.table)} layouts" if len(shown) < len(choice.table) else ""
    title = (
        f"grey: {'bound' if matters != MEMORY else 'helpers.memory'} ({what}); blue: measured, vLLM {_version()}{rest}"
    )
    return parallel_plots.layouts(shown, BAR[matters], unit, title, textwrap.fill(choice.why, 105))


def chooser() -> Explorer:
    """Choose a model, GPUs and what matters; see the layouts that vLLM takes, their bounds, and what was measured."""
    return Explorer(
        draw, "Choose model, GPU, number of GPUs, GPUs a node and what matters; the picture is the first choice's.",
        model=ipywidgets.Dropdown(options=catalogue(), value="llama-3.1-70b", description="model"),
        gpu=ipywidgets.Dropdown(options=list(GPUS), value="H200", description="GPU"),
        gpus=ipywidgets.SelectionSlider(options=[1, 2, 4, 8, 16], value=4, description="GPUs"),
        gpus_per_node=ipywidgets.SelectionSlider(options=[1, 2, 4, 8], value=4, description="GPUs a node"),
        matters=ipywidgets.Dropdown(options=MATTERS, description="what matters"),
    )  # fmt: skip


def _version() -> str:
    version: str = re.findall(r"vLLM ([\d.]+)", measured()["software"])[0]
    return version


def label_of(tp: int, pp: int, dp: int, ep: bool = False) -> str:
    """A layout as the measurements name it, as in "TP2 x PP2"; a mixture's whole experts as in "TP4 + EP"."""
    sizes = [f"{name}{size}" for name, size in (("TP", tp), ("PP", pp), ("DP", dp)) if size > 1]
    return (" x ".join(sizes) or "TP1") + (" + EP" if ep else "")


def _measured(model: str, gpu: str, gpus: int) -> pd.DataFrame:
    """Rows of bench_report.table for this model on so many of these GPUs of one node, of servers without special flags."""
    tables = [parallel_data.two_gpus(), parallel_data.four_gpus()]
    rows = pd.concat([table.assign(gpus=table["row"].map(_gpus)) for table in tables])
    plain = rows["row"].str.removesuffix(" + EP") == rows["layout"]
    here = (rows["model"] == model) & plain & (rows["gpus"] == gpus)
    return rows[here & (gpu == MEASURED_GPU)]


def _gpus(row: str) -> int:
    return math.prod(int(size) for size in re.findall(r"\b[TPD]P(\d+)", row))


def _load(known: pd.DataFrame, matters: str) -> tuple[int, int, int]:
    """What to compute bounds for: a load that was measured, if there is one; the largest for throughput."""
    loads = known[known["concurrency"] == 1] if matters == LATENCY else known[known["concurrency"] > 1]
    if loads.empty:
        return LOADS[matters]
    input_len, output_len, requests = (int(size) for size in loads.sort_values("concurrency")[LOAD].iloc[-1])
    return input_len, output_len, requests


def _row(
    config: ModelConfig,
    plan: Plan,
    asked: tuple[int, int, int],
    known: pd.DataFrame,
    ep: bool,
    each: int,
    matters: str,
) -> dict[str, Any]:
    label, crosses = label_of(plan.tp, plan.pp, plan.dp, ep), plan.tp > each
    same = known[(known["row"] == label) & (known[LOAD] == list(asked)).all(axis=1)]["tokens_per_second"]
    speed = float(same.iloc[0]) if len(same) else math.nan
    if matters == MEMORY:
        printed = parallel_data.caches()["printed"] if len(known) and config.name == parallel_data.MODEL else {}
        speed = float(printed.get(label, math.nan)) if plan.gpus == 4 else math.nan
    return {
        "label": label, "tp": plan.tp, "pp": plan.pp, "dp": plan.dp, "ep": ep, "fits": plan.fits, "reason": plan.reason,
        "bound": bound(config.name, plan.gpu, plan, asked), "tokens": plan.dp * plan.kv_cache_tokens if plan.fits else 0,
        "measured": speed, "crosses": crosses, "note": ", all-reduces between nodes" if crosses else "",
    }  # fmt: skip


def _ordered(table: pd.DataFrame, matters: str) -> pd.DataFrame:
    """What fits first, then what keeps its all-reduces inside a node; the best bounds by measured figure, then by cache."""
    candidates = table[table["fits"] & ~table["crosses"]]
    best = candidates[BAR[matters]].max()
    equal = table.index.isin(candidates.index) & (table[BAR[matters]] >= EQUAL * best)
    places = table.assign(equal=equal, _bar=table[BAR[matters]].mask(equal, best))
    order = ["fits", "crosses", "_bar", "measured", "tokens"]
    places = places.sort_values(order, ascending=[False, True, False, False, False])
    return places.drop(columns="_bar").reset_index(drop=True)


def _why(config: ModelConfig, gpu: str, table: pd.DataFrame, matters: str, max_len: int) -> str:
    best = table.iloc[0]
    if not best["fits"]:
        return f"Nothing fits. {_fewest(config, gpu, max_len)}"
    equals = table[table["equal"]]
    said = f"{best['label']}: {_reason(config, best, matters)}"
    if len(equals) > 1 and matters != MEMORY:
        by = "the measured figure" if equals["measured"].notna().all() else "the cache"
        said += f" {', '.join(equals['label'])} have about the same {BAR[matters]}; {by} decides."
    fastest = table.loc[table["measured"].idxmax(), "label"] if table["measured"].notna().any() else best["label"]
    said += f" Measured, {fastest} was ahead." if fastest != best["label"] else ""
    if table["crosses"].any() and not best["crosses"]:
        tp = int(table.loc[table["crosses"], "tp"].max())
        step = tp_bytes_per_step(config, tp=tp, tokens=1)
        said += f" TP{tp} would send {step / 1e6:.1f} MB a token and GPU between nodes, in {2 * config.num_hidden_layers} messages."
    return said


def _reason(config: ModelConfig, best: pd.Series, matters: str) -> str:
    if matters == MEMORY:
        copies = "the weights are there once" if best["dp"] == 1 else f"even with the weights there {best['dp']} times"
        return f"{copies}, and {best['tokens']:,.0f} tokens of cache are left."
    if matters == LATENCY:
        size = active_weight_bytes(config) / best["tp"]
        return f"a token waits until {size / 1e9:.1f} GB are read; stages read in turn, and copies help other requests."
    if pd.isna(best["bound"]):
        return "no bound is known for copies of a mixture; it has the largest cache."
    return "no known bound is higher for this load."


def _fewest(config: ModelConfig, gpu: str, max_len: int) -> str:
    try:
        plan = fewest_gpus(config, gpu, max_model_len=max_len)
    except LayoutError as error:
        return str(error)
    return f"With 4 a node it takes {plan.gpus}: {label_of(plan.tp, plan.pp, plan.dp)}."
