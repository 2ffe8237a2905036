"""What a server's log says of its start: memory, cache, and where the seconds went."""

import re
from dataclasses import asdict
from typing import Any

from helpers.server_log import read_log

_SECONDS = {
    "loading_s": r"Model loading took [\d.]+ Gi?B(?: memory)? and ([\d.]+) s",
    "compile_s": r"torch\.compile took ([\d.]+) s in total",
    "graphs_s": r"Graph capturing finished in ([\d.]+) secs",
    "engine_s": r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s",
}
_BACKEND = re.compile(r"Using (\w+) (?:attention )?backend")
_KEPT = ("device", "kv_cache_tokens", "max_concurrency", "available_kv_gib", "model_loading_gib", "cuda_graphs_gib")


def figures(log: str) -> dict[str, Any]:
    """What a log says, without what it does not.

    Of the memory: device, kv_cache_tokens (of one replica), max_concurrency, and lists in GiB, a figure for each line
    there is, as in helpers.server_log. In seconds, the longest of the ranks: loading_s, compile_s, graphs_s (capturing
    CUDA graphs), engine_s (from the loaded model to the warm one). `attention` is the kernel's name.
    """
    memory = asdict(read_log(log))
    found = {name: memory[name] for name in _KEPT if memory[name] not in (None, ())}
    for name, pattern in _SECONDS.items():
        if seconds := [float(text) for text in re.findall(pattern, log)]:
            found[name] = max(seconds)
    if backend := _BACKEND.search(log):
        found["attention"] = backend[1]
    return found
