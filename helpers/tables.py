"""Tables of lesson 01 that take more than one call: layouts, GPU counts, predictions beside measurements."""

import pandas as pd

from helpers.calibration import MEASURED_GPU, MEASURED_LAYOUTS, measured
from helpers.hardware import GIB
from helpers.memory import Plan, fewest_gpus, load, plan
from helpers.models import ModelConfig
from helpers.roofline import decode_tokens_per_second

# Runs of the measured file with one request at a time: label, model, TP, PP. Prompts had 128 tokens.
SINGLE_STREAM = {
    "8b_tp1": ("8B", "llama-3.1-8b", 1, 1),
    "tp4": ("70B TP4", "llama-3.1-70b", 4, 1),
    "tp2pp2": ("70B TP2 x PP2", "llama-3.1-70b", 2, 2),
    "pp4": ("70B PP4", "llama-3.1-70b", 1, 4),
    "405b-fp8_tp4": ("405B FP8 TP4", "llama-3.1-405b-fp8", 4, 1),
}
PROMPT_TOKENS = 128


SHAPES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip


def shapes(configs: list[ModelConfig]) -> pd.DataFrame:
    """The numbers of a config.json that memory depends on, a column for each model."""
    return pd.DataFrame({config.name: {shape: getattr(config, shape) for shape in SHAPES} for config in configs})


def layouts(plans: list[Plan]) -> pd.DataFrame:
    """A row for each plan: what a GPU holds, and what all replicas together can keep in their caches."""
    rows = [
        {
            "layout": p.layout,
            "fits": "yes" if p.fits else "no",
            "weights, GiB per GPU": round(p.weights_per_gpu / GIB, 1),
            "cache, GiB per GPU": round(p.kv_cache_bytes / GIB, 1),
            "tokens in all": f"{p.dp * p.kv_cache_tokens:,}",
            f"requests of {p.max_model_len:,}": f"{p.dp * p.max_concurrency:.2f}",
        }
        for p in plans
    ]
    return pd.DataFrame(rows).set_index("layout").rename_axis(None)


def fewest(models: list[str], gpus: list[str], max_model_len: int, gpus_per_node: int = 4) -> pd.DataFrame:
    """For each model and GPU, the fewest that hold the model and one request of that length, and their layout.

    Raises LayoutError when 16 nodes are too few.
    """

    def cell(model: str, gpu: str) -> str:
        p = fewest_gpus(load(model), gpu, gpus_per_node=gpus_per_node, max_model_len=max_model_len)
        return f"{p.gpus} ({p.layout})"

    return pd.DataFrame({gpu: {model: cell(model, gpu) for model in models} for gpu in gpus})


def plans_against_logs() -> pd.DataFrame:
    """KV cache tokens that plan() predicts, beside those the measured servers printed."""
    rows = {}
    for run, (model, tp, pp, num_seqs) in MEASURED_LAYOUTS.items():
        p = plan(load(model), gpu=MEASURED_GPU, tp=tp, pp=pp, max_num_seqs=num_seqs, max_model_len=8192)
        tokens = measured()["server_log"][run]["gpu_kv_cache_tokens"][0]
        off = f"{p.kv_cache_tokens / tokens - 1:+.2%}"
        rows[f"{model} {p.layout}"] = {"predicted": f"{p.kv_cache_tokens:,}", "printed": f"{tokens:,}", "off by": off}
    return pd.DataFrame.from_dict(rows, orient="index")


def speed_against_bound() -> pd.DataFrame:
    """Tokens a second of one request alone on H200s: the bound that memory sets, and what was measured."""
    alone = {run["run"]: run["output_throughput"] for run in measured()["throughput"] if run["max_concurrency"] == 1}
    rows = {}
    for run, (label, model, tp, pp) in SINGLE_STREAM.items():
        bound = decode_tokens_per_second(load(model), MEASURED_GPU, tp=tp, pp=pp, context=PROMPT_TOKENS)
        rows[label] = {"bound": round(bound, 1), "measured": round(alone[run], 1), "share": f"{alone[run] / bound:.0%}"}
    return pd.DataFrame.from_dict(rows, orient="index")
