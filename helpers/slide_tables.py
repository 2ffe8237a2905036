"""The slides' tables: DataFrames of words and ready-made numbers, from shapes, sums, bounds and measurements."""

import math

import pandas as pd

from helpers import parallel_data
from helpers.broken_plots import STEPS
from helpers.calibration import measured
from helpers.deployments import catalogue, plan_of
from helpers.hardware import GB, GIB, get_gpu
from helpers.kv_cache import kv_bytes_per_token
from helpers.layout import LayoutError, check_layout
from helpers.memory import fewest_gpus
from helpers.models import load
from helpers.roofline import decode_tokens_per_second
from helpers.tables import speed_against_bound
from helpers.tiny.corpus import ODDS
from helpers.weights import parameter_count, weight_bytes

LLAMAS = {"8B": "llama-3.1-8b", "70B": "llama-3.1-70b", "405B": "llama-3.1-405b"}
PUBLISHED_KV = (15.62, 39.06, 123.05)  # "GB" for a request of 128k tokens, on the decks of 2024 and 2026
PUBLISHED_H100 = (1, 2.24, 11.66)  # the same decks' "number of H100s needed"
LONG = 128_000  # tokens of that request
CONTEXT = 576  # tokens of cache of a request in the middle of its answer: LENGTHS
LENGTHS = "512 tokens in, 128 out"
TRANSFORMERS = 23.8  # tokens/s at batch 1: helpers/data/h200x4.json tells it in a sentence, which a test compares


def speed(run: str, concurrency: int) -> float:
    """Output tokens/s of a run of helpers/data/h200x4.json with so many requests at once. Raises LookupError."""
    for line in measured()["throughput"]:
        if (line["run"], line["max_concurrency"]) == (run, concurrency):
            return float(line["output_throughput"])
    raise LookupError(f"{run} with {concurrency} requests at once was not measured")


def printed(run: str, figure: str) -> float:
    """A memory figure of a run's log in helpers/data/h200x4.json, that of rank 0. Raises LookupError."""
    return float(measured()["server_log"][run][figure][0])


def engine_speeds() -> dict[str, float]:
    """Llama 3.1 8B on one H200, tokens/s: a plain loop, and vLLM for one request and for 64."""
    return {
        "transformers, 1 request": TRANSFORMERS,
        "vLLM, 1 request": speed("8b_tp1", 1),
        "vLLM, 64 requests": speed("8b_tp1", 64),
    }


