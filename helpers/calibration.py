"""What a server needs beside weights and cache: activations by formula, the rest fitted to measured vLLM logs."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from helpers.hardware import GIB, GPU, get_gpu
from helpers.kv_cache import kv_bytes_per_token
from helpers.models import DTYPE_BYTES, ModelConfig, load
from helpers.weights import stage_weight_bytes

MEASURED_FILE = Path(__file__).parent / "data" / "h200x4.json"
MEASURED_GPU = "H200"
MEASURED_UTILIZATION = 0.92

# The runs of the measured file whose log figures it keeps: model, tp, pp, --max-num-seqs (None: vLLM's default).
MEASURED_LAYOUTS = {
    "8b": ("llama-3.1-8b", 1, 1, None),
    "tp4": ("llama-3.1-70b", 4, 1, 128),
    "tp2pp2": ("llama-3.1-70b", 2, 2, 128),
}

# Of the fitted remainder, what stays with --enforce-eager. No log separates the two: a guess, inside the stated error.
NON_TORCH_BYTES = int(0.15 * GIB)


# Cached tokens whose keys and values vLLM expands at once (layers/attention/mla_attention.py).
MLA_CONTEXT_TOKENS = 64 * 1024


@dataclass(frozen=True)
class Calibration:
    """Bytes a GPU needs beside weights, activations and cache, and the largest miss among the runs fitted."""

    non_torch: int
    cuda_graphs: int
    error: int
    residuals: dict[str, int]


def default_batch(gpu: GPU) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) a server takes when no flag sets them.

    16,384 and 1,024 from 160 GiB of memory, 8,192 and 1,024 from 70 GiB except on an A100, else 2,048 and 256.
    Source: EngineArgs.get_batch_defaults in vLLM engine/arg_utils.py.
    """
    if gpu.memory_bytes >= 160 * GIB:
        return 16384, 1024
    if gpu.memory_bytes >= 70 * GIB and not gpu.name.startswith("A100"):
        return 8192, 1024
    return 2048, 256


def activation_bytes(
    config: ModelConfig, *, tp: int, batched_tokens: int, num_seqs: int, stage: int = 0, pp: int = 1
) -> int:
    """Bytes of activations at the peak of the step vLLM profiles, batched_tokens long, on a GPU of this stage.

    In the MLP a token holds 2 x hidden (its state and the residual) + 3 x width / tp (gate, up and their product)
    numbers; in a mixture, for each of its k experts, hidden + 3 x expert width / tp. On the last stage the sampler may
    need more: num_seqs x vocabulary logits in BF16 and FP32. A later stage also receives 2 x hidden numbers a token.
    MLA profiles the keys and values of 64 k cached tokens, heads / tp x (nope + value width) numbers each.
    The form is derived from vLLM's Llama, fused-MoE and MLA layers; `calibrate` states how well it does.
    """
    width = DTYPE_BYTES[config.dtype]
    hidden, experts = config.hidden_size, config.experts
    numbers = 3 * config.intermediate_size // tp
    if experts:
        numbers = experts.per_token * (hidden + 3 * experts.intermediate_size // tp)
    forward = batched_tokens * (2 * hidden + numbers) * width
    sampler = batched_tokens * hidden * width + num_seqs * config.vocab_size * (width + 4) if stage == pp - 1 else 0
    received = batched_tokens * 2 * hidden * width if stage > 0 else 0
    return max(forward, sampler, _latent_context(config, tp)) + received


def _latent_context(config: ModelConfig, tp: int) -> int:
    if config.mla is None:
        return 0
    heads = config.num_attention_heads // tp
    return (
        MLA_CONTEXT_TOKENS * heads * (config.mla.qk_nope_head_dim + config.mla.v_head_dim) * DTYPE_BYTES[config.dtype]
    )


@cache
def measured() -> dict:
    """vLLM 0.25.1 measured on four H200: speeds and the memory figures of its logs."""
    return json.loads(MEASURED_FILE.read_text())


@cache
def calibrate() -> Calibration:
    """Fits the one number the formulas lack, the memory of CUDA graphs and of libraries outside PyTorch.

    For each measured run, utilisation x memory - weights and activations by formula - cache as printed (tokens x bytes
    a token, so of the tightest stage); the mean of the three is used, and the farthest from it is the error.
    The three runs are BF16 Llamas on an H200 with vLLM 0.25.1: 0.57 GiB +- 0.14 GiB. Other GPUs, mixtures, MLA, other
    attention backends and older versions lie outside; logs of vLLM 0.11 show 1 to 3 GiB more.
    """
    residuals = {run: _residual(run) for run in MEASURED_LAYOUTS}
    mean = sum(residuals.values()) // len(residuals)
    error = max(abs(value - mean) for value in residuals.values())
    return Calibration(NON_TORCH_BYTES, mean - NON_TORCH_BYTES, error, residuals)


def _residual(run: str) -> int:
    name, tp, pp, num_seqs = MEASURED_LAYOUTS[run]
    config, gpu, log = load(name), get_gpu(MEASURED_GPU), measured()["server_log"][run]
    batched_tokens, default_seqs = default_batch(gpu)
    activations = activation_bytes(
        config, tp=tp, batched_tokens=batched_tokens, num_seqs=num_seqs or default_seqs, stage=pp - 1, pp=pp
    )
    cache_bytes = log["gpu_kv_cache_tokens"][0] * kv_bytes_per_token(config, tp=tp, pp=pp)
    weights = stage_weight_bytes(config, tp=tp, pp=pp)[-1]
    return int(MEASURED_UTILIZATION * gpu.memory_bytes) - weights - activations - cache_bytes
