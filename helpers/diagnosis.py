"""Where the time goes: what bounds a model's prefill and its steps of decode on a GPU, and what a running server says."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from openai import OpenAI

from helpers import metrics, roofline
from helpers.hardware import GPU, get_gpu
from helpers.kv_cache import kv_bytes_per_token
from helpers.models import ModelConfig, load
from helpers.weights import active_parameter_count, active_weight_bytes

PHASES = {"queue": "request_queue_time_seconds", "prefill": "request_prefill_time_seconds", "decode": "request_decode_time_seconds"}  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """Least seconds of a request's prefill and decode on a GPU, and of one decode step by what it waits for.

    `weights`, `cache` and `arithmetic` are seconds a step: reading the one, reading the other, computing.
    """

    prefill: float
    decode: float
    weights: float
    cache: float
    arithmetic: float

    @property
    def phase(self) -> str:
        """The longer of the two."""
        return "prefill" if self.prefill > self.decode else "decode"

    @property
    def bound(self) -> str:
        """What a decode step waits for: arithmetic, or reading of what is larger, weights or cache."""
        if self.arithmetic > self.weights + self.cache:
            return "arithmetic"
        return "reading weights" if self.weights >= self.cache else "reading the cache"


def diagnose(
    model: str | ModelConfig, gpu: str | GPU, *, prompt: int, output: int, batch: int = 1, tp: int = 1
) -> Diagnosis:
    """Bounds for `batch` requests at once of so many tokens each way, by helpers.roofline (see there for the formulas).

    A batch's prompts are read one after another; its steps hold half of the answer on average.
    Raises ConfigError for an unknown model, HardwareError for an unknown GPU.
    """
    config, gpu = load(model) if isinstance(model, str) else model, get_gpu(gpu)
    context = prompt + output // 2
    step = roofline.decode_seconds(config, gpu, tp=tp, batch=batch, context=context)
    return Diagnosis(
        prefill=batch * roofline.ttft_seconds(config, gpu, tp=tp, prompt_tokens=prompt),
        decode=output * step,
        weights=active_weight_bytes(config, batch) / tp / gpu.bandwidth,
        cache=batch * context * kv_bytes_per_token(config, tp=tp) / gpu.bandwidth,
        arithmetic=2 * active_parameter_count(config) * batch / (tp * gpu.flops(config.weight_bits)),
    )


def table(workloads: dict[str, dict[str, int]], model: str, gpu: str, tp: int = 1) -> pd.DataFrame:
    """A row for each workload {name: prompt, output, batch}: which phase takes longer, and what its steps wait for."""
    rows = {}
    for name, sizes in workloads.items():
        found = diagnose(model, gpu, tp=tp, **sizes)
        rows[name] = {
            **sizes,
            "share of prefill": f"{found.prefill / (found.prefill + found.decode):.0%}",
            "longer": found.phase,
            "a step waits for": found.bound,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def phases(client: OpenAI, since: pd.DataFrame | None = None) -> dict[str, float]:
    """Seconds that a server's finished requests spent in the queue, in prefill and in decode, all added up.

    `since`: an earlier metrics.read(client), to count only what came after.
    """
    now = metrics.read(client)
    return {
        phase: _sum(now, metric) - (0 if since is None else _sum(since, metric)) for phase, metric in PHASES.items()
    }


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Each phase's share of all seconds."""
    return {phase: value / sum(seconds.values()) for phase, value in seconds.items()}


def balance_batch(gpu: str | GPU, bytes_per_weight: Sequence[float] = (2.0,)) -> list[float]:
    """Requests at once from which a step is bound by arithmetic and no longer by reading weights, for each width.

    bytes / bandwidth = 2 FLOP x requests / (FLOP/s): requests = bytes x FLOP/s / (2 x bandwidth). Cache left out.
    """
    gpu = get_gpu(gpu)
    return [width * gpu.flops(round(8 * width)) / (2 * gpu.bandwidth) for width in bytes_per_weight]


def _sum(table: pd.DataFrame, metric: str) -> float:
    return float(table.loc[(table["metric"] == metric) & (table["part"] == "sum"), "value"].sum())