def family() -> pd.DataFrame:
    """The Llama 3.1 models' shapes."""
    rows = {}
    for name, model in LLAMAS.items():
        c = load(model)
        rows[name] = {
            "parameters": f"{parameter_count(c):,}", "layers": c.num_hidden_layers, "hidden": f"{c.hidden_size:,}",
            "query heads": c.num_attention_heads, "KV heads": c.num_key_value_heads,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("Llama 3.1")


def cache_per_token() -> pd.DataFrame:
    """KV cache of a token and of a request of 131,072, in BF16."""
    models = LLAMAS | {"Qwen2.5 7B": "qwen2.5-7b", "DeepSeek-R1 (MLA)": "deepseek-r1"}
    rows = {
        name: {
            "a token": f"{kv_bytes_per_token(load(model)) / 1024:,.1f} KiB",
            "a request of 131,072": f"{kv_bytes_per_token(load(model)) * 131_072 / GIB:,.1f} GiB",
        }
        for name, model in models.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def cache_corrected() -> pd.DataFrame:
    """The published sizes of a 128,000-token request beside computed ones."""
    rows = {}
    for (name, model), published in zip(LLAMAS.items(), PUBLISHED_KV, strict=True):
        computed = kv_bytes_per_token(load(model)) * LONG
        rows[name] = {
            "published": f"{published:.2f} “GB”", "computed": f"{computed / GIB:.2f} GiB", "in GB": f"{computed / GB:.2f} GB",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("Llama 3.1")


def gpus_needed() -> pd.DataFrame:
    """H100s for weights and one long request: as published, and what a server really takes."""
    rows = {}
    for (name, model), published in zip(LLAMAS.items(), PUBLISHED_H100, strict=True):
        plan = fewest_gpus(load(model), "H100", max_model_len=131_072)
        rows[name] = {
            "weights, BF16": f"{weight_bytes(load(model)) / GB:,.0f} GB",
            "cache": f"{kv_bytes_per_token(load(model)) * 131_072 / GB:.0f} GB",
            "published": f"{published:g}",
            "H100 80 GB": plan.gpus,
            "layout": plan.layout.replace(" x ", "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}"),
            "H200": fewest_gpus(load(model), "H200", max_model_len=131_072).gpus,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("Llama 3.1")


def two_phases() -> pd.DataFrame:
    """Why prefill waits for arithmetic and decode for memory, on an H100."""
    gpu, model = get_gpu("H100"), load("llama-3.1-8b")
    read = 1000 * weight_bytes(model) / gpu.bandwidth
    flop = 2 * parameter_count(model) / gpu.bf16_flops
    rows = {
        "decode, 1 token": {"reads": f"{read:.1f} ms", "computes": f"{1e3 * flop:.2f} ms", "waits for": "memory"},
        "prefill, 2,048 tokens": {
            "reads": f"{read:.1f} ms",
            "computes": f"{2048e3 * flop:.0f} ms",
            "waits for": "arithmetic",
        },
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("a step of 8B")


def batch_bound() -> dict[str, float]:
    """The most tokens/s of 8B on one H200 by requests at once, each with CONTEXT tokens of cache."""
    return {
        f"{n} request{'s' * (n > 1)}": decode_tokens_per_second(load(LLAMAS["8B"]), "H200", batch=n, context=CONTEXT)
        for n in (1, 16, 64, 256)
    }


def bounds() -> pd.DataFrame:
    """One request alone: the bound of memory, and what was measured."""
    shown = speed_against_bound()
    for column in ("bound", "measured"):
        shown[column] = shown[column].map("{:,.0f}".format)
    return shown.rename(columns={"bound": "bound, tokens/s", "share": "reached"}).rename_axis("one request on H200s")


def flags() -> pd.DataFrame:
    """The script's flags against the defaults, on four and two H200."""
    ratio = {n: speed("ours70", n) / speed("peer70", n) for n in (1, 64)}
    return pd.DataFrame({"requests": [*ratio], "times as fast": [f"{value:.1f}×" for value in ratio.values()]})


def memory_shares() -> pd.DataFrame:
    """Of the cache: tokens, held and empty, free and scattered; reserved and in pages."""
    from helpers.slide_figures import memory_traces

    shares = {name: trace.memory_shares() for name, trace in memory_traces().items()}
    named = {"tokens": "tokens", "internal": "held, empty", "external": "free, but scattered", "free": "free"}
    return pd.DataFrame(shares).map("{:.0%}".format).rename(index=named).rename_axis("share of the cache")


def layouts_allowed(model: str = "llama-3.1-70b") -> pd.DataFrame:
    """Which tensor parallel sizes vLLM takes for a model."""
    rows = {}
    for tp in (2, 3, 4, 6, 8, 16):
        try:
            check_layout(load(model), tp=tp)
            rows[f"TP{tp}"] = "yes"
        except LayoutError:
            rows[f"TP{tp}"] = "no"
    return pd.DataFrame([rows])


def start_steps() -> pd.DataFrame:
    """The steps of a server's start and what stops it at each."""
    rows = {
        step.name: {"yes in the log": f"<code>{step.says}</code>", "stopped here? look at": step.stops}
        for step in STEPS
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")


def caches() -> pd.DataFrame:
    """Tokens of cache of the 70B on four H200 in three layouts: predicted and printed."""
    table = parallel_data.caches()
    return pd.DataFrame(
        {
            "weights a GPU": table["weights_gib"].map("{:.1f} GiB".format),
            "cache, predicted": table["predicted"].map("{:,.0f}".format),
            "printed by vLLM": table["printed"].map("{:,.0f}".format),
        }
    ).rename_axis("70B on 4 H200")


def reached() -> str:
    """The shares of the bound that measured servers reach with one request, lowest to highest."""
    shares = sorted(int(share.rstrip("%")) for share in speed_against_bound()["share"])
    return f"{shares[0]} to {shares[-1]}%"


def deployments(least: int = 1, most: int = 64) -> pd.DataFrame:
    """The deployments of slurm/ on so many GPUs, with the room that helpers.memory computes."""
    rows = {}
    for name, found in catalogue().items():
        if found.shape and least <= found.gpus <= most:
            plan = plan_of(found)
            nodes = f"{found.nodes} × {found.gpus_per_node}" if found.nodes > 1 else f"{found.gpus_per_node}"
            rows[f"<code>{name}</code>"] = {
                "GPUs": f"{nodes} {found.gpu}",
                "weights a GPU": f"{plan.weights_per_gpu / GIB:.0f} GiB",
                "tokens of cache": f"{plan.kv_cache_tokens:,}",
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("deployment")


def then_and_now() -> pd.DataFrame:
    """What the decks of 2024 told of one prompt, and what was measured for this workshop."""
    rows = {
        "70B": {"the decks of 2024": "about 50", "on": "4 H100", "measured here": f"{speed('tp4', 1):.0f}", "with": "4 H200, TP4"},
        "405B": {"the decks of 2024": "18 to 20", "on": "16 H100", "measured here": f"{speed('405b-fp8_tp4', 1):.0f}",
                 "with": "4 H200, FP8, TP4"},
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("tokens/s of one prompt")


def sheet_models() -> pd.DataFrame:
    """For the cheat sheet: parameters, weights and cache of a token."""
    models = {"Llama 3.1 8B": "llama-3.1-8b", "Llama 3.1 70B": "llama-3.1-70b", "Llama 3.1 405B": "llama-3.1-405b",
              "Qwen2.5 32B": "qwen2.5-32b", "MiniMax-M2.1": "minimax-m2.1", "DeepSeek-R1": "deepseek-r1"}  # fmt: skip
    rows = {
        name: {
            "billion": f"{parameter_count(load(model)) / 1e9:,.1f}",
            "weights, GB": f"{weight_bytes(load(model), 'bfloat16') / GB:,.0f}",
            "KV, KiB": f"{kv_bytes_per_token(load(model)) / 1024:,.0f}",
        }
        for name, model in models.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def sheet_gpus() -> pd.DataFrame:
    """For the cheat sheet: memory, bandwidth, arithmetic and links of GPUs."""
    rows = {}
    for name in ("A100-80", "H100", "H200", "B200"):
        gpu = get_gpu(name)
        rows[name] = {
            "GB": gpu.label_gb, "TB/s": f"{gpu.bandwidth / 1e12:.2f}", "TFLOP/s": f"{gpu.bf16_flops / 1e12:,.0f}",
            "NVLink, GB/s": f"{gpu.link.bytes_per_second / GB:.0f}",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("GPU")


def logprobs(beginning: str = "The weather in Boston is") -> pd.DataFrame:
    """The known next words of the small Llama: probability, its logarithm, rank."""
    odds = sorted(ODDS[beginning].items(), key=lambda pair: -pair[1])
    rows = {
        f"<code>{word}</code>": {
            "rank": rank,
            "probability": f"{p:.0%}",
            "logprob": f"{math.log(p):.2f}".replace("-", "−"),
        }
        for rank, (word, p) in enumerate(odds, 1)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("next token")
