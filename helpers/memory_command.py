"""The command `python -m helpers.memory`: a plan, or every layout of some nodes, as a table."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from helpers.errors import WorkshopError
from helpers.hardware import GIB, GPUS
from helpers.memory import Flags, Plan, load, parameter_count, plan, search

PARTS = {
    "weights": "weights",
    "activations": "activations",
    "non_torch": "outside PyTorch",
    "cuda_graphs": "CUDA graphs",
    "kv_cache": "KV cache",
    "left_free": "left by --gpu-memory-utilization",
    "missing": "missing",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0 when the plan fits, 1 when it does not, 2 for input it cannot use."""
    options = _parser().parse_args(arguments)
    try:
        config = load(options.model)
        if options.quantization:
            config = config.quantized(options.quantization)
        if options.nodes:
            plans = search(config, options.gpu, options.nodes, options.gpus_per_node, **_flags(options))
            heading, table, verdict = f"{config.name} on {plans[0].gpus} {plans[0].gpu}", layouts_table(plans), ""
        else:
            p = plan(config, gpu=options.gpu, tp=options.tp, pp=options.pp, dp=options.dp, **_flags(options))
            plans = [p]
            heading = f"{config.name} ({_in_words(parameter_count(config))}) on {p.gpus} {p.gpu}: {p.layout}"
            table, verdict = plan_table(p), p.reason
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(highlight=False)
    console.print(heading)
    console.print(table)
    console.print(verdict)
    return 0 if any(p.fits for p in plans) else 1


def _in_words(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def plan_table(result: Plan) -> Table:
    """One plan: the parts of the tightest GPU's memory, then what the server will print."""
    table = Table()
    table.add_column("on the tightest GPU")
    table.add_column("", justify="right")
    for part, size in result.breakdown.items():
        if size:
            table.add_row(PARTS[part], f"{size / GIB:,.2f} GiB")
    table.add_row("memory", f"{result.gpu_memory / GIB:,.2f} GiB", end_section=True)
    table.add_row("KV cache a token", f"{result.kv_bytes_per_token:,} B")
    table.add_row("KV cache size", f"{result.kv_cache_tokens:,} tokens (+- {result.tokens_error:,})")
    table.add_row(f"concurrency at {result.max_model_len:,} tokens", f"{result.max_concurrency:.2f}x")
    table.add_row("fits", "yes" if result.fits else "no")
    return table


def layouts_table(plans: list[Plan]) -> Table:
    """Legal layouts, a row each: weights and cache on a GPU, tokens of a replica and of all, requests at once."""
    table = Table()
    table.add_column("layout", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for heading in (
        "weights\nGiB/GPU",
        "KV cache\nGiB/GPU",
        "tokens a\nreplica",
        "tokens\nin all",
        "requests\nat once",
    ):
        table.add_column(heading, justify="right")
    for p in plans:
        sizes = (f"{p.weights_per_gpu / GIB:.1f}", f"{p.kv_cache_bytes / GIB:.1f}")
        tokens = (f"{p.kv_cache_tokens:,}", f"{p.dp * p.kv_cache_tokens:,}", f"{p.max_concurrency:.2f}x")
        table.add_row(p.layout, "yes" if p.fits else "no", *sizes, *tokens)
    return table


def _flags(options: argparse.Namespace) -> Flags:
    return {
        "max_model_len": options.max_model_len,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "kv_cache_dtype": options.kv_cache_dtype,
        "enforce_eager": options.enforce_eager,
        "expert_parallel": options.expert_parallel,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_num_seqs": options.max_num_seqs,
        "block_size": options.block_size,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m helpers.memory", description="Does a model fit, with what KV cache?")
    parser.add_argument("model", help="a catalogue name such as llama-3.1-70b, a config.json, or a folder with one")
    parser.add_argument("--gpu", required=True, help=", ".join(GPUS))
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel size")
    parser.add_argument("--pp", type=int, default=1, help="pipeline parallel size")
    parser.add_argument("--dp", type=int, default=1, help="data parallel size")
    parser.add_argument("--nodes", type=int, help="instead of one layout, list all that fill so many nodes")
    parser.add_argument("--gpus-per-node", type=int, default=4)
    parser.add_argument("--max-model-len", type=int, help="default: the model's own maximum")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--quantization", help="fp8, fp8_block or int4, for weights the config does not quantise")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--expert-parallel", action="store_true")
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--block-size", type=int)
    return parser
