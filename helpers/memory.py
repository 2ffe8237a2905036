"""Does a model fit on these GPUs, and how many tokens of KV cache will its server have? The same sums vLLM does.

`python -m helpers.memory llama-3.1-405b --gpu H100 --tp 8 --pp 2` prints a plan as a table.
"""

from dataclasses import dataclass
from typing import TypedDict, Unpack

from helpers.activations import batch_limits
from helpers.calibration import calibrate, gpu_parts
from helpers.fields import ConfigError
from helpers.hardware import GIB, GPU, get_gpu
from helpers.kv_cache import (
    blocks_per_request,
    kv_blocks,
    kv_bytes_per_layer,
    kv_bytes_per_token,
    kv_cache_tokens,
    kv_capacity,
)
from helpers.layout import LayoutError, check_layout
from helpers.models import ModelConfig, load
from helpers.partition import positive, stage_layers
from helpers.server_log import ServerLog, read_log
from helpers.weights import active_parameter_count, parameter_count, weight_bytes

__all__ = [
    "ConfigError", "LayoutError", "Plan", "ServerLog", "active_parameter_count", "fewest_gpus", "kv_bytes_per_token",
    "kv_cache_tokens", "load", "parameter_count", "plan", "read_log", "search", "weight_bytes",
]  # fmt: skip


# Blocks a server needs beyond the longest request's: vLLM keeps one that stays empty.
SPARE_BLOCKS = 1


@dataclass(frozen=True)
class Plan:
    """What one layout of a model leaves on a GPU, in bytes; the GPU is the tightest, the one that limits the cache.

    `kv_cache_tokens` and `max_concurrency` are what the log of each of the dp replicas prints, give or take
    `tokens_error`, the largest miss of the runs helpers.calibration measured. `breakdown` holds the parts of the GPU's
    memory in the order of a stacked bar; they sum to `gpu_memory`, and what does not fit counts as a negative "missing".
    """

    model: str
    gpu: str
    tp: int
    pp: int
    dp: int
    max_model_len: int
    fits: bool
    reason: str
    weights_per_gpu: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    max_concurrency: float
    tokens_error: int
    kv_bytes_per_token: int
    gpu_memory: int
    breakdown: dict[str, int]

    @property
    def gpus(self) -> int:
        """GPUs the layout takes: tp x pp for each of dp replicas."""
        return self.tp * self.pp * self.dp

    @property
    def layout(self) -> str:
        """How the GPUs share the model, as in "TP8 x PP2"."""
        return f"TP{self.tp} x PP{self.pp}" + (f" x DP{self.dp}" if self.dp > 1 else "")


def plan(
    config: ModelConfig,
    *,
    gpu: str | GPU,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    max_model_len: int | None = None,
    gpu_memory_utilization: float = 0.92,
    kv_cache_dtype: str = "auto",
    enforce_eager: bool = False,
    expert_parallel: bool = False,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    block_size: int | None = None,
) -> Plan:
    """The memory of one server, by vLLM's own sums, under the names of its flags.

    KV cache = utilisation x memory - weights - activations - CUDA graphs - memory outside PyTorch, on each stage; the
    stage with the fewest blocks decides. It fits when the longest request fits and one block is left, which vLLM keeps.
    What is not arithmetic is calibrated, see helpers.calibration: on 19 servers with vLLM 0.25.1 on H200s the cache came
    out within 0.3%. Tokens under a sliding window are counted as 0.32 does, with one more batch in flight than 0.25.
    Lengths default to the model's own maximum.

    Raises LayoutError for a layout vLLM refuses and for sizes below 1, HardwareError for an unknown GPU.
    Source: vLLM v1/worker/gpu_worker.py (determine_available_memory), v1/core/kv_cache_utils.py.
    """
    gpu = get_gpu(gpu)
    max_model_len = config.max_position_embeddings if max_model_len is None else max_model_len
    batched_tokens, num_seqs = batch_limits(gpu, max_num_batched_tokens, max_num_seqs)
    block_size = 16 if block_size is None else block_size
    positive(max_model_len=max_model_len, max_num_batched_tokens=batched_tokens, max_num_seqs=num_seqs)
    if not 0 < gpu_memory_utilization <= 1:
        raise LayoutError(f"gpu_memory_utilization is {gpu_memory_utilization}; it must be above 0 and at most 1.")
    check_layout(config, tp=tp, pp=pp, dp=dp, expert_parallel=expert_parallel)

    stages = gpu_parts(
        config,
        gpu,
        tp=tp,
        pp=pp,
        dp=dp,
        gpu_memory_utilization=gpu_memory_utilization,
        enforce_eager=enforce_eager,
        expert_parallel=expert_parallel,
        max_num_batched_tokens=batched_tokens,
        max_num_seqs=num_seqs,
    )
    layers = stage_layers(config.num_hidden_layers, pp)
    tightest = min(range(pp), key=lambda stage: _left(stages[stage]) / layers[stage])
    parts = stages[tightest]

    available: list[float] = [stage["kv_cache"] for stage in stages]
    blocks = kv_blocks(config, available, tp=tp, pp=pp, dtype=kv_cache_dtype, block_size=block_size)
    in_flight = batched_tokens * (pp + 1)
    needed = blocks_per_request(config, max_model_len, in_flight, block_size) + SPARE_BLOCKS
    tokens, concurrency = kv_capacity(config, blocks, max_model_len, in_flight, block_size)
    return Plan(
        model=config.name,
        gpu=gpu.name,
        tp=tp,
        pp=pp,
        dp=dp,
        max_model_len=max_model_len,
        fits=blocks >= needed,
        reason=_reason(-parts["missing"], blocks, needed, block_size, max_model_len),
        weights_per_gpu=parts["weights"],
        kv_cache_bytes=parts["kv_cache"],
        kv_cache_tokens=tokens,
        max_concurrency=concurrency,
        tokens_error=calibrate().error // (kv_bytes_per_layer(config, tp=tp, dtype=kv_cache_dtype) * layers[tightest]),
        kv_bytes_per_token=kv_bytes_per_token(config, tp=tp, pp=pp, dtype=kv_cache_dtype),
        gpu_memory=gpu.memory_bytes,
        breakdown=parts,
    )


