"""The slides' pictures by name, as `{{ figure("cache_grid") }}` asks for them: data from the package, drawn large."""

import pandas as pd
from matplotlib.figure import Figure

from helpers import (
    attention,
    attention_plots,
    attention_work,
    diagrams,
    lever_data,
    parallel_data,
    parallel_shapes,
    plots,
    slide_charts,
    slide_tables,
    speculation_plots,
)
from helpers.deployments import find
from helpers.hardware import GB, GIB, INFINIBAND_NDR, PCIE4, get_gpu
from helpers.memory import plan
from helpers.models import load
from helpers.sampling import apply_temperature, keep_top_k, keep_top_p
from helpers.scheduler import Request, page, reserve, simulate
from helpers.tiny.corpus import ODDS
from helpers.trace import Trace
from helpers.weights import weight_bytes

SHORT = {model: name for name, model in slide_tables.LLAMAS.items()}

prefill_decode = diagrams.prefill_decode
page_table = diagrams.page_table
llama_layer = diagrams.llama_layer
held_by = diagrams.held_by
answer_times = diagrams.answer_times
places = diagrams.places


def cache_grid() -> Figure:
    """Lesson 02's squares: how often each score is computed."""
    figure = attention_plots.cache_grid(prompt=4, tokens=5)
    figure.set_label("Scores of one head, with and without a KV cache: each is computed once, or again in every step.")
    return figure


def token_cost() -> Figure:
    """Multiply-adds of one more token in lesson 02's layer, with a cache and without, by formula."""
    layer = attention.Weights.random(hidden=256, heads=8, kv_heads=2)
    contexts = [64, 128, 256, 512, 1024, 2048, 4096]
    work = {
        name: [attention_work.step_work(layer, 1 if cached else n, n, cached).multiply_adds / 1e6 for n in contexts]
        for name, cached in (("everything again", False), ("with a cache", True))
    }
    figure = plots.growth_lines(pd.DataFrame(work, contexts), "", "tokens before it", "million multiply-adds")
    figure.axes[0].set(yscale="log", ylim=(0.1, None), xlim=(0, 5200))
    figure.set_label("The work of one more token grows with the square of the text without a cache, slowly with one.")
    return figure


def why_an_engine() -> Figure:
    """Llama 3.1 8B on one H200: transformers, and vLLM for one and for many."""
    bars = slide_tables.engine_speeds()
    return slide_charts.bars(bars, "output tokens per second, Llama 3.1 8B on one H200")


def weights() -> Figure:
    """Gigabytes of the Llamas' weights by format, against GPUs of 80 GB."""
    formats = {"FP16": "float16", "FP8": "fp8", "INT4": "int4"}
    sizes = {name: [weight_bytes(load(model), dtype) / GB for model in SHORT] for name, dtype in formats.items()}
    label = get_gpu("H100").label_gb
    marks: dict[str, float] = {f"{count} × H100": count * label for count in (1, 4, 8)}
    figure = plots.weight_bars(pd.DataFrame(sizes, index=list(SHORT.values())), marks)
    said = "; ".join(f"{name}: {', '.join(f'{size:.0f}' for size in column)} GB" for name, column in sizes.items())
    figure.set_label(f"Weights of 8B, 70B and 405B. {said}.")
    return figure


def what_fits() -> Figure:
    """What fills the tightest GPU of four layouts on H100s."""
    layouts = [("llama-3.1-8b", 1, 1), ("llama-3.1-70b", 2, 1), ("llama-3.1-70b", 4, 1), ("llama-3.1-405b", 8, 2)]
    plans = [plan(load(model), gpu="H100", tp=tp, pp=pp, max_model_len=8192) for model, tp, pp in layouts]
    labels = [f"{SHORT[model]}, {tp * pp} GPU{'s' * (tp * pp > 1)}" for model, tp, pp in layouts]
    figure = plots.memory_bars(plans, labels, title="")
    said = "; ".join(
        f"{name}: {p.kv_cache_bytes / GIB:.1f} GiB of cache" for name, p in zip(labels, plans, strict=True)
    )
    figure.set_label(f"Memory of one H100 under four layouts, in BF16. {said}.")
    return figure


def machine() -> Figure:
    """Two nodes of four GPUs with their links."""
    gpu = get_gpu("H100")
    return diagrams.machine(gpu, INFINIBAND_NDR)


def bandwidths() -> Figure:
    """GB a second of the ways a byte can take, each way."""
    gpu = get_gpu("H100")
    ways = {
        "memory of an H100": gpu.bandwidth,
        f"{gpu.link.name} to other GPUs": gpu.link.bytes_per_second,
        f"{INFINIBAND_NDR.name} to another node": INFINIBAND_NDR.bytes_per_second,
        f"{PCIE4.name} to the processor": PCIE4.bytes_per_second,
    }
    return slide_charts.bars({name: speed / GB for name, speed in ways.items()}, "GB/s each way", ratios=False)


EIGHT = {"a": 40, "b": 6, "c": 10, "d": 8, "e": 36, "f": 4, "g": 12, "h": 20}


def batch_traces() -> dict[str, Trace]:
    """Lesson 02's eight requests on four seats: in fixed batches, and continuously."""
    eight = [Request(name, 16, answer) for name, answer in EIGHT.items()]
    return {
        "fixed batches": simulate(eight, blocks=60, max_num_seqs=4, policy="static"),
        "continuous batching": simulate(eight, blocks=60, max_num_seqs=4),
    }


