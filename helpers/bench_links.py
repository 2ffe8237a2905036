"""How fast this machine reads memory and how fast its GPUs talk, without vLLM:  python -m helpers.bench_links OUT.json

Reading: a large sum, and the matrix-vector products of one decoding step, as PyTorch does them. Talking: all-reduces of
several sizes through NCCL, over the links it finds and, as a stand-in for a slow network, over sockets alone.
On a machine without GPUs the same runs on its cores, through Gloo.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from helpers import bench_machine, keeper
from helpers.errors import WorkshopError
from helpers.models import ModelConfig, load
from helpers.partition import kv_heads_per_rank

#: Bytes of an all-reduce: a token of a model 4,096 wide is 8 KiB in BF16, a prompt of 8,192 of them 64 MiB.
SIZES = tuple(2**power for power in range(13, 28))
#: NCCL without NVLink, PCIe or shared memory: all that is left between two processes is a socket.
SOCKETS = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_NET": "Socket", "NCCL_SOCKET_IFNAME": "lo"}
LONG = 0.2  # seconds that a timing lasts at least


class LinkError(WorkshopError):
    """A measurement of links that did not come off."""


def matrices(config: ModelConfig, tp: int) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the matrices of a layer that one of tp GPUs multiplies with."""
    heads, width = config.num_attention_heads // tp, config.hidden_size
    qkv = (heads + 2 * kv_heads_per_rank(config, tp)) * config.head_dim
    mlp = config.intermediate_size // tp
    return {
        "qkv": (qkv, width),
        "o": (width, heads * config.head_dim),
        "gate_up": (2 * mlp, width),
        "down": (width, mlp),
    }


def matrix_seconds(found: dict[str, Any], config: ModelConfig) -> float:
    """Seconds of all matrix-vector products of one token, by the bytes a second that a file of this module holds.

    The head's are read at the speed of the fastest of a layer's.
    """
    speeds, tp = found["bytes_per_second"], found["ranks"]
    layer = sum(2 * outputs * inputs / speeds[name] for name, (outputs, inputs) in matrices(config, tp).items())
    head = 2 * config.vocab_size * config.hidden_size / tp / max(speeds[name] for name in matrices(config, tp))
    seconds: float = config.num_hidden_layers * layer + head
    return seconds


def reading(device: str, size: int, shapes: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Bytes a second read from memory: by a sum over `size` bytes, and by a product of one vector with each shape.

    `shapes` are (outputs, inputs) of matrices in BF16, by name.
    A product goes through as many different matrices as fill `size`, so that no cache holds the next one.
    """
    import torch

    numbers = torch.ones(size // 2, dtype=torch.bfloat16, device=device)
    found = {"sum": size / _seconds(numbers.sum, device)}
    del numbers
    for name, (outputs, inputs) in shapes.items():
        count = max(2, size // (2 * outputs * inputs))
        weights = [torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device) for _ in range(count)]
        vector = torch.randn(1, inputs, dtype=torch.bfloat16, device=device)

        def products(weights: list[torch.Tensor] = weights, vector: torch.Tensor = vector) -> None:
            for weight in weights:
                torch.nn.functional.linear(vector, weight)

        found[name] = 2 * outputs * inputs * count / _seconds(_graphed(products, device), device)
    return found


def talking(ranks: int, sizes: tuple[int, ...] = SIZES, environment: dict[str, str] | None = None) -> dict[str, float]:
    """Seconds of an all-reduce among so many ranks, by its bytes: the median of 20 timings.

    `environment` holds for the ranks, SOCKETS for one. Raises LinkError when they do not finish.
    """
    import torch
    from torch import multiprocessing as processes

    device = "cuda" if torch.cuda.device_count() >= ranks else "cpu"
    answers: SimpleQueue[dict[str, float]] = processes.get_context("spawn").SimpleQueue()
    before = os.environ.copy()
    os.environ.update(environment or {})
    try:
        given = (ranks, keeper.free_port(), device, sizes, answers)
        processes.spawn(_rank, given, nprocs=ranks)  # type: ignore[attr-defined, no-untyped-call]  # torch's own
    except Exception as error:
        raise LinkError(f"The ranks did not finish an all-reduce: {str(error).strip().splitlines()[-1]}") from None
    finally:
        os.environ.clear()
        os.environ.update(before)
    return answers.get()


def _rank(
    rank: int, ranks: int, port: int, device: str, sizes: tuple[int, ...], answers: SimpleQueue[dict[str, float]]
) -> None:
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    found = {}
    for size in sizes:
        numbers = torch.ones(size // 2, dtype=torch.bfloat16, device=device)
        times = []
        for _ in range(23):
            dist.barrier()
            times.append(_once(partial(dist.all_reduce, numbers), device, 10 if size < 2**23 else 2))
        found[str(size)] = sorted(times[3:])[10]
    if rank == 0:
        answers.put(found)
    dist.destroy_process_group()


def _graphed(work: Callable[[], object], device: str) -> Callable[[], object]:
    """The work as a CUDA graph, which takes the time of launching out of it; itself on a CPU."""
    import torch

    if not device.startswith("cuda"):
        return work
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _seconds(work: Callable[[], object], device: str) -> float:
    """Of one run of the work: the least of five timings, each long enough for a clock."""
    work()
    times = max(1, int(LONG / max(1e-6, _once(work, device, 1))))
    return min(_once(work, device, times) for _ in range(5))


def _once(work: Callable[[], object], device: str, times: int) -> float:
    import torch

    wait: Callable[[], None] = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - began) / times


def main(arguments: list[str] | None = None) -> int:
    """Runs the command: measures and writes a JSON file. Returns 0, or 2 with a sentence when that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m helpers.bench_links", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llama-3.1-70b", help="whose matrices are read (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="GPUs or cores that talk (default: %(default)s)")
    parser.add_argument("--gib", type=float, default=4, help="memory to read (default: %(default)s)")
    parser.add_argument("--largest", type=int, default=max(SIZES), help="bytes of the largest all-reduce")
    options = parser.parse_args(arguments)
    try:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        sizes = tuple(size for size in SIZES if size <= options.largest)
        shapes = matrices(load(options.model), options.ranks)
        found = {
            "machine": bench_machine.facts(with_vllm=False),
            "model": options.model,
            "ranks": options.ranks,
            "matrices": shapes,
        }
        found["bytes_per_second"] = reading(device, int(options.gib * 2**30), shapes)
        found["all_reduce_s"] = {"links": talking(options.ranks, sizes)}
        if device == "cuda":
            found["all_reduce_s"]["sockets"] = talking(options.ranks, sizes, SOCKETS)
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("bytes_per_second", "all_reduce_s")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