class Flags(TypedDict, total=False):
    """The flags of `plan` that a search for a layout takes as they are."""

    max_model_len: int | None
    gpu_memory_utilization: float
    kv_cache_dtype: str
    enforce_eager: bool
    expert_parallel: bool
    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    block_size: int | None


def search(config: ModelConfig, gpu: str | GPU, nodes: int, gpus_per_node: int, **flags: Unpack[Flags]) -> list[Plan]:
    """Plans of every layout vLLM accepts that uses all nodes x gpus_per_node GPUs; those that fit first.

    tp stays inside a node or fills whole nodes. Among layouts that fit, the most tokens of cache over all replicas
    leads. Raises LayoutError when no layout is legal, with the reason of the plainest one.
    """
    positive(nodes=nodes, gpus_per_node=gpus_per_node)
    total = nodes * gpus_per_node
    plans: list[Plan] = []
    refusal: LayoutError | None = None
    for tp in _divisors(total):
        if gpus_per_node % tp and tp % gpus_per_node:
            continue
        for pp in _divisors(total // tp):
            try:
                plans.append(plan(config, gpu=gpu, tp=tp, pp=pp, dp=total // tp // pp, **flags))
            except LayoutError as error:
                refusal = refusal or error
    if not plans:
        raise LayoutError(f"No layout of {config.name} uses all {total} GPUs. {refusal}")
    return sorted(plans, key=lambda p: (not p.fits, -p.dp * p.kv_cache_tokens))


def fewest_gpus(
    config: ModelConfig,
    gpu: str | GPU,
    *,
    gpus_per_node: int = 4,
    most_nodes: int = 16,
    **flags: Unpack[Flags],
) -> Plan:
    """The best plan on the fewest GPUs that fit: a divisor of a node's, then whole nodes.

    Raises LayoutError when even `most_nodes` are too few.
    """
    positive(gpus_per_node=gpus_per_node, most_nodes=most_nodes)
    shares = [(1, count) for count in _divisors(gpus_per_node)]
    for nodes, count in shares + [(nodes, gpus_per_node) for nodes in range(2, most_nodes + 1)]:
        try:
            best = search(config, gpu, nodes, count, **flags)[0]
        except LayoutError:
            continue
        if best.fits:
            return best
    raise LayoutError(f"{config.name} does not fit on {most_nodes} nodes of {gpus_per_node} {get_gpu(gpu).name}.")


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _left(parts: dict[str, int]) -> int:
    return parts["kv_cache"] + parts["missing"]


def _reason(missing: int, blocks: int, needed: int, block_size: int, max_model_len: int) -> str:
    if missing > 0:
        return f"Weights and activations take {missing / GIB:.1f} GiB more than a GPU may use; use more GPUs."
    per_request = needed - SPARE_BLOCKS
    if blocks >= needed:
        return f"Room for {blocks / per_request:.2f} requests of {max_model_len:,} tokens at once."
    longest = max(0, blocks - SPARE_BLOCKS) * block_size
    return (
        f"A request of {max_model_len:,} tokens needs {per_request:,} blocks of {block_size}, and {blocks:,} are left; "
        f"lower max_model_len to {longest:,} or use more GPUs."
    )


if __name__ == "__main__":
    import sys

    from helpers.memory_command import main

    sys.exit(main())
