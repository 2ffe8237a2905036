"""What of a matrix cannot be measured on this machine, said before anything is started."""

from collections.abc import Sequence
from typing import Any

from helpers.activations import batch_limits
from helpers.bench_machine import gpu_of
from helpers.bench_matrix import Matrix, MatrixError, Row
from helpers.calibration import gpu_parts
from helpers.deployments import memory_flags
from helpers.fields import ConfigError, flag_number
from helpers.hardware import GIB, GPU
from helpers.kv_cache import kv_blocks
from helpers.layout import check_layout
from helpers.memory import plan
from helpers.models import ModelConfig
from helpers.partition import LayoutError

#: vLLM's flag that sets the cache's size by hand, so that servers can share a GPU.
CACHE_FLAG = "kv-cache-memory-bytes"
#: What vLLM's sums leave to the share it does not use: a CUDA context, and graphs where they are not set aside for.
#: Measured: ten servers of helpers/data/bench/h200x2-8b.toml took 1.8 GiB of a GPU each beyond those sums.
OUTSIDE = int(1.8 * GIB)


def refusals(matrix: Matrix, machine: dict[str, Any]) -> list[str]:
    """A sentence for each row that cannot run on a machine with these facts, and for rows that do not fit side by side."""
    said = []
    for row in matrix.rows:
        try:
            said += [f"Row {row.name}: {reason}" for reason in _faults(row, machine)]
        except (MatrixError, LayoutError, ConfigError) as error:
            said.append(f"Row {row.name}: {error}")
    gpu = gpu_of(machine)
    if not said and matrix.order == "together" and gpu:
        said += _side_by_side(matrix.rows, gpu)
    return said


def placed(row: Row, machine: dict[str, Any]) -> tuple[int, ...]:
    """The GPUs of a row: those it names, else the first; none on a CPU."""
    return (row.gpus or tuple(range(row.ranks))) if machine["gpus"] else ()


def gpu_bytes(row: Row, shape: ModelConfig, gpu: GPU) -> int:
    """Bytes a row's server takes of its fullest GPU: a share of it, or with a cache of a set size the sum of its parts.

    Raises LayoutError when vLLM cannot cut the model so, ConfigError for a flag whose number is none.
    """
    cache = row.flag(CACHE_FLAG)
    if cache is None:
        return int(memory_flags(row.flags).get("gpu_memory_utilization", 0.92) * gpu.memory_bytes)
    left = min(part["kv_cache"] + part["missing"] for part in _parts(row, shape, gpu))
    return gpu.memory_bytes - left + flag_number(f"--{CACHE_FLAG}", cache) + OUTSIDE


def _faults(row: Row, machine: dict[str, Any]) -> list[str]:
    if row.ranks % row.nodes:
        return [f"{row.ranks} ranks cannot be shared evenly by {row.nodes} nodes; change tp, pp, dp or nodes."]
    here = len(machine["gpus"]) or machine["cores"]
    what = "GPUs" if machine["gpus"] else "cores"
    if row.ranks > here:
        return [f"{row.layout} takes {row.ranks} {what} and this machine has {here}; use a smaller layout."]
    gpus = placed(row, machine)
    if gpus and (len(gpus) != row.ranks or len(set(gpus)) != row.ranks or max(gpus) >= here):
        return [f"gpus names {list(row.gpus)}; {row.layout} takes {row.ranks} different ones of 0 to {here - 1}."]
    most = memory_flags(row.flags).get("max_model_len") or row.config_fields.get("max_position_embeddings")
    longest = max(sum(pair) for pair in row.lengths)
    if isinstance(most, int) and longest > most:
        return [f"its longest request has {longest} tokens and the server takes {most}; raise --max-model-len."]
    shape, gpu = row.shape, gpu_of(machine)
    if shape is None:
        return []
    check_layout(shape, tp=row.tp, pp=row.pp, dp=row.dp, expert_parallel=row.flag("enable-expert-parallel") is not None)
    return _memory_faults(row, shape, gpu) if gpu else []


def _memory_faults(row: Row, shape: ModelConfig, gpu: GPU) -> list[str]:
    given = row.flag(CACHE_FLAG)
    if given is None:
        planned = plan(shape, gpu=gpu, tp=row.tp, pp=row.pp, dp=row.dp, **memory_flags(row.flags))
        return [] if planned.fits else [planned.reason]
    need = gpu_bytes(row, shape, gpu)
    if need > gpu.memory_bytes:
        return [
            f"with its cache it takes {need / GIB:.1f} GiB of a GPU's {gpu.memory_bytes / GIB:.1f}; lower --{CACHE_FLAG}."
        ]
    dtype = row.flag("kv-cache-dtype") or "auto"
    tokens = 16 * kv_blocks(shape, flag_number(f"--{CACHE_FLAG}", given), tp=row.tp, pp=row.pp, dtype=dtype)
    wanted = max(sum(pair) for pair in row.lengths) * max(row.concurrencies) // row.dp
    if tokens < wanted:
        return [f"its cache holds {tokens:,} tokens and its load needs {wanted:,} at once; raise --{CACHE_FLAG}."]
    return []


def _side_by_side(rows: Sequence[Row], gpu: GPU) -> list[str]:
    taken: dict[int, int] = {}
    for row in rows:
        for number in row.gpus or range(row.ranks):
            taken[number] = taken.get(number, 0) + (gpu_bytes(row, row.shape, gpu) if row.shape else 0)
    return [
        f"Side by side the rows take {size / GIB:.1f} GiB of GPU {number}, which has {gpu.memory_bytes / GIB:.1f}; "
        f"give each --{CACHE_FLAG}, or measure them in turn."
        for number, size in sorted(taken.items())
        if size > gpu.memory_bytes
    ]


def _parts(row: Row, shape: ModelConfig, gpu: GPU) -> list[dict[str, int]]:
    """The GPU's memory on each stage as if all of it could be used: what is left is for the cache."""
    flags = memory_flags(row.flags)
    tokens, seqs = batch_limits(gpu, flags.get("max_num_batched_tokens"), flags.get("max_num_seqs"))
    switches = {name: flags.get(name, False) for name in ("enforce_eager", "expert_parallel")}
    return gpu_parts(
        shape, gpu, tp=row.tp, pp=row.pp, dp=row.dp, gpu_memory_utilization=1.0,
        max_num_batched_tokens=tokens, max_num_seqs=seqs, **switches,
    )  # fmt: skip