def fixed_batches() -> Figure:
    """Eight requests on four seats in fixed batches."""
    traces = batch_traces()
    return slide_charts.seats({"fixed batches": traces["fixed batches"]})


def batching() -> Figure:
    """The same eight requests, both ways, over the same steps."""
    return slide_charts.seats(batch_traces())


def memory_traces() -> dict[str, Trace]:
    """Lesson 02's six guests on sixteen blocks: room reserved for each, and pages."""
    answers = {"a": 20, "b": 9, "c": 30, "d": 14, "e": 25, "f": 12}
    guests = [Request(name, 12, answer) for name, answer in answers.items()]
    return {"reserved for the longest": reserve(guests, blocks=17, max_len=64), "pages": page(guests, blocks=17)}


def pages() -> Figure:
    """Who holds which block, reserved and in pages."""
    return slide_charts.blocks(memory_traces())


def prefix_seconds() -> Figure:
    """Milliseconds to the first token of a long prompt whose beginning is computed, copied back, or found."""
    waits = {name: 1000 * seconds for name, seconds in lever_data.first_tokens().items()}
    return slide_charts.bars(waits, "ms to the first token of 16,000", ratios=False)


def fp8_speeds() -> Figure:
    """Llama 3.1 70B on two H200, BF16 and FP8 weights."""
    table = lever_data.fp8_weights()
    return slide_charts.groups(
        table[["BF16, tokens/s", "FP8, tokens/s"]], "requests at once", "tokens/s", times=list(table["times"])
    )


def guessing() -> Figure:
    """When guesses pay, with the cost of a step that was measured where no guess was right."""
    found = lever_data.effects().query("lever == 'n-gram guesses, none right'").iloc[0]
    costs = {"guesses for nothing": 1.0, "one request, measured": 1 / found.one, "many, measured": 1 / found.many}
    figure = speculation_plots.curves(3, costs)
    figure.axes[0].set_xticks([0.2, 0.4, 0.6, 0.8, 1.0])
    return figure


def four_gpus() -> Figure:
    """Llama 3.1 70B on four H200 in four layouts, at three numbers of requests."""
    table = parallel_data.four_gpus()
    wide = table.pivot(index="concurrency", columns="row", values="tokens_per_second")
    return slide_charts.panels(wide[["TP4", "TP2 x DP2", "TP2 x PP2", "PP4"]], "tokens/s")


def script_flags() -> Figure:
    """The public workshop script's flags against the defaults, back to back on one machine."""
    rows = {
        name: [slide_tables.speed(run, n) for n in (1, 64)]
        for name, run in (("defaults", "ours70"), ("script", "peer70"))
    }
    table = pd.DataFrame(rows, index=pd.Index([1, 64], name="requests at once"))
    return slide_charts.groups(table, "requests at once", "tokens/s", times=list(table["defaults"] / table["script"]))


def batch_bound() -> Figure:
    """The bound of a step by the requests in it."""
    return slide_charts.bars(slide_tables.batch_bound(), "tokens per second, at most")


def throughput() -> Figure:
    """What all get together and what one gets, for 1, 16 and 64 requests: Llama 3.1 8B on one H200."""
    rows = parallel_data.two_gpus("llama-3.1-8b").query("row == 'TP1'").sort_values("concurrency")
    return slide_charts.tradeoff(rows)


def job_life() -> Figure:
    """From sbatch to a notebook that finds the server of the 70B."""
    found = find("llama-3.1-70b-tp4-h100")
    return diagrams.job_life(found.name.removesuffix("-tp4-h100"), found.gpus)


def load_curve() -> Figure:
    """What more requests at once do to throughput and to the first token: 70B, TP4 on four H200."""
    rows = parallel_data.four_gpus().query("row == 'TP4'").sort_values("concurrency").set_index("concurrency")
    return slide_charts.pair(
        rows["tokens_per_second"], rows["ttft_ms"], "requests at once", ("tokens/s of all together", "median TTFT, ms")
    )


def cut_layer() -> Figure:
    """The MLP of a 70B layer on four GPUs."""
    return diagrams.cut_layer(load("llama-3.1-70b"))


def one_token() -> Figure:
    """When each GPU works under TP and PP."""
    figure = parallel_shapes.one_token(load("llama-3.1-70b"), "H200", 4)
    figure.suptitle("")
    return figure


def tp_costs() -> Figure:
    """What comes on top of half a step."""
    figure = parallel_shapes.tp_costs()
    figure.axes[0].set_title("", loc="left")
    figure.axes[0].set_xlim(0, 1.15 * figure.axes[0].get_xlim()[1])
    return figure


def messages() -> Figure:
    """All-reduces by size, over NVLink and sockets."""
    figure = parallel_shapes.messages(load("llama-3.1-70b"))
    figure.axes[0].set_title("", loc="left")
    return figure


def temperatures() -> Figure:
    """The odds of a known next word at three temperatures, by the formula."""
    odds = ODDS["The weather in Boston is"]
    table = pd.DataFrame({f"temperature {t}": apply_temperature(odds, t) for t in (0.5, 1, 2)})
    return slide_charts.odds(table)


def filters() -> Figure:
    """What top_k and top_p leave of known odds."""
    odds = ODDS["My favorite color is"]
    cuts = {"as the model says": odds, "top_k = 3": keep_top_k(odds, 3), "top_p = 0.6": keep_top_p(odds, 0.6)}
    return slide_charts.odds(pd.DataFrame(cuts), across=False)
