"""The memory lines of a vLLM server's log."""

import re
from dataclasses import dataclass

_NUMBER = r"([\d,]+)"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CACHE = re.compile(rf"(\w+) KV cache size: {_NUMBER} tokens")
_CONCURRENCY = re.compile(rf"Maximum concurrency for {_NUMBER} tokens per request: ([\d,.]+)x")
_AVAILABLE = re.compile(
    r"Available KV cache memory: (-?[\d.]+) GiB|(?:Explicitly|Auto) set \(([\d.]+)/[\d.]+\) GiB for KV cache"
)
_LOADING = re.compile(r"Model loading took ([\d.]+) Gi?B")
_GRAPHS = re.compile(r"Graph capturing finished in .*? took (-?[\d.]+) GiB")
_SETTING = r"Initializing a V1 LLM engine.*\b{}=(\w+)"


@dataclass(frozen=True)
class ServerLog:
    """What a server printed of its memory; None where its log has no such line.

    Tokens and concurrency are of one replica. `available_kv_gib` lists a figure for each line there is; a server prints
    the first rank's, or one a worker; on a CPU it is what was asked for. `device` is "GPU", "CPU" or another the log
    names; `tp`, `pp` and `kv_cache_dtype` are as the engine says when it starts, and the defaults where it does not.
    """

    device: str | None = None
    kv_cache_tokens: int | None = None
    max_model_len: int | None = None
    max_concurrency: float | None = None
    available_kv_gib: tuple[float, ...] = ()
    model_loading_gib: tuple[float, ...] = ()
    cuda_graphs_gib: tuple[float, ...] = ()
    tp: int = 1
    pp: int = 1
    kv_cache_dtype: str = "auto"


def read_log(text: str) -> ServerLog:
    """Reads the KV cache lines of vLLM before 0.32 (two lines) and since (one), and what loading and graphs took.

    Of several replicas' lines the smallest cache is taken, with the concurrency printed after it. Colours are ignored.
    """
    text = _ANSI.sub("", text)
    caches = list(_CACHE.finditer(text))
    smallest = min(caches, key=lambda match: _whole(match[2]), default=None)
    concurrency = _CONCURRENCY.search(text, smallest.end() if smallest else 0)
    return ServerLog(
        device=smallest[1] if smallest else None,
        kv_cache_tokens=_whole(smallest[2]) if smallest else None,
        max_model_len=_whole(concurrency[1]) if concurrency else None,
        max_concurrency=float(concurrency[2].replace(",", "")) if concurrency else None,
        available_kv_gib=tuple(float(a or b) for a, b in _AVAILABLE.findall(text)),
        model_loading_gib=tuple(float(size) for size in _LOADING.findall(text)),
        cuda_graphs_gib=tuple(float(size) for size in _GRAPHS.findall(text)),
        tp=int(_setting(text, "tensor_parallel_size", "1")),
        pp=int(_setting(text, "pipeline_parallel_size", "1")),
        kv_cache_dtype=_setting(text, "kv_cache_dtype", "auto"),
    )


def _setting(text: str, name: str, default: str) -> str:
    found = re.search(_SETTING.format(name), text)
    return found[1] if found else default


def _whole(digits: str) -> int:
    return int(digits.replace(",", ""))
